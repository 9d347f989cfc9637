//! What the demo and the tests need from the distribution, and how to get it.
//!
//! On Debian and Ubuntu what is missing is installed, as root and after saying so; elsewhere the packages' names are
//! printed. Only what is missing: a machine that has everything is never touched.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

/// Something that has to be there.
struct Need {
    /// How to tell that it is there.
    check: Check,
    /// What for, for the reader.
    purpose: &'static str,
    debian: &'static str,
    fedora: &'static str,
    arch: &'static str,
    alpine: &'static str,
}

enum Check {
    Program(&'static str),
    /// A file that is in no PATH.
    File(&'static str),
    /// `/usr/bin/python3 -c import …`
    PythonModule(&'static str),
    /// PostgreSQL's server, which is in no PATH.
    Postgres,
}

const BUILD: &[Need] = &[
    Need {
        check: Check::Program("cc"),
        purpose: "builds the C part of the TLS library",
        debian: "gcc libc6-dev",
        fedora: "gcc glibc-devel glibc-static",
        arch: "gcc",
        alpine: "gcc musl-dev",
    },
    Need {
        check: Check::Program("make"),
        purpose: "builds the C part of the TLS library",
        debian: "make",
        fedora: "make",
        arch: "make",
        alpine: "make",
    },
    Need {
        check: Check::Program("cmake"),
        purpose: "builds the C part of the TLS library",
        debian: "cmake",
        fedora: "cmake",
        arch: "cmake",
        alpine: "cmake",
    },
];

/// Beside [`BUILD`].
const FUZZING: &[Need] = &[same(Check::Program("c++"), "builds libFuzzer", "g++", ["gcc-c++", "gcc", "g++"])];

const TESTBED: &[Need] = &[
    same(Check::Program("ip"), "makes network links", "iproute2", ["iproute", "iproute2", "iproute2"]),
    same(Check::Program("nginx"), "is the web server in a pod", "nginx-light", ["nginx", "nginx", "nginx"]),
    same(
        Check::Program("redis-server"),
        "is the binary protocol in a pod",
        "redis-server",
        ["redis", "redis", "redis"],
    ),
    same(Check::Program("curl"), "is the client in a pod", "curl", ["curl", "curl", "curl"]),
    same(Check::Program("iperf3"), "measures throughput", "iperf3", ["iperf3", "iperf3", "iperf3"]),
    same(Check::Program("wrk"), "measures latency", "wrk", ["wrk", "wrk", "wrk"]),
    same(Check::Program("openssl"), "makes a server's certificate", "openssl", ["openssl"; 3]),
    same(Check::Program("h2load"), "is the HTTP/2 load", "nghttp2-client", ["nghttp2", "libnghttp2", "nghttp2"]),
    same(
        Check::PythonModule("websockets"),
        "is the WebSocket server and client in a pod",
        "python3 python3-websockets",
        ["python3-websockets", "python-websockets", "py3-websockets"],
    ),
    same(Check::Program("nft"), "loses a pod's first packets", "nftables", ["nftables"; 3]),
    same(
        Check::Program("prometheus"),
        "asks the agents",
        "prometheus",
        ["golang-github-prometheus", "prometheus", "prometheus"],
    ),
    same(Check::Program("tcpdump"), "is the witness on the wire", "tcpdump", ["tcpdump", "tcpdump", "tcpdump"]),
    same(Check::Program("bpftool"), "counts programs and maps", "bpftool", ["bpftool", "bpf", "bpftool"]),
    Need {
        check: Check::Postgres,
        purpose: "is the database in a pod",
        debian: "postgresql",
        fedora: "postgresql-server postgresql-contrib",
        arch: "postgresql",
        alpine: "postgresql postgresql-contrib",
    },
    same(Check::Program("psql"), "is the database's client", "postgresql-client", ["postgresql"; 3]),
    same(Check::Program("setpriv"), "ends root's rights", "util-linux", ["util-linux", "util-linux", "setpriv"]),
    same(
        Check::PythonModule("grpc"),
        "is the gRPC server and client in a pod",
        "python3 python3-grpcio",
        ["python3-grpcio", "python-grpcio", "py3-grpcio"],
    ),
];

/// Beside [`TESTBED`].
const BENCH: &[Need] = &[
    same(Check::Program("h2load"), "makes HTTP/2 load", "nghttp2-client", ["nghttp2"; 3]),
    same(Check::Program("nghttpd"), "is the server of gRPC's trailers", "nghttp2-server", ["nghttp2"; 3]),
];

/// What `cargo xtask bench --peer` needs besides.
const PEER: &[Need] = &[
    same(Check::Program("haproxy"), "is the peer", "haproxy", ["haproxy"; 3]),
    same(Check::Program("openssl"), "makes the peer's certificates", "openssl", ["openssl"; 3]),
];

/// What `cargo xtask cluster` needs besides, on Debian and Ubuntu.
const CLUSTER: &[Need] = &[
    same(Check::Program("ip"), "makes network links", "iproute2", ["iproute", "iproute2", "iproute2"]),
    same(Check::Program("openssl"), "makes the cluster's certificates", "openssl", ["openssl"; 3]),
    same(Check::Program("etcd"), "is the cluster's store", "etcd-server", ["etcd"; 3]),
    same(Check::Program("containerd"), "runs containers", "containerd", ["containerd"; 3]),
    same(Check::Program("runc"), "starts containers", "runc", ["runc"; 3]),
    same(
        Check::File("/usr/lib/cni/ptp"),
        "gives pods their network",
        "containernetworking-plugins",
        ["containernetworking-plugins", "cni-plugins", "cni-plugins"],
    ),
    same(
        Check::File("/usr/bin/busybox"),
        "is the shell in a pod",
        "busybox-static",
        ["busybox", "busybox", "busybox-static"],
    ),
    same(
        Check::Program("iptables"),
        "is what kube-proxy and a plugin call",
        "iptables",
        ["iptables-nft", "iptables", "iptables"],
    ),
    same(Check::Program("nft"), "is what kube-proxy calls", "nftables", ["nftables"; 3]),
    same(Check::Program("conntrack"), "is what kube-proxy calls", "conntrack", ["conntrack-tools"; 3]),
    same(Check::Program("nsenter"), "enters nodes", "util-linux", ["util-linux", "util-linux", "util-linux-misc"]),
];

/// What `cargo xtask kernels` needs besides, on Debian.
const KERNELS: &[Need] = &[
    same(
        Check::Program("qemu-system-x86_64"),
        "boots other kernels",
        "qemu-system-x86",
        ["qemu-system-x86", "qemu-system-x86", "qemu-system-x86_64"],
    ),
    same(Check::Program("depmod"), "finds a kernel's modules", "kmod", ["kmod"; 3]),
    same(Check::Program("cpio"), "packs a machine's first files", "cpio", ["cpio"; 3]),
    same(Check::Program("xz"), "unpacks modules", "xz-utils", ["xz"; 3]),
    same(
        Check::File("/usr/bin/busybox"),
        "is a machine's first shell",
        "busybox-static",
        ["busybox", "busybox", "busybox-static"],
    ),
    same(Check::Program("dpkg-deb"), "unpacks Debian's kernels", "dpkg", ["dpkg"; 3]),
    same(Check::Program("apt-get"), "fetches Debian's kernels", "apt", ["apt"; 3]),
];

/// What builds the page of the live map.
const UI: &[Need] = &[
    same(Check::Program("node"), "builds the page of the live map", "nodejs", ["nodejs"; 3]),
    same(Check::Program("npm"), "installs what that needs", "npm", ["npm"; 3]),
];

/// What looks at the page besides.
const BROWSER: &[Need] = &[
    same(Check::Program("chromium"), "is the browser that looks at the map", "chromium", ["chromium"; 3]),
    same(
        Check::File("/usr/share/fonts/truetype/dejavu/DejaVuSans.ttf"),
        "is what the browser writes with",
        "fonts-dejavu-core",
        ["dejavu-sans-fonts", "ttf-dejavu", "font-dejavu"],
    ),
];

const fn same(check: Check, purpose: &'static str, debian: &'static str, others: [&'static str; 3]) -> Need {
    let [fedora, arch, alpine] = others;
    Need { check, purpose, debian, fedora, arch, alpine }
}

/// Makes sure that the agent can be built.
pub fn for_build() -> Result<()> {
    ensure_there(BUILD)
}

/// Makes sure that the fuzz targets can be built.
pub fn for_fuzzing() -> Result<()> {
    for_build()?;
    ensure_there(FUZZING)
}

/// Makes sure that the testbed can run.
pub fn for_testbed() -> Result<()> {
    ensure_there(TESTBED)
}

/// Makes sure that benchmarks can run.
pub fn for_bench() -> Result<()> {
    for_testbed()?;
    ensure_there(BENCH)
}

/// Makes sure that the other pair of proxies can run beside them.
pub fn for_peer() -> Result<()> {
    ensure_there(PEER)
}

/// Makes sure that a cluster can run.
pub fn for_cluster() -> Result<()> {
    ensure_there(CLUSTER)?;
    // For the pods.
    ensure_there(TESTBED)
}

/// Makes sure that other kernels can be had and booted.
pub fn for_kernels() -> Result<()> {
    ensure_there(KERNELS)
}

/// Makes sure that the page of the live map can be built.
pub fn for_ui() -> Result<()> {
    ensure_there(UI)
}

/// Makes sure that a browser can look at it.
pub fn for_browser() -> Result<()> {
    for_ui()?;
    ensure_there(BROWSER)
}

/// What a browser's test lacks on this machine, in words; empty if nothing.
pub fn missing_for_browser() -> Vec<String> {
    [missing_of(UI), missing_of(BROWSER)].concat()
}

/// What a cluster lacks on this machine, in words; empty if nothing.
pub fn missing_for_cluster() -> Vec<String> {
    missing_of(CLUSTER)
}

/// What the testbed lacks on this machine, in words; empty if nothing.
pub fn missing_for_testbed() -> Vec<String> {
    missing_of(TESTBED)
}

fn missing_of(needs: &[Need]) -> Vec<String> {
    let missing = needs.iter().filter(|need| !need.is_there());
    missing.map(|need| format!("{}, which {}", need.name(), need.purpose)).collect()
}

impl Need {
    fn is_there(&self) -> bool {
        match self.check {
            Check::Program(name) => find_program(name),
            Check::File(path) => Path::new(path).is_file(),
            Check::Postgres => crate::testbed::postgres_programs().is_ok(),
            Check::PythonModule(module) => {
                let mut python = Command::new("/usr/bin/python3");
                let found = python.args(["-c", &format!("import {module}")]).output();
                found.is_ok_and(|output| output.status.success())
            }
        }
    }

    fn name(&self) -> String {
        match self.check {
            Check::Program(name) => name.to_string(),
            Check::File(path) => path.to_string(),
            Check::Postgres => "postgres".to_string(),
            Check::PythonModule(module) => format!("the Python module {module}"),
        }
    }
}

fn find_program(name: &str) -> bool {
    ["/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin"]
        .iter()
        .any(|dir| Path::new(dir).join(name).is_file())
}

fn ensure_there(needs: &[Need]) -> Result<()> {
    let missing: Vec<&Need> = needs.iter().filter(|need| !need.is_there()).collect();
    if missing.is_empty() {
        return Ok(());
    }
    for need in &missing {
        eprintln!("missing: {}, which {}", need.name(), need.purpose);
    }
    let has_apt = Path::new("/usr/bin/apt-get").exists();
    if !has_apt || !rustix::process::geteuid().is_root() {
        bail!("{}", instructions(&missing));
    }
    let packages = names(&missing, |need| need.debian);
    install(&packages)?;
    for need in missing {
        ensure!(need.is_there(), "{} is still missing after installing {}", need.name(), need.debian);
    }
    Ok(())
}

/// Installs Debian packages; says so first. Nothing that they bring is started as a service.
pub fn install(packages: &[&str]) -> Result<()> {
    eprintln!("installing with apt-get: {}", packages.join(" "));
    let _no_services = NoServices::declare()?;
    let is_done = insist(|| apt(&["install", "--yes", "--no-install-recommends"], packages))?;
    ensure!(is_done, "apt-get could not install {}", packages.join(" "));
    Ok(())
}

/// The lists may be absent, as in a container image, or too old to match the mirror: then once more with new ones. A mirror may
/// be out of reach for a moment as well, or somebody else may hold the lists' lock: so often, with a pause between.
const TRIES: u32 = 4;
const PAUSE: Duration = Duration::from_secs(10);

fn insist(mut attempt: impl FnMut() -> Result<bool>) -> Result<bool> {
    for number in 1..TRIES {
        if attempt()? {
            return Ok(true);
        }
        // At first the lists alone are to blame.
        std::thread::sleep(PAUSE * (number - 1));
        apt(&["update"], &[])?;
    }
    attempt()
}

/// The package that another one depends on and whose name begins so.
pub fn dependency(package: &str, prefix: &str) -> Result<String> {
    let ask = || -> Result<Option<String>> {
        let output = Command::new("apt-cache").args(["depends", package]).output().context("starting apt-cache")?;
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        let mut depends = said.lines().filter_map(|line| line.trim().strip_prefix("Depends: "));
        Ok(depends.find(|name| name.starts_with(prefix)).map(str::to_string))
    };
    if let Some(found) = ask()? {
        return Ok(found);
    }
    apt(&["update"], &[])?;
    ask()?.with_context(|| format!("apt knows no package {package}: it is one of Debian 12's"))
}

/// Fetches a package into a directory, and says where it is; installs nothing.
pub fn download(package: &str, into: &Path) -> Result<PathBuf> {
    // Who is root fetches as root: the user for that may not write into the directory.
    let is_done = insist(|| apt_in(into, &["-o", "APT::Sandbox::User=root", "download"], &[package]))?;
    ensure!(is_done, "apt-get could not download {package}");
    let mut files = fs::read_dir(into)?.flatten().map(|entry| entry.path());
    files.find(|path| path.extension().is_some_and(|ending| ending == "deb")).context("apt-get left no package")
}

fn apt(verb: &[&str], packages: &[&str]) -> Result<bool> {
    apt_in(Path::new("/"), verb, packages)
}

fn apt_in(directory: &Path, verb: &[&str], packages: &[&str]) -> Result<bool> {
    let mut command = Command::new("apt-get");
    command.args(["-q", "-o", "DPkg::Lock::Timeout=300", "-o", "Acquire::Retries=5"]).args(verb).args(packages);
    command.current_dir(directory).env("DEBIAN_FRONTEND", "noninteractive").stdout(std::io::stderr());
    Ok(command.status().context("starting apt-get")?.success())
}

/// Debian's switch against starting services at installation, for as long as this lives. A policy that the machine
/// already has is left alone.
struct NoServices {
    ours: bool,
}

const POLICY: &str = "/usr/sbin/policy-rc.d";

impl NoServices {
    fn declare() -> Result<Self> {
        use std::os::unix::fs::PermissionsExt;
        if Path::new(POLICY).exists() {
            return Ok(Self { ours: false });
        }
        // 101: forbidden by policy.
        fs::write(POLICY, "#!/bin/sh\nexit 101\n").with_context(|| format!("writing {POLICY}"))?;
        fs::set_permissions(POLICY, fs::Permissions::from_mode(0o755))?;
        Ok(Self { ours: true })
    }
}

impl Drop for NoServices {
    fn drop(&mut self) {
        if self.ours {
            let _ = fs::remove_file(POLICY);
        }
    }
}

fn instructions(missing: &[&Need]) -> String {
    let lines = [
        ("Debian, Ubuntu", "apt-get install --no-install-recommends", names(missing, |need| need.debian)),
        ("Fedora", "dnf install", names(missing, |need| need.fedora)),
        ("Arch", "pacman -S", names(missing, |need| need.arch)),
        ("Alpine", "apk add", names(missing, |need| need.alpine)),
    ];
    let lines = lines.map(|(system, verb, packages)| format!("  {system:<15} {verb} {}", packages.join(" ")));
    format!("install what is missing, as root:\n{}", lines.join("\n"))
}

fn names<'a>(missing: &[&'a Need], of: impl Fn(&'a Need) -> &'static str) -> Vec<&'static str> {
    let mut names: Vec<&str> = missing.iter().flat_map(|need| of(need).split(' ')).collect();
    names.sort_unstable();
    names.dedup();
    names
}
