//! The agent's side: `identity::RemoteCa` over real TLS and gRPC.

use std::convert::Infallible;
use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::symlink;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use hyper_util::rt::{TokioExecutor, TokioIo};
use mesh_agent::identity::istio::{CertificateRequest, CertificateResponse};
use mesh_agent::identity::{
    self, CaError, CertificateAuthority, Clock, Remote, RemoteCa, SIGNS, Signing, SigningRequest,
};
use mesh_agent::spiffe::SpiffeId;
use tokio::net::TcpListener;
use tonic::server::{Grpc, UnaryService};
use tonic::{Response, Status};
use tonic_prost::ProstCodec;

use crate::apiserver_rig::PATIENCE;
use crate::support::*;

/// An authority such as istiod: signs for every token but some, and shows its root with each chain.
#[derive(Clone)]
struct Istiod {
    signing: Arc<Mutex<Arc<Signing>>>,
    /// What it heard: the token, and who was asked for.
    heard: Arc<Mutex<Vec<(String, String)>>>,
    /// A root that it shows at the end of each chain.
    shows: Arc<str>,
    address: SocketAddr,
}

/// A root of our making: what signs, and its certificate.
fn root() -> (Signing, String) {
    let root = identity::new_root(TRUST_DOMAIN).unwrap();
    (Signing::parse(&root.certificate, &root.key, &root.certificate, TRUST_DOMAIN).unwrap(), root.certificate)
}

impl Istiod {
    async fn start(signing: Signing, shows: &str, names: &[&str]) -> Self {
        let listener = TcpListener::bind(loopback()).await.unwrap();
        let address = listener.local_addr().unwrap();
        let names: Vec<String> = names.iter().map(|name| (*name).to_string()).collect();
        let signing = Arc::new(Mutex::new(Arc::new(signing)));
        let istiod = Self { signing, heard: Arc::default(), shows: shows.into(), address };
        let server = istiod.clone();
        tokio::spawn(async move {
            loop {
                let (tcp, _) = listener.accept().await.unwrap();
                let (istiod, names) = (server.clone(), names.clone());
                tokio::spawn(async move {
                    let signing = istiod.signing.lock().unwrap().clone();
                    let serving = signing.serving(&names, Duration::from_secs(3600), &Clock::system()).unwrap();
                    let Ok(tls) = serving.accept(tcp).await else { return };
                    let answer = hyper::service::service_fn(move |request| {
                        let istiod = istiod.clone();
                        let codec = ProstCodec::<CertificateResponse, CertificateRequest>::default();
                        async move { Ok::<_, Infallible>(Grpc::new(codec).unary(istiod, request).await) }
                    });
                    let connection = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
                    let _ = connection.serve_connection(TokioIo::new(tls), answer).await;
                });
            }
        });
        istiod
    }

    fn tokens(&self) -> Vec<String> {
        self.heard.lock().unwrap().iter().map(|(token, _)| token.clone()).collect()
    }
}

impl UnaryService<CertificateRequest> for Istiod {
    type Response = CertificateResponse;
    type Future = Pin<Box<dyn Future<Output = Result<Response<CertificateResponse>, Status>> + Send>>;

    fn call(&mut self, request: tonic::Request<CertificateRequest>) -> Self::Future {
        let istiod = self.clone();
        Box::pin(async move {
            let token = request.metadata().get("authorization").unwrap().to_str().unwrap().to_string();
            let request = request.into_inner();
            let id = request.impersonated().unwrap_or_default().to_string();
            istiod.heard.lock().unwrap().push((token.clone(), id.clone()));
            match token.as_str() {
                "Bearer stranger" => return Err(Status::unauthenticated("who is this?")),
                "Bearer elsewhere" => return Err(Status::permission_denied("no pod of it there")),
                _ => {}
            }
            let lifetime = Duration::from_secs(u64::try_from(request.validity_duration).unwrap());
            let (csr, id) = (SigningRequest::from_pem(&request.csr).unwrap(), SpiffeId::parse(&id).unwrap());
            let signing = istiod.signing.lock().unwrap().clone();
            let mut signed = signing.sign(&csr, &id, lifetime, SystemTime::now()).unwrap();
            signed.pem.push(istiod.shows.to_string());
            Ok(Response::new(CertificateResponse { cert_chain: signed.pem }))
        })
    }
}

/// Files of an agent, as Kubernetes mounts them: names that lead through a link which is swapped.
struct Mount {
    home: tempfile::TempDir,
    versions: std::cell::Cell<u32>,
}

impl Mount {
    fn new(roots: &str, token: &str) -> Self {
        let mount = Self { home: tempfile::tempdir().unwrap(), versions: std::cell::Cell::new(0) };
        mount.write(roots, token);
        for name in ["roots.pem", "token"] {
            symlink(format!("..data/{name}"), mount.path(name)).unwrap();
        }
        mount
    }

    fn write(&self, roots: &str, token: &str) {
        self.versions.set(self.versions.get() + 1);
        let version = format!("..version-{}", self.versions.get());
        fs::create_dir(self.path(&version)).unwrap();
        fs::write(self.path(&version).join("roots.pem"), roots).unwrap();
        fs::write(self.path(&version).join("token"), token).unwrap();
        symlink(&version, self.path("..next")).unwrap();
        fs::rename(self.path("..next"), self.path("..data")).unwrap();
    }

    fn path(&self, name: &str) -> PathBuf {
        self.home.path().join(name)
    }

    fn remote(&self, istiod: &Istiod) -> Remote {
        let address = format!("https://{}", istiod.address).parse().unwrap();
        Remote { address, roots: self.path("roots.pem"), token: self.path("token") }
    }
}

async fn ask(ca: &RemoteCa, account: &str) -> Result<usize, CaError> {
    let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
    let mut params = rcgen::CertificateParams::default();
    params.subject_alt_names = vec![uri(id(account).as_str())];
    let csr = params.serialize_request(&key).unwrap().pem().unwrap();
    let request = identity::CertificateRequest { id: id(account), csr, lifetime: Duration::from_secs(600) };
    let issued = ca.issue(request).await?;
    assert_eq!(identity::peer_id(Some(&issued.chain)).unwrap(), id(account));
    Ok(issued.chain.len())
}

#[test]
fn certificates_come_from_a_remote_authority() {
    local(async {
        let (signing, pem) = root();
        let istiod = Istiod::start(signing, &pem, &["127.0.0.1"]).await;
        let mount = Mount::new(&pem, "first\n");
        let identities = identities(Arc::new(RemoteCa::new(mount.remote(&istiod))), &["a", "b"]).await;
        assert_eq!(identities.roots().len(), 1);
        assert!(identities.svid(&id("a")).unwrap().not_after > SystemTime::now() + Duration::from_secs(3500));
        let asked: Vec<String> = istiod.heard.lock().unwrap().iter().map(|(_, id)| id.clone()).collect();
        assert!(asked.contains(&id("a").to_string()) && asked.contains(&id("b").to_string()), "{asked:?}");
        assert!(istiod.tokens().iter().all(|token| token == "Bearer first"));
    });
}

#[test]
fn the_token_is_read_for_each_call() {
    local(async {
        let (signing, pem) = root();
        let istiod = Istiod::start(signing, &pem, &["127.0.0.1"]).await;
        let mount = Mount::new(&pem, "first");
        let ca = RemoteCa::new(mount.remote(&istiod));
        ask(&ca, "a").await.unwrap();
        mount.write(&pem, "second");
        ask(&ca, "a").await.unwrap();
        assert_eq!(istiod.tokens(), ["Bearer first", "Bearer second"]);
    });
}

#[test]
fn a_root_in_an_answer_is_trusted_by_nobody() {
    local(async {
        let (signing, pem) = root();
        let (_, other) = root();
        let istiod = Istiod::start(signing, &other, &["127.0.0.1"]).await;
        let mount = Mount::new(&pem, "t");
        let ca = RemoteCa::new(mount.remote(&istiod));
        // The leaf alone: what signed it is in the file, and the root that was shown is in nothing.
        assert_eq!(ask(&ca, "a").await, Ok(1));
        assert_eq!(ca.state().borrow().roots.len(), 1);

        // One that signs by a root which is not in the file gives nothing of use.
        let (foreign, foreign_pem) = root();
        *istiod.signing.lock().unwrap() = Arc::new(foreign);
        let both = Mount::new(&format!("{pem}{foreign_pem}"), "t");
        assert_eq!(ask(&RemoteCa::new(both.remote(&istiod)), "a").await, Ok(1));
        both.write(&pem, "t");
        let error = ask(&RemoteCa::new(both.remote(&istiod)), "a").await.unwrap_err().to_string();
        assert!(error.contains("no root in") && error.contains("is that file of this mesh?"), "{error}");
    });
}

#[test]
fn what_is_wrong_is_said_with_what_to_do() {
    local(async {
        let (signing, pem) = root();
        let (_, other) = root();
        let istiod = Istiod::start(signing, &pem, &["127.0.0.1"]).await;
        let named_otherwise = Istiod::start(root().0, &pem, &["elsewhere.svc"]).await;
        let mount = |roots: &str, token: &str| Mount::new(roots, token);
        let nobody = Istiod { address: free(), ..istiod.clone() };
        let other_pem = Istiod { ..named_otherwise.clone() };
        let named_root = named_otherwise.signing.lock().unwrap().clone();
        let named_pem = pem_of(&named_root);
        let rows = [
            ("a token that nobody believes", mount(&pem, "stranger"), &istiod, "who is this?; the token in"),
            ("a refusal", mount(&pem, "elsewhere"), &istiod, "refused: no pod of it there"),
            ("an empty token", mount(&pem, " \n"), &istiod, "the file is empty; it is a projected"),
            ("a root of another mesh", mount(&other, "t"), &istiod, "is that file of this mesh?"),
            ("another name", mount(&named_pem, "t"), &other_pem, "another name than 127.0.0.1"),
            ("nobody there", mount(&pem, "t"), &nobody, "is the controller running?"),
        ];
        for (what, mount, istiod, expected) in rows {
            let error = ask(&RemoteCa::new(mount.remote(istiod)), "a").await.unwrap_err().to_string();
            assert!(error.contains(expected), "{what}: {error}");
        }
        let gone = mount(&pem, "t");
        fs::remove_file(gone.path("token")).unwrap();
        let error = ask(&RemoteCa::new(gone.remote(&istiod)), "a").await.unwrap_err().to_string();
        assert!(error.contains("No such file") && error.contains("projected service account token"), "{error}");
    });
}

fn pem_of(signing: &Signing) -> String {
    // A root of a test has one certificate.
    let der = signing.roots().first().unwrap();
    let text = rcgen_pem(der);
    assert!(identity::roots("test", &text).is_ok());
    text
}

fn rcgen_pem(der: &[u8]) -> String {
    const TABLE: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for three in der.chunks(3) {
        let bits = three.iter().fold(0u32, |bits, byte| bits << 8 | u32::from(*byte)) << (8 * (3 - three.len()));
        for place in 0..4 {
            let six = usize::try_from(bits >> (18 - 6 * place) & 63).unwrap();
            text.push(if place <= three.len() { char::from(TABLE[six]) } else { '=' });
        }
    }
    format!("-----BEGIN CERTIFICATE-----\n{text}\n-----END CERTIFICATE-----\n")
}

/// An address where nobody listens: none of the one that other tests take their ports of.
fn free() -> SocketAddr {
    std::net::TcpListener::bind("127.77.0.2:0").unwrap().local_addr().unwrap()
}

#[test]
fn roots_change_under_the_agent() {
    local(async {
        let (signing, pem) = root();
        let istiod = Istiod::start(signing, &pem, &["127.0.0.1"]).await;
        let mount = Mount::new("", "t");
        let ca = Arc::new(RemoteCa::new(mount.remote(&istiod)));
        let trouble = ca.state().borrow().trouble.clone().unwrap();
        assert!(trouble.contains("ConfigMap nodemesh-ca-roots, which the controller makes"), "{trouble}");
        let keep = {
            let ca = ca.clone();
            tokio::spawn(async move { ca.keep_state().await })
        };
        let mut states = ca.state();
        let mut until = async |what: &str, count: usize, signs: bool| {
            let is_so = |state: &identity::CaState| {
                state.roots.len() == count && state.trouble.is_none() && state.signer.is_some() == signs
            };
            tokio::time::timeout(PATIENCE, states.wait_for(is_so)).await.expect(what).unwrap().clone()
        };
        mount.write(&pem, "t");
        until("the file comes", 1, false).await;
        ask(&ca, "a").await.unwrap();

        let (next, next_pem) = root();
        let both = format!("{SIGNS}{}\n{pem}{next_pem}", identity::roots("t", &pem).unwrap()[0].id);
        mount.write(&both, "t");
        assert_eq!(until("the next root", 2, true).await.signer, Some(identity::roots("t", &pem).unwrap()[0].id));
        *istiod.signing.lock().unwrap() = Arc::new(next);
        let next_id = identity::roots("t", &next_pem).unwrap()[0].id;
        mount.write(&format!("{SIGNS}{next_id}\n{pem}{next_pem}"), "t");
        tokio::time::timeout(PATIENCE, async {
            while ca.state().borrow().signer != Some(next_id) {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        })
        .await
        .expect("the next root signs");
        ask(&ca, "a").await.unwrap();
        mount.write(&next_pem, "t");
        until("the first root goes", 1, false).await;
        ask(&ca, "a").await.unwrap();

        // What cannot be read changes nothing.
        mount.write("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", "t");
        tokio::time::timeout(PATIENCE, async {
            while ca.state().borrow().trouble.is_none() {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        })
        .await
        .expect("trouble");
        assert_eq!(ca.state().borrow().roots.len(), 1);
        ask(&ca, "a").await.unwrap();
        keep.abort();
    });
}
