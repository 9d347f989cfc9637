//! Ring 2: HTTP/2 that means harm, frame by frame: at a port of requests, where any pod may say it, and at a pod's tunnel
//! port, where whoever says it has a certificate of the mesh.
//!
//! A binary of its own, since it counts the memory of the whole process: both agents, who attacks and who stands by.

#![allow(unsafe_code, reason = "an allocator is unsafe to write; this one only counts")]

mod attacks;
#[path = "../support/frames.rs"]
mod frames;
#[path = "../mesh/support.rs"]
#[allow(dead_code, reason = "the other journeys need more of it")]
mod support;
mod trickles;

use std::alloc::{GlobalAlloc, Layout, System};
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use frames::*;
use mesh_agent::hbone;
use mesh_agent::spiffe::SpiffeId;
use support::*;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsConnector;

#[global_allocator]
static HEAP: Counting = Counting;

/// Counts what is taken and not given back.
struct Counting;

static LIVE: AtomicI64 = AtomicI64::new(0);
static PEAK: AtomicI64 = AtomicI64::new(0);

// SAFETY: all of it is the system's.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let live = LIVE.fetch_add(layout.size() as i64, Ordering::Relaxed) + layout.size() as i64;
        PEAK.fetch_max(live, Ordering::Relaxed);
        // SAFETY: as for the caller.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        LIVE.fetch_sub(layout.size() as i64, Ordering::Relaxed);
        // SAFETY: as for the caller.
        unsafe { System.dealloc(pointer, layout) }
    }
}

/// Nothing is taken for so long: the agent has stopped reading.
const STALLED: Duration = Duration::from_secs(5);
/// What the kernel may hold of what an attacker says, and of what it does not read, in bytes: what does not fit waits in
/// the agent, or is not read by it.
const IN_THE_KERNEL: usize = 64 << 10;
/// The longest that somebody else may wait beside an attack, on two cores that a debug build fills.
const BYSTANDER: Duration = Duration::from_secs(20);

/// For so long nothing more is taken: what an attack has begun has come to rest.
const RESTS: Duration = Duration::from_millis(300);
/// What may be left of all attackers so far when they have gone: connections that rest, and tables of tunnels that do not
/// shrink while these live, with an entry for each frame that has waited (2.8 MiB were seen, where 111 MiB of frames had
/// waited; when all were done once more 3.0). In bytes.
const KEPT: i64 = 8 << 20;
/// How long that may take: what it had said is worked off first.
const FORGOTTEN: Duration = Duration::from_secs(60);

/// What is attacked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Door {
    /// A port that speaks HTTP: anybody's plaintext.
    Requests,
    /// A pod's port 15008: mutual TLS.
    Tunnel,
}

/// How it ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// The agent says why, and closes.
    GoAway(u32),
    /// The agent closes without a word.
    Closed,
    /// The agent takes all of it, and answers a PING after it.
    Taken,
    /// The agent stops reading.
    Stopped,
}

/// What is said, and what becomes of it at either door.
struct Attack {
    name: &'static str,
    /// Once.
    first: fn(&Ground) -> Vec<u8>,
    /// Then again and again, numbered.
    again: fn(&Ground, u32) -> Vec<u8>,
    times: u32,
    /// Whether it reads what it is answered.
    reads: bool,
    /// How it ends, what is answered, and how many MiB more the process takes at the most.
    requests: Expected,
    tunnel: Expected,
}

struct Expected {
    end: End,
    /// How many frames of a kind come back: of that kind, at least, at most.
    answers: Option<(u8, u64, u64)>,
    mib: i64,
}

/// Two agents, and who is on them.
struct Ground {
    mesh: Mesh,
    attacker: Pod,
    bystander: Pod,
    server: Ipv4Addr,
    _server: Pod,
    door: Door,
}

fn vip() -> SocketAddr {
    (Ipv4Addr::new(10, 96, 0, 7), 80).into()
}

impl Ground {
    async fn new(door: Door) -> Self {
        let mesh = Mesh::start();
        let [attacker, bystander, server] = [(); 3].map(|()| fresh_ip());
        let service = service_yaml("web", "server", "10.96.0.7", 80, 8080)
            .replace("protocol: TCP", "protocol: TCP, appProtocol: http");
        let pods = [("attacker", "node1", attacker), ("bystander", "node1", bystander), ("server", "node2", server)];
        let pods = pods.map(|(name, node, ip)| pod_yaml(name, node, ip)).concat();
        mesh.apply("world.yaml", &[pods, service].concat());
        tokio::spawn(app(TcpListener::bind((server, 8080)).await.unwrap()));
        let (attacker, bystander) = (mesh.enrol(attacker).await, mesh.enrol(bystander).await);
        let _server = mesh.enrol(server).await;
        Self { mesh, attacker, bystander, server, _server, door }
    }

    /// A connection to the door, on which nothing has been said of HTTP/2.
    async fn knock(&self) -> Box<dyn Wire> {
        let tcp = match self.door {
            Door::Requests => self.attacker.connect(vip()).await.unwrap(),
            Door::Tunnel => TcpStream::connect((self.server, hbone::PORT)).await.unwrap(),
        };
        let socket = socket2::SockRef::from(&tcp);
        socket.set_send_buffer_size(IN_THE_KERNEL).unwrap();
        socket.set_recv_buffer_size(IN_THE_KERNEL).unwrap();
        match self.door {
            Door::Requests => Box::new(tcp),
            Door::Tunnel => {
                let id = SpiffeId::new(TRUST_DOMAIN, "shop", "attacker").unwrap();
                let svid = self.mesh.nodes[0].identities.svid(&id).unwrap();
                let name = std::net::IpAddr::from(self.server).into();
                Box::new(TlsConnector::from(svid.client.clone()).connect(name, tcp).await.unwrap())
            }
        }
    }

    /// The fields of a request that is good, for which the application answers with so many bytes.
    fn good(&self, answer: &str) -> Vec<u8> {
        match self.door {
            Door::Requests => fields(&[
                (b":method", b"POST"),
                (b":scheme", b"http"),
                (b":authority", b"web"),
                (b":path", format!("/{answer}").as_bytes()),
            ]),
            Door::Tunnel => {
                let authority = format!("{}:8080", self.server);
                fields(&[(b":method", b"CONNECT"), (b":authority", authority.as_bytes())])
            }
        }
    }

    /// A good request whose body does not end, and which the application does not answer.
    fn open(&self, stream: u32) -> Vec<u8> {
        frame(HEADERS, END_HEADERS, stream, &self.good("never"))
    }

    /// A good request for an answer of so many bytes.
    fn ask(&self, stream: u32, answer: &str) -> Vec<u8> {
        match self.door {
            Door::Requests => frame(HEADERS, END_HEADERS | END_STREAM, stream, &self.good(answer)),
            Door::Tunnel => {
                let request = format!("GET /{answer} HTTP/1.1\r\nHost: web\r\n\r\n");
                [self.open(stream), frame(DATA, 0, stream, request.as_bytes())].concat()
            }
        }
    }

    /// A good request and more fields, in one frame.
    fn with(&self, stream: u32, more: &[u8]) -> Vec<u8> {
        frame(HEADERS, END_HEADERS | END_STREAM, stream, &[&self.good("5"), more].concat())
    }

    /// An exchange of somebody else's, and one of the attacker's own pod, which the same worker serves. Who is told that
    /// there is too much to do asks again.
    async fn stand_by(&self) {
        for pod in [&self.bystander, &self.attacker] {
            loop {
                let mut tcp = pod.connect(vip()).await.unwrap();
                tcp.write_all(b"GET /5 HTTP/1.1\r\nHost: web\r\nConnection: close\r\n\r\n").await.unwrap();
                let mut answer = String::new();
                tcp.read_to_string(&mut answer).await.unwrap();
                if !answer.ends_with("shed") {
                    assert!(answer.starts_with("HTTP/1.1 200") && answer.ends_with("aaaaa"), "{answer}");
                    break;
                }
            }
        }
    }
}

/// Answers each request of each connection with as many bytes as its path asks for; reads no further where it asks for
/// none.
async fn app(listener: TcpListener) {
    while let Ok((mut tcp, _)) = listener.accept().await {
        tokio::spawn(async move {
            let mut asked = Vec::new();
            while let Ok(1..) = tcp.read_buf(&mut asked).await {
                let Some(end) = asked.windows(4).position(|end| end == b"\r\n\r\n") else { continue };
                let head = String::from_utf8_lossy(&asked[..end]).into_owned();
                asked.clear();
                let Some(length) = head.split([' ', '/']).nth(2).and_then(|length| length.parse().ok()) else {
                    return std::future::pending().await;
                };
                let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n");
                let Ok(()) = tcp.write_all(head.as_bytes()).await else { return };
                let mut left: usize = length;
                while left > 0 {
                    let piece = left.min(BLOCK.len());
                    let Ok(()) = tcp.write_all(&BLOCK[..piece]).await else { return };
                    left -= piece;
                }
            }
        });
    }
}

static BLOCK: [u8; 64 << 10] = [b'a'; 64 << 10];

/// A connection, in plaintext or not.
trait Wire: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Wire for T {}

/// What the agent said: how many frames of each kind, why it goes, and whether the last word was answered.
#[derive(Default)]
struct Heard {
    frames: [AtomicU64; 16],
    goodbye: AtomicU64,
    answered: AtomicBool,
    ended: AtomicBool,
}

/// What [`Heard::goodbye`] is while there was none.
const NO_GOODBYE: u64 = 0;
/// The payload of the PING at the end.
const LAST_WORD: &[u8] = b"and now?";

impl Heard {
    async fn listen(self: Arc<Self>, wire: ReadHalf<Box<dyn Wire>>) {
        let mut wire = tokio::io::BufReader::with_capacity(64 << 10, wire);
        let (mut head, mut payload) = ([0; HEAD], Vec::new());
        while wire.read_exact(&mut head).await.is_ok() {
            payload.resize(u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize, 0);
            if wire.read_exact(&mut payload).await.is_err() {
                break;
            }
            self.frames[usize::from(head[3])].fetch_add(1, Ordering::SeqCst);
            match head[3] {
                GOAWAY => {
                    let reason = u32::from_be_bytes(payload[4..8].try_into().unwrap());
                    self.goodbye.store(u64::from(reason) | 1 << 32, Ordering::SeqCst);
                }
                PING if payload == LAST_WORD => self.answered.store(true, Ordering::SeqCst),
                _ => {}
            }
        }
        self.ended.store(true, Ordering::SeqCst);
    }

    fn end(&self) -> End {
        match self.goodbye.load(Ordering::SeqCst) {
            NO_GOODBYE => End::Closed,
            said => End::GoAway(said as u32),
        }
    }
}

/// How an attack went.
struct Outcome {
    end: End,
    said: u32,
    answers: [u64; 16],
}

impl Attack {
    async fn run(&self, ground: &Ground) -> Outcome {
        let (read, mut write) = tokio::io::split(ground.knock().await);
        let heard = Arc::<Heard>::default();
        let mut unread = Some(read);
        // Ends with this: who attacks hangs up.
        let mut listening = tokio::task::JoinSet::new();
        if self.reads {
            listening.spawn(heard.clone().listen(unread.take().unwrap()));
        }
        let mut said = 0;
        let mut words = [HELLO, &frame(SETTINGS, ACK, 0, &[]), &(self.first)(ground)].concat();
        let spoken = loop {
            while said < self.times && words.len() < 32 << 10 {
                words.extend((self.again)(ground, said));
                said += 1;
            }
            let spoken = say(&mut write, &words).await;
            if said == self.times || !matches!(spoken, Spoken::Taken) {
                break spoken;
            }
            words.clear();
        };
        let spoken = match spoken {
            Spoken::Taken => {
                settled().await;
                say(&mut write, &frame(PING, 0, 0, LAST_WORD)).await
            }
            other => other,
        };
        let end = match spoken {
            Spoken::Stopped => End::Stopped,
            Spoken::Taken | Spoken::Closed => {
                if let Some(read) = unread.take() {
                    listening.spawn(heard.clone().listen(read));
                }
                let is_over = || heard.ended.load(Ordering::SeqCst) || heard.answered.load(Ordering::SeqCst);
                eventually(self.name, is_over).await;
                self.all_answered(&heard, ground.door).await;
                if heard.ended.load(Ordering::SeqCst) { heard.end() } else { End::Taken }
            }
        };
        Outcome { end, said, answers: std::array::from_fn(|kind| heard.frames[kind].load(Ordering::SeqCst)) }
    }

    fn expected(&self, door: Door) -> &Expected {
        if door == Door::Requests { &self.requests } else { &self.tunnel }
    }

    /// The last word may be answered before the last of what is to come, on a busy machine; what does not come is told later.
    async fn all_answered(&self, heard: &Heard, door: Door) {
        let Some((kind, least, _)) = self.expected(door).answers else { return };
        let begun = Instant::now();
        while heard.frames[usize::from(kind)].load(Ordering::SeqCst) < least && begun.elapsed() < PATIENCE {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

/// Returns when the process takes no more memory than it has taken: what an attack has begun has come to rest.
async fn settled() {
    let mut before = 0;
    while before != PEAK.load(Ordering::SeqCst) {
        before = PEAK.load(Ordering::SeqCst);
        tokio::time::sleep(RESTS).await;
    }
}

enum Spoken {
    Taken,
    Closed,
    Stopped,
}

async fn say(write: &mut WriteHalf<Box<dyn Wire>>, words: &[u8]) -> Spoken {
    let saying = async {
        write.write_all(words).await?;
        write.flush().await
    };
    match tokio::time::timeout(STALLED, saying).await {
        Ok(Ok(())) => Spoken::Taken,
        Ok(Err(_)) => Spoken::Closed,
        Err(_) => Spoken::Stopped,
    }
}

async fn all(door: Door) {
    let only = std::env::var("ATTACK").unwrap_or_default();
    let ground = Arc::new(Ground::new(door).await);
    ground.stand_by().await;
    let at_rest = LIVE.load(Ordering::SeqCst);
    let mut failures = Vec::new();
    for attack in attacks::ATTACKS.iter().filter(|attack| attack.name.contains(&only)) {
        let over = Arc::new(AtomicBool::new(false));
        let (beside, watched) = (ground.clone(), over.clone());
        let before = LIVE.load(Ordering::SeqCst);
        PEAK.store(before, Ordering::SeqCst);
        let bystander = tokio::spawn(async move {
            let (mut times, mut longest) = (0, Duration::ZERO);
            loop {
                let started = Instant::now();
                tokio::time::timeout(PATIENCE, beside.stand_by()).await.expect("an answer for the bystander");
                (times, longest) = (times + 1, longest.max(started.elapsed()));
                if watched.load(Ordering::SeqCst) {
                    return (times, longest);
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        });
        let started = Instant::now();
        let outcome = attack.run(&ground).await;
        let took = started.elapsed();
        over.store(true, Ordering::SeqCst);
        let (times, longest) = bystander.await.unwrap();
        let grew = PEAK.load(Ordering::SeqCst) - before;
        println!(
            "{door:?}, {}: {:?} after {} of {} in {took:.2?}, {:?} came back; {} KiB more; a bystander was answered {times} \
             times, in {longest:.2?} at the most",
            attack.name,
            outcome.end,
            outcome.said,
            attack.times,
            outcome.answers,
            grew >> 10,
        );
        let expected = attack.expected(door);
        let mut fails = |what: String| failures.push(format!("{}: {what}", attack.name));
        // Who does not read may miss the last word.
        let is_missed = !attack.reads && outcome.end == End::Closed && matches!(expected.end, End::GoAway(_));
        if outcome.end != expected.end && !is_missed {
            fails(format!("{:?} where {:?} was to be", outcome.end, expected.end));
        }
        if let Some((kind, least, most)) = expected.answers
            && !(least..=most).contains(&outcome.answers[usize::from(kind)])
        {
            fails(format!("{} frames of kind {kind} came back", outcome.answers[usize::from(kind)]));
        }
        if grew > expected.mib << 20 {
            fails(format!("the process grew by {} KiB", grew >> 10));
        }
        if longest > BYSTANDER {
            fails(format!("a bystander waited {longest:.2?}"));
        }
        let gone = Instant::now();
        while LIVE.load(Ordering::SeqCst) > at_rest + KEPT {
            let left = LIVE.load(Ordering::SeqCst) - at_rest;
            assert!(gone.elapsed() < FORGOTTEN, "{}: {} KiB are not given back", attack.name, left >> 10);
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
    assert!(failures.is_empty(), "{door:?}:\n{}", failures.join("\n"));
}

/// Whose memory is counted has the process to itself.
static TURN: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

#[tokio::test(flavor = "multi_thread")]
async fn hostile_frames_cost_little_and_hold_up_nobody() {
    let _turn = TURN.lock().await;
    for door in [Door::Requests, Door::Tunnel] {
        all(door).await;
    }
}
