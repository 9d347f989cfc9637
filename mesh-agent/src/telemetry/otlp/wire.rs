//! Connections to a collector, and what is said there of who comes. Files are read anew for each connection and each request:
//! as Kubernetes mounts them they change under the agent.

use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use http::{HeaderMap, HeaderName, HeaderValue, Uri};
use hyper_util::client::legacy::connect::{Connected, Connection, HttpConnector};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tower::Service;

use super::courier::CONNECT_TIMEOUT;
use crate::identity::{WebSettings, WebTls};

/// Of a file with headers; a token is some KiB.
pub const HEADERS_FILE_BYTES: u64 = 16 << 10;

/// Headers that say what a request is: those are not for others to set.
const OURS: [&str; 10] = [
    "host",
    "content-type",
    "content-length",
    "content-encoding",
    "transfer-encoding",
    "connection",
    "keep-alive",
    "proxy-connection",
    "upgrade",
    "te",
];

/// Whom to believe, and what to show.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Credentials {
    /// PEM: roots for the collector's certificate, in place of the machine's.
    pub ca: Option<PathBuf>,
    /// A directory with tls.crt and tls.key, PEM.
    pub client: Option<PathBuf>,
    /// Lines of `NAME: VALUE` that go with each request.
    pub headers: Option<PathBuf>,
}

/// Makes connections, with TLS or without.
#[derive(Clone)]
pub(super) struct Connector {
    tcp: HttpConnector,
    tls: Option<Arc<WebSettings>>,
}

impl Connector {
    pub fn new(tls: Option<WebSettings>) -> Self {
        let mut tcp = HttpConnector::new();
        tcp.set_nodelay(true);
        tcp.set_connect_timeout(Some(CONNECT_TIMEOUT));
        tcp.enforce_http(false);
        Self { tcp, tls: tls.map(Arc::new) }
    }

    async fn connect(mut self, uri: Uri) -> io::Result<Wire> {
        let host = uri.host().unwrap_or_default().trim_start_matches('[').trim_end_matches(']').to_string();
        std::future::poll_fn(|context| self.tcp.poll_ready(context)).await.map_err(io::Error::other)?;
        let tcp = self.tcp.call(uri).await.map_err(io::Error::other)?.into_inner();
        let Some(settings) = self.tls else { return Ok(Wire(Box::new(tcp))) };
        let tls = tokio::task::spawn_blocking(move || WebTls::of(&settings)).await.map_err(io::Error::other)??;
        let stream = tls.connect(tcp, &host).await;
        let stream = stream.map_err(|error| io::Error::new(error.kind(), format!("TLS with {host}: {error}")))?;
        Ok(Wire(Box::new(stream)))
    }
}

impl Service<Uri> for Connector {
    type Response = TokioIo<Wire>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<TokioIo<Wire>>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let connecting = self.clone().connect(uri);
        Box::pin(async move {
            match tokio::time::timeout(CONNECT_TIMEOUT, connecting).await {
                Ok(connected) => connected.map(TokioIo::new),
                Err(_) => {
                    let why = format!("no connection within {} s", CONNECT_TIMEOUT.as_secs());
                    Err(io::Error::new(io::ErrorKind::TimedOut, why))
                }
            }
        })
    }
}

/// What both kinds of connection are.
trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// A connection.
pub(super) struct Wire(Box<dyn Stream>);

impl Connection for Wire {
    fn connected(&self) -> Connected {
        Connected::new()
    }
}

impl AsyncRead for Wire {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Wire {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}

/// The headers of a file. What is wrong with it is said without what is in it.
pub(super) async fn headers(file: &Path) -> Result<HeaderMap, String> {
    let path = file.to_path_buf();
    let read = tokio::task::spawn_blocking(move || read(&path)).await.map_err(|error| error.to_string())?;
    read.and_then(|text| parse(&text)).map_err(|error| format!("{}: {error}", file.display()))
}

fn read(file: &Path) -> Result<String, String> {
    let mut text = String::new();
    let opened = std::fs::File::open(file).map_err(|error| error.to_string())?;
    opened.take(HEADERS_FILE_BYTES + 1).read_to_string(&mut text).map_err(|error| error.to_string())?;
    match text.len() as u64 > HEADERS_FILE_BYTES {
        true => Err(format!("longer than {HEADERS_FILE_BYTES} bytes")),
        false => Ok(text),
    }
}

fn parse(text: &str) -> Result<HeaderMap, String> {
    let mut headers = HeaderMap::new();
    for (number, line) in text.lines().enumerate() {
        let (number, line) = (number + 1, line.trim());
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let wrong = || format!("line {number} is not of the form NAME: VALUE");
        let (name, value) = line.split_once(':').ok_or_else(wrong)?;
        let name: HeaderName = name.trim().parse().map_err(|_| wrong())?;
        let mut value = HeaderValue::from_str(value.trim()).map_err(|_| wrong())?;
        if OURS.contains(&name.as_str()) || name.as_str().starts_with("grpc-") {
            return Err(format!("line {number}: this header is not to be set"));
        }
        value.set_sensitive(true);
        headers.append(name, value);
    }
    Ok(headers)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_of_a_file() {
        let headers = parse("# of the tenant\n\nAuthorization: Bearer a:b\r\nX-Scope-OrgID:  shop \n").unwrap();
        let shown: Vec<_> = headers.iter().map(|(name, value)| (name.as_str(), value.to_str().unwrap())).collect();
        assert_eq!(shown, [("authorization", "Bearer a:b"), ("x-scope-orgid", "shop")]);
        assert!(headers.values().all(HeaderValue::is_sensitive) && !format!("{headers:?}").contains("Bearer"));
        for (text, line) in [
            ("a: b\nsecret", "line 2"),
            ("secret secret: x", "line 1"),
            ("a: sec\u{7f}ret", "line 1"),
            ("Content-Type: secret", "line 1"),
            ("grpc-timeout: secret", "line 1"),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.starts_with(line) && !error.contains("secret"), "{text:?}: {error}");
        }
    }
}
