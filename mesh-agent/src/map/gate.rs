//! Who may see the map: whoever reaches it on a loopback address, and elsewhere who has the token.
//!
//! A web page in a browser on this machine reaches loopback addresses as its user does. It cannot read what it gets, since
//! nothing here allows it to, unless its own name leads here (DNS rebinding): hence the check of Host.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use aws_lc_rs::{constant_time, digest, rand};
use http::HeaderMap;
use http::header;
use tokio::sync::Mutex;

/// How long a token may be.
pub(super) const MAX_TOKEN_BYTES: usize = 1024;
/// How short.
pub(super) const MIN_TOKEN_BYTES: usize = 16;
/// How long a wrong token takes.
pub(super) const GUESS_PAUSE: Duration = Duration::from_millis(500);

/// The name of the cookie of who has logged in.
const COOKIE: &str = "nodemesh_map";

/// Why there is no such gate.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GateError {
    /// Others could look.
    #[error(
        "{0} is not a loopback address, and the map shows who talks to whom: give --token-file FILE, or a loopback address \
         and `kubectl port-forward` or `ssh -L`"
    )]
    NoToken(SocketAddr),
    /// The token's file holds none.
    #[error(
        "the token has {0} bytes; it takes {MIN_TOKEN_BYTES} to {MAX_TOKEN_BYTES}, such as of: openssl rand -hex 24"
    )]
    Token(usize),
    /// The system gives no random bytes.
    #[error("no random bytes from the system")]
    Random,
}

/// Who may look.
pub struct Gate {
    listen: SocketAddr,
    /// Names beside loopback ones by which the page may be called.
    hosts: Vec<String>,
    entry: Option<Entry>,
}

/// Digests alone are compared: of one length, whatever somebody sends.
struct Entry {
    token: digest::Digest,
    /// What the cookie of who has logged in holds: not the token, and another with each start.
    session: String,
    session_digest: digest::Digest,
    /// Guesses are judged one by one.
    guesses: Mutex<()>,
}

impl Gate {
    /// For a listener at this address.
    ///
    /// # Errors
    /// Others than this machine's users could look, and there is no token; or it is none.
    pub fn new(listen: SocketAddr, token: Option<&str>, hosts: Vec<String>) -> Result<Self, GateError> {
        let entry = token.map(str::trim).map(Entry::new).transpose()?;
        if entry.is_none() && !listen.ip().to_canonical().is_loopback() {
            return Err(GateError::NoToken(listen));
        }
        Ok(Self { listen, hosts, entry })
    }

    /// Why a request is refused unseen, if it is.
    pub fn refusal(&self, headers: &HeaderMap) -> Option<&'static str> {
        let mut hosts = headers.get_all(header::HOST).iter();
        let host = hosts.next().and_then(|host| host.to_str().ok());
        if hosts.next().is_some() || !host.is_some_and(|host| self.is_known(host)) {
            return Some("the map is not known by this name: call it by its address, or name it with --host\n");
        }
        let site = headers.get("sec-fetch-site").map(|site| site.as_bytes());
        let mode = headers.get("sec-fetch-mode").map(|mode| mode.as_bytes());
        if matches!(site, Some(b"cross-site" | b"same-site")) && mode != Some(b"navigate") {
            return Some("other web pages may not ask here\n");
        }
        None
    }

    fn is_known(&self, host: &str) -> bool {
        let name = match host.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
            Some((ipv6, _port)) => ipv6,
            None => host.split_once(':').map_or(host, |(name, _port)| name),
        };
        let own = self.listen.ip();
        // Where every address is listened at: an address is no name that somebody else could let lead here.
        let is_ours =
            |ip: IpAddr| own.is_unspecified() || ip == own || (own.is_loopback() && ip.to_canonical().is_loopback());
        name.eq_ignore_ascii_case("localhost")
            || name.parse().is_ok_and(is_ours)
            || self.hosts.iter().any(|known| known.eq_ignore_ascii_case(name))
    }

    /// Whether whoever sends these may look.
    pub fn admits(&self, headers: &HeaderMap) -> bool {
        let Some(entry) = &self.entry else { return true };
        let bearer = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
        let bearer = bearer.and_then(|value| value.strip_prefix("Bearer "));
        let cookies = headers.get_all(header::COOKIE).iter().filter_map(|value| value.to_str().ok());
        let mut cookies = cookies.flat_map(|value| value.split(';')).filter_map(|one| one.trim().split_once('='));
        bearer.is_some_and(|token| is_same(token, &entry.token))
            || cookies.any(|(name, value)| name == COOKIE && is_same(value, &entry.session_digest))
    }

    /// The Set-Cookie of whoever has the token. None: it is not the token.
    pub async fn log_in(&self, token: &str) -> Option<String> {
        let entry = self.entry.as_ref()?;
        let _turn = entry.guesses.lock().await;
        if is_same(token.trim(), &entry.token) {
            return Some(format!("{COOKIE}={}; HttpOnly; SameSite=Strict; Path=/", entry.session));
        }
        tokio::time::sleep(GUESS_PAUSE).await;
        None
    }
}

impl Entry {
    fn new(token: &str) -> Result<Self, GateError> {
        if !(MIN_TOKEN_BYTES..=MAX_TOKEN_BYTES).contains(&token.len()) {
            return Err(GateError::Token(token.len()));
        }
        let mut bytes = [0; 32];
        rand::fill(&mut bytes).map_err(|_| GateError::Random)?;
        let session: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        let session_digest = digest_of(&session);
        Ok(Self { token: digest_of(token), session, session_digest, guesses: Mutex::new(()) })
    }
}

fn digest_of(text: &str) -> digest::Digest {
    digest::digest(&digest::SHA256, text.as_bytes())
}

fn is_same(text: &str, digest: &digest::Digest) -> bool {
    text.len() <= MAX_TOKEN_BYTES
        && constant_time::verify_slices_are_equal(digest_of(text).as_ref(), digest.as_ref()).is_ok()
}
