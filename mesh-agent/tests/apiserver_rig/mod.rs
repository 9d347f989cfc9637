//! A real API server for tests: etcd and kube-apiserver on loopback, no kubelet and no controllers, so a pod is what a test
//! writes. One per test binary; it ends with the process. The programs are those of `cargo xtask cluster`, found by
//! NODEMESH_KUBE_BIN (a directory with kube-apiserver and kubectl); etcd is the distribution's.

#![allow(dead_code, missing_docs, reason = "every test binary compiles this and uses a part of it")]

use std::fs;
use std::io::Write as _;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use mesh_agent::apiserver::ApiServer;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, KeyUsagePurpose};

/// An API server on a machine that builds something else at the same time.
const READY: Duration = Duration::from_secs(180);

const ADMIN: &str = "an-admin-of-a-test";

pub struct Rig {
    pub url: String,
    pub directory: PathBuf,
    programs: PathBuf,
    /// Ends when this process does, by its standard input.
    _shell: Child,
}

/// The one of this process. None where it cannot run, which is said aloud.
pub fn rig(test: &str) -> Option<&'static Rig> {
    static RIG: OnceLock<Option<Rig>> = OnceLock::new();
    let rig = RIG.get_or_init(|| {
        let programs = PathBuf::from(std::env::var_os("NODEMESH_KUBE_BIN")?);
        Some(Rig::start(programs))
    });
    if rig.is_none() {
        // println! would be swallowed when the test passes.
        let _ = writeln!(std::io::stderr(), "SKIPPED {test}: NODEMESH_KUBE_BIN names no kube-apiserver");
    }
    rig.as_ref()
}

impl Rig {
    fn start(programs: PathBuf) -> Self {
        let directory = std::env::temp_dir().join(format!("nodemesh-apiserver-{}", std::process::id()));
        fs::create_dir_all(&directory).unwrap();
        let [etcd, peers, secure] = ports();
        certificates(&directory);
        let file = |name: &str| directory.join(name).display().to_string();
        fs::write(directory.join("tokens.csv"), format!("{ADMIN},admin,admin,system:masters\n")).unwrap();
        let issuer = "https://kubernetes.default.svc.cluster.local";
        let server = [
            format!("--etcd-servers=http://127.0.0.1:{etcd}"),
            "--bind-address=127.0.0.1".to_string(),
            "--advertise-address=127.0.0.1".to_string(),
            "--endpoint-reconciler-type=none".to_string(),
            format!("--secure-port={secure}"),
            "--service-cluster-ip-range=10.96.0.0/16".to_string(),
            format!("--tls-cert-file={}", file("server.crt")),
            format!("--tls-private-key-file={}", file("server.key")),
            format!("--token-auth-file={}", file("tokens.csv")),
            format!("--service-account-issuer={issuer}"),
            format!("--service-account-key-file={}", file("accounts.pub")),
            format!("--service-account-signing-key-file={}", file("accounts.key")),
            "--authorization-mode=RBAC".to_string(),
            "--profiling=false".to_string(),
            "--watch-cache=true".to_string(),
        ]
        .join(" ");
        let script = format!(
            "etcd --data-dir {data} --unsafe-no-fsync --listen-client-urls http://127.0.0.1:{etcd} \
               --advertise-client-urls http://127.0.0.1:{etcd} --listen-peer-urls http://127.0.0.1:{peers} \
               --initial-advertise-peer-urls http://127.0.0.1:{peers} \
               --initial-cluster default=http://127.0.0.1:{peers} > {logs}/etcd.log 2>&1 & etcd=$!\n\
             {program} {server} > {logs}/apiserver.log 2>&1 & server=$!\n\
             read -r _\n\
             kill -KILL $server $etcd; wait; rm -rf {logs}",
            data = file("etcd"),
            logs = directory.display(),
            program = programs.join("kube-apiserver").display(),
        );
        let mut shell = Command::new("sh");
        shell.args(["-c", &script]).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
        let rig =
            Self { url: format!("https://127.0.0.1:{secure}"), programs, _shell: shell.spawn().unwrap(), directory };
        rig.write_kubeconfig("admin", ADMIN);
        rig.wait();
        rig
    }

    fn wait(&self) {
        let start = Instant::now();
        loop {
            let ready = self.kubectl(&["get", "--raw", "/readyz"], "");
            if ready.as_deref() == Ok("ok") {
                return;
            }
            let log = || fs::read_to_string(self.directory.join("apiserver.log")).unwrap_or_default();
            assert!(start.elapsed() < READY, "no API server within {READY:?}: {ready:?}\n{}", log());
            std::thread::sleep(Duration::from_millis(200));
        }
    }

    /// What kubectl prints, as an admin.
    pub fn kubectl(&self, arguments: &[&str], input: &str) -> Result<String, String> {
        let mut command = Command::new(self.programs.join("kubectl"));
        command.arg("--kubeconfig").arg(self.kubeconfig("admin")).args(arguments);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().map_err(|error| error.to_string())?;
        child.stdin.take().unwrap().write_all(input.as_bytes()).map_err(|error| error.to_string())?;
        let output = child.wait_with_output().map_err(|error| error.to_string())?;
        match output.status.success() {
            true => Ok(String::from_utf8_lossy(&output.stdout).into_owned()),
            false => Err(String::from_utf8_lossy(&output.stderr).into_owned()),
        }
    }

    pub fn apply(&self, yaml: &str) {
        self.kubectl(&["apply", "--server-side", "-f", "-"], yaml).unwrap();
    }

    pub fn kubeconfig(&self, name: &str) -> PathBuf {
        self.directory.join(format!("{name}.kubeconfig"))
    }

    /// A kubeconfig by a token.
    pub fn write_kubeconfig(&self, name: &str, token: &str) -> PathBuf {
        let text = format!(
            "apiVersion: v1\nkind: Config\n\
             clusters: [{{name: c, cluster: {{server: '{}', certificate-authority: '{}'}}}}]\n\
             users: [{{name: u, user: {{token: '{token}'}}}}]\n\
             contexts: [{{name: x, context: {{cluster: c, user: u}}}}]\ncurrent-context: x\n",
            self.url,
            self.directory.join("ca.crt").display()
        );
        fs::write(self.kubeconfig(name), text).unwrap();
        self.kubeconfig(name)
    }

    pub async fn client(&self) -> kube::Client {
        self.client_of("admin").await
    }

    /// A client by a kubeconfig of [`Rig::write_kubeconfig`].
    pub async fn client_of(&self, name: &str) -> kube::Client {
        ApiServer::find(Some(self.kubeconfig(name))).await.unwrap().client().unwrap()
    }
}

/// Free a moment ago.
fn ports() -> [u16; 3] {
    let listeners: [TcpListener; 3] = std::array::from_fn(|_| TcpListener::bind("127.0.0.1:0").unwrap());
    listeners.map(|listener| listener.local_addr().unwrap().port())
}

fn certificates(directory: &Path) {
    let write = |name: &str, text: String| fs::write(directory.join(name), text).unwrap();
    let key = || KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
    let root_key = key();
    let mut root = CertificateParams::default();
    root.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    root.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    root.distinguished_name.push(rcgen::DnType::CommonName, "an API server's root");
    write("ca.crt", root.self_signed(&root_key).unwrap().pem());
    let issuer = Issuer::new(root, root_key);
    let server_key = key();
    let server = CertificateParams::new(vec!["127.0.0.1".to_string(), "localhost".to_string()]).unwrap();
    write("server.crt", server.signed_by(&server_key, &issuer).unwrap().pem());
    write("server.key", server_key.serialize_pem());
    let accounts = key();
    write("accounts.key", accounts.serialize_pem());
    write("accounts.pub", accounts.public_key_pem());
}
