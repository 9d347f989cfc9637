//! The tries of a request: an endpoint, a connection to it, an answer; and whether another try follows.
//!
//! ```text
//! ┌► endpoint ─► connection ─► head sent ─► answer's head ─► the client
//! │     │ none reached            │ closed before a byte left: at once again, same endpoint
//! └─────┴── pause ◄── asked for, harmless, body kept, within the budget ◄─┘ failed, or a status that is tried again
//! ```

use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use http::{HeaderName, HeaderValue, Request, Response, request};
use http_body::Body as _;
use http_body_util::BodyExt as _;
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::answer::Local;
use super::body::{AppBody, DownBody, Load, UpBody};
use super::exchange::Exchange;
use super::hygiene::Asked;
use super::limits::{LINGER, LINGER_BYTES, MAX_RESENDS, RETRY_PAUSE};
use super::session::{Session, aim, copy_of, passed_on};
use super::traffic::{Admitted, Treatment, Try, unix_now};
use super::upstream::{Lease, Reached, TOO_MANY_CONNECTIONS, Unreached, Unsent, Upgraded, Wire};
use super::{Mesh, Place};
use crate::resilience::balance::NoEndpoint;
use crate::resilience::policy::Retry;
use crate::resilience::retry::{Decision, Tried};
use crate::resilience::{Outcome, Refusal};
use crate::routing::MAX_TRIES;
use crate::telemetry::Event;

/// The word of an endpoint that has as many connections as the policy allows.
const OVERFLOW: &str = "overflow";
/// The word of a connection that took too long.
const CONNECT_TIMEOUT: &str = "connect-timeout";

/// What all tries of a request have in common.
pub(super) struct Journey<'a> {
    pub place: &'a Place,
    pub treatment: &'a Treatment,
    pub admitted: &'a Admitted,
    pub wire: Wire,
    pub asked: Asked,
    /// The end of the request's time.
    pub deadline: Option<Instant>,
    pub exchange: &'a Rc<Exchange>,
    /// Whether somebody waits for a good answer.
    pub may_retry: bool,
}

/// A try that was answered.
struct Answer {
    response: Response<AppBody>,
    connection: Lease,
    upgraded: Option<oneshot::Receiver<Upgraded>>,
    of: Try,
    outcome: Outcome,
    /// The end of the time for the whole answer.
    deadline: Option<Instant>,
}

/// A try that was not.
struct Failed {
    local: Local,
    /// None: nothing that another try would change.
    outcome: Option<Outcome>,
}

impl Failed {
    fn for_good(local: Local) -> Self {
        Self { local, outcome: None }
    }

    fn by(local: Local, outcome: Outcome) -> Self {
        Self { local, outcome: Some(outcome) }
    }
}

impl<M: Mesh> Session<M> {
    /// Sends a request, as often as it takes and the policy allows.
    pub(super) async fn send(
        &self,
        journey: &Journey<'_>,
        head: request::Parts,
        load: Load,
    ) -> Result<Response<DownBody>, Local> {
        if let Some(retry) = journey.treatment.retry().filter(|_| journey.may_retry) {
            // What few need takes no room in the others' journey, which is moved now and then.
            return Box::pin(self.send_again(journey, retry, head, load)).await;
        }
        let (body, _) = load.first();
        let answer = self.attempt(journey, Request::from_parts(head, body), &mut Vec::new()).await;
        self.pass_on(journey, answer.map_err(|failed| failed.local)?)
    }

    async fn send_again(
        &self,
        journey: &Journey<'_>,
        retry: &Retry,
        head: request::Parts,
        load: Load,
    ) -> Result<Response<DownBody>, Local> {
        let (treatment, exchange) = (journey.treatment, journey.exchange);
        let (mut body, again) = load.first();
        let (mut tried, mut tries, mut permit) = (Vec::new(), 0_u32, None);
        treatment.note_request();
        loop {
            tries = tries.saturating_add(1);
            let failed_before = tried.len();
            let ended = self.attempt(journey, Request::from_parts(head.clone(), body), &mut tried).await;
            let outcome = match &ended {
                Ok(answer) => answer.outcome,
                Err(Failed { outcome: Some(outcome), .. }) => *outcome,
                Err(Failed { local, outcome: None }) => return Err(local.clone()),
            };
            let about = Tried {
                method: &head.method,
                tries,
                outcome: &outcome,
                body_is_whole: again.is_whole(),
                time_left: journey.deadline.map(|deadline| deadline.saturating_duration_since(Instant::now())),
            };
            match treatment.decide(retry, &about) {
                Decision::GiveUp(_) => {
                    exchange.hold_permit(permit);
                    again.keep_no_more();
                    return self.pass_on(journey, ended.map_err(|failed| failed.local)?);
                }
                Decision::OverBudget => return Err(Local::Refused(Refusal::RetryBudget)),
                Decision::Again(pause) => {
                    let failed = tried.get(failed_before..).and_then(<[_]>::last).copied();
                    exchange.happened(|| retry_of(&ended, failed, pause));
                    if let Ok(Answer { response, connection, .. }) = ended {
                        discard(response, connection);
                    }
                    // The last retry's is given back first: a limit of one allows one after the other.
                    drop(permit.take());
                    permit = Some(treatment.permit_retry().map_err(|_| Local::Refused(Refusal::Overflow))?);
                    exchange.note(|record| record.retries = record.retries.saturating_add(1));
                    self.upstreams.tally().retried.fetch_add(1, Ordering::Relaxed);
                    tokio::time::sleep(pause).await;
                    body = again.body();
                }
            }
        }
    }

    fn pass_on(&self, journey: &Journey<'_>, answer: Answer) -> Result<Response<DownBody>, Local> {
        let Answer { response, connection, upgraded, of, deadline, .. } = answer;
        let (address, exchange) = (of.address(), journey.exchange);
        exchange.hold_try(of);
        let mut response =
            passed_on(response, connection, &journey.asked, upgraded, deadline, exchange, &self.conversation)?;
        if let Some(deadline) = deadline.filter(|_| !response.body().is_end_stream()) {
            exchange.hold_until(deadline);
        }
        if let Some(field) = journey.treatment.session_field(journey.admitted, &address, unix_now())
            && let (Ok(name), Ok(value)) = (HeaderName::try_from(&*field.name), HeaderValue::try_from(field.value))
        {
            if field.is_cookie {
                response.headers_mut().append(name, value);
            } else {
                response.headers_mut().insert(name, value);
            }
        }
        Ok(response)
    }

    /// One try. What it says about the endpoint is noted; the endpoint is among `tried` if it failed.
    async fn attempt(
        &self,
        journey: &Journey<'_>,
        request: Request<UpBody>,
        tried: &mut Vec<SocketAddr>,
    ) -> Result<Answer, Failed> {
        let treatment = journey.treatment;
        let now = Instant::now();
        let ends = |length: Option<Duration>| length.and_then(|length| now.checked_add(length));
        let until = [journey.deadline, ends(treatment.timeouts().per_try)].into_iter().flatten().min();
        let mut current = None;
        journey.exchange.note_lack(false);
        let asking = self.ask_one(journey, request, tried, &mut current);
        let ended = match until {
            Some(until) => tokio::time::timeout_at(until, asking)
                .await
                .unwrap_or_else(|_| Err(Failed::by(Local::TimedOut, Outcome::TimedOut))),
            None => asking.await,
        };
        match (ended, current) {
            (Ok((response, connection, upgraded)), Some(of)) => {
                let outcome = outcome_of(&response);
                self.note(&of, &outcome);
                if outcome.is_failure() {
                    tried.push(of.address());
                }
                let deadline = [journey.deadline, ends(treatment.whole_try())].into_iter().flatten().min();
                Ok(Answer { response, connection, upgraded, of, outcome, deadline })
            }
            (Err(failed), current) => {
                if let (Some(of), Some(outcome)) = (&current, &failed.outcome) {
                    // The endpoint could not answer what was not asked to its end: that is nobody's fault but the client's.
                    if *outcome == Outcome::TimedOut && journey.exchange.lacks_body() {
                        of.pass_over();
                    } else {
                        self.note(of, outcome);
                    }
                    tried.push(of.address());
                }
                Err(failed)
            }
            // An answer comes from somewhere.
            (Ok(_), None) => Err(Failed::for_good(Local::NoEndpoint)),
        }
    }

    async fn ask_one(
        &self,
        journey: &Journey<'_>,
        mut request: Request<UpBody>,
        tried: &mut Vec<SocketAddr>,
        current: &mut Option<Try>,
    ) -> Result<(Response<AppBody>, Lease, Option<oneshot::Receiver<Upgraded>>), Failed> {
        let Journey { asked, exchange, .. } = journey;
        let is_idempotent = request.method().is_idempotent();
        let (mut resends, mut since) = (0, None);
        loop {
            let mut lease = self.reach(journey, since, tried, current).await?;
            let is_reused = lease.is_reused();
            let has_no_body = request.body().is_end_stream() && asked.upgrade.is_none();
            let has_more_tries = resends < MAX_RESENDS;
            let can_repeat = has_no_body && has_more_tries && (is_idempotent || journey.wire == Wire::Http2);
            let copy = can_repeat.then(|| copy_of(&request));
            let upgraded = asked.upgrade.is_some().then(|| lease.expect_upgrade());
            let failed = match lease.send(request, exchange).await {
                Ok(response) => return Ok((response, lease, upgraded)),
                Err(failed) => failed,
            };
            // An application may close a connection that rests at the moment that we use it.
            let is_harmless = is_idempotent && (is_reused || failed.lost_its_tunnel());
            let copy = copy.filter(|_| is_harmless || failed.is_untouched());
            let is_unseen = failed.request.is_some() || failed.is_untouched();
            let Unsent { error, request: unsent } = failed;
            let again = unsent.filter(|_| has_more_tries).or(copy);
            request = match again {
                _ if exchange.client_broke() => return Err(Failed::for_good(Local::ClientBody)),
                Some(again) => again,
                None => {
                    let local = if error.is_parse() { Local::BadAnswer } else { Local::Broken };
                    return Err(Failed::by(local, if is_unseen { Outcome::Refused } else { Outcome::Reset }));
                }
            };
            tracing::debug!(%error, "a connection was closed before it answered; the request goes out again");
            exchange.happened(|| Event::Resend);
            self.upstreams.tally().resent.fetch_add(1, Ordering::Relaxed);
            // What else rests there may have been closed at the same time.
            (resends, since) = (resends + 1, Some(Instant::now()));
        }
    }

    /// A connection to the current endpoint, or to one that is chosen now; made at `since` or later. Endpoints that cannot
    /// be reached are passed over.
    async fn reach(
        &self,
        journey: &Journey<'_>,
        since: Option<Instant>,
        tried: &mut Vec<SocketAddr>,
        current: &mut Option<Try>,
    ) -> Result<Lease, Failed> {
        let (mut first, mut failures, mut has_paused, mut last) = (tried.len(), 0, false, None::<Unreached>);
        loop {
            let passed = tried.get(first..).unwrap_or_default();
            let next = match current.take() {
                Some(same) => Ok(same),
                None => journey.treatment.choose(journey.admitted, tried, self.caller.ip),
            };
            let next = match (next, last) {
                // All of them were passed over.
                (Ok(next), Some(last)) if failures >= MAX_TRIES || passed.contains(&next.address()) => {
                    next.pass_over();
                    if !last.is_passing || has_paused {
                        return Err(unreached(last));
                    }
                    has_paused = true;
                    (first, failures) = (tried.len(), 0);
                    tokio::time::sleep(RETRY_PAUSE).await;
                    next
                }
                (Ok(next), _) => next,
                (Err(_), Some(last)) => return Err(unreached(last)),
                (Err(NoEndpoint::None), None) => return Err(Failed::for_good(Local::NoEndpoint)),
                (Err(why), None) => return Err(Failed::for_good(Local::Refused(Refusal::NoEndpoint(why)))),
            };
            let next = current.insert(next);
            match self.connect(journey, next, since).await {
                Ok(lease) => {
                    journey.exchange.note(|record| record.destination_pod = lease.pod().cloned());
                    return Ok(lease);
                }
                Err(unreached) if unreached.is_denied => {
                    next.pass_over();
                    return Err(Failed::for_good(Local::Denied(unreached.reason)));
                }
                Err(unreached) if unreached.is_final => {
                    next.pass_over();
                    return Err(Failed::for_good(Local::Unreached(unreached.reason)));
                }
                Err(unreached) => {
                    // Limits are ours; the endpoint has no part in them.
                    if matches!(unreached.reason, OVERFLOW | TOO_MANY_CONNECTIONS) {
                        next.pass_over();
                    } else {
                        self.note(next, &Outcome::ConnectFailed);
                        failures += 1;
                    }
                    let endpoint = next.address();
                    journey.exchange.happened(|| Event::Unreached { endpoint, reason: unreached.reason });
                    tried.push(endpoint);
                    *current = None;
                    last = Some(unreached);
                }
            }
        }
    }

    fn note(&self, of: &Try, outcome: &Outcome) {
        if of.note(outcome) {
            self.upstreams.tally().ejected.fetch_add(1, Ordering::Relaxed);
        }
    }

    async fn connect(&self, journey: &Journey<'_>, to: &Try, since: Option<Instant>) -> Result<Lease, Unreached> {
        let upstream = self.mesh.upstream(&to.endpoint);
        aim(journey.exchange, &upstream);
        let key = self.key(&upstream, journey.wire);
        let connect = async || {
            let _waits = to.pending().map_err(|_| own(OVERFLOW))?;
            let permits = to.connection().map_err(|_| own(OVERFLOW))?;
            let reaching = self.mesh.reach(journey.place, &upstream);
            let reached = match journey.treatment.timeouts().connect {
                Some(length) => tokio::time::timeout(length, reaching).await.unwrap_or(Err(own(CONNECT_TIMEOUT)))?,
                None => reaching.await?,
            };
            if !permits.0.is_held() && !permits.1.is_held() {
                return Ok(reached);
            }
            let Reached { cut, .. } = reached;
            let cut = Box::pin(async move {
                let _held_while_open = permits;
                cut.await;
            });
            Ok(Reached { cut, ..reached })
        };
        self.upstreams.lease(&key, since, connect).await
    }
}

/// How a try that is followed by another is told; `failed` is who was tried last without an answer.
fn retry_of(ended: &Result<Answer, Failed>, failed: Option<SocketAddr>, pause: Duration) -> Event {
    match ended {
        Ok(Answer { response, of, .. }) => {
            Event::Retry { endpoint: Some(of.address()), status: Some(response.status()), reason: None, pause }
        }
        Err(Failed { local, .. }) => {
            Event::Retry { endpoint: failed, status: None, reason: Some(local.label()), pause }
        }
    }
}

/// Reads the rest of an answer that nobody wants, so that its connection serves again; not for long, and not much.
fn discard(response: Response<AppBody>, connection: Lease) {
    let mut body = response.into_body();
    if body.is_end_stream() {
        return connection.give_back();
    }
    tokio::task::spawn_local(async move {
        let read_all = async {
            let mut left = LINGER_BYTES;
            while let Some(Ok(frame)) = body.frame().await {
                left = left.checked_sub(frame.data_ref().map_or(0, bytes::Bytes::len))?;
            }
            body.is_end_stream().then_some(())
        };
        if let Ok(Some(())) = tokio::time::timeout(LINGER, read_all).await {
            connection.give_back();
        }
    });
}

/// Other endpoints may do.
fn own(reason: &'static str) -> Unreached {
    Unreached { reason, is_final: false, is_passing: false, is_denied: false }
}

/// No endpoint took the request.
fn unreached(last: Unreached) -> Failed {
    match last.reason {
        OVERFLOW => Failed::for_good(Local::Refused(Refusal::Overflow)),
        CONNECT_TIMEOUT => Failed::by(Local::TimedOut, Outcome::ConnectFailed),
        reason => Failed::by(Local::Unreached(reason), Outcome::ConnectFailed),
    }
}

fn outcome_of(response: &Response<AppBody>) -> Outcome {
    let text = |name: &str| response.headers().get(name).and_then(|value| value.to_str().ok());
    Outcome::Answered {
        status: response.status(),
        grpc: text("grpc-status").and_then(|status| status.parse().ok()),
        // In seconds; as a date it says too little about now.
        retry_after: text("retry-after").and_then(|seconds| seconds.trim().parse().ok()).map(Duration::from_secs),
    }
}
