# What is done in a machine that tries a kernel. Each step begins and ends with a line of its own on the second port.
exec >/dev/ttyS1 2>&1 </dev/null
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root MESH_REQUIRE_KERNEL=1
export MESH_TEST_AGENT='%AGENT%'
mount -t cgroup2 cgroup2 /sys/fs/cgroup
mount -t bpf bpf /sys/fs/bpf
mkdir -p /dev/pts /dev/shm /sys/fs/cgroup/check/kubepods
mount -t devpts pts /dev/pts
mount -t tmpfs shm /dev/shm
mount -t tmpfs run /run
ip link set lo up
step() {
    echo "@ begin $1"
    shift
    "$@"
    echo "@ end $?"
}
cd '%ROOT%/mesh-agent'
step check "$MESH_TEST_AGENT" check --load --json --cgroup-root /sys/fs/cgroup/check
cd '%ROOT%/xtask'
%STEPS%
echo "@ done"
echo o >/proc/sysrq-trigger
sleep 60
