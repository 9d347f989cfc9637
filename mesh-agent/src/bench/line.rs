//! One connection to the server: HTTP/1.1, one request at a time, made anew when it has ended.

use std::error::Error as _;
use std::io::{self, ErrorKind};
use std::net::SocketAddr;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Empty};
use hyper::client::conn::http1::{self, SendRequest};
use hyper::{Request, Uri};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use super::{Error, Failure};

const EXPECTED: &str = "expected http://HOST[:PORT]/PATH";
const ENCRYPTED: &str = "expected http://: what pods say in plaintext is what the mesh encrypts, and what an application encrypts it carries";

/// What is asked for.
#[derive(Clone, Debug)]
pub struct Target {
    /// As it was given.
    pub url: String,
    host: String,
    port: u16,
    authority: String,
    path: String,
}

/// What was answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Answer {
    pub status: u16,
    /// Of its body.
    pub bytes: u64,
}

impl Target {
    /// # Errors
    /// It is no address of a server that is spoken to in plaintext.
    pub fn read(url: &str) -> Result<Self, Error> {
        let refused = |expected| Error::Url { url: url.to_string(), expected };
        let uri: Uri = url.parse().map_err(|_| refused(EXPECTED))?;
        let authority = match (uri.scheme_str(), uri.authority()) {
            (Some("http"), Some(authority)) if !authority.as_str().contains('@') => authority,
            (Some("https"), _) => return Err(refused(ENCRYPTED)),
            _ => return Err(refused(EXPECTED)),
        };
        Ok(Self {
            url: url.to_string(),
            // Without the brackets of an IPv6 address.
            host: authority.host().trim_matches(['[', ']']).to_string(),
            port: authority.port_u16().unwrap_or(80),
            authority: authority.to_string(),
            path: uri.path_and_query().map_or("/", |path| path.as_str()).to_string(),
        })
    }

    /// Where the server is.
    ///
    /// # Errors
    /// Nobody knows here.
    pub async fn addresses(&self) -> Result<Vec<SocketAddr>, Error> {
        let unresolved = |reason: String| Error::Unresolved { host: self.host.clone(), reason };
        let found = tokio::net::lookup_host((self.host.as_str(), self.port)).await;
        let found: Vec<SocketAddr> = found.map_err(|error| unresolved(error.to_string()))?.collect();
        if found.is_empty() { Err(unresolved("there is none".into())) } else { Ok(found) }
    }

    fn request(&self) -> Result<Request<Empty<Bytes>>, Failure> {
        let request = Request::get(&self.path).header("host", &self.authority).header("user-agent", "meshctl-bench");
        request.body(Empty::new()).map_err(|_| Failure::Other)
    }
}

/// A connection, while there is one.
pub struct Line {
    target: Target,
    /// The first that takes a connection is the server's.
    addresses: Vec<SocketAddr>,
    kept: Option<Kept>,
}

struct Kept {
    sender: SendRequest<Empty<Bytes>>,
    /// What reads and writes; ends with this.
    _moving: JoinSet<()>,
}

impl Line {
    pub fn new(target: Target, addresses: Vec<SocketAddr>) -> Self {
        Self { target, addresses, kept: None }
    }

    /// Asks, and reads the whole answer. Whoever waits no longer ends the connection.
    pub async fn ask(&mut self) -> Result<Answer, Failure> {
        loop {
            let (mut kept, is_new) = match self.take_kept().await {
                Some(kept) => (kept, false),
                None => (self.connect().await?, true),
            };
            match kept.sender.send_request(self.target.request()?).await {
                // The server closed it in this very moment, and has seen nothing of the request.
                Err(error) if error.is_canceled() && !is_new => {}
                Err(error) => return Err(Failure::of(&error)),
                Ok(answer) => {
                    let status = answer.status().as_u16();
                    let mut body = answer.into_body();
                    let mut bytes = 0;
                    while let Some(frame) = body.frame().await {
                        let frame = frame.map_err(|error| Failure::of(&error))?;
                        bytes += frame.data_ref().map_or(0, |data| data.len() as u64);
                    }
                    self.kept = Some(kept);
                    return Ok(Answer { status, bytes });
                }
            }
        }
    }

    /// The connection, if it still is one.
    async fn take_kept(&mut self) -> Option<Kept> {
        let mut kept = self.kept.take()?;
        kept.sender.ready().await.is_ok().then_some(kept)
    }

    async fn connect(&self) -> Result<Kept, Failure> {
        let mut failure = Failure::Unreachable;
        for address in &self.addresses {
            match TcpStream::connect(address).await {
                Ok(stream) => {
                    // Where it is refused, small requests wait; the answer tells.
                    let _ = stream.set_nodelay(true);
                    let made = http1::handshake(TokioIo::new(stream)).await;
                    let (sender, connection) = made.map_err(|error| Failure::of(&error))?;
                    let mut moving = JoinSet::new();
                    moving.spawn(async move {
                        // How it ended is told where somebody waits for an answer.
                        let _ = connection.await;
                    });
                    return Ok(Kept { sender, _moving: moving });
                }
                Err(error) => failure = Failure::of_io(&error),
            }
        }
        Err(failure)
    }
}

impl Failure {
    fn of(error: &hyper::Error) -> Self {
        match error.source().and_then(|source| source.downcast_ref::<io::Error>()) {
            Some(error) => Self::of_io(error),
            None if error.is_incomplete_message() || error.is_canceled() || error.is_closed() => Self::Closed,
            None if error.is_parse() => Self::NotHttp,
            None => Self::Other,
        }
    }

    fn of_io(error: &io::Error) -> Self {
        match error.kind() {
            ErrorKind::ConnectionRefused => Self::Refused,
            ErrorKind::ConnectionReset | ErrorKind::ConnectionAborted | ErrorKind::BrokenPipe => Self::Reset,
            ErrorKind::HostUnreachable | ErrorKind::NetworkUnreachable | ErrorKind::TimedOut => Self::Unreachable,
            ErrorKind::UnexpectedEof => Self::Closed,
            _ => Self::Other,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_may_be_asked_for() {
        let table = [
            ("http://web.shop/", Some(("web.shop", 80, "web.shop", "/"))),
            ("http://web.shop:8080/a?b=c", Some(("web.shop", 8080, "web.shop:8080", "/a?b=c"))),
            ("http://[fd00::1]:81", Some(("fd00::1", 81, "[fd00::1]:81", "/"))),
            ("web.shop", None),
            ("/", None),
            ("https://web.shop/", None),
            ("http://me:secret@web.shop/", None),
            ("ftp://web.shop/", None),
            ("http://", None),
        ];
        for (url, expected) in table {
            let read = Target::read(url).ok();
            let read = read.as_ref().map(|t| (t.host.as_str(), t.port, t.authority.as_str(), t.path.as_str()));
            assert_eq!(read, expected, "{url}");
        }
        assert!(Target::read("https://web/").unwrap_err().to_string().contains("the mesh encrypts"));
    }
}
