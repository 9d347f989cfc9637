//! A node from inside: process 1 of namespaces of its own.
//!
//! Outside, `xtask __cluster-node` joins the node's cgroups of version 1 and becomes `unshare`, which makes the
//! namespaces and calls it once more. Inside, it mounts what a machine has, keeps what kubelet and containerd write from
//! the real one, starts both, and reaps.

use std::ffi::CString;
use std::fs::{self, File};
use std::net::Ipv4Addr;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_bind, mount_change};
use rustix::process::{WaitOptions, wait};
use rustix::system::sethostname;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::layout;
use crate::testbed::{cgroup, eventually};

/// Everything that a node has to know.
#[derive(Debug, Deserialize, Serialize)]
pub struct NodeSpec {
    pub(super) name: String,
    pub(super) ip: Ipv4Addr,
    /// What outlives a reboot.
    pub(super) directory: PathBuf,
    pub(super) pki: PathBuf,
    pub(super) programs: PathBuf,
    /// Archives that containerd imports before kubelet asks for them.
    pub(super) images: Vec<PathBuf>,
    pub(super) dns: String,
    pub(super) pods: String,
    pub(super) proxy_mode: String,
    /// Mount points on the machine.
    pub(super) v1_hierarchies: Vec<PathBuf>,
}

/// Become a node of the cluster
#[derive(clap::Args)]
pub struct Init {
    #[arg(long)]
    spec: PathBuf,
    #[arg(long)]
    inside: bool,
}

/// Directories that programs of the distribution look into and that a node writes to.
const OVERLAID: [&str; 4] = ["/var/lib", "/var/log", "/etc", "/opt"];
/// Directories in them that cannot be on an overlay, or that are looked at from outside.
const BOUND: [&str; 8] = [
    "/var/lib/kubelet",
    "/var/lib/containerd",
    "/var/lib/cni",
    "/etc/cni/net.d",
    "/var/log/pods",
    "/var/log/containers",
    "/opt/cni/bin",
    "/var/lib/kube-proxy",
];
/// The plugins of the distribution that the pods' network is made by.
const PLUGINS: [&str; 5] = ["bridge", "ptp", "host-local", "loopback", "portmap"];
/// Kubelet writes these of the whole machine unless it finds them as it wants them.
const PANICS: [(&str, &str); 2] = [("panic", "10"), ("panic_on_oops", "1")];

impl Init {
    /// Returns only if something failed.
    pub fn run(self) -> Result<()> {
        let text = fs::read_to_string(&self.spec).with_context(|| format!("reading {}", self.spec.display()))?;
        let spec: NodeSpec = serde_json::from_str(&text)?;
        if !self.inside {
            return spec.enter(&self.spec);
        }
        spec.mounts()?;
        spec.start()?;
        loop {
            // Orphans of containers come here.
            if wait(WaitOptions::empty()).is_err() {
                std::thread::sleep(Duration::from_millis(100));
            }
        }
    }
}

impl NodeSpec {
    fn enter(&self, spec: &Path) -> Result<()> {
        for hierarchy in &self.v1_hierarchies {
            cgroup::enter(&layout::part_of(hierarchy).join(&self.name))?;
        }
        let own = std::env::current_exe()?;
        let mut unshare = Command::new("unshare");
        unshare.args(["--mount", "--uts", "--cgroup", "--pid", "--fork", "--mount-proc"]);
        unshare.arg(own).args(["__cluster-node", "--inside", "--spec"]).arg(spec);
        Err(unshare.exec()).context("starting unshare")
    }

    fn mounts(&self) -> Result<()> {
        sethostname(self.name.as_bytes()).context("setting the host name")?;
        let none = MountFlags::empty();
        mount_kind("sysfs", "/sys", none, "")?;
        if self.v1_hierarchies.is_empty() {
            mount_kind("cgroup2", "/sys/fs/cgroup", none, "")?;
        } else {
            mount_kind("tmpfs", "/sys/fs/cgroup", none, "mode=755")?;
            for hierarchy in &self.v1_hierarchies {
                let name = hierarchy.file_name().and_then(|name| name.to_str()).context("a hierarchy has a name")?;
                let options = if name == "systemd" { "none,name=systemd" } else { name };
                mount_kind("cgroup", &format!("/sys/fs/cgroup/{name}"), none, options)?;
            }
            mount_kind("cgroup2", "/sys/fs/cgroup/unified", none, "")?;
        }
        mount_kind("bpf", "/sys/fs/bpf", none, "")?;
        for (kind, point) in [
            ("tracefs", "/sys/kernel/tracing"),
            ("debugfs", "/sys/kernel/debug"),
            ("securityfs", "/sys/kernel/security"),
        ] {
            // Not every kernel has them, and nothing here needs them.
            let _ = mount_kind(kind, point, none, "");
        }
        mount_kind("tmpfs", "/run", none, "mode=755")?;
        for directory in ["/run/lock", "/run/netns"] {
            fs::create_dir_all(directory)?;
        }
        for lower in OVERLAID {
            self.overlay(lower)?;
        }
        for point in BOUND {
            let kept = self.directory.join("fs").join(point.trim_start_matches('/'));
            fs::create_dir_all(&kept)?;
            fs::create_dir_all(point)?;
            mount_bind(&kept, point).with_context(|| format!("binding {} over {point}", kept.display()))?;
        }
        for plugin in PLUGINS {
            // Copies: an installer that writes here must not write to the machine.
            let copy = Path::new("/opt/cni/bin").join(plugin);
            fs::copy(Path::new("/usr/lib/cni").join(plugin), &copy)
                .with_context(|| format!("copying {}", copy.display()))?;
        }
        mount_change("/", MountPropagationFlags::SHARED | MountPropagationFlags::REC)?;
        for (name, value) in PANICS {
            let file = self.directory.join(name);
            fs::write(&file, value)?;
            mount_bind(&file, Path::new("/proc/sys/kernel").join(name))?;
        }
        for (name, value) in
            [("ipv4/ip_forward", "1"), ("ipv4/conf/all/rp_filter", "0"), ("ipv4/conf/default/rp_filter", "0")]
        {
            fs::write(Path::new("/proc/sys/net").join(name), value).with_context(|| format!("setting {name}"))?;
        }
        Ok(())
    }

    fn overlay(&self, lower: &str) -> Result<()> {
        let place = self.directory.join("overlay").join(lower.trim_start_matches('/'));
        let (upper, scratch) = (place.join("upper"), place.join("work"));
        fs::create_dir_all(&upper)?;
        fs::create_dir_all(&scratch)?;
        let options = format!("lowerdir={lower},upperdir={},workdir={}", upper.display(), scratch.display());
        mount_kind("overlay", lower, MountFlags::empty(), &options)
    }

    fn start(&self) -> Result<()> {
        self.configure()?;
        let file = |name: &str| self.directory.join(name).display().to_string();
        let program = |name: &str| self.programs.join(name).display().to_string();
        self.daemon("containerd", &["containerd".to_string(), "-c".to_string(), file("containerd.toml")])?;
        eventually(Duration::from_secs(60), "containerd to answer", || {
            let answer = Command::new("ctr").arg("version").output()?;
            Ok(answer.status.success().then_some(()))
        })?;
        for archive in &self.images {
            let output = Command::new("ctr").args(["-n", "k8s.io", "images", "import"]).arg(archive).output()?;
            if !output.status.success() {
                bail!("importing {}: {}", archive.display(), String::from_utf8_lossy(&output.stderr).trim());
            }
        }
        let kubeconfig = self.pki.join(format!("{}.kubeconfig", self.name)).display().to_string();
        self.daemon(
            "kubelet",
            &[
                program("kubelet"),
                format!("--config={}", file("kubelet.json")),
                format!("--kubeconfig={kubeconfig}"),
                format!("--hostname-override={}", self.name),
                format!("--node-ip={}", self.ip),
                "--root-dir=/var/lib/kubelet".to_string(),
                "--v=2".to_string(),
            ],
        )?;
        self.daemon(
            "kube-proxy",
            &[program("kube-proxy"), format!("--config={}", file("kube-proxy.json")), "--v=2".to_string()],
        )
    }

    /// A process of the node in a cgroup of its own, as a service manager starts it.
    fn daemon(&self, name: &str, argv: &[String]) -> Result<()> {
        let log = self.directory.join(format!("{name}.log"));
        let log = File::options().create(true).append(true).open(&log)?;
        let (program, arguments) = argv.split_first().context("no program given")?;
        let mut command = Command::new(program);
        command.args(arguments).current_dir("/").stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        command.env("PATH", format!("/usr/sbin:/usr/bin:/sbin:/bin:{}", self.programs.display()));
        let child = command.spawn().with_context(|| format!("starting {program}"))?;
        let mount = cgroup::mount_point_of_namespace()?;
        let own = mount.join("system").join(name);
        fs::create_dir_all(&own)?;
        fs::write(own.join("cgroup.procs"), child.id().to_string())
            .with_context(|| format!("putting {name} into {}", own.display()))
    }

    fn configure(&self) -> Result<()> {
        let file = |name: &str| self.directory.join(name);
        fs::write(file("containerd.toml"), CONTAINERD)?;
        // Kubelet copies the machine's into pods otherwise.
        fs::write(file("resolv.conf"), "")?;
        let pki = |name: &str| self.pki.join(name);
        let kubelet = json!({
            "apiVersion": "kubelet.config.k8s.io/v1beta1", "kind": "KubeletConfiguration",
            "authentication": {
                "anonymous": {"enabled": false}, "webhook": {"enabled": true},
                "x509": {"clientCAFile": pki("ca.crt")},
            },
            "authorization": {"mode": "Webhook"},
            "tlsCertFile": pki(&format!("{}.crt", self.name)),
            "tlsPrivateKeyFile": pki(&format!("{}.key", self.name)),
            "failCgroupV1": false, "cgroupDriver": "cgroupfs", "cgroupRoot": "/", "cgroupsPerQOS": true,
            "enforceNodeAllocatable": ["pods"],
            "containerRuntimeEndpoint": "unix:///run/containerd/containerd.sock",
            "clusterDNS": [self.dns], "clusterDomain": "cluster.local", "resolvConf": file("resolv.conf"),
            "failSwapOn": false, "oomScoreAdj": 0, "protectKernelDefaults": false, "maxPods": 60,
            "evictionHard": {
                "memory.available": "0%", "nodefs.available": "0%", "imagefs.available": "0%",
                "nodefs.inodesFree": "0%", "imagefs.inodesFree": "0%",
            },
            "imageGCHighThresholdPercent": 100, "nodeStatusUpdateFrequency": "5s", "syncFrequency": "20s",
            "registerNode": true, "volumePluginDir": "/var/lib/kubelet/volumeplugins",
            // A ConfigMap that changed is seen by its pods at once.
            "configMapAndSecretChangeDetectionStrategy": "Watch",
        });
        fs::write(file("kubelet.json"), kubelet.to_string())?;
        let proxy = json!({
            "apiVersion": "kubeproxy.config.k8s.io/v1alpha1", "kind": "KubeProxyConfiguration",
            "mode": self.proxy_mode, "clusterCIDR": self.pods, "hostnameOverride": self.name,
            "clientConnection": {"kubeconfig": pki("proxy.kubeconfig")},
            // Of the whole machine otherwise.
            "conntrack": {
                "maxPerCore": 0, "min": 0, "tcpEstablishedTimeout": "0s", "tcpCloseWaitTimeout": "0s",
            },
        });
        fs::write(file("kube-proxy.json"), proxy.to_string())?;
        Ok(())
    }
}

fn mount_kind(kind: &str, point: &str, flags: MountFlags, options: &str) -> Result<()> {
    fs::create_dir_all(point).with_context(|| format!("making {point}"))?;
    let options = CString::new(options)?;
    mount(kind, point, kind, flags, options.as_c_str()).with_context(|| format!("mounting {kind} on {point}"))
}

const CONTAINERD: &str = r#"version = 2
root = "/var/lib/containerd"
state = "/run/containerd"
disabled_plugins = ["io.containerd.internal.v1.opt", "io.containerd.tracing.processor.v1.otlp"]
[grpc]
  address = "/run/containerd/containerd.sock"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "localhost/pause:1"
  restrict_oom_score_adj = true
  disable_apparmor = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/opt/cni/bin"
    conf_dir = "/etc/cni/net.d"
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "overlayfs"
    default_runtime_name = "runc"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
      [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
        BinaryName = "/usr/sbin/runc"
        SystemdCgroup = false
"#;
