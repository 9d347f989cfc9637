//! Byte streams as the HTTP library wants them: an application's socket, or a tunnelled connection.
//!
//! ```text
//!            read                                       write                     shutdown   drop before both ended
//! tunnel     DATA, credit goes back as it is taken      DATA within the credit    END_STREAM RST_STREAM(CONNECT_ERROR)
//! socket     as the kernel has it                       as the kernel has it      FIN        close
//! ```
//! Nothing is buffered here but the one frame that is being read: who does not read holds back the far side.

use std::borrow::Cow;
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

use super::limits::{LINGER, LINGER_BYTES, MAX_TUNNEL_WRITE, PREFACE_PAUSE, SMALL_FRAME};
use super::server::PREFACE;
use super::untaken::Untaken;
use crate::hbone::{Stream, StreamError};

/// Counts the bytes of a connection.
pub trait Meter {
    /// So many more were read from it, and written to it.
    fn carried(&self, read: usize, written: usize);

    /// So much of what was read waits to be taken, from now on; said again when it is much more.
    fn waits(&self, untaken: &Rc<Untaken>);
}

/// A connection to an application, or from one.
pub struct Io {
    way: Way,
    meter: Rc<dyn Meter>,
}

enum Way {
    Socket(TcpStream),
    Tunnel(Tunnelled),
}

/// A tunnelled connection as a byte stream.
struct Tunnelled {
    stream: Stream,
    /// Received, not yet taken.
    frame: Bytes,
    /// How it broke, behind what was read before.
    broken: Option<StreamError>,
}

impl Io {
    /// A connection within a tunnel.
    pub fn tunnel(stream: Stream, meter: Rc<dyn Meter>) -> Self {
        Self { way: Way::Tunnel(Tunnelled { stream, frame: Bytes::new(), broken: None }), meter }
    }

    /// A socket.
    pub fn socket(tcp: TcpStream, meter: Rc<dyn Meter>) -> Self {
        Self { way: Way::Socket(tcp), meter }
    }

    /// The first bytes, left where they are, as soon as there are more than `seen` of them; as many as before when there
    /// will be no more. Before anything is read.
    pub async fn look(&mut self, seen: usize) -> io::Result<Cow<'_, [u8]>> {
        match &mut self.way {
            Way::Socket(tcp) => loop {
                let mut first = [0; PREFACE.len()];
                let length = tcp.peek(&mut first).await?;
                // What is there already wakes nobody, and neither does an end behind it.
                if length <= seen && length > 0 {
                    tokio::time::sleep(PREFACE_PAUSE).await;
                    continue;
                }
                return Ok(Cow::Owned(first.get(..length).unwrap_or_default().to_vec()));
            },
            Way::Tunnel(tunnelled) => {
                if tunnelled.frame.len() <= seen {
                    match poll_fn(|cx| tunnelled.poll_frame(cx)).await {
                        Some(Ok(frame)) if tunnelled.frame.is_empty() => tunnelled.frame = frame,
                        Some(Ok(frame)) => tunnelled.frame = [&tunnelled.frame[..], &frame].concat().into(),
                        Some(Err(error)) => return Err(broken(error)),
                        None => {}
                    }
                }
                Ok(Cow::Borrowed(&tunnelled.frame))
            }
        }
    }

    /// Tells whoever counts its bytes what waits to be taken.
    pub fn weigh(&self, untaken: &Rc<Untaken>) {
        self.meter.waits(untaken);
    }

    /// Returns when there is something to read, or an end; now and then before.
    pub async fn readable(&mut self) {
        match &mut self.way {
            // An error is the next read's to find.
            Way::Socket(tcp) => drop(tcp.readable().await),
            Way::Tunnel(tunnelled) => poll_fn(|cx| tunnelled.poll_readable(cx)).await,
        }
    }

    /// Ends it as what it is: broken.
    pub fn reset(self) {
        match self.way {
            // It fails only on a socket that is gone already.
            Way::Socket(tcp) => drop(SockRef::from(&tcp).set_linger(Some(Duration::ZERO))),
            Way::Tunnel(mut tunnelled) => tunnelled.stream.reset(),
        }
    }

    /// Reads on for a while, so that the last answer is not lost to the reset that closing on unread bytes would be.
    pub async fn linger(mut self) {
        let mut left = LINGER_BYTES;
        let mut waste = vec![0; 4096];
        let reading = async {
            while let Ok(read) = self.read(&mut waste).await
                && read > 0
                && left > 0
            {
                left = left.saturating_sub(read);
            }
        };
        let _ = tokio::time::timeout(LINGER, reading).await;
    }
}

/// Reset by the far side; or aborted: the tunnel went away under it, of which the application knows nothing.
fn broken(error: StreamError) -> io::Error {
    let kind = match error {
        StreamError::Reset(_) => io::ErrorKind::ConnectionReset,
        StreamError::TunnelLost(_) => io::ErrorKind::ConnectionAborted,
    };
    io::Error::new(kind, error)
}

impl Tunnelled {
    /// As many frames as have come and find room: what is read in one piece is written on in one.
    fn poll_read(&mut self, cx: &mut Context<'_>, out: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = out.filled().len();
        loop {
            let taken = self.take(out);
            if out.remaining() == 0 || (1..SMALL_FRAME).contains(&taken) {
                return Poll::Ready(Ok(()));
            }
            let is_first = out.filled().len() == before;
            match self.poll_frame(cx) {
                Poll::Ready(Some(Ok(frame))) => self.frame = frame,
                Poll::Ready(Some(Err(error))) if is_first => return Poll::Ready(Err(broken(error))),
                Poll::Ready(Some(Err(error))) => {
                    self.broken = Some(error);
                    return Poll::Ready(Ok(()));
                }
                Poll::Pending if is_first => return Poll::Pending,
                Poll::Pending | Poll::Ready(None) => return Poll::Ready(Ok(())),
            }
        }
    }

    fn poll_readable(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.frame.is_empty() {
            match ready!(self.poll_frame(cx)) {
                Some(Ok(frame)) => self.frame = frame,
                Some(Err(error)) => self.broken = Some(error),
                None => {}
            }
        }
        Poll::Ready(())
    }

    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, StreamError>>> {
        match self.broken.take() {
            Some(error) => Poll::Ready(Some(Err(error))),
            None => self.stream.poll_recv(cx),
        }
    }

    /// Gives out what is there of the frame; how much that is.
    fn take(&mut self, out: &mut ReadBuf<'_>) -> usize {
        let taken = self.frame.len().min(out.remaining());
        if taken == 0 {
            return 0;
        }
        out.put_slice(self.frame.get(..taken).unwrap_or_default());
        self.frame.advance(taken);
        if self.frame.is_empty() {
            // An empty part of a frame would keep the whole.
            self.frame = Bytes::new();
        }
        self.stream.release(taken);
        taken
    }

    /// One frame for all slices: a head and its body leave together.
    fn poll_write(&mut self, cx: &mut Context<'_>, slices: &[io::IoSlice<'_>]) -> Poll<io::Result<usize>> {
        let wanted = slices.iter().map(|slice| slice.len()).sum::<usize>().min(MAX_TUNNEL_WRITE);
        if wanted == 0 {
            return Poll::Ready(Ok(0));
        }
        let mut room = ready!(self.stream.poll_capacity(cx, wanted)).map_err(broken)?;
        let mut frame = BytesMut::with_capacity(room);
        for slice in slices {
            let taken = slice.len().min(room);
            frame.extend_from_slice(slice.get(..taken).unwrap_or_default());
            room = room.saturating_sub(taken);
        }
        let written = frame.len();
        self.stream.send(frame.freeze()).map_err(broken)?;
        Poll::Ready(Ok(written))
    }
}

impl AsyncRead for Io {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, out: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let Self { way, meter } = self.get_mut();
        let before = out.filled().len();
        let polled = match way {
            Way::Socket(tcp) => Pin::new(tcp).poll_read(cx, out),
            Way::Tunnel(tunnelled) => tunnelled.poll_read(cx, out),
        };
        if polled.is_ready() {
            meter.carried(out.filled().len().saturating_sub(before), 0);
        }
        polled
    }
}

impl AsyncWrite for Io {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[io::IoSlice::new(bytes)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let Self { way, meter } = self.get_mut();
        let polled = match way {
            Way::Socket(tcp) => Pin::new(tcp).poll_write_vectored(cx, slices),
            Way::Tunnel(tunnelled) => tunnelled.poll_write(cx, slices),
        };
        if let Poll::Ready(Ok(written)) = &polled {
            meter.carried(0, *written);
        }
        polled
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().way {
            Way::Socket(tcp) => Pin::new(tcp).poll_flush(cx),
            // What was sent is the tunnel's to bring.
            Way::Tunnel(_) => Poll::Ready(Ok(())),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().way {
            Way::Socket(tcp) => Pin::new(tcp).poll_shutdown(cx),
            // It fails when the far side wants no more, which is an end as well.
            Way::Tunnel(tunnelled) => {
                let _ = tunnelled.stream.finish();
                Poll::Ready(Ok(()))
            }
        }
    }
}
