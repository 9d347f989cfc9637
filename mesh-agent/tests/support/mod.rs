//! Ring 2: two ends in one process, real TLS and HTTP/2 over loopback, no kernel programs.

#![allow(dead_code, missing_docs, reason = "every test binary compiles this and uses a part of it")]

use std::cell::RefCell;
use std::collections::HashSet;
use std::future::Future;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use mesh_agent::addr::ClientAddr;
use mesh_agent::drain::{Drain, Token};
use mesh_agent::hbone::{
    self, ConnectRequest, Incoming, Limits, OpenError, Pool, ServeError, Status, Stream, TunnelKey,
};
use mesh_agent::identity::{
    BoxFuture, CaError, CaState, CertificateAuthority, CertificateRequest, Config, Identities, IssuedCertificate, Svid,
};
use mesh_agent::proxy::copy;
use mesh_agent::spiffe::SpiffeId;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName, ExtendedKeyUsagePurpose,
    IsCa, Issuer, KeyPair, KeyUsagePurpose, SanType,
};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use time::OffsetDateTime;
use tokio::net::{TcpListener, TcpStream};

pub const TRUST_DOMAIN: &str = "cluster.local";

/// Runs a test on a current-thread runtime with a `LocalSet`, as workers do. Five minutes are forever.
pub fn local<T>(test: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let set = tokio::task::LocalSet::new();
    set.block_on(&runtime, async {
        tokio::time::timeout(Duration::from_secs(300), test).await.expect("the test hangs")
    })
}

pub fn id(account: &str) -> SpiffeId {
    SpiffeId::new(TRUST_DOMAIN, "default", account).unwrap()
}

pub fn loopback() -> SocketAddr {
    SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 0)
}

/// An authority that signs what it is asked to, and forges what a test asks for.
pub struct TestCa {
    issuer: Issuer<'static, KeyPair>,
    state: tokio::sync::watch::Sender<CaState>,
}

/// A leaf with its key, outside of `identity`.
pub struct Forged {
    pub chain: Vec<CertificateDer<'static>>,
    pub key: PrivateKeyDer<'static>,
}

impl TestCa {
    pub fn new() -> Arc<Self> {
        let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let root = params.self_signed(&key).unwrap().der().clone();
        let state = CaState { roots: vec![root], ..CaState::default() };
        Arc::new(Self { issuer: Issuer::new(params, key), state: tokio::sync::watch::Sender::new(state) })
    }

    pub fn forge(&self, id: &SpiffeId, change: impl FnOnce(&mut CertificateParams)) -> Forged {
        let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
        let mut params = good_leaf(id);
        change(&mut params);
        let leaf = params.signed_by(&key, &self.issuer).unwrap().der().clone();
        Forged { chain: vec![leaf], key: PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der())) }
    }
}

pub fn good_leaf(id: &SpiffeId) -> CertificateParams {
    let now = OffsetDateTime::now_utc();
    let mut params = CertificateParams::default();
    params.not_before = now - Duration::from_secs(60);
    params.not_after = now + Duration::from_secs(3600);
    params.distinguished_name = DistinguishedName::new();
    params.subject_alt_names = vec![uri(&id.to_string())];
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    params
}

pub fn uri(text: &str) -> SanType {
    SanType::URI(text.try_into().unwrap())
}

impl CertificateAuthority for TestCa {
    fn issue(&self, request: CertificateRequest) -> BoxFuture<'_, Result<IssuedCertificate, CaError>> {
        Box::pin(async move {
            let csr = CertificateSigningRequestParams::from_pem(&request.csr).unwrap();
            let mut params = good_leaf(&request.id);
            params.not_after = OffsetDateTime::now_utc() + request.lifetime;
            let leaf = params.signed_by(&csr.public_key, &self.issuer).unwrap();
            Ok(IssuedCertificate { chain: vec![leaf.der().clone()] })
        })
    }

    fn state(&self) -> tokio::sync::watch::Receiver<CaState> {
        self.state.subscribe()
    }

    fn describe(&self) -> String {
        "test".to_string()
    }
}

/// Identities of the accounts, running, all issued.
pub async fn identities(ca: Arc<dyn CertificateAuthority>, accounts: &[&str]) -> Identities {
    identities_for(ca, accounts, Duration::from_secs(3600)).await
}

pub async fn identities_for(ca: Arc<dyn CertificateAuthority>, accounts: &[&str], lifetime: Duration) -> Identities {
    let identities = Identities::new(ca, Config { trust_domain: TRUST_DOMAIN.to_string(), lifetime });
    let ids: HashSet<SpiffeId> = accounts.iter().map(|account| id(account)).collect();
    identities.want(&ids);
    // Never drained: the test's end is the end.
    let drain = Drain::new();
    let token = drain.token();
    std::mem::forget(drain);
    tokio::spawn(identities.clone().run(token));
    for id in &ids {
        identities.ready(id).await;
    }
    identities
}

/// What a server does with a CONNECT.
pub type Handler = Rc<dyn Fn(Incoming) -> std::pin::Pin<Box<dyn Future<Output = ()>>>>;

/// The accepting end: a listener that serves tunnels, and what became of them.
pub struct Server {
    pub address: SocketAddr,
    pub ended: Rc<RefCell<Vec<Result<(), ServeError>>>>,
    pub drain: Drain,
    /// For a test that asks: handles of the sockets that were accepted. They keep the connections open.
    pub accepted: Rc<RefCell<Option<Vec<socket2::Socket>>>>,
}

impl Server {
    pub async fn start(identities: &Identities, account: &str, limits: Limits, handler: Handler) -> Self {
        Self::at(loopback(), identities, account, limits, handler).await
    }

    pub async fn at(
        address: SocketAddr,
        identities: &Identities,
        account: &str,
        limits: Limits,
        handler: Handler,
    ) -> Self {
        let listener = TcpListener::bind(address).await.unwrap();
        let address = listener.local_addr().unwrap();
        let accepted = Rc::<RefCell<Option<Vec<socket2::Socket>>>>::default();
        let sockets = accepted.clone();
        let ended = Rc::<RefCell<Vec<_>>>::default();
        let drain = Drain::new();
        let (identities, id, results, token) = (identities.clone(), id(account), ended.clone(), drain.token());
        tokio::task::spawn_local(async move {
            // One token per tunnel: this task's own is gone with the drain's start.
            let mut own = token.clone();
            let accept = async {
                loop {
                    let (tcp, _) = listener.accept().await.unwrap();
                    if let Some(sockets) = &mut *sockets.borrow_mut() {
                        sockets.push(std::os::fd::AsFd::as_fd(&tcp).try_clone_to_owned().unwrap().into());
                    }
                    // As the proxy: whoever has no certificate takes nobody in.
                    let Some(svid) = identities.svid(&id) else { continue };
                    let served = serve(tcp, svid, limits.clone(), token.clone(), handler.clone());
                    let results = results.clone();
                    tokio::task::spawn_local(async move {
                        let result = served.await;
                        results.borrow_mut().push(result);
                    });
                }
            };
            tokio::select! { () = accept => {}, () = own.started() => {} }
        });
        Self { address, ended, drain, accepted }
    }

    /// From now on the machine of the server is gone, as far as the client's can tell: what arrives on connections is
    /// thrown away before TCP sees it. Only for those that were accepted since `accepted` was set.
    pub fn vanish(&self) {
        let drop_all = [socket2::SockFilter::new((libc::BPF_RET | libc::BPF_K) as u16, 0, 0, 0)];
        let accepted = self.accepted.borrow();
        for socket in accepted.as_ref().expect("a test that asked for the sockets") {
            socket.attach_filter(&drop_all).unwrap();
        }
    }

    pub async fn first_end(&self) -> Result<(), ServeError> {
        loop {
            if let Some(ended) = self.ended.borrow_mut().pop() {
                return ended;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

async fn serve(
    tcp: TcpStream,
    svid: Arc<Svid>,
    limits: Limits,
    token: Token,
    handler: Handler,
) -> Result<(), ServeError> {
    hbone::accept(tcp, &svid, &limits).await?.serve(&limits, token.clone(), token, |incoming| handler(incoming)).await
}

/// Dials the application that the CONNECT names, and copies.
pub fn relay() -> Handler {
    Rc::new(|incoming: Incoming| {
        Box::pin(async move {
            match TcpStream::connect(incoming.authority).await {
                Ok(app) => {
                    let stream = incoming.accept("k8s.namespace.name=default").unwrap();
                    copy::tunnel(app, stream, &copy::Counters::default(), std::future::pending()).await;
                }
                Err(_) => incoming.refuse(Status::Unavailable),
            }
        })
    })
}

/// An application: one task per connection.
pub async fn app<F: Future<Output = ()> + 'static>(serve: impl Fn(TcpStream) -> F + 'static) -> SocketAddr {
    let listener = TcpListener::bind(loopback()).await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::task::spawn_local(async move {
        loop {
            let (tcp, _) = listener.accept().await.unwrap();
            tokio::task::spawn_local(serve(tcp));
        }
    });
    address
}

/// Sends back what comes, and closes its half when the client has.
pub async fn echo(mut tcp: TcpStream) {
    let (mut read, mut write) = tcp.split();
    let _ = tokio::io::copy(&mut read, &mut write).await;
}

pub fn key(source: &str, destination: &SpiffeId) -> TunnelKey {
    TunnelKey { source_uid: source.into(), destination: destination.clone(), address: loopback().ip() }
}

pub fn request(authority: SocketAddr) -> ConnectRequest {
    ConnectRequest {
        authority,
        forwarded: ClientAddr::new(SocketAddr::from(([10, 0, 0, 1], 40000))),
        host: Some("web.default.svc.cluster.local".to_string()),
        baggage: "k8s.namespace.name=default".to_string(),
        traceparent: hbone::TraceParent::random().to_string(),
    }
}

/// The dialling end: a pool, who it is, and where the tunnel ends.
pub struct Client {
    pub pool: Pool,
    pub identities: Identities,
    pub id: SpiffeId,
    pub key: TunnelKey,
    pub tunnel: SocketAddr,
    pub dials: Rc<std::cell::Cell<u32>>,
    at_start: Arc<Svid>,
}

impl Client {
    pub fn new(
        identities: &Identities,
        account: &str,
        destination: &str,
        tunnel: SocketAddr,
        limits: Limits,
    ) -> Rc<Self> {
        Rc::new(Self {
            pool: Pool::new(limits),
            identities: identities.clone(),
            id: id(account),
            key: key("pod-1", &id(destination)),
            tunnel,
            dials: Rc::default(),
            at_start: identities.svid(&id(account)).unwrap(),
        })
    }

    /// The certificate that it had when it was made.
    pub fn svid_at_start(&self) -> Arc<Svid> {
        self.at_start.clone()
    }

    pub async fn open(&self, authority: SocketAddr) -> Result<Stream, OpenError> {
        let svid = self.identities.svid(&self.id).unwrap();
        let connect = async || {
            self.dials.set(self.dials.get() + 1);
            TcpStream::connect(self.tunnel).await
        };
        self.pool.open(&self.key, &svid, connect, &request(authority)).await
    }

    /// A socket as an application would have it, tunnelled to `authority`.
    pub async fn dial(self: &Rc<Self>, authority: SocketAddr) -> TcpStream {
        let listener = TcpListener::bind(loopback()).await.unwrap();
        let near = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (accepted, _) = listener.accept().await.unwrap();
        let client = self.clone();
        tokio::task::spawn_local(async move {
            let stream = client.open(authority).await.unwrap();
            copy::tunnel(accepted, stream, &copy::Counters::default(), std::future::pending()).await;
        });
        near
    }
}

/// Both ends with the usual limits: a client account "client", a server account "server" that relays.
pub async fn pair() -> (Rc<Client>, Server) {
    pair_with(Limits::default()).await
}

pub async fn pair_with(limits: Limits) -> (Rc<Client>, Server) {
    let identities = identities(TestCa::new(), &["client", "server"]).await;
    let server = Server::start(&identities, "server", limits.clone(), relay()).await;
    let client = Client::new(&identities, "client", "server", server.address, limits);
    (client, server)
}
