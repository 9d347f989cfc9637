//! The other end: asks an agent's own HTTP, for probes and for people where there is no curl, as in the agent's image.

use std::io;
use std::pin::pin;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Empty, Limited};
use hyper::Request;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};

use super::Address;

/// The longest answer that is taken, in bytes: the dump of a world of 10 000 pods is some ten MB.
pub const MAX_ANSWER_BYTES: usize = 256 << 20;
/// How long a whole answer may take; longer than the agent allows itself for one.
pub(super) const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);

/// How long an answer that goes on may be silent: several times what the agent lets pass without a line.
pub(super) const SILENCE: Duration = Duration::from_secs(20);

/// What was answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// Whether the status was one of 200 to 299.
    pub is_ok: bool,
    /// The text.
    pub body: Bytes,
}

/// Asks for a path, such as `/readyz`.
pub async fn ask(address: &Address, path: &str) -> io::Result<Answer> {
    let asked = async {
        match address {
            Address::Tcp(address) => exchange(TcpStream::connect(address).await?, path).await,
            Address::Unix(file) => exchange(UnixStream::connect(file).await?, path).await,
        }
    };
    let late = |_| io::Error::new(io::ErrorKind::TimedOut, "no answer in time");
    tokio::time::timeout(ANSWER_TIMEOUT, asked).await.map_err(late)?
}

/// Asks for a path whose answer goes on, such as `/flows`; hands over each part as it comes, until the answer ends or `take`
/// wants no more. An answer that is a refusal is given back whole.
pub async fn follow(address: &Address, path: &str, take: impl FnMut(&[u8]) -> bool) -> io::Result<Option<Answer>> {
    match address {
        Address::Tcp(address) => follow_over(TcpStream::connect(address).await?, path, take).await,
        Address::Unix(file) => follow_over(UnixStream::connect(file).await?, path, take).await,
    }
}

async fn follow_over(
    stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
    path: &str,
    mut take: impl FnMut(&[u8]) -> bool,
) -> io::Result<Option<Answer>> {
    let late = |_| io::Error::new(io::ErrorKind::TimedOut, "the agent fell silent");
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(io::Error::other)?;
    let request = Request::get(path).header("host", "localhost").body(Empty::<Bytes>::new());
    let request = request.map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))?;
    let followed = async {
        let answer = tokio::time::timeout(ANSWER_TIMEOUT, sender.send_request(request)).await.map_err(late)?;
        let answer = answer.map_err(io::Error::other)?;
        if !answer.status().is_success() {
            let body = Limited::new(answer.into_body(), MAX_ANSWER_BYTES).collect().await.map_err(io::Error::other)?;
            return Ok(Some(Answer { is_ok: false, body: body.to_bytes() }));
        }
        let mut body = answer.into_body();
        while let Some(frame) = tokio::time::timeout(SILENCE, body.frame()).await.map_err(late)? {
            let frame = frame.map_err(io::Error::other)?;
            if !frame.data_ref().is_none_or(|data| take(data)) {
                break;
            }
        }
        Ok(None)
    };
    let mut followed = pin!(followed);
    tokio::select! {
        biased;
        done = &mut followed => done,
        // What came before the end may not be read yet.
        ended = connection => match ended {
            Ok(()) => followed.await,
            Err(error) => Err(io::Error::other(error)),
        },
    }
}

async fn exchange(stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static, path: &str) -> io::Result<Answer> {
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(io::Error::other)?;
    let request = Request::get(path).header("host", "localhost").body(Empty::<Bytes>::new());
    let request = request.map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))?;
    let answered = async move {
        let answer = sender.send_request(request).await.map_err(io::Error::other)?;
        let is_ok = answer.status().is_success();
        let body = Limited::new(answer.into_body(), MAX_ANSWER_BYTES).collect().await.map_err(io::Error::other)?;
        Ok(Answer { is_ok, body: body.to_bytes() })
    };
    // The connection ends by itself once its only request is answered and its sender is gone.
    let (_, answer) = tokio::join!(connection, answered);
    answer
}
