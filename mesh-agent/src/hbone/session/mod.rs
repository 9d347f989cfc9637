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

mod frames;
mod handle;
mod live;
#[cfg(test)]
mod tests;

use std::cell::RefCell;
use std::collections::{HashMap, VecDeque};
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use h2::Reason;
use slab::Slab;

pub(super) use self::handle::{Handle, Opener, Request, Unopened};
use self::live::{Break, Live, keep, wake};
use super::frame::{self, Head};
use super::hpack::Decoder;
use super::limits::{self, Limits};
use super::outbox::Outbox;

const STREAM_WINDOW: i64 = limits::STREAM_WINDOW as i64;
const CONNECTION_WINDOW: i64 = limits::CONNECTION_WINDOW as i64;
const OUT: usize = limits::SEND_BUFFER_BYTES as usize;
/// Beside what streams say: answers, which cannot wait for room.
const ANSWERS: usize = limits::GATHER_BYTES as usize;

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
    starving: Vec<usize>,
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

    /// How many streams wait for room.
    #[cfg(test)]
    pub(super) fn starving(&self) -> usize {
        self.0.borrow().starving.len()
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
        for key in self.starving.drain(..) {
            if let Some(live) = self.streams.get_mut(key) {
                live.is_starving = false;
                wake(&mut live.writer);
            }
        }
    }

    fn is_done(&self) -> bool {
        let said = matches!(self.goodbye, Goodbye::Said(_)) || self.their_goodbye.is_some();
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
        self.wake_opening();
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
            // The peer may open another in its place, which is to have as much room as any: what of this one is unread takes
            // none of it any longer. It is no more than a stream's window, of no more streams than MAX_HANDLERS.
            let unread = live.unreleased;
            self.one_less_open();
            self.owe(unread);
        }
    }

    fn one_less_open(&mut self) {
        self.open = self.open.saturating_sub(1);
        self.wake_opening();
    }

    /// Those who wait for their turn look again.
    fn wake_opening(&mut self) {
        self.opening.drain(..).for_each(Waker::wake);
    }

    fn remove(&mut self, key: usize) {
        let Some(live) = self.streams.try_remove(key) else { return };
        self.by_id.remove(&live.id);
        if live.is_starving {
            self.starving.retain(|starving| *starving != key);
        }
        if live.is_open {
            self.one_less_open();
            // What nobody read any more.
            self.owe(live.unreleased);
        }
        if self.streams.is_empty() {
            // Somebody may have waited for the last.
            self.wake_driver();
        }
        if self.streams.capacity() > 2 * limits::MAX_STREAMS as usize && self.streams.is_empty() {
            self.streams = Slab::new();
        }
    }

    /// The peer is to have credit for these bytes of the connection again.
    fn owe(&mut self, bytes: usize) {
        self.owed = self.owed.saturating_add(bytes as i64);
        self.pay();
    }

    /// Gives the peer credit for the connection, now and then: once it has no more left than it is owed. That is half of the
    /// window that nobody's unread bytes take up; with half of the whole, many who do not read would keep it from ever
    /// going out, and everybody else would wait for them.
    fn pay(&mut self) {
        if self.owed > 0 && self.owed >= self.recv_window {
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
}
