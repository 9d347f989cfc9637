//! One fetch of keys: resolve, check the addresses, connect to one of exactly these, TLS, one GET. Nothing is followed:
//! an answer that leads elsewhere is a failure.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Request, StatusCode, header};
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;

use super::limits::{FETCH_TIMEOUT, MAX_ANSWER_HEAD, MAX_JWKS_BYTES};
use super::reach::{self, Reach};
use crate::identity::WebTls;
use crate::state::MeshState;
use crate::tokens::{Keys, KeysError, KeysUri};

/// What an issuer answered.
#[derive(Clone, Debug, PartialEq)]
pub struct Fetched {
    /// Its keys.
    pub keys: Keys,
    /// How long it says they are fresh.
    pub max_age: Option<Duration>,
}

/// Why there are no keys.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Trouble {
    /// It is http, and that is not allowed.
    #[error("http is not allowed: whoever is on the way could put keys of his own in their place")]
    Unencrypted,
    /// The name leads nowhere.
    #[error("the name cannot be resolved: {0}")]
    Unresolved(String),
    /// The name leads where nothing may be fetched from.
    #[error("{0} is an address of the node or of its cloud, which is not allowed")]
    Forbidden(IpAddr),
    /// Nobody answers there.
    #[error("no connection: {0}")]
    Connect(String),
    /// Nobody proved to be the issuer.
    #[error("TLS: {0}")]
    Tls(String),
    /// What came was not HTTP, or broke off.
    #[error("no answer: {0}")]
    Broken(String),
    /// Another answer than 200.
    #[error("the answer is {0}")]
    Status(StatusCode),
    /// See [`MAX_JWKS_BYTES`].
    #[error("the answer is larger than {MAX_JWKS_BYTES} bytes")]
    TooLarge,
    /// The answer is no set of keys.
    #[error("{0}")]
    Keys(#[from] KeysError),
    /// See [`FETCH_TIMEOUT`].
    #[error("no answer within {} s", FETCH_TIMEOUT.as_secs())]
    TimedOut,
}

impl Trouble {
    /// The stable label for metrics.
    pub fn label(&self) -> &'static str {
        match self {
            Trouble::Unencrypted => "http-not-allowed",
            Trouble::Unresolved(_) => "unresolved",
            Trouble::Forbidden(_) => "address-not-allowed",
            Trouble::Connect(_) => "connect",
            Trouble::Tls(_) => "tls",
            Trouble::Broken(_) => "broken",
            Trouble::Status(_) => "status",
            Trouble::TooLarge => "too-large",
            Trouble::Keys(_) => "no-keys",
            Trouble::TimedOut => "timed-out",
        }
    }
}

/// Fetches keys once.
pub async fn fetch(uri: &KeysUri, reach: &Reach, state: &MeshState) -> Result<Fetched, Trouble> {
    tokio::time::timeout(FETCH_TIMEOUT, try_to(uri, reach, state)).await.unwrap_or(Err(Trouble::TimedOut))
}

async fn try_to(uri: &KeysUri, reach: &Reach, state: &MeshState) -> Result<Fetched, Trouble> {
    let addresses = reach::addresses(uri, &reach.allowed, state).await?;
    let tcp = connect(&addresses).await?;
    if !uri.is_encrypted() {
        return ask(uri, tcp).await;
    }
    // Read for each fetch: roots are replaced while the agent runs.
    let ca = reach.ca.clone();
    let tls = tokio::task::spawn_blocking(move || WebTls::load(ca.as_deref())).await;
    let tls = tls.map_err(|error| Trouble::Tls(error.to_string()))?;
    let tls = tls.map_err(|error| Trouble::Tls(error.to_string()))?;
    let stream = tls.connect(tcp, uri.host()).await.map_err(|error| Trouble::Tls(error.to_string()))?;
    ask(uri, stream).await
}

async fn connect(addresses: &[SocketAddr]) -> Result<TcpStream, Trouble> {
    let mut last = String::new();
    for address in addresses {
        match TcpStream::connect(address).await {
            Ok(tcp) => return Ok(tcp),
            Err(error) => last = format!("{address}: {error}"),
        }
    }
    Err(Trouble::Connect(last))
}

async fn ask(uri: &KeysUri, stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static) -> Result<Fetched, Trouble> {
    let broken = |error: hyper::Error| Trouble::Broken(error.to_string());
    let mut builder = hyper::client::conn::http1::Builder::new();
    builder.max_buf_size(MAX_ANSWER_HEAD);
    let (mut sender, connection) = builder.handshake(TokioIo::new(stream)).await.map_err(broken)?;
    let driver = tokio::spawn(connection);
    let request = Request::get(uri.target())
        .header(header::HOST, host(uri))
        .header(header::ACCEPT, "application/json")
        .header(header::USER_AGENT, concat!("nodemesh/", env!("CARGO_PKG_VERSION")))
        .body(Empty::<Bytes>::new())
        .map_err(|error| Trouble::Broken(error.to_string()))?;
    let response = sender.send_request(request).await.map_err(broken)?;
    if response.status() != StatusCode::OK {
        driver.abort();
        return Err(Trouble::Status(response.status()));
    }
    let max_age = max_age(response.headers());
    let body = Limited::new(response.into_body(), MAX_JWKS_BYTES).collect().await;
    driver.abort();
    let body = body.map_err(|error| match error.is::<http_body_util::LengthLimitError>() {
        true => Trouble::TooLarge,
        false => Trouble::Broken(error.to_string()),
    })?;
    let text = String::from_utf8(body.to_bytes().into()).map_err(|_| KeysError::Form("no UTF-8".to_string()))?;
    Ok(Fetched { keys: Keys::parse(&text)?, max_age })
}

/// What the server calls itself.
fn host(uri: &KeysUri) -> String {
    let host = if uri.host().contains(':') { format!("[{}]", uri.host()) } else { uri.host().to_string() };
    let is_usual = uri.port() == if uri.is_encrypted() { 443 } else { 80 };
    if is_usual { host } else { format!("{host}:{}", uri.port()) }
}

/// `max-age` of Cache-Control (RFC 9111 5.2.2.1) less Age; `no-store` and `no-cache` mean as old as can be.
fn max_age(headers: &HeaderMap) -> Option<Duration> {
    let values = headers.get_all(header::CACHE_CONTROL).iter().filter_map(|value| value.to_str().ok());
    let words: Vec<&str> = values.flat_map(|value| value.split(',')).map(str::trim).collect();
    if words.iter().any(|word| word.eq_ignore_ascii_case("no-store") || word.eq_ignore_ascii_case("no-cache")) {
        return Some(Duration::ZERO);
    }
    let age = words.iter().find_map(|word| {
        let (name, value) = word.split_once('=')?;
        name.trim().eq_ignore_ascii_case("max-age").then(|| value.trim().trim_matches('"').parse::<u64>().ok())?
    })?;
    let passed = headers.get(header::AGE).and_then(|age| age.to_str().ok()).and_then(|age| age.parse().ok());
    Some(Duration::from_secs(age.saturating_sub(passed.unwrap_or(0))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages_of_answers() {
        for (headers, expected) in [
            (vec![], None),
            (vec![("cache-control", "public, max-age=600")], Some(600)),
            (vec![("cache-control", "MAX-AGE=\"600\""), ("age", "100")], Some(500)),
            (vec![("cache-control", "max-age=600"), ("age", "900")], Some(0)),
            (vec![("cache-control", "max-age=600"), ("cache-control", "no-cache")], Some(0)),
            (vec![("cache-control", "max-age=soon")], None),
            (vec![("cache-control", "public")], None),
        ] {
            let mut map = HeaderMap::new();
            for (name, value) in &headers {
                map.append(*name, value.parse().unwrap());
            }
            assert_eq!(max_age(&map), expected.map(Duration::from_secs), "{headers:?}");
        }
    }

    #[test]
    fn hosts_are_written_as_the_server_knows_them() {
        for (uri, expected) in [
            ("https://issuer.example/k", "issuer.example"),
            ("https://issuer.example:8443/k", "issuer.example:8443"),
            ("http://issuer.example:443/k", "issuer.example:443"),
            ("https://[fd00::1]:8443/k", "[fd00::1]:8443"),
        ] {
            assert_eq!(host(&KeysUri::parse(uri).unwrap()), expected, "{uri}");
        }
    }
}
