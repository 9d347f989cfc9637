//! One request for a certificate, from the token to the audit: who asks, for what, may it, sign.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use kube::Client;
use tokio::time::Instant;
use tonic::{Code, Status};

use super::audit::{Request, Tally};
use super::authority::Authority;
use super::authorize::{Asked, Caller, Grant, Refusal, ServiceAccount, agents_node, decide};
use super::buckets::Buckets;
use super::pods::{self, Pods};
use super::review::{Nobody, Reviews, bearer};
use super::telling::Teller;
use crate::identity::istio::{CertificateRequest, CertificateResponse};
use crate::identity::{CaError, Signed, SigningRequest};
use crate::spiffe::SpiffeId;

/// Certificates that one agent may ask for at once: a node that starts has hundreds of pods at most.
pub(super) const CALLER_BURST: u32 = 1000;
/// Those that it may ask for per second after that.
pub(super) const CALLER_RATE: u32 = 20;
/// Fresh looks at the API server at once, for one agent: pods that started a moment ago.
pub(super) const LOOK_BURST: u32 = 200;
/// Those per second after that.
pub(super) const LOOK_RATE: u32 = 5;
/// Unknown tokens from one address at once.
pub(super) const ADDRESS_BURST: u32 = 30;
/// Those per second after that.
pub(super) const ADDRESS_RATE: u32 = 2;
/// How long a fresh look may take.
pub(super) const LOOK_TIMEOUT: Duration = Duration::from_secs(5);

/// What decides about certificates.
pub struct Service {
    /// Whose token is believed to be an agent's.
    pub agents: ServiceAccount,
    /// The mesh's.
    pub trust_domain: String,
    /// How long a certificate is good for at most.
    pub longest: Duration,
    /// For fresh looks.
    pub client: Client,
    /// What signs.
    pub authority: Arc<Authority>,
    /// Who calls.
    pub reviews: Reviews,
    /// Who runs where.
    pub pods: Pods,
    /// What became of it.
    pub tally: Arc<Tally>,
    /// How often.
    pub limits: Limits,
}

/// How often one may ask.
pub struct Limits {
    callers: Buckets<String>,
    looks: Buckets<String>,
    addresses: Buckets<IpAddr>,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            callers: Buckets::new(CALLER_BURST, CALLER_RATE),
            looks: Buckets::new(LOOK_BURST, LOOK_RATE),
            addresses: Buckets::new(ADDRESS_BURST, ADDRESS_RATE),
        }
    }
}

/// Why there is no certificate.
#[derive(Debug)]
enum No {
    Nobody(Nobody),
    Refused(Refusal),
    /// The request is none; a stable word, and what is wrong.
    Unreadable(&'static str, String),
    TooOften(&'static str),
    Unavailable(&'static str, String),
}

impl No {
    fn reason(&self) -> &'static str {
        match self {
            Self::Nobody(nobody) => nobody.reason(),
            Self::Refused(refusal) => refusal.reason(),
            Self::Unreadable(reason, _) | Self::TooOften(reason) | Self::Unavailable(reason, _) => reason,
        }
    }

    fn message(&self) -> String {
        match self {
            Self::Nobody(nobody) => nobody.to_string(),
            Self::Refused(refusal) => refusal.to_string(),
            Self::Unreadable(_, why) | Self::Unavailable(_, why) => why.clone(),
            Self::TooOften(_) => "asked too often; try again later".to_string(),
        }
    }

    fn code(&self) -> Code {
        match self {
            Self::Nobody(Nobody::Unasked(_)) | Self::Unavailable(..) => Code::Unavailable,
            Self::Nobody(_) => Code::Unauthenticated,
            Self::Refused(_) => Code::PermissionDenied,
            Self::Unreadable(..) => Code::InvalidArgument,
            Self::TooOften(_) => Code::ResourceExhausted,
        }
    }
}

impl Service {
    /// Answers one request. Every answer is told and counted.
    ///
    /// # Errors
    /// What the caller is told instead of a certificate.
    pub async fn answer(
        &self,
        peer: SocketAddr,
        authorization: Option<&[u8]>,
        request: &CertificateRequest,
    ) -> Result<CertificateResponse, Status> {
        let (caller, signed) = match self.caller(peer.ip(), authorization).await {
            Ok(caller) => {
                let signed = self.sign(&caller, request).await;
                (Some(caller), signed)
            }
            Err(no) => (None, Err(no)),
        };
        let told = Request { peer, caller: caller.as_ref(), identity: request.impersonated() };
        match signed {
            Ok((grant, signed)) => {
                self.tally.issued(told, &grant, &signed);
                Ok(CertificateResponse { cert_chain: signed.pem })
            }
            Err(no) => {
                self.tally.refused(told, no.reason(), &no.message());
                Err(Status::new(no.code(), no.message()))
            }
        }
    }

    /// Whose node a caller may tell of: its own, if it is an agent that lives.
    ///
    /// # Errors
    /// What the caller is told.
    pub async fn teller(&self, peer: SocketAddr, authorization: Option<&[u8]>) -> Result<Teller, Status> {
        let told = self.tell_node(peer, authorization).await;
        told.map_err(|no| Status::new(no.code(), no.message()))
    }

    async fn tell_node(&self, peer: SocketAddr, authorization: Option<&[u8]>) -> Result<Teller, No> {
        let caller = self.caller(peer.ip(), authorization).await?;
        let pod = self.pods.pod(&caller.account.namespace, &caller.pod);
        let node = agents_node(&self.agents, &caller, pod.as_ref(), SystemTime::now()).map_err(No::Refused)?;
        Ok(Teller { node: node.to_string(), pod: caller.pod.clone() })
    }

    async fn sign(&self, caller: &Caller, request: &CertificateRequest) -> Result<(Grant, Signed), No> {
        if !self.limits.callers.take(caller.pod_uid.clone(), Instant::now()) {
            return Err(No::TooOften("rate"));
        }
        let (signing_request, asked) = read(request)?;
        let grant = self.grant(caller, &asked).await?;
        let signing = self.authority.signing().map_err(|why| No::Unavailable("no-root", why))?;
        let lifetime = self.lifetime(request.validity_duration);
        let signed = signing.sign(&signing_request, &asked.id, lifetime, SystemTime::now());
        let signed = signed.map_err(|error| match error {
            CaError::Refused(why) => No::Unreadable("csr", why),
            CaError::Unavailable(why) | CaError::BadAnswer(why) => No::Unavailable("signing", why),
        })?;
        Ok((grant, signed))
    }

    /// Who calls: by what is remembered of the token, else by the API server.
    async fn caller(&self, address: IpAddr, authorization: Option<&[u8]>) -> Result<Caller, No> {
        let token = bearer(authorization).map_err(No::Nobody)?;
        let answer = match self.reviews.remembered(token) {
            Some(remembered) => {
                self.tally.reviewed("remembered");
                remembered
            }
            None => {
                if !self.limits.addresses.take(address, Instant::now()) {
                    return Err(No::TooOften("address-rate"));
                }
                let answer = self.reviews.ask(token).await;
                self.tally.reviewed(answer.as_ref().map_or_else(Nobody::reason, |_| "believed"));
                answer
            }
        };
        answer.map_err(No::Nobody)
    }

    /// Decides by what the watch has told; by a fresh look where that says no, or where the watch is broken.
    async fn grant(&self, caller: &Caller, asked: &Asked) -> Result<Grant, No> {
        let decide = |known: &_| {
            decide(&self.agents, &self.trust_domain, caller, asked, known, SystemTime::now()).map_err(No::Refused)
        };
        // With nothing known, what no pod can change is refused all the same.
        let known = self.pods.known(caller, &asked.id).unwrap_or_default();
        match decide(&known) {
            Err(No::Refused(refusal)) if refusal.may_be_stale() => {}
            decided => return decided,
        }
        if !self.limits.looks.take(caller.pod_uid.clone(), Instant::now()) {
            return Err(No::TooOften("look-rate"));
        }
        let look = pods::look(&self.client, caller, &asked.id);
        match tokio::time::timeout(LOOK_TIMEOUT, look).await {
            Ok(Ok(known)) => decide(&known),
            Ok(Err(error)) => Err(No::Unavailable("api-server", format!("the API server cannot be asked: {error}"))),
            Err(_) => {
                let why = format!("the API server did not answer within {} s", LOOK_TIMEOUT.as_secs());
                Err(No::Unavailable("api-server", why))
            }
        }
    }

    /// What is asked for, within what there is.
    fn lifetime(&self, seconds: i64) -> Duration {
        match u64::try_from(seconds) {
            Ok(seconds) if seconds > 0 => Duration::from_secs(seconds).min(self.longest),
            Ok(_) | Err(_) => self.longest,
        }
    }
}

/// What a request says.
fn read(request: &CertificateRequest) -> Result<(SigningRequest, Asked), No> {
    let id = request.impersonated().ok_or_else(|| {
        No::Unreadable("no-identity", "the metadata has no ImpersonatedIdentity: agents ask for their pods".to_string())
    })?;
    let id = SpiffeId::parse(id).map_err(|error| No::Unreadable("identity", error.to_string()))?;
    let signing_request =
        SigningRequest::from_pem(&request.csr).map_err(|error| No::Unreadable("csr", error.to_string()))?;
    let names = signing_request.names().to_vec();
    Ok((signing_request, Asked { id, names }))
}
