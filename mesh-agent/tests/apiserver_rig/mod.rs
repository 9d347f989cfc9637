//! A control plane for tests: etcd and kube-apiserver on loopback, on ports of their own. No kubelet and no controllers, so a
//! pod is what a test writes. The programs are those of `cargo xtask cluster`.

#![allow(dead_code, reason = "every test binary compiles this and uses a part of it")]

use std::fs::{self, File};
use std::io::{Read as _, Seek as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use kube::api::{Api, DynamicObject, Patch, PatchParams, PostParams};
use kube::core::GroupVersionKind;
use kube::discovery::ApiResource;
use mesh_agent::apiserver::ApiServer;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::sync::{Mutex, MutexGuard, OnceCell};

/// Names the directory with kube-apiserver and kubectl. etcd is in PATH or there too.
const BINARIES: &str = "NODEMESH_KUBE_BIN";
/// Generous: the machine may be busy, and an API server takes a while to start.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// One control plane at a time: each takes much of a small machine.
static ONE_AT_A_TIME: Mutex<()> = Mutex::const_new(());

/// A control plane that ends with this.
pub struct Plane {
    place: TempDir,
    binaries: PathBuf,
    etcd: Program,
    etcd_port: u16,
    port: u16,
    /// None while it is stopped.
    apiserver: Option<Program>,
    _only: MutexGuard<'static, ()>,
}

/// Says past the capture of the test harness why a test does not run; panics where it has to.
pub fn binaries(test: &str) -> Option<PathBuf> {
    let reason = match std::env::var_os(BINARIES).map(PathBuf::from) {
        None => format!("{BINARIES} does not say where kube-apiserver and kubectl are"),
        Some(place) if !place.join("kube-apiserver").exists() => format!("no kube-apiserver in {}", place.display()),
        Some(_) if which("etcd").is_none() => "no etcd in PATH (apt install etcd-server)".to_string(),
        Some(place) => return Some(place),
    };
    let required = std::env::var_os("MESH_REQUIRE_CLUSTER").is_some_and(|value| !value.is_empty() && value != "0");
    assert!(!required, "{test} cannot run: {reason}");
    let _ = writeln!(std::io::stderr(), "SKIPPED {test}: {reason}");
    None
}

fn which(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|place| place.join(name)).find(|path| path.exists())
}

impl Plane {
    /// etcd runs, the API server does not yet. None where the binaries are missing.
    pub async fn prepared(test: &str) -> Option<Self> {
        let binaries = binaries(test)?;
        let only = ONE_AT_A_TIME.lock().await;
        let place = tempfile::Builder::new().prefix("nodemesh-plane-").tempdir().unwrap();
        certificates(place.path());
        let (etcd_port, peers, port) = (free_port(), free_port(), free_port());
        let etcd = [
            "etcd".to_string(),
            format!("--data-dir={}", place.path().join("etcd").display()),
            format!("--listen-client-urls=http://127.0.0.1:{etcd_port}"),
            format!("--advertise-client-urls=http://127.0.0.1:{etcd_port}"),
            format!("--listen-peer-urls=http://127.0.0.1:{peers}"),
            format!("--initial-advertise-peer-urls=http://127.0.0.1:{peers}"),
            format!("--initial-cluster=default=http://127.0.0.1:{peers}"),
            "--unsafe-no-fsync".to_string(),
        ];
        let etcd = Program::start(&etcd, place.path());
        let mut plane = Self { place, binaries, etcd, etcd_port, port, apiserver: None, _only: only };
        plane.move_to(port);
        Some(plane)
    }

    /// The API server is found here when it is started next, by those that ask for a kubeconfig from now on. Where it was.
    pub fn move_to(&mut self, port: u16) -> u16 {
        let before = std::mem::replace(&mut self.port, port);
        for (user, token) in [("admin", "admin-token"), ("agent", "agent-token"), ("nobody", "nobody-token")] {
            fs::write(self.kubeconfig(user), self.kubeconfig_text(token)).unwrap();
        }
        before
    }

    /// All of it runs.
    pub async fn start(test: &str) -> Option<Self> {
        let mut plane = Self::prepared(test).await?;
        plane.start_apiserver();
        plane.ready().await;
        Some(plane)
    }

    /// The one that all tests of this process use that do not stop it.
    pub async fn shared(test: &str) -> Option<&'static Self> {
        static SHARED: OnceCell<Option<Plane>> = OnceCell::const_new();
        binaries(test)?;
        SHARED.get_or_init(|| Self::start(test)).await.as_ref()
    }

    pub fn start_apiserver(&mut self) {
        let at = |name: &str| self.place.path().join(name).display().to_string();
        fs::write(at("tokens.csv"), TOKENS).unwrap();
        let server = [
            self.binaries.join("kube-apiserver").display().to_string(),
            format!("--etcd-servers=http://127.0.0.1:{}", self.etcd_port),
            format!("--secure-port={}", self.port),
            "--bind-address=127.0.0.1".to_string(),
            "--advertise-address=127.0.0.1".to_string(),
            "--endpoint-reconciler-type=none".to_string(),
            "--service-cluster-ip-range=10.96.0.0/16".to_string(),
            format!("--tls-cert-file={}", at("server.crt")),
            format!("--tls-private-key-file={}", at("server.key")),
            format!("--client-ca-file={}", at("ca.crt")),
            format!("--token-auth-file={}", at("tokens.csv")),
            "--service-account-issuer=https://kubernetes.default.svc.cluster.local".to_string(),
            format!("--service-account-key-file={}", at("accounts.pub")),
            format!("--service-account-signing-key-file={}", at("accounts.key")),
            format!("--cert-dir={}", at("generated")),
            "--authorization-mode=RBAC".to_string(),
            // There are no controllers that would make accounts.
            "--disable-admission-plugins=ServiceAccount".to_string(),
            "--profiling=false".to_string(),
        ];
        self.apiserver = Some(Program::start(&server, self.place.path()));
    }

    /// Ends the API server at once, as a crash does.
    pub fn kill_apiserver(&mut self) {
        drop(self.apiserver.take().expect("it runs"));
    }

    /// Compacts etcd: what was before now is 410 Gone for whoever asks for the changes since.
    pub fn forget_history(&self) {
        let range = self.etcd("range", r#"{"key":"Lw=="}"#);
        let revision = range.split("\"revision\":\"").nth(1).and_then(|rest| rest.split('"').next());
        let revision = revision.unwrap_or_else(|| panic!("no revision in {range}"));
        self.etcd("compaction", &format!(r#"{{"revision":"{revision}","physical":true}}"#));
    }

    fn etcd(&self, what: &str, body: &str) -> String {
        let mut connection = TcpStream::connect(("127.0.0.1", self.etcd_port)).unwrap();
        let length = body.len();
        let head = format!("POST /v3/kv/{what} HTTP/1.0\r\nHost: etcd\r\nContent-Length: {length}\r\n\r\n");
        connection.write_all(format!("{head}{body}").as_bytes()).unwrap();
        let mut answer = String::new();
        connection.read_to_string(&mut answer).unwrap();
        assert!(answer.contains(" 200 "), "{answer}");
        answer
    }

    /// Returns when the API server calls itself ready.
    pub async fn ready(&mut self) {
        let client = self.admin().await;
        let program = std::cell::RefCell::new(self.apiserver.as_mut().expect("it was started"));
        eventually("an API server that is ready", || async {
            let ended = program.borrow_mut().ended();
            assert!(ended.is_none(), "the API server ended: {ended:?}");
            let request = http::Request::get("/readyz").body(Vec::new()).unwrap();
            client.request_text(request).await.is_ok_and(|text| text == "ok")
        })
        .await;
    }

    pub fn kubeconfig(&self, user: &str) -> PathBuf {
        self.place.path().join(format!("{user}.kubeconfig"))
    }

    /// A client that may do everything.
    pub async fn admin(&self) -> kube::Client {
        ApiServer::find(Some(self.kubeconfig("admin"))).await.unwrap().client().unwrap()
    }

    /// Runs kubectl: whether it succeeded, and all that it said.
    pub fn kubectl(&self, arguments: &[&str], input: &str) -> (bool, String) {
        // A file: it answers before it has read everything, and a pipe would hold up both.
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(input.as_bytes()).unwrap();
        file.rewind().unwrap();
        let output = Command::new(self.binaries.join("kubectl"))
            .arg("--kubeconfig")
            .arg(self.kubeconfig("admin"))
            .arg("--cache-dir")
            .arg(self.place.path().join("kubectl-cache"))
            .args(arguments)
            .stdin(file)
            .output()
            .expect("kubectl starts");
        let text = [output.stdout, output.stderr].concat();
        (output.status.success(), String::from_utf8_lossy(&text).into_owned())
    }

    fn kubeconfig_text(&self, token: &str) -> String {
        json!({
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "c", "cluster": {
                "server": format!("https://127.0.0.1:{}", self.port),
                "certificate-authority": self.place.path().join("ca.crt"),
            }}],
            "users": [{"name": "u", "user": {"token": token}}],
            "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
            "current-context": "x",
        })
        .to_string()
    }
}

impl Drop for Plane {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = fs::read_to_string(self.place.path().join("kube-apiserver.log")).unwrap_or_default();
            let last: Vec<&str> = log.lines().rev().take(15).collect();
            eprintln!("the API server said at last:\n{}", last.into_iter().rev().collect::<Vec<_>>().join("\n"));
        }
    }
}

/// A program that ends with this, and with this process however that ends: a shell holds it, and reads from us.
struct Program {
    shell: Child,
}

impl Program {
    /// Its output goes to a file of its name in `place`, which goes when the process of the tests does.
    fn start(command: &[String], place: &Path) -> Self {
        let name = Path::new(&command[0]).file_name().unwrap().to_string_lossy();
        let log = File::options().create(true).append(true).open(place.join(format!("{name}.log"))).unwrap();
        let script = format!(
            "exec 3<&0 </dev/null\n\
             \"$@\" & program=$!\n\
             {{ read -r order; [ \"$order\" ] || rm -rf '{}'; kill -KILL $program; }} <&3 & reader=$!\n\
             exec 3<&-\n\
             wait $program; status=$?; kill $reader 2>/dev/null; exit $status",
            place.display()
        );
        let shell = Command::new("sh")
            .args(["-c", &script, "sh"])
            .args(command)
            .stdin(Stdio::piped())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        Self { shell }
    }

    fn ended(&mut self) -> Option<ExitStatus> {
        self.shell.try_wait().unwrap()
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.shell.stdin.take().map(|mut order| order.write_all(b"end\n"));
        let _ = self.shell.wait();
    }
}

const TOKENS: &str = "admin-token,admin,1,\"system:masters\"\nagent-token,agent,2\nnobody-token,nobody,3\n";

pub fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

fn certificates(place: &Path) {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.distinguished_name.push(DnType::CommonName, "nodemesh-test");
    let ca = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
    let key = KeyPair::generate().unwrap();
    let params = CertificateParams::new(vec!["127.0.0.1".to_string(), "localhost".to_string()]).unwrap();
    let server = params.signed_by(&key, &ca).unwrap();
    let accounts = KeyPair::generate().unwrap();
    for (name, text) in [
        ("ca.crt", ca.pem()),
        ("server.crt", server.pem()),
        ("server.key", key.serialize_pem()),
        ("accounts.key", accounts.serialize_pem()),
        ("accounts.pub", accounts.public_key_pem()),
    ] {
        fs::write(place.join(name), text).unwrap();
    }
}

/// Waits until something holds.
pub async fn eventually<F: Future<Output = bool>>(what: &str, holds: impl Fn() -> F) {
    let waited = tokio::time::timeout(PATIENCE, async {
        while !holds().await {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
    assert!(waited.await.is_ok(), "{what} did not come");
}

/// Objects by hand.
#[derive(Clone)]
pub struct Hand {
    pub client: kube::Client,
}

impl Hand {
    fn api(&self, object: &Value) -> Api<DynamicObject> {
        let (group, version) = match object["apiVersion"].as_str().unwrap() {
            core if !core.contains('/') => ("", core),
            both => both.split_once('/').unwrap(),
        };
        let resource = ApiResource::from_gvk(&GroupVersionKind::gvk(group, version, object["kind"].as_str().unwrap()));
        match object["metadata"]["namespace"].as_str() {
            Some(namespace) => Api::namespaced_with(self.client.clone(), namespace, &resource),
            None => Api::all_with(self.client.clone(), &resource),
        }
    }

    /// Makes an object, its status too.
    pub async fn create(&self, object: &Value) {
        self.try_create(object).await.unwrap_or_else(|error| panic!("{error}\n{object}"));
    }

    pub async fn try_create(&self, object: &Value) -> kube::Result<()> {
        let api = self.api(object);
        let made = api.create(&PostParams::default(), &serde_json::from_value(object.clone()).unwrap()).await?;
        if object.get("status").is_some_and(|_| object["kind"] == "Pod" || object["kind"] == "Node") {
            let status = json!({"status": object["status"]});
            api.patch_status(made.metadata.name.as_deref().unwrap(), &PatchParams::default(), &Patch::Merge(status))
                .await?;
        }
        Ok(())
    }

    /// Changes an object by a merge patch.
    pub async fn patch(&self, object: &Value, patch: Value) {
        let name = object["metadata"]["name"].as_str().unwrap();
        self.api(object).patch(name, &PatchParams::default(), &Patch::Merge(patch)).await.unwrap();
    }

    /// Deletes an object, at once.
    pub async fn delete(&self, object: &Value) {
        let name = object["metadata"]["name"].as_str().unwrap();
        let params = kube::api::DeleteParams::default().grace_period(0);
        self.api(object).delete(name, &params).await.unwrap();
    }
}
