//! Loads against servers of this process.

use std::sync::atomic::AtomicUsize;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use super::*;

const OK: &str = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nhi";
const LAST: &str = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\nhi";

/// What a server does with its first, second, … request: how long it waits, and what it says; nothing: it hangs up.
type Serve = fn(usize) -> (u64, &'static str);

/// What it does, then requests, ok and failed, then errors by their word.
type Row = (Serve, [u64; 3], &'static [(&'static str, u64)]);

async fn server(serve: Serve) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let count = Arc::new(AtomicUsize::new(0));
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(converse(stream, count.clone(), serve));
        }
    });
    address
}

async fn converse(mut stream: TcpStream, count: Arc<AtomicUsize>, serve: Serve) {
    let mut head = Vec::new();
    while let Ok(byte) = stream.read_u8().await {
        head.push(byte);
        if head.ends_with(b"\r\n\r\n") {
            head.clear();
            let (pause, answer) = serve(count.fetch_add(1, Ordering::Relaxed));
            tokio::time::sleep(Duration::from_millis(pause)).await;
            if stream.write_all(answer.as_bytes()).await.is_err() || !answer.starts_with("HTTP") || answer == LAST {
                return;
            }
        }
    }
}

/// Requests a second, connections, for so many milliseconds; that many for each answer.
async fn asked(address: SocketAddr, (rate, connections, length, patience): (u32, u32, u64, u64)) -> Summary {
    let millis = Duration::from_millis;
    let load = Load::new(&format!("http://{address}/"), rate, connections, millis(length), millis(patience)).unwrap();
    load.run(|progress| assert!(progress.failed <= progress.done)).await.unwrap()
}

#[tokio::test]
async fn each_that_is_due_is_asked_and_counted() {
    let table: [Row; 5] = [
        (|_| (0, OK), [50, 50, 0], &[]),
        // A server may end a connection after each answer.
        (|_| (0, LAST), [50, 50, 0], &[]),
        (|_| (0, "HTTP/1.1 503 Busy\r\ncontent-length: 0\r\n\r\n"), [50, 0, 50], &[]),
        (|_| (0, ""), [50, 0, 50], &[("closed", 50)]),
        (|_| (0, "SSH-2.0-OpenSSH\r\n"), [50, 0, 50], &[("not-http", 50)]),
    ];
    for (number, (serve, [requests, ok, failed], errors)) in table.into_iter().enumerate() {
        let told = asked(server(serve).await, (200, 2, 250, 10_000)).await;
        assert_eq!((told.requests, told.ok, told.failed), (requests, ok, failed), "{number}: {told:?}");
        let found: Vec<(&str, u64)> = told.errors.iter().map(|(word, count)| (word.as_str(), *count)).collect();
        assert_eq!(found, errors, "{number}");
        assert!(told.duration_seconds >= 0.24, "{number}: faster than they were due: {told:?}");
    }
    // Each finds a connection that is free.
    let told = asked(server(|_| (60_000, OK)).await, (20, 8, 250, 100)).await;
    assert_eq!((told.errors.get("timeout"), told.requests), (Some(&5), 5), "{told:?}");
    let nobody = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let told = asked(nobody, (100, 1, 100, 10_000)).await;
    assert_eq!((told.errors.get("refused"), told.latency_seconds), (Some(&10), None));
}

/// One answer takes 400 ms. On the only connection everybody waits behind it, and that is told; with more of them nobody
/// does.
#[tokio::test]
async fn who_waits_for_another_has_waited() {
    let stalls: Serve = |number| (if number == 20 { 400 } else { 0 }, OK);
    let alone = asked(server(stalls).await, (100, 1, 1000, 5000)).await;
    let latency = alone.latency_seconds.unwrap();
    assert!(latency.p90 > 0.2 && latency.max > 0.39, "{alone:?}");
    // 39 became due meanwhile; the first of them waited longest.
    assert!(alone.late >= 30, "{alone:?}");
    let together = asked(server(stalls).await, (100, 4, 1000, 5000)).await;
    assert!(together.latency_seconds.unwrap().p90 < 0.2 && together.late < alone.late, "{together:?}");
    assert_eq!((alone.ok, together.ok), (100, 100));
}

/// An answer has its time from when it was due, and not from when it could be asked for: a load ends when it should.
#[tokio::test]
async fn a_server_that_is_too_slow_is_not_waited_for() {
    let told = asked(server(|_| (60_000, OK)).await, (100, 1, 400, 100)).await;
    assert_eq!((told.requests, told.failed), (40, 40), "{told:?}");
    assert!(told.duration_seconds < 3.0, "{told:?}");
}

#[test]
fn a_load_is_within_bounds() {
    let (second, url) = (Duration::from_secs(1), "http://a/");
    let table = [
        (url, 100, 4, 10 * second, 10 * second, ""),
        (url, 0, 4, second, second, "--rate: expected 1 to 20000"),
        (url, 20_001, 4, second, second, "--rate"),
        (url, 1, 0, second, second, "--connections"),
        (url, 1, 513, second, second, "--connections"),
        (url, 1, 1, second / 2, second, "--for: expected 1s to 1h"),
        (url, 3, 1, second / 3, second, "--for"),
        (url, 1, 1, 3601 * second, second, "--for"),
        (url, 1, 1, second, 61 * second, "--timeout: expected 10ms to 1m"),
        ("a", 1, 1, second, second, "a: expected http://"),
    ];
    for (url, rate, connections, length, patience, expected) in table {
        match Load::new(url, rate, connections, length, patience) {
            Ok(load) => {
                assert_eq!(expected, "");
                assert_eq!(load.arguments(), [url, "--rate=100", "--connections=4", "--for=10s", "--timeout=10s"]);
                assert_eq!(load.told(), "http://a/: 100 requests a second for 10s, 4 connections");
            }
            Err(error) => assert!(!expected.is_empty() && error.to_string().contains(expected), "{error}"),
        }
    }
}

#[tokio::test]
async fn a_name_that_nobody_knows_is_told() {
    let load = Load::new("http://no-such-name.invalid/", 1, 1, Duration::from_secs(1), Duration::from_secs(1)).unwrap();
    let error = load.run(|_| {}).await.unwrap_err().to_string();
    assert!(error.starts_with("no-such-name.invalid has no address that is known here: "), "{error}");
}
