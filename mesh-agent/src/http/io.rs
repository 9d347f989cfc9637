//! Byte streams as the HTTP library wants them: an application's socket, or a tunnelled connection.
//!
//! ```text
//!            read                                       write                     shutdown   drop before both ended
//! tunnel     DATA, credit goes back as it is taken      DATA within the credit    END_STREAM RST_STREAM(CONNECT_ERROR)
//! socket     as the kernel has it                       as the kernel has it      FIN        close
//! ```
//! Nothing is buffered here but the one frame that is being read: who does not read holds back the far side.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

use super::limits::MAX_TUNNEL_WRITE;
use crate::hbone::{Stream, StreamError};

/// A connection to an application, or from one.
pub enum Io {
    /// A socket.
    Socket(TcpStream),
    /// A connection within a tunnel.
    Tunnel(Tunnelled),
}

/// A tunnelled connection as a byte stream.
pub struct Tunnelled {
    stream: Stream,
    /// Received, not yet taken.
    frame: Bytes,
}

impl From<Stream> for Io {
    fn from(stream: Stream) -> Self {
        Io::Tunnel(Tunnelled { stream, frame: Bytes::new() })
    }
}

impl From<TcpStream> for Io {
    fn from(tcp: TcpStream) -> Self {
        Io::Socket(tcp)
    }
}

impl Io {
    /// Ends it as what it is: broken.
    pub fn reset(self) {
        match self {
            // It fails only on a socket that is gone already.
            Io::Socket(tcp) => drop(SockRef::from(&tcp).set_linger(Some(Duration::ZERO))),
            Io::Tunnel(mut tunnelled) => tunnelled.stream.reset(),
        }
    }
}

fn broken(error: StreamError) -> io::Error {
    io::Error::new(io::ErrorKind::ConnectionReset, error)
}

impl Tunnelled {
    fn poll_read(&mut self, cx: &mut Context<'_>, out: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.frame.is_empty() {
            match ready!(self.stream.poll_recv(cx)) {
                Some(Ok(frame)) => self.frame = frame,
                Some(Err(error)) => return Poll::Ready(Err(broken(error))),
                None => return Poll::Ready(Ok(())),
            }
        }
        let taken = self.frame.len().min(out.remaining());
        out.put_slice(self.frame.get(..taken).unwrap_or_default());
        self.frame.advance(taken);
        if self.frame.is_empty() {
            // An empty part of a frame would keep the whole.
            self.frame = Bytes::new();
        }
        self.stream.release(taken);
        Poll::Ready(Ok(()))
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
        match self.get_mut() {
            Io::Socket(tcp) => Pin::new(tcp).poll_read(cx, out),
            Io::Tunnel(tunnelled) => tunnelled.poll_read(cx, out),
        }
    }
}

impl AsyncWrite for Io {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Io::Socket(tcp) => Pin::new(tcp).poll_write(cx, bytes),
            Io::Tunnel(tunnelled) => tunnelled.poll_write(cx, &[io::IoSlice::new(bytes)]),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Io::Socket(tcp) => Pin::new(tcp).poll_write_vectored(cx, slices),
            Io::Tunnel(tunnelled) => tunnelled.poll_write(cx, slices),
        }
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Io::Socket(tcp) => Pin::new(tcp).poll_flush(cx),
            // What was sent is the tunnel's to bring.
            Io::Tunnel(_) => Poll::Ready(Ok(())),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Io::Socket(tcp) => Pin::new(tcp).poll_shutdown(cx),
            // It fails when the far side wants no more, which is an end as well.
            Io::Tunnel(tunnelled) => {
                let _ = tunnelled.stream.finish();
                Poll::Ready(Ok(()))
            }
        }
    }
}
