//! A client's byte stream with [`framing`](super::framing) before the parser: a head reaches the parser only when it is
//! whole and was found good. Of a bad one the parser gets a line that it answers with 400 (or 431) and closes; a bad
//! chunk is an error of the body that is being read.

use std::cell::{Cell, RefCell};
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Sleep;

use super::framing::{At, Violation};
use super::limits::{HEAD_TIMEOUT, HELD_BYTES, MAX_HEAD_BYTES, MAX_HEADERS};

/// What both the screen and the connection that it serves know.
#[derive(Default)]
pub struct Gate {
    violation: Cell<Option<Violation>>,
    /// A request asked for an upgrade; what follows it waits for the answer.
    is_held: Cell<bool>,
    /// Heads that were let through.
    heads: Cell<u64>,
    /// The last that was read was the end of a request, and nothing has come since.
    is_quiet: Cell<bool>,
    /// What was written has not left yet.
    is_unflushed: Cell<bool>,
    reader: RefCell<Option<Waker>>,
}

impl Gate {
    /// What was wrong with the client's bytes, if anything was.
    pub fn violation(&self) -> Option<Violation> {
        self.violation.get()
    }

    /// How many requests were let through.
    pub fn heads(&self) -> u64 {
        self.heads.get()
    }

    /// Whether the connection is between two requests, as far as its bytes tell.
    pub fn is_at_rest(&self) -> bool {
        self.is_quiet.get() && !self.is_unflushed.get()
    }

    /// The request that asked for an upgrade does not get it: what follows is the next request.
    pub fn release(&self) {
        if self.is_held.replace(false)
            && let Some(reader) = self.reader.take()
        {
            reader.wake();
        }
    }
}

/// A client's byte stream, screened.
pub struct Screen<S> {
    inner: S,
    gate: Rc<Gate>,
    at: At,
    /// Nothing more of what the client says is heard.
    is_refused: bool,
    /// Read, not yet given to the parser: the beginning of a head, or what follows a request for an upgrade.
    kept: Vec<u8>,
    /// Of `kept`, what was found good and did not fit into the parser's buffer.
    good: usize,
    /// Running while a head has begun and is not whole.
    head_timeout: Option<Pin<Box<Sleep>>>,
}

impl<S> Screen<S> {
    /// `first` was read from the stream already.
    pub fn new(inner: S, first: Vec<u8>) -> Self {
        let gate = Rc::default();
        Self { inner, gate, at: At::Head, is_refused: false, kept: first, good: 0, head_timeout: None }
    }

    /// What it shares with its connection.
    pub fn gate(&self) -> Rc<Gate> {
        self.gate.clone()
    }

    /// The stream, and what was read of it and not passed on.
    pub fn into_inner(self) -> (S, Vec<u8>) {
        (self.inner, self.kept)
    }

    /// How many of `bytes` the parser may have.
    fn judge(&mut self, bytes: &[u8]) -> Result<usize, Violation> {
        if self.at == At::Held && !self.gate.is_held.get() {
            self.at = At::Head;
        }
        let judged = self.at.judge(bytes)?;
        self.gate.heads.set(self.gate.heads.get().saturating_add(judged.heads));
        if judged.heads > 0 {
            self.gate.is_held.set(self.at == At::Held);
        }
        Ok(judged.good)
    }

    /// Judges what is kept, and gives the parser what it may have and has room for.
    fn pass_kept(&mut self, out: &mut ReadBuf<'_>) -> Result<(), Violation> {
        if self.good == 0 {
            let kept = std::mem::take(&mut self.kept);
            let judged = self.judge(&kept);
            self.kept = kept;
            self.good = judged?;
        }
        self.give(out);
        Ok(())
    }

    fn give(&mut self, out: &mut ReadBuf<'_>) {
        let fits = self.good.min(out.remaining());
        out.put_slice(self.kept.get(..fits).unwrap_or_default());
        self.kept.drain(..fits);
        self.good = self.good.saturating_sub(fits);
        if self.kept.is_empty() {
            self.kept = Vec::new();
        }
    }

    /// Gives the parser what makes it answer and close.
    fn refuse(&mut self, violation: Violation, out: &mut ReadBuf<'_>) -> io::Result<()> {
        self.gate.violation.set(Some(violation));
        (self.is_refused, self.head_timeout) = (true, None);
        (self.kept, self.good) = (Vec::new(), 0);
        match (violation, self.at) {
            // The request is under way: its body ends here, and whoever reads it says so.
            (_, At::Chunk(_)) => return Err(io::Error::new(io::ErrorKind::InvalidData, violation.label())),
            (Violation::TooSlow, _) => return Err(io::Error::new(io::ErrorKind::TimedOut, violation.label())),
            // More fields than the parser takes: it answers 431.
            (Violation::TooLong, _) => {
                self.kept = format!("GET / HTTP/1.1\r\n{}\r\n", "a:\r\n".repeat(MAX_HEADERS + 1)).into_bytes();
            }
            // No method begins like this: it answers 400.
            _ => self.kept = vec![0],
        }
        self.good = self.kept.len();
        self.give(out);
        Ok(())
    }

    /// Whether bytes from `from` on may have made a kept head whole. Looks at each byte once, however small the pieces.
    fn may_be_whole(&self, from: usize) -> bool {
        let fresh = self.kept.get(from.saturating_sub(3)..).unwrap_or_default();
        fresh.windows(2).any(|pair| pair == b"\n\n") || fresh.windows(3).any(|three| three == b"\n\r\n")
    }
}

impl<S: AsyncRead + Unpin> Screen<S> {
    /// Keeps what comes while it is not known what it is. An end is passed on as of any client that waits for an answer:
    /// at once, but not past bytes that came before it.
    fn poll_held(&mut self, cx: &mut Context<'_>, out: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        loop {
            let room = HELD_BYTES.saturating_sub(self.kept.len());
            if room == 0 {
                return Poll::Pending;
            }
            let mut piece = out.take(room);
            ready!(Pin::new(&mut self.inner).poll_read(cx, &mut piece))?;
            match piece.filled() {
                [] if self.kept.is_empty() => return Poll::Ready(Ok(())),
                [] => return Poll::Pending,
                read => self.kept.extend_from_slice(read),
            }
        }
    }

    /// Keeps what comes until it makes a head; then it is judged with the next turn.
    fn poll_keep(&mut self, cx: &mut Context<'_>, out: &mut ReadBuf<'_>) -> Poll<io::Result<Kept>> {
        loop {
            if self.kept.len() > MAX_HEAD_BYTES {
                return Poll::Ready(Ok(Kept::Bad(Violation::TooLong)));
            }
            let timeout = self.head_timeout.get_or_insert_with(|| Box::pin(tokio::time::sleep(HEAD_TIMEOUT)));
            if timeout.as_mut().poll(cx).is_ready() {
                return Poll::Ready(Ok(Kept::Bad(Violation::TooSlow)));
            }
            let (before, from) = (out.filled().len(), self.kept.len());
            ready!(Pin::new(&mut self.inner).poll_read(cx, out))?;
            let read = out.filled().get(before..).unwrap_or_default();
            if read.is_empty() {
                // A head that is not whole is no request: the parser sees the end alone.
                (self.kept, self.head_timeout) = (Vec::new(), None);
                return Poll::Ready(Ok(Kept::Ended));
            }
            self.kept.extend_from_slice(read);
            out.set_filled(before);
            if self.may_be_whole(from) {
                return Poll::Ready(Ok(Kept::Whole));
            }
        }
    }
}

/// What became of a head that is kept.
enum Kept {
    Whole,
    Ended,
    Bad(Violation),
}

impl<S: AsyncRead + Unpin> AsyncRead for Screen<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, out: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = out.filled().len();
        this.gate.is_quiet.set(false);
        loop {
            if this.is_refused {
                this.give(out);
                return Poll::Ready(Ok(()));
            }
            if this.gate.is_held.get() && this.good == 0 {
                *this.gate.reader.borrow_mut() = Some(cx.waker().clone());
                return this.poll_held(cx, out);
            }
            if !this.kept.is_empty() {
                if let Err(violation) = this.pass_kept(out) {
                    return Poll::Ready(this.refuse(violation, out));
                }
                if out.filled().len() > before {
                    this.head_timeout = None;
                    return Poll::Ready(Ok(()));
                }
                match ready!(this.poll_keep(cx, out))? {
                    Kept::Whole => continue,
                    Kept::Ended => return Poll::Ready(Ok(())),
                    Kept::Bad(violation) => return Poll::Ready(this.refuse(violation, out)),
                }
            }
            // The usual case: judged where it lies, and nothing is copied.
            let Poll::Ready(read) = Pin::new(&mut this.inner).poll_read(cx, out) else {
                this.gate.is_quiet.set(this.at == At::Head);
                return Poll::Pending;
            };
            read?;
            let Some(read) = out.filled().get(before..).filter(|read| !read.is_empty()) else {
                return Poll::Ready(Ok(()));
            };
            match this.judge(read) {
                Ok(good) => {
                    this.kept.extend_from_slice(read.get(good..).unwrap_or_default());
                    out.set_filled(before.saturating_add(good));
                    if good > 0 {
                        return Poll::Ready(Ok(()));
                    }
                }
                Err(violation) => {
                    out.set_filled(before);
                    return Poll::Ready(this.refuse(violation, out));
                }
            }
        }
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Screen<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[io::IoSlice::new(bytes)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        this.gate.is_unflushed.set(true);
        Pin::new(&mut this.inner).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    /// The parser flushes when it has written all that it had.
    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let flushed = Pin::new(&mut this.inner).poll_flush(cx);
        if flushed.is_ready() {
            this.gate.is_unflushed.set(false);
        }
        flushed
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().inner).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    const GET: &[u8] = b"GET / HTTP/1.1\r\nHost: w\r\n\r\n";

    /// What has come of a client, and whether the connection is at rest then.
    const HEARD: &[(&[u8], bool)] = &[
        (b"", true),
        (GET, true),
        (b"GET / HTTP/1.1\r\nHost: w\r\n\r\nGET /", false),
        (b"GET /", false),
        (b"\r\n", false),
        (b"POST / HTTP/1.1\r\nHost: w\r\nContent-Length: 4\r\n\r\nfou", false),
        (b"POST / HTTP/1.1\r\nHost: w\r\nContent-Length: 4\r\n\r\nfour", true),
        (b"POST / HTTP/1.1\r\nHost: w\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nfour\r\n", false),
        (b"POST / HTTP/1.1\r\nHost: w\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nfour\r\n0\r\n\r\n", true),
        (b"GET / HTTP/1.1\r\nHost: w\r\nConnection: upgrade\r\nUpgrade: chat\r\n\r\n", false),
        (b"\0\r\n\r\n", false),
    ];

    #[tokio::test]
    async fn it_rests_between_two_requests_alone() {
        for (heard, rests) in HEARD {
            let (mut client, server) = tokio::io::duplex(1024);
            let mut screen = Screen::new(server, Vec::new());
            let gate = screen.gate();
            assert!(!gate.is_at_rest(), "nobody has looked yet");
            client.write_all(heard).await.unwrap();
            let mut out = Vec::new();
            let reading = tokio::time::timeout(std::time::Duration::from_millis(20), screen.read_to_end(&mut out));
            let _ = reading.await;
            assert_eq!(gate.is_at_rest(), *rests, "{:?}", String::from_utf8_lossy(heard));
        }
    }

    const UPGRADE: &[u8] = b"GET / HTTP/1.1\r\nHost: w\r\nConnection: upgrade\r\nUpgrade: chat\r\n\r\n";

    /// What a client says behind a request for an upgrade before it goes, and whether that is heard while nobody has
    /// answered: as of another request, past which the parser does not look further than to what follows.
    #[tokio::test]
    async fn a_client_that_goes_while_it_waits_for_an_upgrade_is_heard() {
        for (said, is_heard) in [(&b""[..], true), (b"hello", false)] {
            let (mut client, server) = tokio::io::duplex(1024);
            let mut screen = Screen::new(server, Vec::new());
            let mut head = vec![0; UPGRADE.len()];
            client.write_all(UPGRADE).await.unwrap();
            screen.read_exact(&mut head).await.unwrap();
            let moment = std::time::Duration::from_millis(20);
            let mut further = [0; 100];
            assert!(tokio::time::timeout(moment, screen.read(&mut further)).await.is_err(), "it waits");
            client.write_all(said).await.unwrap();
            drop(client);
            let read = tokio::time::timeout(moment, screen.read(&mut further)).await;
            assert_eq!(read.map_or(None, Result::ok), is_heard.then_some(0), "{said:?}");
            assert_eq!(screen.into_inner().1, said, "nothing of it was the parser's");
        }
    }

    #[tokio::test]
    async fn what_is_said_while_an_upgrade_is_awaited_is_bounded_and_kept() {
        let (mut client, server) = tokio::io::duplex(1 << 20);
        let mut screen = Screen::new(server, Vec::new());
        let gate = screen.gate();
        // The head of the upgrade is longer than what the parser reads at once: it has the rest of it all the same.
        let long = String::from_utf8_lossy(UPGRADE).replace("Host", &format!("Cookie: {}\r\nHost", "a".repeat(9000)));
        let after = GET.repeat(4000);
        client.write_all(&[long.as_bytes(), &after].concat()).await.unwrap();
        client.shutdown().await.unwrap();
        let mut head = vec![0; long.len()];
        for piece in head.chunks_mut(1000) {
            screen.read_exact(piece).await.unwrap();
        }
        assert_eq!(String::from_utf8_lossy(&head), long);
        let moment = std::time::Duration::from_millis(20);
        let mut heard = Vec::new();
        assert!(tokio::time::timeout(moment, screen.read_to_end(&mut heard)).await.is_err(), "it waits");
        assert!(heard.is_empty() && screen.kept.len() <= HELD_BYTES, "{} kept", screen.kept.len());
        gate.release();
        screen.read_to_end(&mut heard).await.unwrap();
        assert!(heard == after, "{} of {} bytes", heard.len(), after.len());
    }

    #[tokio::test]
    async fn it_does_not_rest_on_what_was_not_flushed() {
        let (_client, server) = tokio::io::duplex(8);
        let mut screen = Screen::new(server, Vec::new());
        let gate = screen.gate();
        let moment = std::time::Duration::from_millis(20);
        let _ = tokio::time::timeout(moment, screen.read(&mut [0])).await;
        assert!(gate.is_at_rest());
        assert!(tokio::time::timeout(moment, screen.write_all(b"more than fits")).await.is_err());
        assert!(!gate.is_at_rest());
        screen.flush().await.unwrap();
        assert!(gate.is_at_rest());
    }
}
