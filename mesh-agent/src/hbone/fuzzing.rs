//! Fuzz targets: the words of a CONNECT, and either end of a tunnel against any peer.

use std::cell::Cell;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};

use super::client;
use super::words::{Baggage, ConnectRequest, Forwarded, TraceParent, parse_authority};
use super::{Incoming, Limits, Status, Tunnel, limits};
use crate::addr::ClientAddr;
use crate::drain::Drain;
use crate::identity;

/// What a pipe holds before the writer waits.
const PIPE_BYTES: usize = 16 << 10;
/// Inputs are short; whatever takes longer than this hangs.
const FOREVER: Duration = Duration::from_secs(20);

/// What reads as a word is written as one that reads alike.
pub fn words(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else { return };
    if let Some(authority) = parse_authority(text) {
        assert!(authority.port() != 0 && authority.ip() == authority.ip().to_canonical());
        assert_eq!(parse_authority(&authority.to_string()), Some(authority));
    }
    if let Some(forwarded) = Forwarded::parse(text) {
        assert_eq!(Forwarded::parse(&forwarded.to_string()), Some(forwarded));
    }
    if let Some(trace) = TraceParent::parse(text) {
        assert_eq!(trace.to_string(), text);
        assert_eq!(trace.trace_id().len(), 32);
    }
    let baggage = Baggage::parse(text);
    assert_eq!(Baggage::parse(&baggage.to_string()), Baggage { workload_kind: written_kind(&baggage), ..baggage });
}

/// The kind is written with the name alone.
fn written_kind(baggage: &Baggage) -> String {
    if baggage.workload.is_empty() { String::new() } else { baggage.workload_kind.clone() }
}

/// The server's whole connection, with any bytes from a client who has proved who it is. It ends when the client does,
/// hands over nothing but an address, and works on no more than its bound of requests.
pub fn server(input: &[u8]) {
    let (choice, bytes) = input.split_first().map_or((0, input), |(choice, bytes)| (*choice, bytes));
    local(async {
        let (near, far) = tokio::io::duplex(PIPE_BYTES);
        let working = Rc::new(Cell::new(0u64));
        let drain = Drain::new();
        let on_connect = |incoming: Incoming| handle(incoming, choice, working.clone());
        let serve = async {
            let limits = Limits::default();
            let Ok(tunnel) = Tunnel::with(identity::fuzzing::peer(), near, &limits).await else { return };
            let _ = tunnel.serve(&limits, drain.token(), drain.token(), on_connect).await;
        };
        tokio::join!(serve, play(far, bytes));
    });
}

async fn handle(mut incoming: Incoming, choice: u8, working: Rc<Cell<u64>>) {
    working.set(working.get() + 1);
    assert!(working.get() <= limits::MAX_HANDLERS, "more requests in work than there may be");
    assert!(incoming.authority.port() != 0);
    assert!(incoming.forwarded.is_none_or(|client| client.port() != 0));
    assert!(incoming.baggage.as_ref().is_none_or(|baggage| baggage.len() as u64 <= limits::MAX_BAGGAGE_BYTES));
    match choice % 4 {
        0 => incoming.refuse(Status::Denied),
        1 => incoming.abandoned().await,
        2 => drop(incoming),
        _ => echo(incoming).await,
    }
    working.set(working.get() - 1);
}

async fn echo(incoming: Incoming) {
    let Ok(mut stream) = incoming.accept("k8s.namespace.name=fuzz") else { return };
    while let Some(Ok(bytes)) = stream.recv().await {
        if stream.send_all(bytes).await.is_err() {
            return;
        }
    }
}

/// The client's whole exchange, with any bytes from a server who has proved who it is. It ends when the server does.
pub fn client(input: &[u8]) {
    local(async {
        let (near, far) = tokio::io::duplex(PIPE_BYTES);
        let open = async {
            let limits = Limits::default();
            let (opener, connection) = client::begin(near, &limits);
            let exchange = async {
                let Ok(mut stream) = client::connect(opener, None, &request(), &limits).await else { return };
                let sent = stream.send_all(bytes::Bytes::from_static(b"hello")).await;
                while sent.is_ok() && matches!(stream.recv().await, Some(Ok(_))) {}
            };
            let (_, ()) = tokio::join!(connection.run(), exchange);
        };
        tokio::join!(open, play(far, input));
    });
}

fn request() -> ConnectRequest {
    ConnectRequest {
        authority: SocketAddr::from(([10, 244, 2, 5], 8080)),
        forwarded: ClientAddr::new(SocketAddr::from(([10, 244, 1, 3], 40000))),
        host: Some("web.shop.svc".to_string()),
        baggage: "k8s.namespace.name=shop".to_string(),
        traceparent: "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00".to_string(),
    }
}

/// Says its bytes, hears whatever comes, and hangs up.
async fn play(far: DuplexStream, bytes: &[u8]) {
    let (mut hear, mut say) = tokio::io::split(far);
    let hearing = tokio::task::spawn_local(async move {
        let mut buffer = vec![0; PIPE_BYTES];
        while hear.read(&mut buffer).await.is_ok_and(|read| read > 0) {}
    });
    let _ = say.write_all(bytes).await;
    // What was said is looked at before the goodbye.
    for _ in 0..32 {
        tokio::task::yield_now().await;
    }
    let _ = say.shutdown().await;
    drop(say);
    for _ in 0..32 {
        tokio::task::yield_now().await;
    }
    hearing.abort();
}

fn local(exchange: impl Future<Output = ()>) {
    thread_local! {
        static RUNTIME: tokio::runtime::Runtime =
            tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime for fuzzing");
    }
    RUNTIME.with(|runtime| {
        let set = tokio::task::LocalSet::new();
        let ended = set.block_on(runtime, async { tokio::time::timeout(FOREVER, exchange).await });
        assert!(ended.is_ok(), "it goes on although the peer is gone");
    });
}
