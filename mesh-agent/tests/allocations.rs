//! Ring 2: how often the agents ask the allocator for memory, per request. Nothing here is a measure of time: a change
//! that allocates more than it did is seen whatever the machine is.

#![allow(unsafe_code, reason = "an allocator is unsafe to write; this one only counts")]

#[path = "mesh/support.rs"]
#[allow(dead_code, reason = "the other journeys need more of it")]
mod support;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering};

use support::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

#[global_allocator]
static COUNTING: Counting = Counting;

/// Counts what the agents' workers ask for: they carry the connections, and nobody else in this process has their name.
struct Counting;

static COUNT: AtomicU64 = AtomicU64::new(0);

thread_local! {
    static IS_WORKER: Cell<Option<bool>> = const { Cell::new(None) };
}

fn is_worker() -> bool {
    IS_WORKER.try_with(|known| match known.get() {
        Some(known) => known,
        None => {
            // Asking for the name allocates.
            known.set(Some(false));
            let is_worker = rustix::thread::name().is_ok_and(|name| name.to_bytes().starts_with(b"worker-"));
            known.set(Some(is_worker));
            is_worker
        }
    }) == Ok(true)
}

// SAFETY: all of it is the system's.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if is_worker() {
            COUNT.fetch_add(1, Ordering::Relaxed);
        }
        // SAFETY: as for the caller.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: as for the caller.
        unsafe { System.dealloc(pointer, layout) }
    }
}

const REQUEST: &[u8] = b"GET /a HTTP/1.1\r\nHost: web.shop\r\nUser-Agent: test\r\nAccept: */*\r\n\r\n";
const ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Type: text/plain\r\n\r\nhello";

const ROUNDS: u64 = 500;

/// (what the port speaks, allocations of both agents for a request on connections that are there)
///
/// The bounds are what was seen when they were written, and a fifth.
const MOST: [(&str, u64); 2] = [("http", 20), ("tcp", 10)];

#[tokio::test(flavor = "multi_thread")]
async fn a_request_allocates_no_more_than_it_did() {
    for (speaks, most) in MOST {
        let mesh = Mesh::start();
        let (client, server) = (fresh_ip(), fresh_ip());
        let service = service_yaml("web", "server", "10.96.0.7", 80, 8080)
            .replace("protocol: TCP", &format!("protocol: TCP, appProtocol: {speaks}"));
        let world = [pod_yaml("client", "node1", client), pod_yaml("server", "node2", server), service];
        mesh.apply("world.yaml", &world.concat());
        let (client, server) = (mesh.enrol(client).await, mesh.enrol(server).await);
        tokio::spawn(answer(TcpListener::bind((server.ip, 8080)).await.unwrap()));
        let vip: SocketAddr = (Ipv4Addr::new(10, 96, 0, 7), 80).into();
        let mut tcp = client.connect(vip).await.unwrap();
        for _ in 0..ROUNDS {
            ask(&mut tcp).await;
        }
        let before = COUNT.load(Ordering::Relaxed);
        for _ in 0..ROUNDS {
            ask(&mut tcp).await;
        }
        let each = (COUNT.load(Ordering::Relaxed) - before) as f64 / ROUNDS as f64;
        println!("{speaks}: {each:.1} allocations a request, by both agents");
        assert!(each <= most as f64, "{speaks}: {each:.1} allocations a request, where {most} were enough");
        assert!(each > 0.0, "nothing was counted: are the workers called otherwise?");
    }
}

async fn ask(tcp: &mut TcpStream) {
    tcp.write_all(REQUEST).await.unwrap();
    let mut said = Vec::new();
    while !said.ends_with(b"\r\n\r\nhello") {
        let read = tokio::time::timeout(PATIENCE, tcp.read_buf(&mut said)).await.expect("an answer in time").unwrap();
        assert!(read > 0, "closed after {:?}", String::from_utf8_lossy(&said));
    }
    assert!(said.starts_with(b"HTTP/1.1 200 OK\r\n"), "{:?}", String::from_utf8_lossy(&said));
}

/// Answers each request of each connection.
async fn answer(listener: TcpListener) {
    while let Ok((mut tcp, _)) = listener.accept().await {
        tokio::spawn(async move {
            let mut asked = Vec::new();
            while let Ok(1..) = tcp.read_buf(&mut asked).await {
                if asked.ends_with(b"\r\n\r\n") {
                    asked.clear();
                    tcp.write_all(ANSWER).await.unwrap();
                }
            }
        });
    }
}
