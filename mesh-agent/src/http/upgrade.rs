//! A connection after 101: bytes both ways until both sides have ended, one breaks, or it is cut.

use std::io;
use std::rc::Rc;

use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::sync::oneshot;

use super::exchange::Exchange;
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
pub async fn carry<S>(client: &mut S, first: &[&[u8]], change: Change) -> Ended
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let Ok(Upgraded { mut io, first: said, mut cut }) = change.application.await else {
        return Ended::Broken(io::ErrorKind::ConnectionReset);
    };
    let copy = async {
        for bytes in first {
            io.write_all(bytes).await?;
        }
        client.write_all(&said).await?;
        let (sent, received) =
            tokio::io::copy_bidirectional_with_sizes(client, &mut io, UPGRADE_CHUNK, UPGRADE_CHUNK).await?;
        change.exchange.sent(usize::try_from(sent).unwrap_or(usize::MAX));
        change.exchange.received(usize::try_from(received).unwrap_or(usize::MAX));
        Ok::<(), io::Error>(())
    };
    let ended = tokio::select! {
        biased;
        () = &mut cut => Err(io::ErrorKind::ConnectionAborted),
        copied = copy => copied.map_err(|error| error.kind()),
    };
    match ended {
        Ok(()) => Ended::Finished,
        Err(kind) => {
            io.reset();
            Ended::Broken(kind)
        }
    }
}
