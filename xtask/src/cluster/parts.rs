//! What the cluster is made of: built once from Go modules and Debian's packages, kept by version.
//!
//! `xtask/cluster` holds one Go module that names every version; its checksums are in go.sum. What was built is kept
//! under the user's cache by a hash of that module, so a change of a version builds anew and everything else does not.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use serde_json::json;

use super::go;
use crate::build::root;
use crate::oci::{self, Entry, Image};
use crate::{ebpf, packages};

/// Of Kubernetes. Its modules in `xtask/cluster/go.mod` are v0.36.3.
pub const KUBERNETES: &str = "1.36.3";
/// The program of the conformance suite's pods, under the name that the suite asks for.
pub const ECHO: &str = "registry.k8s.io/gateway-api/echo-advanced:v1.5.1";
/// What holds a pod's namespaces.
pub const PAUSE: &str = "localhost/pause:1";

/// The programs of Kubernetes that are one binary.
const KUBE: [&str; 6] =
    ["kube-apiserver", "kube-controller-manager", "kube-scheduler", "kube-proxy", "kubelet", "kubectl"];

/// The parts of a cluster, built.
#[derive(Clone, Debug)]
pub struct Parts {
    home: PathBuf,
}

impl Parts {
    /// Builds what is missing: minutes the first time, nothing after that.
    pub fn build() -> Result<Self> {
        packages::for_cluster()?;
        let home = ebpf::cache_directory()?.join(format!("cluster-{KUBERNETES}-{}", sources_hash()?));
        let parts = Self { home };
        if !parts.home.join("complete").is_file() {
            eprintln!("building Kubernetes {KUBERNETES} and what goes with it (about six minutes, once)");
            parts.build_all()?;
            fs::write(parts.home.join("complete"), "")?;
        }
        Ok(parts)
    }

    /// A program by its name.
    pub fn program(&self, name: &str) -> PathBuf {
        self.programs().join(name)
    }

    /// The directory of the programs.
    pub fn programs(&self) -> PathBuf {
        self.home.join("bin")
    }

    /// The images that every node has.
    pub fn images(&self) -> Result<Vec<PathBuf>> {
        let directory = self.home.join("images");
        let entries = fs::read_dir(&directory).with_context(|| format!("reading {}", directory.display()))?;
        Ok(entries.flatten().map(|entry| entry.path()).collect())
    }

    /// The directory of Gateway API's CRDs, standard channel.
    pub fn gateway_api(&self) -> PathBuf {
        self.home.join("gateway-api")
    }

    fn build_all(&self) -> Result<()> {
        for part in ["bin", "images"] {
            fs::create_dir_all(self.home.join(part)).with_context(|| format!("making {}", self.home.display()))?;
        }
        let go = go::program()?;
        let plain = "-s -w".to_string();
        let build = |output: &str, package: &str, flags: &str| self.go_build(&go, &["build"], output, package, flags);
        build("pause", "./pause", &plain)?;
        build("coredns", "./coredns", &plain)?;
        build("echo-server", "istio.io/istio/pkg/test/echo/cmd/server", &plain)?;
        build("echo-client", "istio.io/istio/pkg/test/echo/cmd/client", &plain)?;
        self.go_build(&go, &["test", "-c"], "conformance", "./conformance", &plain)?;
        build("kube", "./kube", &version_flags())?;
        // Its own module: it wants other versions of the same libraries.
        self.go_build_in(&sources().join("helm"), &go, &["build"], "helm", "helm.sh/helm/v3/cmd/helm", &plain)?;
        for name in KUBE {
            let link = self.program(name);
            let _ = fs::remove_file(&link);
            symlink("kube", &link).with_context(|| format!("making {}", link.display()))?;
        }
        self.copy_gateway_api(&go)?;
        self.pack_images()
    }

    fn copy_gateway_api(&self, go: &Path) -> Result<()> {
        let module = ["list", "-m", "-f", "{{.Dir}}", "sigs.k8s.io/gateway-api"];
        let output = Command::new(go).args(module).current_dir(sources()).output().context("asking for Gateway API")?;
        let directory = Path::new(String::from_utf8_lossy(&output.stdout).trim()).join("config/crd/standard");
        fs::create_dir_all(self.gateway_api())?;
        for entry in fs::read_dir(&directory).with_context(|| format!("reading {}", directory.display()))? {
            let entry = entry?;
            fs::write(self.gateway_api().join(entry.file_name()), fs::read(entry.path())?)?;
        }
        Ok(())
    }

    fn go_build(&self, go: &Path, verb: &[&str], output: &str, package: &str, flags: &str) -> Result<()> {
        self.go_build_in(&sources(), go, verb, output, package, flags)
    }

    fn go_build_in(
        &self,
        module: &Path,
        go: &Path,
        verb: &[&str],
        output: &str,
        package: &str,
        flags: &str,
    ) -> Result<()> {
        let begun = Instant::now();
        let mut command = Command::new(go);
        command.current_dir(module).args(verb).arg("-o").arg(self.program(output));
        command.args(["-ldflags", flags, package]);
        // Less collecting of garbage: a quarter faster, and the machine has the memory.
        command.env("CGO_ENABLED", "0").env("GOGC", "400").env("GOFLAGS", "-trimpath -buildvcs=false");
        let status = command.status().with_context(|| format!("starting {}", go.display()))?;
        ensure!(status.success(), "building {package} in xtask/cluster: {status}");
        eprintln!("  {output}: {} s", begun.elapsed().as_secs());
        Ok(())
    }

    fn pack_images(&self) -> Result<()> {
        let image = |name: &str| self.home.join("images").join(name);
        let names = |name: &str| vec![name.to_string()];
        Image {
            names: names(PAUSE),
            config: json!({"Entrypoint": ["/pause"]}),
            entries: vec![Entry::File(self.program("pause"), "/pause".to_string())],
        }
        .write(&image("pause.tar"))?;
        Image {
            names: names("localhost/coredns:1"),
            config: json!({"Entrypoint": ["/coredns"]}),
            entries: vec![Entry::File(self.program("coredns"), "/coredns".to_string())],
        }
        .write(&image("coredns.tar"))?;
        let [certificate, key] = self.echo_certificate()?;
        Image {
            names: vec![ECHO.to_string(), "localhost/echo:1".to_string()],
            // The user, the place of the programs and the certificate are those of the image that the suite names.
            config: json!({
                "Entrypoint": ["/usr/local/bin/server"], "User": "1338", "Env": ["PATH=/usr/local/bin"],
            }),
            entries: vec![
                Entry::File(self.program("echo-server"), "/usr/local/bin/server".to_string()),
                Entry::File(self.program("echo-client"), "/usr/local/bin/client".to_string()),
                Entry::Text(certificate, "/cert.crt".to_string()),
                Entry::Text(key, "/cert.key".to_string()),
                Entry::Scratch("/tmp".to_string()),
            ],
        }
        .write(&image("echo.tar"))
    }

    fn echo_certificate(&self) -> Result<[String; 2]> {
        let place = tempfile::tempdir()?;
        let [certificate, key] = ["cert.crt", "cert.key"].map(|name| place.path().join(name));
        let mut openssl = Command::new("openssl");
        openssl.args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]);
        openssl.args(["-days", "3650", "-subj", "/CN=echo", "-keyout"]).arg(&key).arg("-out").arg(&certificate);
        let output = openssl.output().context("starting openssl")?;
        ensure!(output.status.success(), "openssl: {}", String::from_utf8_lossy(&output.stderr).trim());
        Ok([fs::read_to_string(certificate)?, fs::read_to_string(key)?])
    }
}

/// Where the Go module of all parts is.
fn sources() -> PathBuf {
    root().join("xtask/cluster")
}

/// The parts of Kubernetes misbehave without a version.
fn version_flags() -> String {
    let minor = KUBERNETES.split('.').nth(1).unwrap_or_default();
    let mut flags = "-s -w".to_string();
    for package in ["k8s.io/component-base/version", "k8s.io/client-go/pkg/version"] {
        let values = [
            ("gitVersion", format!("v{KUBERNETES}")),
            ("gitMajor", "1".to_string()),
            ("gitMinor", minor.to_string()),
            ("gitCommit", "0".repeat(40)),
            ("gitTreeState", "clean".to_string()),
            ("buildDate", "2026-01-01T00:00:00Z".to_string()),
        ];
        for (name, value) in values {
            flags.push_str(&format!(" -X {package}.{name}={value}"));
        }
    }
    flags
}

/// What tells one set of parts from another.
fn sources_hash() -> Result<String> {
    let mut files = Vec::new();
    collect(&sources(), &mut files)?;
    files.sort();
    let mut all = Vec::new();
    // How images are packed is a part, too.
    for file in files.iter().chain([&root().join("xtask/src/cluster/parts.rs"), &root().join("xtask/src/oci.rs")]) {
        all.extend(fs::read(file).with_context(|| format!("reading {}", file.display()))?);
    }
    let digest = oci::digest(&all);
    Ok(digest.trim_start_matches("sha256:").chars().take(12).collect())
}

fn collect(directory: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    for entry in fs::read_dir(directory).with_context(|| format!("reading {}", directory.display()))? {
        let path = entry?.path();
        if path.is_dir() {
            collect(&path, files)?;
        } else if path.extension().is_some_and(|ending| ending == "go" || ending == "mod" || ending == "sum") {
            files.push(path);
        }
    }
    Ok(())
}
