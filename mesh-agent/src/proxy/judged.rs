//! The journey of requests to a pod whose policy needs to know what they ask: read → judge one by one → carry.

use std::cell::RefCell;
use std::net::IpAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use ::http::{HeaderMap, request};

use super::connection::{Live, Registration, Standing};
use super::dial::AppConnection;
use super::inbound;
use super::outbound;
use super::record;
use super::worker::{Pod, Worker};
use crate::addr::{ClientAddr, ServerAddr};
use crate::http::{self, Claims, Guard, Io, Judged, Local, Meter, Noted, Reached, Teller, Unreached};
use crate::path::NormalPath;
use crate::podnet::ClientRecord;
use crate::policy::{self, Denial, DenyReason, Facts, Permit};
use crate::spiffe::SpiffeId;
use crate::state::{MeshState, Workload};
use crate::telemetry::{RequestMemo, RequestRecord, Span};
use crate::tokens::{self, Token};

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
        Self { facts, client, server, claims: claims_of(&pod.workload) }
    }
}

/// What becomes of the claims of a pod of the mesh at the application's node.
fn claims_of(caller: &Workload) -> Claims {
    if caller.forwards { Claims::PassedOn } else { Claims::OfOthersDropped }
}

/// The same of whoever has this address and identity. Its owner's word counts for it alone, so both must be its own.
pub fn claims_of_peer(state: &MeshState, peer: &SpiffeId, ip: IpAddr) -> Claims {
    let caller = state.workload_by_ip(ip).filter(|caller| caller.identity == *peer);
    caller.map_or(Claims::OfOthersDropped, |caller| claims_of(caller))
}

/// Serves a connection whose requests are judged one by one. `app` is there already: what cannot be reached was said
/// before.
pub async fn serve(worker: Rc<Worker>, pod: Arc<Pod>, client: Io, live: Registration, ends: Ends, app: AppConnection) {
    let template = record::judged(&pod, ends.client, ends.facts.source.as_ref(), ends.server);
    let (server, claims) = (ends.server, ends.claims);
    let guard = Rc::new(Gatekeeper {
        worker: worker.clone(),
        pod,
        live: live.live(),
        ends,
        ready: RefCell::new(Some(app)),
        token: RefCell::default(),
        memo: RequestMemo::default(),
    });
    let session = Judged::new(guard, worker.shared.requests.clone(), server, template, claims);
    let cut = async { drop(live.cancel.cancelled().await) };
    let ended = http::serve(client, session, worker.shared.leaving.clone(), cut).await;
    worker.finish(live, ended.into());
}

/// Asks policy about the requests of one connection.
struct Gatekeeper {
    worker: Rc<Worker>,
    pod: Arc<Pod>,
    live: Rc<Live>,
    ends: Ends,
    /// The connection that was made before the first request came.
    ready: RefCell<Option<AppConnection>>,
    /// Of the request that is judged last, for an upgrade.
    token: RefCell<Option<Token>>,
    memo: RequestMemo,
}

impl Guard for Gatekeeper {
    type Permit = Permit;

    /// On the snapshot of now. This is where a request's denial is decided.
    async fn judge(
        &self,
        head: &mut request::Parts,
        path: &NormalPath<'_>,
        noted: &mut Noted,
    ) -> Result<Permit, Local> {
        let state = self.worker.shared.state.current();
        let Some(policy) = state.inbound_policy(self.pod.uid()) else {
            return Err(Local::Denied(DenyReason::UnknownWorkload.label()));
        };
        let issuers = policy.issuers(self.ends.facts.destination_port);
        let token = match issuers.is_empty() {
            true => None,
            false => tokens::authenticate(&issuers, head, now())
                .map_err(|invalid| Local::Unauthenticated(invalid.label()))?
                .map(|found| found.token),
        };
        noted.principal = token.as_ref().map(|token| token.principal.as_str().into());
        let host = policy::normal_host(http::host(&head.headers)).ok_or(Local::Denied("host"))?;
        let request =
            policy::Request { method: &head.method, host: &host, path, headers: &head.headers, token: token.as_ref() };
        let decision = policy::authorize_request(policy, &self.ends.facts, &request);
        noted.audited = policy::audited_request(policy, &self.ends.facts, &request);
        (noted.policy, noted.rule) = match &decision {
            Ok(permit) => (permit.rule().cloned(), permit.number()),
            Err(denial) => (denial.rule.clone(), denial.number),
        };
        self.token.replace(token);
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
        Ok(Reached { io: Io::socket(tcp, Rc::new(Uncounted)), cut, is_current: Box::new(|| true), pod: None })
    }

    fn upgraded(&self, head: request::Parts) {
        self.live.upgraded(Standing { head, token: self.token.take() });
    }
}

impl Teller for Gatekeeper {
    fn trace(&self, headers: &mut HeaderMap) -> Option<Span> {
        self.worker.begin_span(headers)
    }

    fn report(&self, record: &RequestRecord) {
        self.worker.report_request(record, &self.memo);
    }
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
}

/// Counts the bytes of a client's socket.
pub struct OfSocket(pub Rc<Live>);

impl Meter for OfSocket {
    fn carried(&self, read: usize, written: usize) {
        self.0.counters.add(read, written);
    }
}

/// The application's side says the same bytes once more.
struct Uncounted;

impl Meter for Uncounted {
    fn carried(&self, _read: usize, _written: usize) {}
}
