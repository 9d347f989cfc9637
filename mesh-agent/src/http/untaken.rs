//! What an HTTP/2 connection has read and nobody has taken. The library takes in what its windows allow, whether anybody
//! reads the bodies or not, and does not say how much that is: so it is counted around the library.
//!
//! ```text
//! socket, tunnel ──DATA──► the library ──frame of a body──► whoever sends it on
//!                  more        │            less
//!                              └─ a body that nobody wants: what came of it goes, and what comes of it is not kept
//! ```
//! What came of a stream between the end of its body's reader and its reset is not kept either, and cannot be told from
//! what is. So the count is never more than the bodies that are open may have by their windows.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker, ready};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::io::Io;
use super::limits::{MAX_STREAMS, STREAM_WINDOW, UNTAKEN_STEP};
use super::server::PREFACE;

/// The count of one connection.
pub struct Untaken {
    bytes: Cell<usize>,
    /// What it was when the budget heard of it last.
    told: Cell<usize>,
    /// Bodies that have not ended.
    open: Cell<usize>,
    read: RefCell<Heads>,
    written: RefCell<Heads>,
    /// The streams that were reset here last.
    reset: RefCell<VecDeque<u32>>,
}

impl Untaken {
    /// Of a client's connection.
    pub fn of_client() -> Rc<Self> {
        Self::of(Heads { skip: PREFACE.len(), ..Heads::default() }, Heads::default())
    }

    /// Of a connection to an application.
    pub fn of_application() -> Rc<Self> {
        Self::of(Heads::default(), Heads { skip: PREFACE.len(), ..Heads::default() })
    }

    fn of(read: Heads, written: Heads) -> Rc<Self> {
        Rc::new(Self {
            bytes: Cell::new(0),
            told: Cell::new(0),
            open: Cell::new(0),
            read: RefCell::new(read),
            written: RefCell::new(written),
            reset: RefCell::default(),
        })
    }

    /// How much it is now.
    pub fn bytes(&self) -> usize {
        self.bytes.get()
    }

    /// A body that may come: to be taken before any of it is read.
    pub fn share(self: &Rc<Self>) -> Share {
        self.open.set(self.open.get().saturating_add(1));
        Share(self.clone())
    }

    /// Bytes that were read from the connection. True: so much more waits that the budget is to hear of it at once.
    fn has_read(&self, bytes: &[u8]) -> bool {
        let (told, reset) = (self.told.get().min(self.bytes.get()), self.reset.borrow());
        self.read.borrow_mut().find(bytes, |head| {
            if head.kind == DATA && !reset.contains(&head.stream) {
                self.bytes.set(self.bytes.get().saturating_add(head.payload));
            }
        });
        let is_much = self.bytes.get().saturating_sub(told) >= UNTAKEN_STEP;
        self.told.set(if is_much { self.bytes.get() } else { told });
        is_much
    }

    /// Bytes that were written to it.
    fn has_written(&self, bytes: &[u8]) {
        self.written.borrow_mut().find(bytes, |head| {
            if head.kind == RST_STREAM {
                let mut reset = self.reset.borrow_mut();
                reset.push_back(head.stream);
                if reset.len() > MAX_STREAMS as usize {
                    reset.pop_front();
                }
            }
        });
    }
}

/// A body's share of what its connection has read.
pub struct Share(Rc<Untaken>);

impl Share {
    fn taken(&self, bytes: usize) {
        self.0.bytes.set(self.0.bytes.get().saturating_sub(bytes));
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        let Untaken { open, bytes, .. } = &*self.0;
        open.set(open.get().saturating_sub(1));
        bytes.set(bytes.get().min(open.get().saturating_mul(STREAM_WINDOW as usize)));
    }
}

/// A body as the library hands it out.
pub struct Arriving {
    incoming: Incoming,
    /// None: it has ended, or its connection is of HTTP/1.1, which reads no more than its one buffer.
    share: Option<Share>,
}

impl Arriving {
    /// Of which nothing was taken yet.
    pub fn new(incoming: Incoming, share: Option<Share>) -> Self {
        let share = share.filter(|_| !incoming.is_end_stream());
        Self { incoming, share }
    }
}

impl From<Incoming> for Arriving {
    /// Of a connection of HTTP/1.1.
    fn from(incoming: Incoming) -> Self {
        Self { incoming, share: None }
    }
}

impl Body for Arriving {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let Self { incoming, share } = self.get_mut();
        let frame = ready!(Pin::new(&mut *incoming).poll_frame(cx));
        if let (Some(share), Some(Ok(frame))) = (&*share, &frame) {
            share.taken(frame.data_ref().map_or(0, Bytes::len));
        }
        if !matches!(frame, Some(Ok(_))) || incoming.is_end_stream() {
            *share = None;
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.incoming.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.incoming.size_hint()
    }
}

impl Drop for Arriving {
    fn drop(&mut self) {
        // What has come of it goes with it, and is taken so that it is counted. Nothing is read meanwhile.
        let mut cx = Context::from_waker(Waker::noop());
        while self.share.is_some() && Pin::new(&mut *self).poll_frame(&mut cx).is_ready() {}
    }
}

/// A connection that HTTP/2 is spoken on, counted.
pub struct Watched {
    io: Io,
    untaken: Rc<Untaken>,
}

impl Watched {
    /// Of which nothing was read yet.
    pub fn new(io: Io, untaken: Rc<Untaken>) -> Self {
        io.weigh(&untaken);
        Self { io, untaken }
    }
}

impl AsyncRead for Watched {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, out: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let Self { io, untaken } = self.get_mut();
        let before = out.filled().len();
        ready!(Pin::new(&mut *io).poll_read(cx, out))?;
        if untaken.has_read(out.filled().get(before..).unwrap_or_default()) {
            io.weigh(untaken);
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Watched {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[io::IoSlice::new(bytes)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let Self { io, untaken } = self.get_mut();
        let written = ready!(Pin::new(io).poll_write_vectored(cx, slices))?;
        let mut left = written;
        for slice in slices {
            let piece = slice.get(..left.min(slice.len())).unwrap_or_default();
            untaken.has_written(piece);
            left = left.saturating_sub(piece.len());
        }
        Poll::Ready(Ok(written))
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_shutdown(cx)
    }
}

/// Types of frames (RFC 9113 6).
const DATA: u8 = 0;
const RST_STREAM: u8 = 3;
/// The flag of a frame that begins with the length of its padding.
const PADDED: u8 = 8;

/// Finds the heads of frames, however the bytes are cut.
#[derive(Default)]
struct Heads {
    /// What comes first and is no head.
    skip: usize,
    /// The head that is being read, and the length of the padding behind it.
    head: [u8; 10],
    has: usize,
}

struct Head {
    kind: u8,
    stream: u32,
    /// Of its bytes, those that are no padding.
    payload: usize,
}

impl Heads {
    fn find(&mut self, mut bytes: &[u8], mut found: impl FnMut(Head)) {
        while let Some((first, rest)) = bytes.split_first() {
            if self.skip > 0 {
                let skipped = self.skip.min(bytes.len());
                self.skip = self.skip.saturating_sub(skipped);
                bytes = bytes.get(skipped..).unwrap_or_default();
                continue;
            }
            if let Some(place) = self.head.get_mut(self.has) {
                *place = *first;
            }
            (self.has, bytes) = (self.has.saturating_add(1), rest);
            let [high, middle, low, kind, flags, id @ .., padding] = self.head;
            let length = u32::from_be_bytes([0, high, middle, low]) as usize;
            let is_padded = kind == DATA && flags & PADDED != 0 && length > 0;
            if self.has < 9 + usize::from(is_padded) {
                continue;
            }
            let padding = if is_padded { usize::from(padding).saturating_add(1) } else { 0 };
            let stream = u32::from_be_bytes(id) & (u32::MAX >> 1);
            found(Head { kind, stream, payload: length.saturating_sub(padding) });
            self.skip = length.saturating_sub(usize::from(is_padded));
            self.has = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::Future;
    use std::time::Duration;

    use http::{HeaderMap, Request, Response};
    use http_body_util::BodyExt as _;
    use tokio::net::{TcpListener, TcpStream};
    use tokio::task::{LocalSet, spawn_local};

    use super::super::body::DownBody;
    use super::super::conversation::{Conversation, Teller};
    use super::super::io::Meter;
    use super::super::server::{Serves, serve};
    use super::*;
    use crate::drain::Drain;
    use crate::telemetry::{Direction, RequestRecord, Span, TappedHeaders};

    fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
        let [_, length @ ..] = (payload.len() as u32).to_be_bytes();
        [&length[..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
    }

    /// What came on a connection after the preface, and what of it is counted.
    #[test]
    fn data_is_found_however_it_is_cut() {
        let data = |stream, length| frame(DATA, 0, stream, &vec![0; length]);
        let table = [
            (vec![], 0),
            (data(1, 300), 300),
            ([data(1, 0), frame(DATA, PADDED, 1, &[]), data(3, 5)].concat(), 5),
            // HEADERS, SETTINGS, PING and WINDOW_UPDATE are no bodies.
            ([1, 4, 6, 8].map(|kind| frame(kind, PADDED, 1, &[0; 70])).concat(), 0),
            // Nine bytes, of which the first says that the last three are padding.
            (frame(DATA, PADDED, 1, &[3, 1, 2, 3, 4, 5, 0, 0, 0]), 5),
            (frame(DATA, PADDED, 1, &[200, 1, 2]), 0),
            // The highest bit of a stream's number says nothing.
            ([data(1, 10), data(7, 1000), data(7 | (1 << 31), 1000), data(9, 20_000)].concat(), 20_010),
        ];
        for (came, expected) in table {
            for size in [1, 2, 8, 9, 10, 1000, 1 << 20] {
                let untaken = Untaken::of_client();
                let said = [frame(4, 0, 0, &[0; 6]), frame(RST_STREAM, 0, 7, &[0; 4])].concat();
                said.chunks(size).for_each(|piece| untaken.has_written(piece));
                [&PREFACE[..], &came].concat().chunks(size).for_each(|piece| {
                    untaken.has_read(piece);
                });
                assert_eq!(untaken.bytes(), expected, "{} bytes in pieces of {size}", came.len());
            }
        }
    }

    #[test]
    fn the_budget_hears_of_much_at_once() {
        let untaken = Untaken::of_application();
        let share = untaken.share();
        let data = frame(DATA, 0, 1, &vec![0; UNTAKEN_STEP / 4]);
        let heard = |times: usize| (0..times).map(|_| untaken.has_read(&data)).collect::<Vec<_>>();
        assert_eq!(heard(5), [false, false, false, true, false]);
        share.taken(UNTAKEN_STEP);
        assert_eq!(heard(4), [false, false, false, true], "much more than what was left");
        drop(share);
        assert_eq!(untaken.bytes(), 0, "nobody has a body");
        assert_eq!(heard(4), [false, false, false, true]);
    }

    /// Tells nobody, and keeps what waits on the connection.
    #[derive(Default)]
    struct Kept(RefCell<Option<Rc<Untaken>>>);

    impl Teller for Kept {
        fn trace(&self, _: &mut HeaderMap) -> Option<Span> {
            None
        }

        fn tapped(&self, _: &HeaderMap) -> Option<std::sync::Arc<TappedHeaders>> {
            None
        }

        fn report(&self, _: &RequestRecord) {}
    }

    impl Meter for Kept {
        fn carried(&self, _: usize, _: usize) {}

        fn waits(&self, untaken: &Rc<Untaken>) {
            self.0.replace(Some(untaken.clone()));
        }
    }

    /// Does with a body what the path says, and then answers.
    struct Service(Rc<Conversation>);

    impl Serves for Service {
        fn conversation(&self) -> &Rc<Conversation> {
            &self.0
        }

        async fn answer(self: Rc<Self>, request: Request<Arriving>) -> Response<DownBody> {
            match request.uri().path() {
                "/keep" => {
                    let _kept = request;
                    std::future::pending().await
                }
                "/read" => drop(request.into_body().collect().await),
                "/late" => {
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    drop(request);
                }
                _ => drop(request),
            }
            Response::new(DownBody::text("done"))
        }
    }

    const BLOCK: usize = 100 << 10;

    async fn eventually(what: &str, is_so: impl Fn() -> bool) {
        let waiting = async {
            while !is_so() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(30), waiting).await.unwrap_or_else(|_| panic!("{what}"));
    }

    async fn in_time<F: Future>(future: F) -> F::Output {
        tokio::time::timeout(Duration::from_secs(30), future).await.expect("in time")
    }

    #[test]
    fn what_nobody_reads_is_counted_until_it_goes() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        LocalSet::new().block_on(
            &runtime,
            in_time(async {
                let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
                let client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
                let (accepted, peer) = listener.accept().await.unwrap();
                let kept = Rc::<Kept>::default();
                let template = RequestRecord::blank(Direction::Inbound, peer);
                let service = Rc::new(Service(Conversation::new(kept.clone(), template)));
                let (io, drain) = (Io::socket(accepted, kept.clone()), Drain::new());
                let leaving = drain.token();
                spawn_local(async move { serve(io, service, leaving, std::future::pending()).await });
                let (mut send, driver) = h2::client::handshake(client).await.unwrap();
                spawn_local(driver);
                let mut post = |path: &str, ends: bool| {
                    let request = Request::post(format!("http://w{path}")).body(()).unwrap();
                    let (answer, mut body) = send.send_request(request, false).unwrap();
                    body.send_data(vec![7; BLOCK].into(), ends).unwrap();
                    (answer, body)
                };
                let untaken = || kept.0.borrow().as_ref().map_or(0, |untaken| untaken.bytes());
                let mut waiting = vec![post("/keep", false), post("/keep", true), post("/keep", false)];
                eventually("three wait", || untaken() == 3 * BLOCK).await;
                for path in ["/read", "/late", "/drop", "/late", "/read"] {
                    let (answer, body) = post(path, true);
                    assert_eq!(answer.await.unwrap().status(), 200, "{path}");
                    drop(body);
                }
                // What came of a body that had been dropped by then cannot be told from the others' windows.
                let most = 3 * STREAM_WINDOW as usize;
                assert!((3 * BLOCK..=most).contains(&untaken()), "{} of {most}", untaken());
                while let Some((_answer, mut body)) = waiting.pop() {
                    body.send_reset(h2::Reason::CANCEL);
                    let left = waiting.len() * STREAM_WINDOW as usize;
                    eventually("it goes with its stream", || untaken() <= left).await;
                }
                assert_eq!(untaken(), 0);
            }),
        );
    }
}
