//! F1: who says a little at a time, or stops in the middle, at a port of requests. The times are the real ones.

use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::frames::*;
use super::{Door, Ground, TURN, vip};

/// `http::limits::HEAD_TIMEOUT`.
const HEAD_TIMEOUT: Duration = Duration::from_secs(15);
/// What a machine that is busy may take more.
const SLACK: Duration = Duration::from_secs(15);

/// Says it at once, and then a byte each second until the other side closes; how long it took from its first byte, and
/// what was answered.
async fn trickle(mut tcp: TcpStream, at_once: &[u8], then: &[u8]) -> (Duration, Vec<u8>) {
    let started = Instant::now();
    tcp.write_all(at_once).await.unwrap();
    let (mut read, mut write) = tcp.split();
    let mut heard = Vec::new();
    let saying = async {
        for byte in then {
            tokio::time::sleep(Duration::from_secs(1)).await;
            let Ok(()) = write.write_all(&[*byte]).await else { break };
        }
        std::future::pending::<()>().await;
    };
    tokio::select! { _ = read.read_to_end(&mut heard) => {}, () = saying => {} }
    (started.elapsed(), heard)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_head_that_trickles_has_its_time_and_no_more() {
    // What it takes of memory is nobody else's.
    let _turn = TURN.lock().await;
    let ground = Ground::new(Door::Requests).await;
    let connect = async || ground.attacker.connect(vip()).await.unwrap();
    let preface = &HELLO[..24];
    // A second for each, and one more CONTINUATION than is taken.
    let continuation = [frame(HEADERS, 0, 1, &ground.good("5")), frame(CONTINUATION, 0, 1, b"").repeat(4)].concat();
    let continuation = [HELLO, &continuation, &frame(CONTINUATION, 0, 1, b"")[..8]].concat();
    let last = [&[1][..], &frame(CONTINUATION, 0, 1, b"")].concat();
    let (field, line, preface, frames) = tokio::join!(
        async { trickle(connect().await, b"GET / HTTP/1.1\r\nHost: web\r\nx: ", &[b'y'; 60]).await },
        async { trickle(connect().await, b"G", b"ET / HTTP/1.1 and no more of it, since it takes that long").await },
        async { trickle(connect().await, &preface[..1], &preface[1..]).await },
        async { trickle(connect().await, &continuation, &last).await },
    );
    for (what, (took, heard), least, most) in [
        ("a field of HTTP/1.1", field, HEAD_TIMEOUT, HEAD_TIMEOUT + SLACK),
        ("a request line of HTTP/1.1", line, HEAD_TIMEOUT, HEAD_TIMEOUT + SLACK),
        // Read as HTTP/1.1 from then on, where it is no request once it is whole.
        ("the preface of HTTP/2", preface, HEAD_TIMEOUT, 2 * HEAD_TIMEOUT + SLACK),
        ("CONTINUATION", frames, Duration::from_secs(9), HEAD_TIMEOUT),
    ] {
        println!("{what}, a byte a second: closed after {took:.1?}, {:?}", String::from_utf8_lossy(&heard));
        assert!((least..most).contains(&took), "{what} had {took:.1?}");
        assert!(!heard.starts_with(b"HTTP/1.1 200"), "{what}: {:?}", String::from_utf8_lossy(&heard));
    }
}

/// A head within one frame has no time of its own: its connection rests (`IDLE_CLIENT`). Until then it costs little.
#[tokio::test(flavor = "multi_thread")]
async fn heads_of_http2_that_never_end_cost_no_more_than_their_frames() {
    /// The largest frame that is taken, and the largest head beside it.
    const EACH: i64 = 128 << 10;
    const COUNT: usize = 200;
    let _turn = TURN.lock().await;
    let ground = Ground::new(Door::Requests).await;
    ground.stand_by().await;
    let before = super::LIVE.load(std::sync::atomic::Ordering::SeqCst);
    // Nearly a whole frame, behind as much of a head as may come without its end.
    let whole =
        frame(HEADERS, 0, 1, &[ground.good("5"), vec![0, 1, b'x'], length(60_000), vec![b'y'; 30_000]].concat());
    let most = frame(CONTINUATION, 0, 1, &[b'y'; 29_000]);
    let words = [HELLO, &whole, &most[..most.len() - 1]].concat();
    let mut held = Vec::new();
    for _ in 0..COUNT {
        let mut tcp = ground.attacker.connect(vip()).await.unwrap();
        tcp.write_all(&words).await.unwrap();
        held.push(tcp);
    }
    let each = || (super::LIVE.load(std::sync::atomic::Ordering::SeqCst) - before) / COUNT as i64;
    // Until all is read, and then as long as more is taken: a busy machine has its time.
    let reading = Instant::now();
    while each() <= (words.len() - 9) as i64 && reading.elapsed() < super::FORGOTTEN {
        tokio::time::sleep(super::RESTS).await;
    }
    super::settled().await;
    let started = Instant::now();
    ground.stand_by().await;
    let each = each();
    println!("{COUNT} heads that never end: {} KiB each, a bystander waited {:.2?}", each >> 10, started.elapsed());
    assert!(each > (words.len() - 9) as i64, "they were not read: {each} bytes each");
    assert!(each < EACH, "{each} bytes each");
    let mut first = [0; 9];
    for tcp in &mut held {
        tcp.read_exact(&mut first).await.expect("they are open, and were greeted");
        assert_eq!(first[3], SETTINGS);
    }
}
