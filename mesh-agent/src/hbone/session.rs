//! What one end of a tunnel knows: HTTP/2 (RFC 9113) for CONNECT alone. It reads and writes nothing itself:
//! [`super::connection`] does, and brings it frame by frame.
//!
//! ```text
//!   Stream ──send──► outbox ──► connection ──► TLS           frames ──► Session ──► the stream's queue ──► Stream
//!     │                 ▲ room, windows                                   │
//!     └── waits for room┘                                                 └► answers (RST, PING, SETTINGS) ──► outbox
//! ```
//! What is kept for a peer is bounded: its streams, what waits of each by its window, what we say by the outbox, which is not
//! added to for a peer that does not read, since nothing is read of it then.

use std::cell::RefCell;
use std::collections::{HashMap, VecDeque};
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use h2::Reason;
use http::StatusCode;
use slab::Slab;

use super::frame::{self, Head};
use super::head::{self, Answer, Asked, Fields};
use super::hpack::Decoder;
use super::limits::{self, Limits};
use super::outbox::Outbox;
use super::received::Received;
use super::stream::StreamError;
use super::words::ConnectRequest;

const STREAM_WINDOW: i64 = limits::STREAM_WINDOW as i64;
const CONNECTION_WINDOW: i64 = limits::CONNECTION_WINDOW as i64;
const MOST_FRAME: usize = limits::MAX_FRAME_BYTES as usize;
const MOST_BLOCK: usize = limits::MAX_HEADER_LIST_BYTES as usize;
const OUT: usize = limits::SEND_BUFFER_BYTES as usize;
/// Beside what streams say: answers, which cannot wait for room.
const ANSWERS: usize = limits::GATHER_BYTES as usize;

/// What goes out at once of anything long.
const RECORD: usize = limits::GATHER_LARGE_BYTES as usize;

/// Of the PING that follows a first goodbye.
const LAST_CALL: [u8; 8] = *b"goodbye\0";
/// Of those that ask whether the peer is there.
const ARE_YOU_THERE: [u8; 8] = *b"nodemesh";

/// How a connection ended before its time.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Broken {
    /// The socket or TLS.
    #[error("{0}")]
    Io(Rc<std::io::Error>),
    /// The peer did what it must not; it was told why.
    #[error("{1} ({0})")]
    Protocol(Reason, &'static str),
    /// The peer ended it, and said why.
    #[error("the peer ended it: {0}")]
    Told(Reason),
}

impl Broken {
    /// Whether it is the connection that broke, not the protocol.
    pub fn is_io(&self) -> bool {
        matches!(self, Broken::Io(_))
    }
}

impl From<std::io::Error> for Broken {
    fn from(error: std::io::Error) -> Self {
        Broken::Io(Rc::new(error))
    }
}

/// What the peer did.
pub(super) type Fault = (Reason, &'static str);

#[derive(Clone, Copy, PartialEq, Eq)]
enum Role {
    Client,
    Server,
}

/// Shared by the connection and its streams; clones are the same session.
#[derive(Clone)]
pub(super) struct Session(Rc<RefCell<Core>>);

struct Core {
    role: Role,
    out: Outbox,
    decoder: Decoder,
    /// A head that goes on in the next frame.
    block: Option<Block>,
    streams: Slab<Live>,
    by_id: HashMap<u32, usize>,
    /// Streams that the peer counts as open.
    open: usize,
    most_streams: usize,
    /// The next that we open.
    next: u32,
    /// The highest that the peer opened.
    last: u32,
    /// Reset by us lately: what still comes for them is no fault.
    forgotten: VecDeque<u32>,
    faults: u64,
    /// Reset by the peer before they were looked at.
    pending_resets: u64,
    send_window: i64,
    recv_window: i64,
    /// Credit that the peer has not been given yet.
    owed: i64,
    their: Their,
    /// Wait for room in the outbox or in the connection's window.
    starving: Vec<Waker>,
    /// Wait for their turn to open a stream.
    opening: Vec<Waker>,
    incoming: VecDeque<usize>,
    openers: usize,
    goodbye: Goodbye,
    their_goodbye: Option<Reason>,
    ping: Option<Ping>,
    ended: Option<Rc<str>>,
    driver: Option<Waker>,
}

/// What the peer said of itself.
struct Their {
    /// It has said anything.
    has_spoken: bool,
    initial_window: u32,
    frame: usize,
    streams: usize,
}

struct Block {
    stream: u32,
    ends: bool,
    bytes: Vec<u8>,
    continuations: u64,
}

struct Ping {
    is_answered: bool,
    waker: Option<Waker>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Goodbye {
    Unsaid,
    /// The peer was told to open no more; what it opened before it heard is served.
    Announced,
    Said(u32),
}

/// Why a stream broke.
#[derive(Clone)]
enum Break {
    Reset(Reason),
    Lost(Rc<str>),
    /// The peer left before it looked at the request.
    Unseen(Rc<str>),
}

impl From<Break> for StreamError {
    fn from(broken: Break) -> Self {
        match broken {
            Break::Reset(reason) => StreamError::Reset(reason),
            Break::Lost(why) | Break::Unseen(why) => StreamError::TunnelLost(why.to_string()),
        }
    }
}

/// A stream, from its head until its holder lets go of it.
struct Live {
    id: u32,
    send_window: i64,
    recv_window: i64,
    /// Came, and not released yet.
    unreleased: usize,
    /// Released, and not told to the peer yet.
    owed: usize,
    received: Received,
    their_end: bool,
    our_end: bool,
    broken: Option<Break>,
    /// Counts among those that the peer has open.
    is_open: bool,
    asked: Option<Asked>,
    answer: Option<Answer>,
    reader: Option<Waker>,
    writer: Option<Waker>,
    watcher: Option<Waker>,
}

impl Live {
    fn new(id: u32, send_window: u32) -> Self {
        Self {
            id,
            send_window: i64::from(send_window),
            recv_window: STREAM_WINDOW,
            unreleased: 0,
            owed: 0,
            received: Received::default(),
            their_end: false,
            our_end: false,
            broken: None,
            is_open: true,
            asked: None,
            answer: None,
            reader: None,
            writer: None,
            watcher: None,
        }
    }

    fn is_over(&self) -> bool {
        self.broken.is_some() || (self.their_end && self.our_end)
    }

    fn wake_all(&mut self) {
        [&mut self.reader, &mut self.writer, &mut self.watcher].into_iter().for_each(wake);
    }
}

fn wake(waker: &mut Option<Waker>) {
    if let Some(waker) = waker.take() {
        waker.wake();
    }
}

/// Keeps who is to be woken.
fn keep(slot: &mut Option<Waker>, cx: &Context<'_>) {
    match slot {
        Some(kept) if kept.will_wake(cx.waker()) => {}
        slot => *slot = Some(cx.waker().clone()),
    }
}

/// A request that a peer made.
pub(super) struct Request {
    pub asked: Asked,
    pub handle: Handle,
}

/// The holder of a stream. Dropping it ends the stream: by a reset, if it has not ended by itself.
pub(super) struct Handle {
    session: Session,
    key: usize,
}

/// May open streams. With the last of them gone, and the last stream, the connection is closed.
pub(super) struct Opener(Session);

impl Session {
    pub(super) fn client(limits: &Limits) -> (Self, Opener) {
        let session = Self::new(Role::Client, limits);
        let opener = Opener(session.clone());
        session.0.borrow_mut().openers = 1;
        (session, opener)
    }

    pub(super) fn server(limits: &Limits) -> Self {
        Self::new(Role::Server, limits)
    }

    fn new(role: Role, limits: &Limits) -> Self {
        let mut core = Core {
            role,
            out: Outbox::default(),
            decoder: Decoder::new(),
            block: None,
            streams: Slab::new(),
            by_id: HashMap::new(),
            open: 0,
            most_streams: limits.max_streams as usize,
            next: 1,
            last: 0,
            forgotten: VecDeque::new(),
            faults: 0,
            pending_resets: 0,
            send_window: i64::from(frame::FIRST_WINDOW),
            recv_window: CONNECTION_WINDOW,
            owed: 0,
            their: Their {
                has_spoken: false,
                initial_window: frame::FIRST_WINDOW,
                frame: frame::LEAST_FRAME as usize,
                streams: limits.max_streams as usize,
            },
            starving: Vec::new(),
            opening: Vec::new(),
            incoming: VecDeque::new(),
            openers: 0,
            goodbye: Goodbye::Unsaid,
            their_goodbye: None,
            ping: None,
            ended: None,
            driver: None,
        };
        core.greet(limits);
        Self(Rc::new(RefCell::new(core)))
    }

    /// Whether this end waits for a client's first words.
    pub(super) fn awaits_preface(&self) -> bool {
        self.0.borrow().role == Role::Server
    }

    /// Whether the peer has said who it is as HTTP/2 does.
    pub(super) fn has_heard(&self) -> bool {
        self.0.borrow().their.has_spoken
    }

    /// Whether more of the peer's words may be taken: what answers them has room.
    pub(super) fn may_read(&self) -> bool {
        self.0.borrow().out.len() < OUT + ANSWERS
    }

    /// Who is woken when there is something to write.
    pub(super) fn driven_by(&self, cx: &Context<'_>) {
        keep(&mut self.0.borrow_mut().driver, cx);
    }

    /// Does something with what is to be written.
    pub(super) fn out<T>(&self, with: impl FnOnce(&mut Outbox) -> T) -> T {
        with(&mut self.0.borrow_mut().out)
    }

    /// What was written has made room.
    pub(super) fn has_written(&self) {
        let core = &mut *self.0.borrow_mut();
        if core.out.len() <= OUT / 2 {
            core.feed();
        }
    }

    /// Whether there is nothing left to do on this connection.
    pub(super) fn is_done(&self) -> bool {
        self.0.borrow().is_done()
    }

    /// The end of a client's connection whose last opener and stream are gone.
    pub(super) fn take_leave(&self) {
        let core = &mut *self.0.borrow_mut();
        if core.role == Role::Client && core.goodbye == Goodbye::Unsaid && core.openers == 0 && core.streams.is_empty()
        {
            core.say_goodbye(Reason::NO_ERROR);
        }
    }

    /// Says goodbye because of what the peer did; nothing goes on after it.
    pub(super) fn fail(&self, (reason, why): Fault) -> Broken {
        let core = &mut *self.0.borrow_mut();
        core.say_goodbye(reason);
        let broken = Broken::Protocol(reason, why);
        core.lose(broken.to_string().into());
        broken
    }

    /// The connection is gone.
    pub(super) fn lose(&self, why: &str) {
        self.0.borrow_mut().lose(why.into());
    }

    /// How the peer ended it, if not for good.
    pub(super) fn told(&self) -> Option<Broken> {
        self.0.borrow().their_goodbye.filter(|reason| *reason != Reason::NO_ERROR).map(Broken::Told)
    }

    /// Whether anybody would miss the connection.
    pub(super) fn is_needed(&self) -> bool {
        self.0.borrow().streams.iter().any(|(_, live)| !live.is_over())
    }

    /// Tells the peer to open no more; those that are open go on.
    pub(super) fn say_last_call(&self) {
        let core = &mut *self.0.borrow_mut();
        if core.goodbye == Goodbye::Unsaid {
            core.goodbye = Goodbye::Announced;
            core.out.put(|out| {
                frame::put_goodbye(out, frame::MOST_STREAM, Reason::NO_ERROR);
                frame::put(out, frame::PING, 0, 0, &LAST_CALL);
            });
            core.wake_driver();
        }
    }

    /// Says goodbye; streams that are open end here.
    pub(super) fn cut(&self) {
        let core = &mut *self.0.borrow_mut();
        core.say_goodbye(Reason::NO_ERROR);
        core.lose("this end closed the tunnel".into());
    }

    /// Asks whether the peer is there. Returns when it answers, or with an error when the connection has ended.
    pub(super) async fn ping(&self) -> Result<(), ()> {
        {
            let core = &mut *self.0.borrow_mut();
            core.ping = Some(Ping { is_answered: false, waker: None });
            core.out.put(|out| frame::put(out, frame::PING, 0, 0, &ARE_YOU_THERE));
            core.wake_driver();
        }
        std::future::poll_fn(|cx| {
            let core = &mut *self.0.borrow_mut();
            if core.ended.is_some() {
                return Poll::Ready(Err(()));
            }
            match &mut core.ping {
                Some(Ping { is_answered: false, waker }) => {
                    keep(waker, cx);
                    Poll::Pending
                }
                Some(_) | None => Poll::Ready(Ok(())),
            }
        })
        .await
    }

    /// The next request that the peer has not taken back.
    pub(super) fn next_request(&self) -> Option<Request> {
        let core = &mut *self.0.borrow_mut();
        while let Some(key) = core.incoming.pop_front() {
            let Some(live) = core.streams.get_mut(key) else { continue };
            if live.broken.is_some() {
                core.pending_resets = core.pending_resets.saturating_sub(1);
                core.remove(key);
                continue;
            }
            if let Some(asked) = live.asked.take() {
                return Some(Request { asked, handle: Handle { session: self.clone(), key } });
            }
        }
        None
    }

    /// A frame that is complete. All but DATA.
    pub(super) fn take(&self, head: Head, payload: &[u8]) -> Result<(), Fault> {
        self.0.borrow_mut().take(head, payload)
    }

    /// A frame of DATA begins.
    pub(super) fn begin_data(&self, head: Head) -> Result<(), Fault> {
        self.0.borrow_mut().begin_data(head)
    }

    /// A part of it. Padding counts as well, and goes nowhere.
    pub(super) fn data(&self, stream: u32, bytes: Bytes) {
        self.0.borrow_mut().data(stream, bytes);
    }

    pub(super) fn padding(&self, stream: u32, length: usize) {
        self.0.borrow_mut().padding(stream, length);
    }

    /// It was the last of its stream.
    pub(super) fn end_of(&self, stream: u32) {
        self.0.borrow_mut().end_of(stream);
    }
}

impl Core {
    fn greet(&mut self, limits: &Limits) {
        let role = self.role;
        self.out.put(|out| {
            let bounds = [
                (frame::INITIAL_WINDOW_SIZE, limits::STREAM_WINDOW as u32),
                (frame::MAX_FRAME_SIZE, limits::MAX_FRAME_BYTES as u32),
                (frame::MAX_HEADER_LIST_SIZE, limits::MAX_HEADER_LIST_BYTES as u32),
            ];
            match role {
                Role::Client => {
                    out.extend_from_slice(frame::PREFACE);
                    let own = [(frame::ENABLE_PUSH, 0), (frame::MAX_CONCURRENT_STREAMS, 0)];
                    frame::put_settings(out, &[&own[..], &bounds].concat());
                }
                Role::Server => {
                    let own = [(frame::MAX_CONCURRENT_STREAMS, limits.max_streams)];
                    frame::put_settings(out, &[&own[..], &bounds].concat());
                }
            }
            frame::put_credit(out, 0, limits::CONNECTION_WINDOW as u32 - frame::FIRST_WINDOW);
        });
    }

    fn wake_driver(&mut self) {
        if let Some(driver) = &self.driver {
            driver.wake_by_ref();
        }
    }

    fn feed(&mut self) {
        self.starving.drain(..).for_each(Waker::wake);
    }

    fn is_done(&self) -> bool {
        let said = match (self.role, self.goodbye) {
            (_, Goodbye::Said(_)) => true,
            (_, Goodbye::Unsaid | Goodbye::Announced) => self.their_goodbye.is_some(),
        };
        said && self.streams.is_empty()
    }

    fn say_goodbye(&mut self, reason: Reason) {
        let last = self.last;
        self.goodbye = Goodbye::Said(last);
        self.out.put(|out| frame::put_goodbye(out, last, reason));
        self.wake_driver();
    }

    fn lose(&mut self, why: Rc<str>) {
        self.ended.get_or_insert_with(|| why.clone());
        for (_, live) in &mut self.streams {
            if !live.is_over() {
                live.broken = Some(Break::Lost(why.clone()));
            }
            live.wake_all();
        }
        self.feed();
        self.opening.drain(..).for_each(Waker::wake);
        if let Some(Ping { waker, .. }) = &mut self.ping {
            wake(waker);
        }
        self.wake_driver();
    }

    /// Something that no sane peer does often.
    fn fault(&mut self) -> Result<(), Fault> {
        self.faults = self.faults.saturating_add(1);
        if self.faults > limits::MAX_FAULTS {
            return Err((Reason::ENHANCE_YOUR_CALM, "too many of its frames had to be refused"));
        }
        Ok(())
    }

    /// Refuses a stream for what the peer did on it.
    fn refuse(&mut self, stream: u32, reason: Reason) -> Result<(), Fault> {
        self.fault()?;
        self.put_reset(stream, reason);
        if let Some(key) = self.by_id.get(&stream).copied() {
            self.break_stream(key, Break::Reset(reason));
        }
        Ok(())
    }

    fn put_reset(&mut self, stream: u32, reason: Reason) {
        self.out.put(|out| frame::put_reset(out, stream, reason));
        if self.forgotten.len() as u64 >= limits::MAX_RESET_STREAMS {
            self.forgotten.pop_front();
        }
        self.forgotten.push_back(stream);
        self.wake_driver();
    }

    fn break_stream(&mut self, key: usize, why: Break) {
        let Some(live) = self.streams.get_mut(key).filter(|live| !live.is_over()) else { return };
        live.broken = Some(why);
        live.wake_all();
        let is_pending = live.asked.is_some();
        self.pending_resets = self.pending_resets.saturating_add(u64::from(is_pending));
        self.count_closed(key);
    }

    /// The peer may open another instead.
    fn count_closed(&mut self, key: usize) {
        if let Some(live) = self.streams.get_mut(key)
            && live.is_over()
            && std::mem::take(&mut live.is_open)
        {
            self.open = self.open.saturating_sub(1);
            self.opening.drain(..).for_each(Waker::wake);
        }
    }

    fn remove(&mut self, key: usize) {
        let Some(live) = self.streams.try_remove(key) else { return };
        self.by_id.remove(&live.id);
        if live.is_open {
            self.open = self.open.saturating_sub(1);
            self.opening.drain(..).for_each(Waker::wake);
        }
        // What nobody read any more.
        self.owe(live.unreleased);
        if self.streams.is_empty() {
            // Somebody may have waited for the last.
            self.wake_driver();
        }
        if self.streams.capacity() > 2 * limits::MAX_STREAMS as usize && self.streams.is_empty() {
            self.streams = Slab::new();
        }
    }

    /// Gives the peer credit for the connection, now and then.
    fn owe(&mut self, bytes: usize) {
        self.owed = self.owed.saturating_add(bytes as i64);
        if self.owed >= CONNECTION_WINDOW / 2 {
            let owed = std::mem::take(&mut self.owed);
            self.recv_window = self.recv_window.saturating_add(owed);
            self.out.put(|out| frame::put_credit(out, 0, owed as u32));
            self.wake_driver();
        }
    }

    fn live(&mut self, stream: u32) -> Option<&mut Live> {
        let key = *self.by_id.get(&stream)?;
        self.streams.get_mut(key)
    }

    /// Whether a stream was never opened. Frames for it are no late ones.
    fn is_idle(&self, stream: u32) -> bool {
        match self.role {
            Role::Server => stream.is_multiple_of(2) || stream > self.last,
            Role::Client => stream.is_multiple_of(2) || stream >= self.next,
        }
    }

    fn take(&mut self, head: Head, payload: &[u8]) -> Result<(), Fault> {
        if let Some(block) = &self.block
            && (head.kind != frame::CONTINUATION || head.stream != block.stream)
        {
            return Err((Reason::PROTOCOL_ERROR, "a head was not finished"));
        }
        if !self.their.has_spoken && (head.kind != frame::SETTINGS || head.has(frame::ACK)) {
            return Err((Reason::PROTOCOL_ERROR, "its first frame is no SETTINGS"));
        }
        match head.kind {
            frame::HEADERS => self.headers(head, payload),
            frame::CONTINUATION => self.continuation(head, payload),
            frame::PRIORITY => self.priority(head, payload),
            frame::RST_STREAM => self.reset(head, payload),
            frame::SETTINGS => self.settings(head, payload),
            frame::PUSH_PROMISE => Err((Reason::PROTOCOL_ERROR, "a push, which nobody may make")),
            frame::PING => self.pinged(head, payload),
            frame::GOAWAY => self.goaway(head, payload),
            frame::WINDOW_UPDATE => self.credit(head, payload),
            _ => Ok(()),
        }
    }

    fn headers(&mut self, head: Head, payload: &[u8]) -> Result<(), Fault> {
        if head.stream == 0 {
            return Err((Reason::PROTOCOL_ERROR, "a head without a stream"));
        }
        let mut rest = payload;
        let mut padding = 0;
        if head.has(frame::PADDED) {
            let (first, after) = rest.split_first().ok_or(SHORT)?;
            (padding, rest) = (usize::from(*first), after);
        }
        if head.has(frame::PRIORITISED) {
            let (priority, after) = rest.split_at_checked(5).ok_or(SHORT)?;
            if depends_on(priority) == Some(head.stream) {
                return Err((Reason::PROTOCOL_ERROR, "a stream that depends on itself"));
            }
            rest = after;
        }
        let length = rest.len().checked_sub(padding).ok_or((Reason::PROTOCOL_ERROR, "more padding than frame"))?;
        let bytes = rest.get(..length).unwrap_or_default().to_vec();
        let block = Block { stream: head.stream, ends: head.has(frame::END_STREAM), bytes, continuations: 0 };
        self.block_grew(block, head.has(frame::END_HEADERS))
    }

    fn continuation(&mut self, head: Head, payload: &[u8]) -> Result<(), Fault> {
        let mut block = self.block.take().ok_or((Reason::PROTOCOL_ERROR, "no head goes on here"))?;
        block.bytes.extend_from_slice(payload);
        block.continuations = block.continuations.saturating_add(1);
        self.block_grew(block, head.has(frame::END_HEADERS))
    }

    fn block_grew(&mut self, block: Block, is_whole: bool) -> Result<(), Fault> {
        if block.bytes.len() > MOST_BLOCK || block.continuations > limits::MAX_CONTINUATIONS {
            return Err((Reason::ENHANCE_YOUR_CALM, "a head that is too long"));
        }
        if !is_whole {
            self.block = Some(block);
            return Ok(());
        }
        let mut fields = Fields::default();
        let read = self.decoder.decode(&block.bytes, |name, value| fields.take(name, value));
        read.map_err(|_| (Reason::COMPRESSION_ERROR, "a head that cannot be read"))?;
        if fields.is_flood() {
            return Err((Reason::ENHANCE_YOUR_CALM, "a head that is too large"));
        }
        match self.by_id.get(&block.stream).copied() {
            Some(key) => self.more_headers(key, &block, &fields),
            None if self.role == Role::Server => self.request(&block, &fields),
            None if self.is_idle(block.stream) => Err((Reason::PROTOCOL_ERROR, "a head for no stream")),
            None => self.late(block.stream),
        }
    }

    /// Something for a stream that is over.
    fn late(&mut self, stream: u32) -> Result<(), Fault> {
        if self.forgotten.contains(&stream) {
            return Ok(());
        }
        self.refuse(stream, Reason::STREAM_CLOSED)
    }

    fn request(&mut self, block: &Block, fields: &Fields) -> Result<(), Fault> {
        let stream = block.stream;
        if stream.is_multiple_of(2) {
            return Err((Reason::PROTOCOL_ERROR, "a client's stream with an even number"));
        }
        if stream <= self.last {
            return self.late(stream);
        }
        self.last = stream;
        let is_leaving = matches!(self.goodbye, Goodbye::Said(last) if stream > last);
        if is_leaving || self.open >= self.most_streams {
            self.put_reset(stream, Reason::REFUSED_STREAM);
            return Ok(());
        }
        let asked = fields.request();
        if asked == Asked::Malformed {
            return self.refuse(stream, Reason::PROTOCOL_ERROR);
        }
        let mut live = Live::new(stream, self.their.initial_window);
        (live.asked, live.their_end) = (Some(asked), block.ends);
        let key = self.streams.insert(live);
        self.by_id.insert(stream, key);
        self.open = self.open.saturating_add(1);
        self.incoming.push_back(key);
        Ok(())
    }

    /// An answer, or trailers, of which none mean anything.
    fn more_headers(&mut self, key: usize, block: &Block, fields: &Fields) -> Result<(), Fault> {
        let role = self.role;
        let Some(live) = self.streams.get_mut(key) else { return Ok(()) };
        if live.their_end {
            return Err((Reason::PROTOCOL_ERROR, "a head after the end"));
        }
        let is_answer = role == Role::Client && live.answer.is_none();
        if is_answer {
            match fields.answer() {
                Ok(answer) if answer.status.is_informational() => return Ok(()),
                Ok(answer) => live.answer = Some(answer),
                Err(reason) => return self.refuse(block.stream, reason),
            }
            wake(&mut live.reader);
        }
        match block.ends {
            true => self.end_of(block.stream),
            false if is_answer => {}
            false => return self.refuse(block.stream, Reason::PROTOCOL_ERROR),
        }
        Ok(())
    }

    fn priority(&mut self, head: Head, payload: &[u8]) -> Result<(), Fault> {
        if head.stream == 0 || payload.len() != 5 {
            return Err((Reason::PROTOCOL_ERROR, "a priority of nothing"));
        }
        if depends_on(payload) == Some(head.stream) { self.fault() } else { Ok(()) }
    }

    fn reset(&mut self, head: Head, payload: &[u8]) -> Result<(), Fault> {
        let reason = frame::word(payload).filter(|_| payload.len() == 4).ok_or(SIZE)?;
        if head.stream == 0 || self.is_idle(head.stream) {
            return Err((Reason::PROTOCOL_ERROR, "a reset of no stream"));
        }
        let Some(key) = self.by_id.get(&head.stream).copied() else { return Ok(()) };
        self.break_stream(key, Break::Reset(Reason::from(reason)));
        if self.pending_resets > limits::MAX_PENDING_RESETS {
            return Err((Reason::ENHANCE_YOUR_CALM, "too many requests that were taken back at once"));
        }
        Ok(())
    }

    fn settings(&mut self, head: Head, payload: &[u8]) -> Result<(), Fault> {
        if head.stream != 0 {
            return Err((Reason::PROTOCOL_ERROR, "settings of a stream"));
        }
        if head.has(frame::ACK) {
            return if payload.is_empty() { Ok(()) } else { Err(SIZE) };
        }
        if !payload.len().is_multiple_of(6) {
            return Err(SIZE);
        }
        let mut window = None;
        for (name, value) in frame::settings(payload) {
            match name {
                frame::INITIAL_WINDOW_SIZE if i64::from(value) > frame::MOST_WINDOW => {
                    return Err((Reason::FLOW_CONTROL_ERROR, "a window larger than any"));
                }
                frame::INITIAL_WINDOW_SIZE => window = Some(value),
                frame::MAX_FRAME_SIZE if !(frame::LEAST_FRAME..=frame::MOST_FRAME).contains(&value) => {
                    return Err((Reason::PROTOCOL_ERROR, "a size of frames that may not be"));
                }
                frame::MAX_FRAME_SIZE => self.their.frame = (value as usize).min(MOST_FRAME),
                frame::MAX_CONCURRENT_STREAMS => self.their.streams = value as usize,
                frame::ENABLE_PUSH if value > 1 => {
                    return Err((Reason::PROTOCOL_ERROR, "a switch that is neither on nor off"));
                }
                // What we say is never remembered, so its table may be of any size.
                _ => {}
            }
        }
        self.their.has_spoken = true;
        if let Some(window) = window {
            self.windows_moved(window)?;
        }
        self.opening.drain(..).for_each(Waker::wake);
        self.out.put(|out| frame::put(out, frame::SETTINGS, frame::ACK, 0, &[]));
        Ok(())
    }

    fn windows_moved(&mut self, window: u32) -> Result<(), Fault> {
        let by = i64::from(window).saturating_sub(i64::from(self.their.initial_window));
        self.their.initial_window = window;
        for (_, live) in &mut self.streams {
            live.send_window = live.send_window.saturating_add(by);
            if live.send_window > frame::MOST_WINDOW {
                return Err((Reason::FLOW_CONTROL_ERROR, "a window larger than any"));
            }
            wake(&mut live.writer);
        }
        Ok(())
    }

    fn pinged(&mut self, head: Head, payload: &[u8]) -> Result<(), Fault> {
        let payload: [u8; 8] = payload.try_into().map_err(|_| SIZE)?;
        if head.stream != 0 {
            return Err((Reason::PROTOCOL_ERROR, "a ping of a stream"));
        }
        if !head.has(frame::ACK) {
            self.out.put(|out| frame::put(out, frame::PING, frame::ACK, 0, &payload));
            return Ok(());
        }
        if payload == ARE_YOU_THERE
            && let Some(ping) = &mut self.ping
        {
            ping.is_answered = true;
            wake(&mut ping.waker);
        }
        if payload == LAST_CALL && self.goodbye == Goodbye::Announced {
            self.say_goodbye(Reason::NO_ERROR);
        }
        Ok(())
    }

    fn goaway(&mut self, head: Head, payload: &[u8]) -> Result<(), Fault> {
        if head.stream != 0 {
            return Err((Reason::PROTOCOL_ERROR, "a goodbye of a stream"));
        }
        let (Some(last), Some(reason)) = (frame::word(payload), payload.get(4..).and_then(frame::word)) else {
            return Err(SIZE);
        };
        let (last, reason) = (last & frame::MOST_STREAM, Reason::from(reason));
        self.their_goodbye = Some(reason);
        let why: Rc<str> = format!("the peer said goodbye: {reason}").into();
        for (_, live) in &mut self.streams {
            if self.role == Role::Client && live.id > last && !live.is_over() {
                live.broken = Some(if reason == Reason::NO_ERROR {
                    Break::Unseen(why.clone())
                } else {
                    Break::Lost(why.clone())
                });
                live.wake_all();
            }
        }
        self.opening.drain(..).for_each(Waker::wake);
        Ok(())
    }

    fn credit(&mut self, head: Head, payload: &[u8]) -> Result<(), Fault> {
        let by = frame::word(payload).filter(|_| payload.len() == 4).ok_or(SIZE)? & frame::MOST_STREAM;
        if by == 0 {
            return Err((Reason::PROTOCOL_ERROR, "a credit of nothing"));
        }
        if head.stream == 0 {
            self.send_window = self.send_window.saturating_add(i64::from(by));
            if self.send_window > frame::MOST_WINDOW {
                return Err((Reason::FLOW_CONTROL_ERROR, "a window larger than any"));
            }
            self.feed();
            return Ok(());
        }
        if self.is_idle(head.stream) {
            return Err((Reason::PROTOCOL_ERROR, "a credit for no stream"));
        }
        // It may be late, as for any stream that has ended.
        let Some(live) = self.live(head.stream) else { return Ok(()) };
        live.send_window = live.send_window.saturating_add(i64::from(by));
        wake(&mut live.writer);
        if live.send_window > frame::MOST_WINDOW {
            return self.refuse(head.stream, Reason::FLOW_CONTROL_ERROR);
        }
        Ok(())
    }

    fn begin_data(&mut self, head: Head) -> Result<(), Fault> {
        if self.block.is_some() {
            return Err((Reason::PROTOCOL_ERROR, "a head was not finished"));
        }
        if !self.their.has_spoken {
            return Err((Reason::PROTOCOL_ERROR, "its first frame is no SETTINGS"));
        }
        if head.stream == 0 || self.is_idle(head.stream) {
            return Err((Reason::PROTOCOL_ERROR, "data for no stream"));
        }
        let length = head.length as i64;
        if length > self.recv_window {
            return Err((Reason::FLOW_CONTROL_ERROR, "more data than the connection's window"));
        }
        self.recv_window = self.recv_window.saturating_sub(length);
        if length == 0 && !head.has(frame::END_STREAM) {
            self.fault()?;
        }
        let Some(live) = self.live(head.stream) else { return self.late(head.stream) };
        if live.broken.is_some() {
            return Ok(());
        }
        if live.their_end {
            return Err((Reason::PROTOCOL_ERROR, "data after the end"));
        }
        if length > live.recv_window {
            return self.refuse(head.stream, Reason::FLOW_CONTROL_ERROR);
        }
        live.recv_window = live.recv_window.saturating_sub(length);
        Ok(())
    }

    fn data(&mut self, stream: u32, bytes: Bytes) {
        let length = bytes.len();
        match self.live(stream) {
            Some(live) if live.broken.is_none() => {
                live.unreleased = live.unreleased.saturating_add(length);
                live.received.push(bytes);
                wake(&mut live.reader);
            }
            // Nobody will read it: the connection's credit goes back at once.
            Some(_) | None => self.owe(length),
        }
    }

    fn padding(&mut self, stream: u32, length: usize) {
        if let Some(live) = self.live(stream) {
            live.recv_window = live.recv_window.saturating_add(length as i64);
            self.out.put(|out| frame::put_credit(out, stream, length as u32));
        }
        self.owe(length);
    }

    fn end_of(&mut self, stream: u32) {
        let Some(key) = self.by_id.get(&stream).copied() else { return };
        if let Some(live) = self.streams.get_mut(key) {
            live.their_end = true;
            wake(&mut live.reader);
        }
        self.count_closed(key);
    }
}

/// A frame that ends before what it says is there.
const SHORT: Fault = (Reason::PROTOCOL_ERROR, "a frame that ends too soon");
/// A frame of the wrong size.
const SIZE: Fault = (Reason::FRAME_SIZE_ERROR, "a frame of the wrong size");

fn depends_on(priority: &[u8]) -> Option<u32> {
    frame::word(priority).map(|stream| stream & frame::MOST_STREAM)
}

/// Why no stream is opened.
pub(super) enum Unopened {
    /// The peer said goodbye.
    Goodbye(String),
    /// The connection is gone.
    Lost(String),
    /// The peer reset the request.
    Reset(Reason),
}

impl Clone for Opener {
    fn clone(&self) -> Self {
        self.0.0.borrow_mut().openers += 1;
        Self(self.0.clone())
    }
}

impl Drop for Opener {
    fn drop(&mut self) {
        let core = &mut *self.0.0.borrow_mut();
        core.openers = core.openers.saturating_sub(1);
        if core.openers == 0 {
            core.wake_driver();
        }
    }
}

impl Opener {
    /// How many streams the peer takes at once.
    pub(super) fn most_streams(&self) -> usize {
        self.0.0.borrow().their.streams
    }

    /// Whether the peer has said goodbye, or the connection is lost.
    pub(super) fn is_going_away(&self) -> bool {
        self.0.0.borrow().why_not_open().is_some()
    }

    /// Sends a CONNECT, when the peer takes another stream.
    pub(super) async fn ask(&self, request: &ConnectRequest) -> Result<Handle, Unopened> {
        std::future::poll_fn(|cx| {
            let core = &mut *self.0.0.borrow_mut();
            if let Some(why) = core.why_not_open() {
                return Poll::Ready(Err(why));
            }
            if core.open >= core.their.streams {
                core.opening.push(cx.waker().clone());
                return Poll::Pending;
            }
            let key = core.ask(request);
            Poll::Ready(Ok(Handle { session: self.0.clone(), key }))
        })
        .await
    }
}

impl Core {
    fn why_not_open(&self) -> Option<Unopened> {
        if let Some(why) = &self.ended {
            return Some(Unopened::Lost(why.to_string()));
        }
        if self.next > frame::MOST_STREAM || self.goodbye != Goodbye::Unsaid {
            return Some(Unopened::Goodbye("this end has opened all that it may".into()));
        }
        match self.their_goodbye? {
            Reason::NO_ERROR => Some(Unopened::Goodbye(format!("goodbye: {}", Reason::NO_ERROR))),
            reason => Some(Unopened::Lost(format!("goodbye: {reason}"))),
        }
    }

    fn ask(&mut self, request: &ConnectRequest) -> usize {
        let stream = self.next;
        self.next = self.next.saturating_add(2);
        let key = self.streams.insert(Live::new(stream, self.their.initial_window));
        self.by_id.insert(stream, key);
        self.open = self.open.saturating_add(1);
        self.put_head(stream, 0, &head::request(request));
        key
    }

    /// In one frame: what we say is shorter than the shortest that a peer may bound frames to.
    fn put_head(&mut self, stream: u32, flags: u8, block: &[u8]) {
        self.out.put(|out| frame::put(out, frame::HEADERS, frame::END_HEADERS | flags, stream, block));
        self.wake_driver();
    }
}

impl Handle {
    fn with<T>(&self, gone: T, with: impl FnOnce(&mut Core, usize) -> T) -> T {
        let core = &mut *self.session.0.borrow_mut();
        if core.streams.contains(self.key) { with(core, self.key) } else { gone }
    }

    fn live<T>(&self, gone: T, with: impl FnOnce(&mut Live) -> T) -> T {
        self.session.0.borrow_mut().streams.get_mut(self.key).map_or(gone, with)
    }

    /// What the far side answers.
    pub(super) async fn answer(&self) -> Result<Answer, Unopened> {
        std::future::poll_fn(|cx| {
            self.live(Poll::Ready(Err(Unopened::Lost("the stream is gone".into()))), |live| {
                if let Some(answer) = &live.answer {
                    return Poll::Ready(Ok(answer.clone()));
                }
                match &live.broken {
                    Some(Break::Reset(reason)) => Poll::Ready(Err(Unopened::Reset(*reason))),
                    Some(Break::Lost(why)) => Poll::Ready(Err(Unopened::Lost(why.to_string()))),
                    Some(Break::Unseen(why)) => Poll::Ready(Err(Unopened::Goodbye(why.to_string()))),
                    None => {
                        keep(&mut live.reader, cx);
                        Poll::Pending
                    }
                }
            })
        })
        .await
    }

    /// Answers a request, and with `ends` says no more.
    pub(super) fn respond(&self, status: StatusCode, baggage: &str, ends: bool) -> Result<(), StreamError> {
        self.with(Ok(()), |core, key| {
            let Some(live) = core.streams.get_mut(key) else { return Ok(()) };
            if let Some(broken) = &live.broken {
                return Err(broken.clone().into());
            }
            let stream = live.id;
            live.our_end |= ends;
            core.put_head(stream, if ends { frame::END_STREAM } else { 0 }, &head::answer(status, baggage));
            core.count_closed(key);
            Ok(())
        })
    }

    /// Bytes that came and were not released.
    pub(super) fn unreleased(&self) -> usize {
        self.live(0, |live| live.unreleased)
    }

    /// What came next; `None` at the end.
    pub(super) fn poll_recv(&self, cx: &Context<'_>) -> Poll<Option<Result<Bytes, StreamError>>> {
        self.live(Poll::Ready(None), |live| {
            if let Some(bytes) = live.received.pop() {
                return Poll::Ready(Some(Ok(bytes)));
            }
            if live.their_end {
                return Poll::Ready(None);
            }
            match &live.broken {
                Some(broken) => Poll::Ready(Some(Err(broken.clone().into()))),
                None => {
                    keep(&mut live.reader, cx);
                    Poll::Pending
                }
            }
        })
    }

    /// Gives the far side credit.
    pub(super) fn release(&self, bytes: usize) {
        self.with((), |core, key| {
            let Some(live) = core.streams.get_mut(key) else { return };
            let bytes = bytes.min(live.unreleased);
            live.unreleased = live.unreleased.saturating_sub(bytes);
            live.owed = live.owed.saturating_add(bytes);
            if live.owed as i64 >= STREAM_WINDOW / 2 && !live.their_end && live.broken.is_none() {
                let owed = std::mem::take(&mut live.owed);
                live.recv_window = live.recv_window.saturating_add(owed as i64);
                let stream = live.id;
                core.out.put(|out| frame::put_credit(out, stream, owed as u32));
                core.wake_driver();
            }
            core.owe(bytes);
        });
    }

    /// How many bytes may be sent now, up to `wanted`; waits for the first.
    pub(super) fn poll_capacity(&self, cx: &Context<'_>, wanted: usize) -> Poll<Result<usize, StreamError>> {
        self.with(Poll::Ready(Err(StreamError::Reset(Reason::CANCEL))), |core, key| {
            let room = OUT.saturating_sub(core.out.len());
            // Room for a few bytes is not worth a read: there will soon be more.
            let room = if room < wanted.min(RECORD) { 0 } else { room };
            let shared = (room as i64).min(core.send_window);
            let Some(live) = core.streams.get_mut(key) else { return Poll::Pending };
            if let Some(broken) = &live.broken {
                return Poll::Ready(Err(broken.clone().into()));
            }
            if live.our_end {
                return Poll::Ready(Err(StreamError::Reset(Reason::CANCEL)));
            }
            let most = shared.min(live.send_window).min(wanted as i64);
            if most > 0 {
                return Poll::Ready(Ok(most as usize));
            }
            if live.send_window <= 0 {
                keep(&mut live.writer, cx);
            } else {
                // Its reset or its tunnel's end is to be heard as well.
                keep(&mut live.writer, cx);
                core.starving.push(cx.waker().clone());
            }
            Poll::Pending
        })
    }

    /// Sends bytes; no more than there is capacity for.
    pub(super) fn send(&self, mut bytes: Bytes) -> Result<(), StreamError> {
        self.with(Err(StreamError::Reset(Reason::CANCEL)), |core, key| {
            let most = core.their.frame;
            let Some(live) = core.streams.get_mut(key) else { return Ok(()) };
            if let Some(broken) = &live.broken {
                return Err(broken.clone().into());
            }
            let length = bytes.len() as i64;
            if live.our_end || length > live.send_window.min(core.send_window) {
                return Err(StreamError::Reset(Reason::INTERNAL_ERROR));
            }
            live.send_window = live.send_window.saturating_sub(length);
            core.send_window = core.send_window.saturating_sub(length);
            while !bytes.is_empty() {
                let part = bytes.split_to(bytes.len().min(most));
                let head = Head { length: part.len(), kind: frame::DATA, flags: 0, stream: live.id };
                core.out.put(|out| out.extend_from_slice(&head.write()));
                core.out.push(part);
            }
            core.wake_driver();
            Ok(())
        })
    }

    /// Ends our half.
    pub(super) fn finish(&self) -> Result<(), StreamError> {
        self.with(Ok(()), |core, key| {
            let Some(live) = core.streams.get_mut(key) else { return Ok(()) };
            if let Some(broken) = &live.broken {
                return Err(broken.clone().into());
            }
            live.our_end = true;
            let stream = live.id;
            core.out.put(|out| frame::put(out, frame::DATA, frame::END_STREAM, stream, &[]));
            core.wake_driver();
            core.count_closed(key);
            Ok(())
        })
    }

    /// Resets it, if it has not ended.
    pub(super) fn reset(&self, reason: Reason) {
        self.with((), |core, key| {
            let Some(live) = core.streams.get_mut(key) else { return };
            if live.is_over() {
                return;
            }
            let stream = live.id;
            core.put_reset(stream, reason);
            core.break_stream(key, Break::Reset(reason));
        });
    }

    /// Ready once the far side has reset it, or the connection is lost.
    pub(super) fn poll_reset(&self, cx: &Context<'_>) -> Poll<StreamError> {
        self.live(Poll::Ready(StreamError::Reset(Reason::CANCEL)), |live| match &live.broken {
            Some(broken) => Poll::Ready(broken.clone().into()),
            None => {
                keep(&mut live.watcher, cx);
                Poll::Pending
            }
        })
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        // Who was answered, and has more to say, is told that nobody listens; for the others it is cut off.
        let has_answered = self.live(false, |live| live.our_end);
        self.reset(if has_answered { Reason::NO_ERROR } else { Reason::CANCEL });
        self.session.0.borrow_mut().remove(self.key);
    }
}
