//! Fuzz target: any bytes from a client of a port that speaks HTTP/1.1.

use std::cell::Cell;
use std::convert::Infallible;
use std::rc::Rc;
use std::time::Duration;

use http::{Request, Response, header};
use http_body::Body as _;
use http_body_util::{BodyExt, Empty};
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::claims::{Caller, Claims};
use super::framing::At;
use super::hygiene;
use super::screen::Screen;

/// Whatever takes longer than this hangs.
const FOREVER: Duration = Duration::from_secs(20);

/// The parser sees as many requests as the screen has let through, neither more nor fewer, and no other bodies; what
/// comes of hygiene has one valid Host and nothing that was for one hop; pieces are judged as the whole is.
pub fn requests(input: &[u8]) {
    judge_in_pieces(input);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let local = tokio::task::LocalSet::new();
    local.block_on(&runtime, async {
        tokio::time::timeout(FOREVER, serve(input)).await.expect("it ends when the client does");
    });
}

fn judge_in_pieces(input: &[u8]) {
    let judge = |pieces: &mut dyn Iterator<Item = &[u8]>| {
        let (mut at, mut kept, mut good, mut heads) = (At::Head, Vec::new(), 0, 0);
        for piece in pieces {
            kept.extend_from_slice(piece);
            loop {
                match at.judge(&kept) {
                    Ok(judged) if judged.good > 0 => {
                        kept.drain(..judged.good);
                        (good, heads) = (good + judged.good, heads + judged.heads);
                    }
                    Ok(_) => break,
                    Err(_) => return (good, heads),
                }
            }
        }
        (good, heads)
    };
    let size = input.first().map_or(1, |byte| usize::from(*byte % 17) + 1);
    assert_eq!(judge(&mut std::iter::once(input)), judge(&mut input.chunks(size)), "pieces of {size}");
}

async fn serve(input: &[u8]) {
    let (mut client, server) = tokio::io::duplex(256);
    let screen = Screen::new(server, Vec::new());
    let (gate, seen) = (screen.gate(), Rc::new(Cell::new(0)));
    let (counted, releasing) = (seen.clone(), gate.clone());
    let service = service_fn(move |request: Request<Incoming>| {
        counted.set(counted.get() + 1);
        let gate = releasing.clone();
        async move {
            let (mut parts, body) = request.into_parts();
            let has_body = !body.is_end_stream();
            let caller = Caller::new([127, 0, 0, 1].into(), Claims::Dropped);
            if hygiene::request(&mut parts, has_body, &caller, "a:1").is_ok() {
                assert_eq!(parts.headers.get_all(header::HOST).iter().count(), 1);
                for name in [header::CONNECTION, header::TRANSFER_ENCODING, header::UPGRADE, header::TE] {
                    assert!(!parts.headers.contains_key(&name), "{name} was left");
                }
                assert!(parts.uri.authority().is_none());
            }
            // A body that broke off ends the connection; the parser sees to that.
            let _ = body.collect().await;
            gate.release();
            Ok::<_, Infallible>(Response::new(Empty::<Bytes>::new()))
        }
    });
    let connection = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(screen), service);
    let served = async {
        let _ = connection.await;
    };
    let said = async {
        let (mut read, mut write) = tokio::io::split(&mut client);
        let mut heard = Vec::new();
        let write_all = async {
            // It fails when the agent has hung up, which it may.
            let _ = write.write_all(input).await;
            let _ = write.shutdown().await;
        };
        let (_, _) = tokio::join!(write_all, read.read_to_end(&mut heard));
    };
    tokio::join!(served, said);
    // The parser's own limits may refuse what the screen let through; it never finds a request that the screen did not.
    assert!(seen.get() <= gate.heads(), "{} requests out of {} heads", seen.get(), gate.heads());
}
