#!/bin/busybox sh
# The first process of a machine that tries a kernel: takes this machine's files, read-only and with what is written kept
# in memory, and becomes the work that is to be done there.
b=/bin/busybox
$b mount -t devtmpfs dev /dev
$b mount -t proc proc /proc
$b mount -t sysfs sys /sys
$b echo "@ alive" >/dev/ttyS1
for module in $($b cat /first-modules); do
    $b insmod "/lib/$module" || $b echo "no $module"
done
give_up() {
    $b echo "@ failed: $1" >/dev/ttyS1
    $b sleep 2
    $b poweroff -f
}
share="trans=virtio,version=9p2000.L,msize=512000,cache=loose,ro"
$b mkdir -p /host /changes /root
$b mount -t 9p -o "$share" host /host || give_up "this machine's files cannot be mounted"
$b mount -t tmpfs changes /changes
$b mkdir /changes/upper /changes/work
$b mount -t overlay -o lowerdir=/host,upperdir=/changes/upper,workdir=/changes/work files /root || give_up "no overlay"
for tree in dev proc sys; do
    $b mount --move "/$tree" "/root/$tree"
done
$b mkdir -p /root/lib/modules
$b mount -t 9p -o "$share" modules /root/lib/modules || give_up "the kernel's modules cannot be mounted"
exec $b switch_root /root /bin/sh %WORK%
