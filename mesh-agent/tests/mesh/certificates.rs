//! What connections meet when certificates end and no new ones are to be had.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use mesh_agent::identity::local_ca::LocalCa;
use mesh_agent::identity::{BoxFuture, CaError, CaState, CertificateAuthority, CertificateRequest, IssuedCertificate};
use mesh_agent::routing::OutboundMode;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::watch;

use super::support::*;
use super::{Pair, vip};

/// Long enough to set up a session on a machine with much else to do, short enough to wait for its end.
const LIFETIME: Duration = Duration::from_secs(10);

/// Gives short-lived certificates while it is there.
struct Unsteady {
    ca: LocalCa,
    is_away: AtomicBool,
    state: watch::Sender<CaState>,
}

impl Unsteady {
    fn new() -> Arc<Self> {
        let ca = LocalCa::memory(TRUST_DOMAIN).unwrap();
        let state = watch::Sender::new(ca.state().borrow().clone());
        Arc::new(Self { ca, is_away: AtomicBool::new(false), state })
    }

    fn set_away(&self, is_away: bool) {
        self.is_away.store(is_away, Ordering::Relaxed);
        self.state.send_modify(|state| state.trouble = is_away.then(|| "on holiday".to_string()));
    }
}

impl CertificateAuthority for Unsteady {
    fn issue(&self, request: CertificateRequest) -> BoxFuture<'_, Result<IssuedCertificate, CaError>> {
        if self.is_away.load(Ordering::Relaxed) {
            return Box::pin(async { Err(CaError::Unavailable("on holiday".to_string())) });
        }
        self.ca.issue(CertificateRequest { lifetime: LIFETIME, ..request })
    }

    fn state(&self) -> watch::Receiver<CaState> {
        self.state.subscribe()
    }

    fn describe(&self) -> String {
        "unsteady".to_string()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_certificate_new_connections_are_refused_and_nothing_goes_in_plaintext() {
    if needs_two_nodes() {
        return;
    }
    let ca = Unsteady::new();
    let pair = Pair::start_on(Mesh::start_on(ca.clone(), OutboundMode::AllowAny)).await;
    let mut clients = echo_app((pair.server.ip, 8080));
    let mut session = pair.client.connect(vip()).await.unwrap();
    session.write_all(b"x").await.unwrap();
    assert_eq!(session.read_u8().await.unwrap(), b'x');
    clients.recv().await.unwrap();

    ca.set_away(true);
    let own =
        |node: usize| pair.mesh.nodes[node].identities.status().into_iter().all(|svid| svid.seconds_left < Some(0.0));
    let waited = tokio::time::timeout(PATIENCE, async {
        while !(own(0) && own(1)) {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    });
    waited.await.expect("the certificates end");
    let refused = pair.client.ask(vip(), "hello").await;
    assert!(refused.is_err(), "{refused:?}");
    assert!(clients.try_recv().is_err(), "the application was reached without a certificate");
    pair.mesh.nodes[0].until_live("the refusal is told", |live| live.len() == 1).await;
    let metrics = pair.mesh.nodes[0].metrics.encode();
    assert!(metrics.contains("reason=\"no-certificate\""), "{metrics}");
    // What was proved while it held goes on.
    session.write_all(b"y").await.unwrap();
    assert_eq!(session.read_u8().await.unwrap(), b'y');

    ca.set_away(false);
    let back = std::time::Instant::now();
    let mut again = pair.client.connect(vip()).await.unwrap();
    again.write_all(b"z").await.unwrap();
    assert_eq!(again.read_u8().await.unwrap(), b'z');
    assert!(back.elapsed() < Duration::from_secs(15), "recovery took {:?}", back.elapsed());
}
