//! The journey of requests to a pod whose policy needs to know what they ask: read → judge one by one → carry.

use std::borrow::Cow;
use std::cell::RefCell;
use std::future::Future;
use std::net::IpAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use ::http::{HeaderMap, StatusCode, Version, request};
use bytes::Bytes;

use super::authorizer;
use super::budget::Held;
use super::connection::{Live, Registration, Standing};
use super::copy::End;
use super::dial::AppConnection;
use super::inbound;
use super::outbound;
use super::record;
use super::worker::{Pod, Worker};
use crate::addr::{ClientAddr, ServerAddr};
use crate::extauth::limits::{BODY_TIMEOUT, MAX_CHECKS};
use crate::extauth::{AUTHORIZER_UNKNOWN, Allowed, Denied, Failed, Question, Shown, Verdict};
use crate::http::{
    self, Ahead, Bench, Claims, Guard, Io, Judged, Local, Meter, Noted, Reached, Said, Teller, Unreached, Untaken,
};
use crate::path::NormalPath;
use crate::podnet::ClientRecord;
use crate::policy::{self, Authorizer, BodyInCheck, Denial, DenyReason, Facts, Permit, WorkloadPolicy};
use crate::spiffe::SpiffeId;
use crate::state::{MeshState, Workload};
use crate::telemetry::{RequestMemo, RequestRecord, Span, TappedHeaders};
use crate::tokens::{self, Found, Issuer, KeysUri, Token};

/// Both ends of a connection to an application of this node.
pub struct Ends {
    /// What policy knows of it.
    pub facts: Facts,
    /// Who the application is told is calling.
    pub client: ClientAddr,
    /// The application.
    pub server: ServerAddr,
    /// What becomes of what its requests say of where they come from.
    pub claims: Claims,
}

impl Ends {
    /// Of a pod that reaches itself.
    pub fn of_itself(pod: &Pod, client: ClientAddr, server: ServerAddr) -> Self {
        let facts = outbound::judged_itself(pod, server).facts;
        Self { facts, client, server, claims: claims_of_pod(&pod.workload) }
    }
}

/// What becomes of the claims of a pod of the mesh at the application's node.
fn claims_of_pod(caller: &Workload) -> Claims {
    if caller.forwards { Claims::PassedOn } else { Claims::OfOthersDropped }
}

/// The same of whoever has this address and identity. Its owner's word counts for it alone, so both must be its own.
pub fn claims_of(state: &MeshState, peer: Option<&SpiffeId>, ip: IpAddr) -> Claims {
    let caller = state.workload_by_ip(ip).filter(|caller| peer == Some(&caller.identity));
    caller.map_or(Claims::OfOthersDropped, |caller| claims_of_pod(caller))
}

/// Serves a connection whose requests are judged one by one. `app` is there already: what cannot be reached was said
/// before.
pub async fn serve(worker: Rc<Worker>, pod: Arc<Pod>, client: Io, live: Registration, ends: Ends, app: AppConnection) {
    let cut = async { drop(live.cancel.cancelled().await) };
    let end = carry(&worker, pod, client, live.live(), ends, app, cut).await;
    worker.finish(live, end);
}

/// The same, until `cut` is ready, with the last word left to others.
pub async fn carry(
    worker: &Rc<Worker>,
    pod: Arc<Pod>,
    client: Io,
    live: Rc<Live>,
    ends: Ends,
    app: AppConnection,
    cut: impl Future<Output = ()>,
) -> End {
    let server = ends.server;
    let bench = bench(worker, pod, live, ends, Some(app));
    let session = Judged::new(bench, worker.shared.requests.clone(), server);
    http::serve(client, session, worker.shared.leaving.clone(), cut).await.into()
}

/// Who judges the requests of a connection to an application of `pod`.
pub fn bench(
    worker: &Rc<Worker>,
    pod: Arc<Pod>,
    live: Rc<Live>,
    ends: Ends,
    ready: Option<AppConnection>,
) -> Bench<Gatekeeper> {
    let template = record::judged(&pod, ends.client, ends.facts.source.as_ref(), ends.server);
    let (server, claims) = (ends.server, ends.claims);
    let guard = Rc::new(Gatekeeper {
        worker: worker.clone(),
        pod,
        live,
        ends,
        ready: RefCell::new(ready),
        token: RefCell::default(),
        answered: RefCell::default(),
        memo: RequestMemo::default(),
    });
    Bench::new(guard, server, template, claims)
}

/// Asks policy about the requests of one connection.
pub struct Gatekeeper {
    worker: Rc<Worker>,
    pod: Arc<Pod>,
    live: Rc<Live>,
    ends: Ends,
    /// The connection that was made before the first request came.
    ready: RefCell<Option<AppConnection>>,
    /// Of the request that is judged last, for an upgrade.
    token: RefCell<Option<Arc<Token>>>,
    /// The CUSTOM policies whose authorizers let it pass.
    answered: RefCell<Vec<Arc<str>>>,
    memo: RequestMemo,
}

impl Guard for Gatekeeper {
    type Permit = Permit;

    /// On the snapshot of now. This is where a request's denial is decided.
    async fn judge(
        &self,
        head: &mut request::Parts,
        path: &NormalPath<'_>,
        body: &Ahead,
        noted: &mut Noted,
    ) -> Result<Permit, Local> {
        let state = self.worker.shared.state.current();
        let policy = self.policy(&state)?;
        let issuers = policy.issuers(self.ends.facts.destination_port);
        let found = if issuers.is_empty() { None } else { self.find_token(&issuers, head).await? };
        tokens::tell(&issuers, head, found.as_ref());
        let token = found.as_ref().map(|found| found.token.clone());
        noted.principal = token.as_ref().map(|token| token.principal.as_str().into());
        let (answered, allowed) = self.consult(head, path, token.as_deref(), body, noted).await?;
        // What authorizers were shown they were shown with its tokens, and what they set stays.
        tokens::strip(&issuers, head);
        tokens::tell(&issuers, head, found.as_ref());
        allowed.iter().for_each(|allowed| allowed.change_request(&mut head.headers));
        noted.answer = allowed.into_iter().flat_map(|allowed| allowed.response).collect();
        // The world of now: it may have taken a while.
        let state = self.worker.shared.state.current();
        let policy = self.policy(&state)?;
        let host = host_of(head)?;
        let request = asked(head, path, &host, token.as_deref());
        let decision = policy::authorize_request(policy, &self.ends.facts, &request, &answered);
        noted.audited = policy::audited_request(policy, &self.ends.facts, &request);
        (noted.policy, noted.rule) = match &decision {
            Ok(permit) => (permit.rule().cloned(), permit.number()),
            Err(denial) => (denial.rule.clone(), denial.number),
        };
        self.token.replace(token);
        self.answered.replace(answered);
        decision.map_err(|Denial { reason, .. }| Local::Denied(reason.label()))
    }

    async fn reach(&self, permit: &Permit) -> Result<Reached, Unreached> {
        let ready = self.ready.take();
        let app = match ready {
            Some(app) => app,
            None => {
                let Ends { client, server, .. } = self.ends;
                let reached = inbound::reach_application(&self.pod, permit, &self.live, client, server).await;
                reached.map_err(|failure| Unreached {
                    reason: failure.reason(),
                    is_final: true,
                    is_passing: false,
                    is_denied: false,
                })?
            }
        };
        let AppConnection { tcp, record } = app;
        let cut = Box::pin(until_cut(self.live.clone(), record));
        let io = Io::socket(tcp, Rc::new(Uncounted(self.live.clone())));
        // Asked already: this connection's requests come from whoever asks.
        Ok(Reached { io, cut, is_current: Box::new(|| true), pod: None, judge: None })
    }

    fn upgraded(&self, head: request::Parts) {
        let (token, answered) = (self.token.take(), self.answered.take());
        self.live.upgraded(Standing { head, token, answered }, &self.worker.shared.state.current());
    }
}

impl Teller for Gatekeeper {
    fn trace(&self, headers: &mut HeaderMap) -> Option<Span> {
        self.worker.begin_span(headers)
    }

    fn tapped(&self, headers: &HeaderMap) -> Option<Arc<TappedHeaders>> {
        self.worker.tapped(headers)
    }

    fn report(&self, record: &RequestRecord) {
        self.worker.report_request(record, &self.memo);
    }
}

impl Gatekeeper {
    fn policy<'s>(&self, state: &'s MeshState) -> Result<&'s Arc<WorkloadPolicy>, Local> {
        state.inbound_policy(self.pod.uid()).ok_or(Local::Denied(DenyReason::UnknownWorkload.label()))
    }

    /// Who asks by a token. Where its issuer's keys are being fetched, it waits for them; not for long, and once.
    async fn find_token(&self, issuers: &[&Issuer], head: &request::Parts) -> Result<Option<Found>, Local> {
        let ring = &self.worker.shared.keys;
        let fetched = |uri: &KeysUri| ring.keys(uri);
        let find = || {
            let verified = &self.worker.verified;
            tokens::find(&tokens::Asked { issuers, fetched: &fetched, verified, now: now() }, head)
        };
        let mut found = find();
        if let Err(tokens::Refused { lacking: Some(uri), .. }) = &found
            && ring.renewed(uri).await
        {
            found = find();
        }
        found.map_err(|refused| Local::Unauthenticated(refused.why.label()))
    }

    /// Asks whom CUSTOM policies want to be asked, one after the other. Returns the policies that were answered, and what
    /// their authorizers change; or the answer of the first that refuses.
    async fn consult(
        &self,
        head: &request::Parts,
        path: &NormalPath<'_>,
        token: Option<&Token>,
        body: &Ahead,
        noted: &mut Noted,
    ) -> Result<(Vec<Arc<str>>, Vec<Allowed>), Local> {
        let state = self.worker.shared.state.current();
        let host = host_of(head)?;
        let request = asked(head, path, &host, token);
        let referrals = policy::referrals(self.policy(&state)?, &self.ends.facts, &request);
        let (mut answered, mut allowed, mut known) = (Vec::new(), Vec::new(), Vec::new());
        for referral in referrals {
            (noted.policy, noted.rule) = (Some(referral.policy.clone()), referral.rule);
            let Some(authorizer) = referral.provider.and_then(|provider| state.authorizer(provider)) else {
                self.worker.shared.metrics.checked("", AUTHORIZER_UNKNOWN, false);
                return Err(Local::Denied(AUTHORIZER_UNKNOWN));
            };
            if !known.contains(&&authorizer.id) {
                if known.len() >= MAX_CHECKS {
                    return Err(Local::Denied(DenyReason::AuthorizerUnasked.label()));
                }
                known.push(&authorizer.id);
                // In a box: a request that nobody is asked about carries no room for asking.
                allowed.extend(Box::pin(self.check(authorizer, head, body, noted)).await?);
            }
            answered.push(referral.policy.clone());
        }
        Ok((answered, allowed))
    }

    /// Asks one of them. None: there was no answer, and it is such that the request passes.
    async fn check(
        &self,
        authorizer: &Authorizer,
        head: &request::Parts,
        body: &Ahead,
        noted: &mut Noted,
    ) -> Result<Option<Allowed>, Local> {
        let Ends { facts, client, server, .. } = &self.ends;
        let question = Question {
            head,
            is_http2: head.version == Version::HTTP_2,
            source: facts.source.as_ref(),
            client: client.socket(),
            destination: &self.pod.workload.identity,
            server: server.socket(),
            body: self.shown(authorizer.body, body).await?,
            time: SystemTime::now(),
        };
        let verdict = authorizer::ask(&self.worker, &self.pod, authorizer, &question, server.socket()).await;
        let passes = |failed: Failed| authorizer.fail_open && failed.may_pass();
        let (label, has_passed) = match &verdict {
            Ok(Verdict::Allow(_)) => ("allowed", true),
            Ok(Verdict::Deny(_)) => ("denied", false),
            Err(failed) => (failed.label(), passes(*failed)),
        };
        noted.authorizer = Some((authorizer.id.clone(), label));
        self.worker.shared.metrics.checked(&authorizer.id, label, has_passed);
        match verdict {
            Ok(Verdict::Allow(allowed)) => Ok(Some(allowed)),
            Ok(Verdict::Deny(Denied { status, headers, body })) => {
                Err(Local::Said(Box::new(Said { label: "authorizer-denied", status, headers, body })))
            }
            Err(failed) if passes(failed) => Ok(None),
            Err(failed) => Err(told(failed.label(), authorizer.status_on_error)),
        }
    }

    /// What is shown of a body, which the client may be slow to send.
    async fn shown(&self, wanted: Option<BodyInCheck>, body: &Ahead) -> Result<Option<Shown>, Local> {
        let Some(BodyInCheck { most, allow_partial }) = wanted else { return Ok(None) };
        let room = Box::new(Held::of(Some(self.pod.budget.clone())));
        let first = tokio::time::timeout(BODY_TIMEOUT, body.first(most, room)).await;
        let (mut bytes, has_ended) = first.map_err(|_| told("authorizer-body-late", StatusCode::REQUEST_TIMEOUT))??;
        let is_whole = has_ended && bytes.len() <= most;
        if !is_whole && !allow_partial {
            return Err(told("authorizer-body-too-large", StatusCode::PAYLOAD_TOO_LARGE));
        }
        bytes.truncate(most);
        Ok(Some(Shown { bytes, is_whole }))
    }
}

/// An answer of ours with a status that somebody else chose.
fn told(label: &'static str, status: StatusCode) -> Local {
    Local::Said(Box::new(Said { label, status, headers: HeaderMap::new(), body: Bytes::from_static(label.as_bytes()) }))
}

fn host_of(head: &request::Parts) -> Result<Cow<'_, str>, Local> {
    policy::normal_host(http::host(&head.headers)).ok_or(Local::Denied("host"))
}

/// As policy is asked about it.
fn asked<'a>(
    head: &'a request::Parts,
    path: &'a NormalPath<'a>,
    host: &'a str,
    token: Option<&'a Token>,
) -> policy::Request<'a> {
    policy::Request { method: &head.method, host, path, headers: &head.headers, token }
}

/// Seconds since 1970.
fn now() -> u64 {
    // A clock before 1970 finds every token's end far ahead: none is believed by it.
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(u64::MAX, |time| time.as_secs())
}

/// Ready when the connection is to be cut. Holds what tells the application of its client.
async fn until_cut(live: Rc<Live>, _record: ClientRecord) {
    live.cancel.cancelled().await;
}

/// Counts the bytes of a client's connection that came by tunnel, whose near end is the application.
pub struct OfTunnel(pub Rc<Live>);

impl Meter for OfTunnel {
    fn carried(&self, read: usize, written: usize) {
        self.0.counters.add(written, read);
    }

    fn waits(&self, untaken: &Rc<Untaken>) {
        self.0.weigh_untaken(untaken);
    }
}

/// Counts the bytes of a client's socket.
pub struct OfSocket(pub Rc<Live>);

impl Meter for OfSocket {
    fn carried(&self, read: usize, written: usize) {
        self.0.counters.add(read, written);
    }

    fn waits(&self, untaken: &Rc<Untaken>) {
        self.0.weigh_untaken(untaken);
    }
}

/// Counts the bytes of a client's socket on both sides: of the client's pod, and of the application's.
pub struct OfSockets(pub [Rc<Live>; 2]);

impl Meter for OfSockets {
    fn carried(&self, read: usize, written: usize) {
        self.0.iter().for_each(|live| live.counters.add(read, written));
    }

    /// Bodies wait for the application.
    fn waits(&self, untaken: &Rc<Untaken>) {
        let [_, application] = &self.0;
        application.weigh_untaken(untaken);
    }
}

/// The application's side says the same bytes once more: of those, what waits is counted alone.
struct Uncounted(Rc<Live>);

impl Meter for Uncounted {
    fn carried(&self, _read: usize, _written: usize) {}

    fn waits(&self, untaken: &Rc<Untaken>) {
        self.0.weigh_untaken(untaken);
    }
}
