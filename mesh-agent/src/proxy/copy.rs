//! The byte pumps: between an application's socket and a tunnelled stream, and between two sockets.
//!
//! ```text
//! tunnel:  application ──read──► Bytes ──DATA──► far side      FIN ─► END_STREAM        RST ─► RST_STREAM(CONNECT_ERROR)
//!          application ◄─write── queue ◄──DATA── far side      FIN ◄─ END_STREAM        RST ◄─ RST_STREAM, tunnel lost
//! ```
//!
//! An idle connection holds no buffer and no timer: a buffer is taken only once the socket has something to read. Credit
//! goes back to the far side as bytes reach the application, so a slow reader holds back its own sender and nobody else.

use std::collections::VecDeque;
use std::future::Future;
use std::io::{self, IoSlice};
use std::os::fd::AsFd;
use std::pin::pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use h2::Reason;
use socket2::SockRef;
use tokio::net::TcpStream;

use super::budget::{Held, Over, PodBudget};
use super::record;
use super::turns::Turn;
use crate::hbone::limits::{COPY_CHUNK_BYTES, COPY_JOIN_BYTES};
use crate::hbone::{Stream, StreamError, poll_read};
use crate::http;
use crate::sys;
use crate::telemetry::Network;

const CHUNK: usize = COPY_CHUNK_BYTES as usize;
const JOIN: usize = COPY_JOIN_BYTES as usize;
/// Blocks of the queue that one write takes.
pub(super) const SLICES: usize = 16;

/// Bytes so far, readable while the pump runs, and the budget that bounds what waits.
#[derive(Default)]
pub struct Counters {
    forward: AtomicU64,
    backward: AtomicU64,
    budget: Option<Arc<PodBudget>>,
    /// How the network was, at the end.
    network: OnceLock<Network>,
}

impl Counters {
    /// Those of a connection whose waiting bytes count against this budget.
    pub(super) fn within(budget: Arc<PodBudget>) -> Self {
        Self { budget: Some(budget), ..Self::default() }
    }

    /// Counts bytes that something else than a pump carried.
    pub(super) fn add(&self, forward: usize, backward: usize) {
        if forward > 0 {
            self.forward.fetch_add(forward as u64, Ordering::Relaxed);
        }
        if backward > 0 {
            self.backward.fetch_add(backward as u64, Ordering::Relaxed);
        }
    }

    /// How the network was; once the pump has ended, and of sockets that led to it alone.
    pub(super) fn network(&self) -> Option<Network> {
        self.network.get().copied()
    }

    /// From the first argument of the pump to the second: application to tunnel, or `a` to `b`.
    pub fn forward(&self) -> u64 {
        self.forward.load(Ordering::Relaxed)
    }

    /// From the second argument of the pump to the first.
    pub fn backward(&self) -> u64 {
        self.backward.load(Ordering::Relaxed)
    }
}

/// How a copied connection ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// Both sides closed.
    Finished,
    /// The first argument's socket was reset or broke: passed on as a reset.
    FirstReset(io::ErrorKind),
    /// The second argument's socket was reset or broke: passed on as a reset.
    SecondReset(io::ErrorKind),
    /// The far side of the tunnel reset the stream: passed on as a TCP reset.
    StreamReset(Reason),
    /// The tunnel was lost: passed on as a TCP reset.
    TunnelLost(String),
    /// Its application does not read, and its pod has no room for more: a reset on both sides.
    OverBudget(Over),
    /// What the client said is not the protocol that its port speaks.
    NotHttp(&'static str),
    /// Cut by `cancel`, with a reset on both sides.
    Cut,
}

impl From<http::Ended> for End {
    fn from(ended: http::Ended) -> Self {
        match ended {
            http::Ended::Finished => Self::Finished,
            http::Ended::Broken(kind) => Self::FirstReset(kind),
            http::Ended::Refused(reason) => Self::NotHttp(reason),
            http::Ended::Cut => Self::Cut,
        }
    }
}

impl End {
    /// A word for logs and metrics.
    pub fn reason(&self) -> &'static str {
        match self {
            End::Finished => "finished",
            End::FirstReset(_) | End::SecondReset(_) => "reset",
            End::StreamReset(_) => "stream-reset",
            End::TunnelLost(_) => "tunnel-lost",
            End::OverBudget(over) => over.label(),
            End::NotHttp(reason) => reason,
            End::Cut => "cut",
        }
    }
}

impl From<StreamError> for End {
    fn from(error: StreamError) -> Self {
        match error {
            StreamError::Reset(reason) => End::StreamReset(reason),
            StreamError::TunnelLost(reason) => End::TunnelLost(reason),
        }
    }
}

/// Copies between an application's socket and a tunnelled stream until both have ended, one breaks, or `cancel` is
/// ready.
pub fn tunnel(
    tcp: TcpStream,
    stream: Stream,
    counters: &Counters,
    cancel: impl Future<Output = ()>,
) -> impl Future<Output = End> {
    let (queue, held) = (Queue::default(), Held::of(counters.budget.clone()));
    // Made here: a future that moves its arguments holds them twice.
    let (turn, up, down) = (Turn::default(), Half::Open, Half::Open);
    let mut pump = TunnelPump { tcp, stream, counters, queue, held, turn, up, down };
    async move {
        let mut cancel = pin!(cancel);
        let end = std::future::poll_fn(|cx| {
            if cancel.as_mut().poll(cx).is_ready() {
                return Poll::Ready(End::Cut);
            }
            pump.poll(cx)
        })
        .await;
        if end != End::Finished {
            pump.stream.reset();
            reset_on_close(&pump.tcp);
        }
        end
    }
}

/// Which of two sockets leads out of the node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outer {
    /// The first argument of the pump.
    First,
    /// The second.
    Second,
    /// It goes from pod to pod, or stays in one.
    Neither,
}

/// Copies between two sockets until both have ended, one breaks, or `cancel` is ready.
pub async fn plain(
    a: TcpStream,
    b: TcpStream,
    outer: Outer,
    counters: &Counters,
    cancel: impl Future<Output = ()>,
) -> End {
    let held = [Held::of(counters.budget.clone()), Held::of(counters.budget.clone())];
    sockets(a, b, outer, &[counters], held, cancel).await
}

/// The same between applications of two pods, each of which has counters of its own: what waits counts against the budget
/// of the pod whose application does not read it.
pub async fn between_pods(
    a: TcpStream,
    b: TcpStream,
    of_a: &Counters,
    of_b: &Counters,
    cancel: impl Future<Output = ()>,
) -> End {
    let held = [Held::of(of_b.budget.clone()), Held::of(of_a.budget.clone())];
    sockets(a, b, Outer::Neither, &[of_a, of_b], held, cancel).await
}

/// `held` is what waits for `b`, and for `a`.
async fn sockets(
    mut a: TcpStream,
    mut b: TcpStream,
    outer: Outer,
    counters: &[&Counters],
    [mut for_b, mut for_a]: [Held; 2],
    cancel: impl Future<Output = ()>,
) -> End {
    let mut forward = PlainPump::default();
    let mut backward = PlainPump::default();
    let mut cancel = pin!(cancel);
    let mut turn = Turn::default();
    let pod = counters.first().and_then(|first| first.budget.as_ref());
    let end = std::future::poll_fn(|cx| {
        if cancel.as_mut().poll(cx).is_ready() {
            return Poll::Ready(End::Cut);
        }
        let round = turn.begin(pod);
        let forth = match forward.poll(cx, &mut a, &b, round, |sent| counters.iter().for_each(|all| all.add(sent, 0))) {
            Poll::Ready(Err(Broken::Reader(kind))) => return Poll::Ready(End::FirstReset(kind)),
            Poll::Ready(Err(Broken::Writer(kind))) => return Poll::Ready(End::SecondReset(kind)),
            Poll::Ready(Ok(())) => true,
            Poll::Pending => false,
        };
        let back = match backward.poll(cx, &mut b, &a, round, |sent| counters.iter().for_each(|all| all.add(0, sent))) {
            Poll::Ready(Err(Broken::Reader(kind))) => return Poll::Ready(End::SecondReset(kind)),
            Poll::Ready(Err(Broken::Writer(kind))) => return Poll::Ready(End::FirstReset(kind)),
            Poll::Ready(Ok(())) => true,
            Poll::Pending => false,
        };
        if forth && back {
            return Poll::Ready(End::Finished);
        }
        if std::mem::take(&mut forward.is_over) | std::mem::take(&mut backward.is_over) {
            turn.wait(cx, pod);
        }
        match for_b.set(forward.pending.len()).and_then(|()| for_a.set(backward.pending.len())) {
            Ok(()) => Poll::Pending,
            Err(over) => Poll::Ready(End::OverBudget(over)),
        }
    })
    .await;
    let outer = match outer {
        Outer::First => Some(&a),
        Outer::Second => Some(&b),
        Outer::Neither => None,
    };
    if let (Some(outer), Some(counters)) = (outer, counters.first())
        && let Ok(info) = sys::tcp_info(outer.as_fd())
    {
        // Nobody else says it.
        let _ = counters.network.set(record::network(info));
    }
    if end != End::Finished {
        reset_on_close(&a);
        reset_on_close(&b);
    }
    end
}

/// One direction of a connection.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Half {
    Open,
    Ended,
}

struct TunnelPump<'a> {
    tcp: TcpStream,
    stream: Stream,
    counters: &'a Counters,
    /// Received, not yet written to the application.
    queue: Queue,
    /// What of it counts against the pod's budget.
    held: Held,
    /// When it goes on, where it has more to move than others should wait for.
    turn: Turn,
    /// Application to tunnel.
    up: Half,
    /// Tunnel to application.
    down: Half,
}

impl TunnelPump<'_> {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<End> {
        let round = self.turn.begin(self.counters.budget.as_ref());
        if self.up == Half::Open
            && let Poll::Ready(Err(end)) = self.poll_up(cx, round)
        {
            return Poll::Ready(end);
        }
        if self.down == Half::Open
            && let Poll::Ready(Err(end)) = self.poll_down(cx, round)
        {
            return Poll::Ready(end);
        }
        // Only what the application has left waiting: nothing is counted for one that keeps up.
        if let Err(over) = self.held.set(self.queue.length) {
            return Poll::Ready(End::OverBudget(over));
        }
        match (self.up, self.down) {
            (Half::Ended, Half::Ended) => Poll::Ready(End::Finished),
            // With nothing left to receive, a reset shows only on the sending half.
            (Half::Open, Half::Ended) => match ready!(self.stream.poll_reset(cx)) {
                error if error.is_end() => Poll::Ready(End::Finished),
                error => Poll::Ready(error.into()),
            },
            (Half::Open | Half::Ended, Half::Open) => Poll::Pending,
        }
    }

    fn poll_up(&mut self, cx: &mut Context<'_>, mut round: usize) -> Poll<Result<(), End>> {
        loop {
            // In this order: no room in the tunnel is waited for, and no buffer taken, while the application has nothing to say.
            ready!(self.tcp.poll_read_ready(cx)).map_err(first_reset)?;
            if round == 0 {
                self.turn.wait(cx, self.counters.budget.as_ref());
                return Poll::Pending;
            }
            let sent = match ready!(self.stream.poll_capacity(cx, CHUNK.min(round))) {
                Ok(capacity) => {
                    let Poll::Ready(bytes) = poll_read(cx, &mut self.tcp, capacity) else { continue };
                    let bytes = bytes.map_err(first_reset)?;
                    round = round.saturating_sub(bytes.len());
                    self.send(bytes)
                }
                Err(error) => Err(error),
            };
            match sent {
                Ok(Half::Open) => {}
                Ok(Half::Ended) => break,
                // The far side wants no more, and says so politely: what it sent is still to be delivered.
                Err(error) if error.is_end() => break,
                Err(error) => return Poll::Ready(Err(error.into())),
            }
        }
        self.up = Half::Ended;
        Poll::Ready(Ok(()))
    }

    /// Passes on what was read; nothing read is the end.
    fn send(&mut self, bytes: Bytes) -> Result<Half, StreamError> {
        if bytes.is_empty() {
            self.stream.finish()?;
            return Ok(Half::Ended);
        }
        let length = bytes.len() as u64;
        self.stream.send(bytes)?;
        self.counters.forward.fetch_add(length, Ordering::Relaxed);
        Ok(Half::Open)
    }

    fn poll_down(&mut self, cx: &mut Context<'_>, mut round: usize) -> Poll<Result<(), End>> {
        loop {
            let ended = self.fill_queue(cx)?;
            if self.queue.is_empty() {
                if !ended {
                    return Poll::Pending;
                }
                self.down = Half::Ended;
                // It fails when the application is gone; what it sent last is still to be read.
                let _ = SockRef::from(&self.tcp).shutdown(std::net::Shutdown::Write);
                return Poll::Ready(Ok(()));
            }
            if round == 0 {
                self.turn.wait(cx, self.counters.budget.as_ref());
                return Poll::Pending;
            }
            ready!(self.tcp.poll_write_ready(cx)).map_err(first_reset)?;
            match self.queue.write_to(&self.tcp) {
                Ok(written) => {
                    self.stream.release(written);
                    self.counters.backward.fetch_add(written as u64, Ordering::Relaxed);
                    round = round.saturating_sub(written);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Poll::Ready(Err(first_reset(error))),
            }
        }
    }

    /// Takes what has come; true once the far side has ended its half. All of it: the stream's window bounds it here as
    /// well as there, and what stays in the HTTP/2 layer as small frames counts against the whole tunnel.
    fn fill_queue(&mut self, cx: &mut Context<'_>) -> Result<bool, End> {
        loop {
            match self.stream.poll_recv(cx) {
                Poll::Ready(Some(Ok(bytes))) => self.queue.push(bytes),
                Poll::Ready(Some(Err(error))) => return Err(error.into()),
                Poll::Ready(None) => return Ok(true),
                Poll::Pending => return Ok(false),
            }
        }
    }
}

/// Bytes on their way to a socket, in order: blocks as they came, then small ones joined.
#[derive(Default)]
struct Queue {
    blocks: VecDeque<Bytes>,
    /// Bytes in all of it.
    length: usize,
    /// Small blocks behind a backlog are copied here. Each would otherwise hold on to the whole read that it came in.
    joined: BytesMut,
}

impl Queue {
    fn is_empty(&self) -> bool {
        self.length == 0
    }

    fn push(&mut self, bytes: Bytes) {
        let length = self.length.saturating_add(bytes.len());
        self.append(bytes);
        self.length = length;
    }

    fn append(&mut self, bytes: Bytes) {
        if !self.is_empty() && bytes.len() < JOIN {
            if self.joined.capacity() - self.joined.len() < bytes.len() {
                self.seal();
                self.joined = BytesMut::with_capacity(2 * JOIN);
            }
            self.joined.extend_from_slice(&bytes);
        } else if !bytes.is_empty() {
            self.seal();
            self.blocks.push_back(bytes);
        }
    }

    fn seal(&mut self) {
        if !self.joined.is_empty() {
            self.blocks.push_back(std::mem::take(&mut self.joined).freeze());
        }
    }

    fn write_to(&mut self, tcp: &TcpStream) -> io::Result<usize> {
        let written = match self.blocks.front() {
            Some(only) if self.blocks.len() == 1 && self.joined.is_empty() => tcp.try_write(only)?,
            _ => {
                let mut slices = [IoSlice::new(&[]); SLICES];
                let blocks = self.blocks.iter().map(|block| &block[..]).chain([&self.joined[..]]);
                for (slice, block) in slices.iter_mut().zip(blocks) {
                    *slice = IoSlice::new(block);
                }
                tcp.try_write_vectored(&slices)?
            }
        };
        self.advance(written);
        Ok(written)
    }

    fn advance(&mut self, mut written: usize) {
        self.length = self.length.saturating_sub(written);
        while let Some(front) = self.blocks.front_mut() {
            if written < front.len() {
                return front.advance(written);
            }
            written -= front.len();
            self.blocks.pop_front();
        }
        self.joined.advance(written.min(self.joined.len()));
        if self.joined.is_empty() {
            // The queue's own memory goes too: most connections are idle most of the time.
            *self = Self::default();
        }
    }
}

/// Which end of a one-way copy broke.
enum Broken {
    Reader(io::ErrorKind),
    Writer(io::ErrorKind),
}

/// One way between two sockets.
#[derive(Default)]
struct PlainPump {
    pending: Bytes,
    /// Its round is, and there may be more: somebody has to wait for the next turn.
    is_over: bool,
    done: bool,
}

impl PlainPump {
    fn poll(
        &mut self,
        cx: &mut Context<'_>,
        from: &mut TcpStream,
        to: &TcpStream,
        mut round: usize,
        count: impl Fn(usize),
    ) -> Poll<Result<(), Broken>> {
        while !self.done {
            if !self.pending.is_empty() {
                let written = ready!(poll_write(cx, to, &self.pending)).map_err(Broken::Writer)?;
                self.pending.advance(written);
                count(written);
                round = round.saturating_sub(written);
                continue;
            }
            // Not an empty slice of a shared block: that would keep the block.
            self.pending = Bytes::new();
            if round == 0 {
                self.is_over = true;
                return Poll::Pending;
            }
            self.pending =
                ready!(poll_read(cx, from, CHUNK.min(round))).map_err(|error| Broken::Reader(error.kind()))?;
            if self.pending.is_empty() {
                self.done = true;
                let _ = SockRef::from(to).shutdown(std::net::Shutdown::Write);
            }
        }
        Poll::Ready(Ok(()))
    }
}

fn poll_write(cx: &mut Context<'_>, to: &TcpStream, bytes: &[u8]) -> Poll<Result<usize, io::ErrorKind>> {
    loop {
        ready!(to.poll_write_ready(cx)).map_err(|error| error.kind())?;
        match to.try_write(bytes) {
            Ok(written) => return Poll::Ready(Ok(written)),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Poll::Ready(Err(error.kind())),
        }
    }
}

fn first_reset(error: io::Error) -> End {
    End::FirstReset(error.kind())
}

/// Refuses a connection that was accepted: closes it with a reset.
pub fn reset(tcp: TcpStream) {
    reset_on_close(&tcp);
}

/// Makes the coming close a reset.
fn reset_on_close(tcp: &TcpStream) {
    // It fails only on a socket that is gone already.
    let _ = SockRef::from(tcp).set_linger(Some(Duration::ZERO));
}
