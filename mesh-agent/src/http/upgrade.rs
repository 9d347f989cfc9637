//! A connection after 101: bytes both ways until both sides have ended, one breaks, it rests for too long, or it is cut.

use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::exchange::{End, Exchange};
use super::limits::UPGRADE_CHUNK;
use super::upstream::Upgraded;

/// A change of protocol that both sides agreed on, waiting for its connections.
pub struct Change {
    /// The application's connection.
    pub application: oneshot::Receiver<Upgraded>,
    /// The request that it began with, which lasts as long.
    pub exchange: Rc<Exchange>,
}

/// How it ended.
#[derive(Debug, PartialEq, Eq)]
pub enum Ended {
    /// Both sides ended in order.
    Finished,
    /// The application's side was cut or is gone: the client's is to be reset.
    Broken(io::ErrorKind),
}

/// Carries bytes. `first` is what the client said before it was asked.
pub async fn carry<S>(client: &mut S, first: &[u8], change: Change) -> Ended
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let Ok(Upgraded { mut io, first: said, mut cut }) = change.application.await else {
        return Ended::Broken(io::ErrorKind::ConnectionReset);
    };
    let copy = async {
        let mut application = Watched { io: &mut io, exchange: &change.exchange };
        application.write_all(first).await?;
        client.write_all(&said).await?;
        let (sent, received) =
            tokio::io::copy_bidirectional_with_sizes(client, &mut application, UPGRADE_CHUNK, UPGRADE_CHUNK).await?;
        change.exchange.sent(usize::try_from(sent).unwrap_or(usize::MAX));
        change.exchange.received(usize::try_from(received).unwrap_or(usize::MAX));
        Ok::<(), io::Error>(())
    };
    let ended = tokio::select! {
        biased;
        () = &mut cut => Err(io::ErrorKind::ConnectionAborted),
        () = rests(&change.exchange) => {
            change.exchange.end(End::TimedOut);
            Err(io::ErrorKind::TimedOut)
        }
        copied = copy => copied.map_err(|error| error.kind()),
    };
    // An end in disorder is how many of these protocols end.
    change.exchange.end(End::Complete);
    match ended {
        Ok(()) => Ended::Finished,
        Err(kind) => {
            io.reset();
            Ended::Broken(kind)
        }
    }
}

/// Returns when no byte has come for longer than the exchange allows.
async fn rests(exchange: &Exchange) {
    loop {
        match exchange.idle_until() {
            None => std::future::pending().await,
            Some(until) if until > Instant::now() => tokio::time::sleep_until(until).await,
            Some(_) => return,
        }
    }
}

/// A side of the connection whose bytes show that it does not rest; what the other side says goes there too.
struct Watched<'a, S> {
    io: &'a mut S,
    exchange: &'a Exchange,
}

impl<S: AsyncRead + Unpin> AsyncRead for Watched<'_, S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buffer.filled().len();
        ready!(Pin::new(&mut *this.io).poll_read(cx, buffer))?;
        if buffer.filled().len() > before {
            this.exchange.moves();
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Watched<'_, S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = ready!(Pin::new(&mut *this.io).poll_write(cx, bytes))?;
        this.exchange.moves();
        Poll::Ready(Ok(written))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.get_mut().io).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.get_mut().io).poll_shutdown(cx)
    }
}
