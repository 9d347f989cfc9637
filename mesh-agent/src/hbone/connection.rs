//! A tunnel's connection: reads what has come, takes it apart into frames, and writes what its session has to say, once per
//! wake-up.

use std::cell::RefCell;
use std::future::Future;
use std::io::{self, IoSlice};
use std::pin::{Pin, pin};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, BytesMut};
use h2::Reason;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::task::coop::unconstrained;
use tokio::task::yield_now;
use tokio::time::Sleep;

use super::frame::{self, HEAD, Head};
use super::limits::{self, COPY_CHUNK_BYTES, FAREWELL_MS};
use super::round::Round;
use super::session::{Broken, Fault, Request, Session};
use super::socket;

const CHUNK: usize = COPY_CHUNK_BYTES as usize;
const MOST_FRAME: usize = limits::MAX_FRAME_BYTES as usize;
/// Blocks that one write takes.
const SLICES: usize = 32;

thread_local! {
    /// Where what came out of TLS lands; one per worker. Not the sockets' own, which is in use meanwhile.
    static READ_BLOCK: RefCell<BytesMut> = RefCell::new(BytesMut::new());
}

/// One end of a connection, which its owner must drive: nothing is read or written but when it is polled.
pub(super) struct Connection<T> {
    io: T,
    session: Session,
    parser: Parser,
    /// What may still be read in this wake-up.
    round: Round,
    /// Whether `io` was given something since it was flushed.
    unflushed: bool,
    /// Nothing was read because what is to be said had no room.
    is_stalled: bool,
    is_closing: bool,
    /// Why, once nothing more is to be read; and when its last words need not leave any more.
    broken: Option<Broken>,
    farewell: Option<Pin<Box<Sleep>>>,
}

impl<T: AsyncRead + AsyncWrite + Unpin> Connection<T> {
    pub(super) fn new(io: T, session: Session) -> Self {
        let parser = Parser::new(&session);
        Self {
            io,
            session,
            parser,
            round: Round::default(),
            unflushed: false,
            is_stalled: false,
            is_closing: false,
            broken: None,
            farewell: None,
        }
    }

    pub(super) fn session(&self) -> &Session {
        &self.session
    }

    /// Drives it until the peer has begun as HTTP/2 does.
    pub(super) async fn begun(&mut self) -> Result<(), Broken> {
        std::future::poll_fn(|cx| match self.poll(cx) {
            Poll::Ready(ended) => Poll::Ready(ended.and(Err(io::Error::from(io::ErrorKind::UnexpectedEof).into()))),
            Poll::Pending if self.session.has_heard() => Poll::Ready(Ok(())),
            Poll::Pending => Poll::Pending,
        })
        .await
    }

    /// Drives it until there is a request, or to its end.
    pub(super) fn poll_request(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Request, Broken>>> {
        if let Some(request) = self.session.next_request() {
            return Poll::Ready(Some(Ok(request)));
        }
        match self.poll(cx) {
            Poll::Ready(Ok(())) => Poll::Ready(None),
            Poll::Ready(Err(broken)) => Poll::Ready(Some(Err(broken))),
            // What came in this wake-up may hold one.
            Poll::Pending => match self.session.next_request() {
                Some(request) => Poll::Ready(Some(Ok(request))),
                None => Poll::Pending,
            },
        }
    }

    /// Drives it to its end.
    pub(super) async fn run(mut self) -> Result<(), Broken> {
        std::future::poll_fn(|cx| self.poll(cx)).await
    }

    /// Says its last words, and closes.
    pub(super) async fn close(&mut self) {
        self.session.cut();
        self.is_closing = true;
        let _ = std::future::poll_fn(|cx| self.poll_close(cx)).await;
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Broken>> {
        self.session.driven_by(cx);
        let reads = if self.is_closing { Poll::Pending } else { self.poll_reads(cx) };
        if let Poll::Ready(ended) = reads {
            self.is_closing = true;
            self.broken = ended.err();
        }
        self.round = Round::default();
        self.session.take_leave();
        if !self.is_closing && self.session.is_done() {
            self.is_closing = true;
            self.broken = self.session.told();
        }
        if self.is_closing {
            return self.poll_close(cx);
        }
        // What was read counts against the task's share of this worker; what answers it goes out all the same, and is
        // bounded.
        let written = pin!(unconstrained(std::future::poll_fn(|cx| self.poll_write(cx)))).poll(cx);
        if let Poll::Ready(Err(error)) = written {
            self.session.lose(&error.to_string());
            return Poll::Ready(Err(error.into()));
        }
        if self.is_stalled && self.session.may_read() {
            self.is_stalled = false;
            cx.waker().wake_by_ref();
        }
        Poll::Pending
    }

    fn poll_close(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Broken>> {
        let closed = match self.broken {
            Some(Broken::Io(_)) => Ok(()),
            Some(_) => match self.poll_last_words(cx) {
                Poll::Ready(closed) => closed,
                Poll::Pending => {
                    let patience = Duration::from_millis(FAREWELL_MS);
                    let farewell = self.farewell.get_or_insert_with(|| Box::pin(tokio::time::sleep(patience)));
                    ready!(farewell.as_mut().poll(cx));
                    Ok(())
                }
            },
            None => ready!(self.poll_last_words(cx)),
        };
        let ended = match self.broken.take() {
            Some(broken) => Err(broken),
            None => closed.map_err(Broken::from),
        };
        let why = ended.as_ref().map_or_else(ToString::to_string, |()| "the tunnel was closed".to_string());
        self.session.lose(&why);
        Poll::Ready(ended)
    }

    fn poll_last_words(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_write(cx))?;
        Pin::new(&mut self.io).poll_shutdown(cx)
    }

    /// Reads what has come, as far as this wake-up's share goes. Ready when nothing more is to be read.
    fn poll_reads(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Broken>> {
        while self.session.may_read() {
            if self.round.is_over() {
                // Woken at once, this task would be polled some dozens of times before anybody looks whether something has
                // come for the others.
                return pin!(yield_now()).poll(cx).map(Ok);
            }
            match ready!(self.poll_take(cx)) {
                Ok(0) => return Poll::Ready(self.hung_up()),
                Ok(came) => self.round.took(came),
                Err(broken) => return Poll::Ready(Err(broken)),
            }
        }
        self.is_stalled = true;
        Poll::Pending
    }

    /// The peer says no more. That is an end if nobody minds.
    fn hung_up(&self) -> Result<(), Broken> {
        match self.session.told() {
            Some(told) => Err(told),
            None if self.session.is_needed() || self.parser.is_within() => {
                Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the peer hung up").into())
            }
            None => Ok(()),
        }
    }

    /// Takes what has come, up to a chunk, since TLS gives it out record by record; how much that was, nothing at the end.
    fn poll_take(&mut self, cx: &mut Context<'_>) -> Poll<Result<usize, Broken>> {
        READ_BLOCK.with_borrow_mut(|block| {
            ready!(poll_fill(cx, &mut self.io, block))?;
            let came = block.len();
            let taken = self.parser.take(&self.session, block);
            block.clear();
            Poll::Ready(taken.map(|()| came).map_err(|fault| self.session.fail(fault)))
        })
    }

    /// Writes all that is to be said, as far as the socket takes it.
    fn poll_write(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            let written = self.session.out(|out| -> Poll<io::Result<usize>> {
                let mut slices = [IoSlice::new(&[]); SLICES];
                let filled = out.slices(&mut slices);
                if filled == 0 {
                    return Poll::Ready(Ok(0));
                }
                let slices = slices.get(..filled).unwrap_or_default();
                let written = ready!(Pin::new(&mut self.io).poll_write_vectored(cx, slices))?;
                if written == 0 {
                    return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
                }
                out.advance(written);
                Poll::Ready(Ok(written))
            });
            match ready!(written)? {
                0 => break,
                _ => self.unflushed = true,
            }
            self.session.has_written();
        }
        if self.unflushed {
            ready!(Pin::new(&mut self.io).poll_flush(cx))?;
            self.unflushed = false;
        }
        Poll::Ready(Ok(()))
    }
}

impl<T> Drop for Connection<T> {
    fn drop(&mut self) {
        self.session.lose("the tunnel was closed");
    }
}

/// Fills a block as far as there is something.
fn poll_fill<T: AsyncRead + Unpin>(cx: &mut Context<'_>, io: &mut T, block: &mut BytesMut) -> Poll<io::Result<()>> {
    socket::make_room(block);
    while block.len() < CHUNK {
        match socket::poll_into(cx, io, block, CHUNK - block.len()) {
            Poll::Ready(Ok(1..)) => {}
            // An end comes again, and so does an error, behind what was read before it.
            Poll::Ready(_) | Poll::Pending if !block.is_empty() => break,
            Poll::Ready(ended) => return Poll::Ready(ended.map(drop)),
            Poll::Pending => return Poll::Pending,
        }
    }
    Poll::Ready(Ok(()))
}

/// Takes bytes apart into frames. DATA goes to its stream as it comes, however much of its frame that is; other frames are
/// collected.
struct Parser {
    state: State,
    /// The beginning of what is not whole.
    partial: Vec<u8>,
}

#[derive(Clone, Copy)]
enum State {
    Preface,
    Head,
    /// A frame to be taken whole.
    Whole(Head),
    /// One that means nothing to us.
    Skipped(usize),
    /// DATA whose first byte says how much padding there is.
    PaddedData(Head),
    Data(Data),
}

/// What is left of a frame of DATA.
#[derive(Clone, Copy)]
struct Data {
    stream: u32,
    bytes: usize,
    padding: usize,
    is_last: bool,
}

impl Parser {
    fn new(session: &Session) -> Self {
        let state = if session.awaits_preface() { State::Preface } else { State::Head };
        Self { state, partial: Vec::new() }
    }

    /// Whether the peer was saying something.
    fn is_within(&self) -> bool {
        !(matches!(self.state, State::Head) && self.partial.is_empty())
    }

    /// All of the bytes, but for those of a frame that is to be taken whole and is not: these are kept.
    fn take(&mut self, session: &Session, bytes: &mut BytesMut) -> Result<(), Fault> {
        loop {
            match self.state {
                State::Preface => {
                    match self.whole(bytes, frame::PREFACE.len(), |preface| preface == frame::PREFACE) {
                        Some(true) => self.state = State::Head,
                        Some(false) => return Err(NO_PREFACE),
                        None if frame::PREFACE.starts_with(&self.partial) => return Ok(()),
                        // What cannot become one is not waited for.
                        None => return Err(NO_PREFACE),
                    }
                }
                State::Head => {
                    let read = self.whole(bytes, HEAD, |head| head.first_chunk::<HEAD>().copied().map(Head::read));
                    let Some(Some(head)) = read else { return Ok(()) };
                    self.state = begin(session, head)?;
                }
                State::Whole(head) => {
                    let Some(taken) = self.whole(bytes, head.length, |payload| session.take(head, payload)) else {
                        return Ok(());
                    };
                    taken?;
                    self.state = State::Head;
                }
                State::Skipped(left) => {
                    let skipped = left.min(bytes.len());
                    bytes.advance(skipped);
                    if skipped < left {
                        self.state = State::Skipped(left - skipped);
                        return Ok(());
                    }
                    self.state = State::Head;
                }
                State::PaddedData(head) => {
                    let Some(padding) = bytes.first().copied().map(usize::from) else { return Ok(()) };
                    bytes.advance(1);
                    let Some(length) = head.length.checked_sub(padding.saturating_add(1)) else {
                        return Err((Reason::PROTOCOL_ERROR, "more padding than frame"));
                    };
                    session.padding(head.stream, padding.saturating_add(1));
                    let is_last = head.has(frame::END_STREAM);
                    self.state = State::Data(Data { stream: head.stream, bytes: length, padding, is_last });
                }
                State::Data(data) => {
                    let left = deliver(session, data, bytes);
                    if left.bytes > 0 || left.padding > 0 {
                        self.state = State::Data(left);
                        return Ok(());
                    }
                    if data.is_last {
                        session.end_of(data.stream);
                    }
                    self.state = State::Head;
                }
            }
        }
    }

    /// Reads so many bytes once they are there, from where they are if they came in one piece.
    fn whole<R>(&mut self, bytes: &mut BytesMut, length: usize, read: impl FnOnce(&[u8]) -> R) -> Option<R> {
        if self.partial.is_empty()
            && let Some(whole) = bytes.get(..length)
        {
            let result = read(whole);
            bytes.advance(length);
            return Some(result);
        }
        let missing = length.saturating_sub(self.partial.len()).min(bytes.len());
        self.partial.extend_from_slice(bytes.get(..missing).unwrap_or_default());
        bytes.advance(missing);
        if self.partial.len() < length {
            return None;
        }
        // Its memory goes too.
        let partial = std::mem::take(&mut self.partial);
        Some(read(&partial))
    }
}

const NO_PREFACE: Fault = (Reason::PROTOCOL_ERROR, "it does not begin as HTTP/2 does");

/// What is to be done with a frame, by its head.
fn begin(session: &Session, head: Head) -> Result<State, Fault> {
    if head.length > MOST_FRAME {
        return Err((Reason::FRAME_SIZE_ERROR, "a frame larger than was agreed"));
    }
    match head.kind {
        frame::DATA => {
            session.begin_data(head)?;
            if head.has(frame::PADDED) {
                return if head.length > 0 { Ok(State::PaddedData(head)) } else { Err(SHORT) };
            }
            let is_last = head.has(frame::END_STREAM);
            Ok(State::Data(Data { stream: head.stream, bytes: head.length, padding: 0, is_last }))
        }
        frame::HEADERS..=frame::CONTINUATION => Ok(State::Whole(head)),
        _ => {
            // Not even these may stand within a head.
            session.take(head, &[])?;
            Ok(State::Skipped(head.length))
        }
    }
}

const SHORT: Fault = (Reason::FRAME_SIZE_ERROR, "a frame that ends too soon");

/// Gives the stream what there is of its frame; what is left of the frame.
fn deliver(session: &Session, mut data: Data, bytes: &mut BytesMut) -> Data {
    let part = data.bytes.min(bytes.len());
    if part > 0 {
        session.data(data.stream, socket::part(bytes, part));
        data.bytes = data.bytes.saturating_sub(part);
    }
    if data.bytes == 0 {
        let padding = data.padding.min(bytes.len());
        bytes.advance(padding);
        data.padding = data.padding.saturating_sub(padding);
    }
    data
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use proptest::prelude::*;

    use super::super::head::{self, Asked};
    use super::super::limits::Limits;
    use super::super::words::ConnectRequest;
    use super::*;
    use crate::addr::ClientAddr;

    const AUTHORITY: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 1)), 80);

    /// What a client says that opens a stream and sends bytes by it, padded and in frames of any size.
    fn said(sent: &[u8], cuts: &[usize]) -> Vec<u8> {
        let mut out = frame::PREFACE.to_vec();
        frame::put_settings(&mut out, &[(frame::INITIAL_WINDOW_SIZE, 1 << 20)]);
        frame::put(&mut out, 0xfa, 0, 0, b"unknown");
        let block = head::request(&ConnectRequest {
            authority: AUTHORITY,
            forwarded: ClientAddr::new(AUTHORITY),
            host: None,
            baggage: String::new(),
            traceparent: String::new(),
        });
        let (first, rest) = block.split_at(5);
        frame::put(&mut out, frame::HEADERS, 0, 1, first);
        frame::put(&mut out, frame::CONTINUATION, frame::END_HEADERS, 1, rest);
        let mut left = sent;
        for cut in cuts {
            let (part, rest) = left.split_at((*cut).min(left.len()));
            left = rest;
            let padding = cut % 7;
            let padded = [&[padding as u8][..], part, &vec![0; padding]].concat();
            frame::put(&mut out, frame::DATA, frame::PADDED, 1, &padded);
        }
        frame::put(&mut out, frame::DATA, frame::END_STREAM, 1, left);
        out
    }

    fn received(bytes: &[u8], pieces: &[usize]) -> Vec<u8> {
        let session = Session::server(&Limits::default());
        let mut parser = Parser::new(&session);
        let (mut left, mut pieces) = (bytes, pieces.iter().cycle());
        while !left.is_empty() {
            let (piece, rest) = left.split_at((*pieces.next().unwrap()).min(left.len()));
            parser.take(&session, &mut BytesMut::from(piece)).unwrap();
            left = rest;
        }
        assert!(!parser.is_within());
        let request = session.next_request().unwrap();
        assert!(matches!(&request.asked, Asked::Connect(wish) if wish.authority == AUTHORITY));
        let mut came = Vec::new();
        let cx = Context::from_waker(std::task::Waker::noop());
        while let Poll::Ready(Some(bytes)) = request.handle.poll_recv(&cx) {
            came.extend_from_slice(&bytes.unwrap());
        }
        assert!(request.handle.poll_recv(&cx).is_ready(), "its end came");
        assert_eq!(request.handle.unreleased(), came.len(), "padding waits for nobody");
        came
    }

    proptest! {
        #[test]
        fn frames_are_taken_alike_however_they_come(
            sent in proptest::collection::vec(any::<u8>(), 0..40_000),
            cuts in proptest::collection::vec(0usize..9000, 0..6),
            pieces in proptest::collection::vec(prop_oneof![1usize..40, 1usize..30_000], 1..8),
        ) {
            let said = said(&sent, &cuts);
            prop_assert!(received(&said, &[said.len()]) == sent);
            prop_assert!(received(&said, &pieces) == sent);
        }
    }

    /// However often it asks for room that there is not, and whatever becomes of it.
    #[test]
    fn who_waits_for_room_is_woken_once_and_forgotten_when_gone() {
        let session = Session::server(&Limits::default());
        let mut parser = Parser::new(&session);
        // A window for the stream, none for the connection beyond its first.
        parser.take(&session, &mut BytesMut::from(&said(&[], &[])[..])).unwrap();
        let handle = session.next_request().unwrap().handle;
        let woken = std::sync::Arc::new(Count::default());
        let waker = woken.clone().into();
        let cx = Context::from_waker(&waker);
        let Poll::Ready(Ok(room)) = handle.poll_capacity(&cx, CHUNK) else { panic!("a window is open") };
        handle.send(vec![0; room].into()).unwrap();
        for _ in 0..1000 {
            assert!(handle.poll_capacity(&cx, CHUNK).is_pending());
        }
        assert_eq!(session.starving(), 1);
        let mut credit = Vec::new();
        frame::put_credit(&mut credit, 0, 1000);
        parser.take(&session, &mut BytesMut::from(&credit[..])).unwrap();
        assert_eq!((session.starving(), woken.0.load(std::sync::atomic::Ordering::Relaxed)), (0, 1));
        assert_eq!(handle.poll_capacity(&cx, CHUNK).map(Result::unwrap), Poll::Ready(1000));
        handle.send(vec![0; 1000].into()).unwrap();
        assert!(handle.poll_capacity(&cx, CHUNK).is_pending());
        drop(handle);
        assert_eq!(session.starving(), 0);
    }

    #[derive(Default)]
    struct Count(std::sync::atomic::AtomicU32);

    impl std::task::Wake for Count {
        fn wake(self: std::sync::Arc<Self>) {
            self.0.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        }
    }

    #[test]
    fn what_is_no_http2_is_told_so_at_once() {
        for bytes in [&b"GET / HTTP/1.1\r\n"[..], b"PRI * HTTP/1.1", b"\x16\x03\x01"] {
            let session = Session::server(&Limits::default());
            let fault = Parser::new(&session).take(&session, &mut BytesMut::from(bytes)).unwrap_err();
            assert_eq!(fault, NO_PREFACE);
        }
    }
}
