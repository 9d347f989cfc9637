//! Which replica leads: the holder of a Lease. Only it writes.
//!
//! No clock is compared with another machine's. Whoever holds the Lease counts from the moment at which it began to renew
//! it, and stops after [`RENEW_DEADLINE`]; whoever waits counts from the moment at which it saw the Lease change last, and
//! takes it after [`LEASE`], which is longer. What lies between is more than [`WRITE_TIMEOUT`]: a write that the earlier
//! leader has begun is over when the next one begins. Beyond that every write names the version that it replaces.
//!
//! Own code, because kube-runtime has none, and the crates that were looked at compare clocks of different machines or go
//! on as leader while renewing fails.

use std::time::{Duration, SystemTime};

use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use k8s_openapi::jiff::Timestamp;
use kube::api::PostParams;
use kube::{Api, Client};
use tokio::sync::watch;
use tokio::time::Instant;
use tracing::{info, warn};

use crate::drain;

/// The Lease's name.
pub const NAME: &str = "nodemesh-controller";

/// Whoever waits takes the Lease when it did not change for so long.
pub(super) const LEASE: Duration = Duration::from_secs(15);
/// Whoever holds it stops when it could not renew it for so long.
pub(super) const RENEW_DEADLINE: Duration = Duration::from_secs(10);
/// Between two tries, of either.
pub(super) const RETRY: Duration = Duration::from_secs(2);
/// For one write of the leader, and for one try.
pub(super) const WRITE_TIMEOUT: Duration = Duration::from_secs(4);

/// Says until when this replica leads. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Leadership {
    until: watch::Receiver<Option<Instant>>,
}

/// Tries to hold the Lease.
pub struct Candidate {
    api: Api<Lease>,
    name: String,
    pace: Pace,
    until: watch::Sender<Option<Instant>>,
}

/// How fast things go; tests are in more of a hurry.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    /// See [`LEASE`].
    pub lease: Duration,
    /// See [`RENEW_DEADLINE`].
    pub renew_deadline: Duration,
    /// See [`RETRY`].
    pub retry: Duration,
    /// See [`WRITE_TIMEOUT`].
    pub write_timeout: Duration,
}

impl Default for Pace {
    fn default() -> Self {
        Self { lease: LEASE, renew_deadline: RENEW_DEADLINE, retry: RETRY, write_timeout: WRITE_TIMEOUT }
    }
}

/// What a replica does about the Lease as it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Move {
    /// There is none.
    Create,
    /// It is free, or its holder is gone.
    Take,
    /// It is ours.
    Renew,
    /// It is somebody else's.
    Wait,
}

/// Decides. `unchanged` is how long this replica has seen the Lease as it is.
fn decide(lease: Option<&Lease>, me: &str, unchanged: Duration, pace: Pace) -> Move {
    let Some(lease) = lease else { return Move::Create };
    let spec = lease.spec.as_ref();
    let holder = spec.and_then(|spec| spec.holder_identity.as_deref()).unwrap_or_default();
    // Another replica may have been told to wait for longer.
    let told = spec.and_then(|spec| spec.lease_duration_seconds).and_then(|seconds| u64::try_from(seconds).ok());
    let patience = pace.lease.max(Duration::from_secs(told.unwrap_or_default()).min(LEASE * 4));
    match holder {
        holder if holder == me => Move::Renew,
        "" => Move::Take,
        _ if unchanged >= patience => Move::Take,
        _ => Move::Wait,
    }
}

impl Leadership {
    /// Whether this replica leads now.
    pub fn is_held(&self) -> bool {
        self.until.borrow().is_some_and(|until| Instant::now() < until)
    }

    /// Returns when this replica leads.
    pub async fn held(&mut self) {
        while !self.is_held() {
            if self.until.changed().await.is_err() {
                // The candidate is gone: nobody will lead here any more.
                std::future::pending::<()>().await;
            }
        }
    }

    /// Returns when this replica leads no more.
    pub async fn lost(&mut self) {
        loop {
            let Some(until) = *self.until.borrow_and_update() else { return };
            tokio::select! {
                () = tokio::time::sleep_until(until) => if !self.is_held() { return },
                changed = self.until.changed() => if changed.is_err() { return },
            }
        }
    }
}

impl Candidate {
    /// One that has not tried. `name` is this replica's, such as that of its pod.
    pub fn new(client: Client, namespace: &str, name: &str, pace: Pace) -> (Self, Leadership) {
        let (until, seen) = watch::channel(None);
        let api = Api::namespaced(client, namespace);
        (Self { api, name: name.to_string(), pace, until }, Leadership { until: seen })
    }

    /// Tries, renews, and gives the Lease back when `shutdown` starts.
    pub async fn run(self, mut shutdown: drain::Token) {
        let mut seen = None::<(String, Instant)>;
        let mut held = None;
        loop {
            let begun = Instant::now();
            let tried = tokio::time::timeout(self.pace.write_timeout, self.try_once(&mut seen));
            let tried = match tried.await {
                Ok(tried) => tried,
                Err(_) => Err(format!("no answer within {} s", self.pace.write_timeout.as_secs())),
            };
            match tried {
                Ok(Some(lease)) => {
                    if held.is_none() {
                        info!(name = self.name, "this replica leads");
                    }
                    held = Some(lease);
                    self.until.send_replace(Some(begun + self.pace.renew_deadline));
                }
                Ok(None) => {
                    if held.take().is_some() {
                        warn!(name = self.name, "another replica leads");
                    }
                    self.until.send_replace(None);
                }
                Err(error) => {
                    let still = self.until.borrow().is_some_and(|until| Instant::now() < until);
                    if held.is_some() && !still {
                        held = None;
                        warn!(name = self.name, error, "the Lease cannot be renewed: this replica leads no more");
                    } else {
                        tracing::debug!(name = self.name, error, "the Lease cannot be had");
                    }
                }
            }
            tokio::select! {
                () = shutdown.started() => break,
                () = tokio::time::sleep(self.pace.retry) => {}
            }
        }
        // First this replica stops, then another one may begin.
        self.until.send_replace(None);
        if let Some(lease) = held {
            let given_back = self.replace(lease, "", false);
            let _ = tokio::time::timeout(self.pace.write_timeout, given_back).await;
        }
    }

    /// One look and one move. The Lease as it is now, if it is ours.
    async fn try_once(&self, seen: &mut Option<(String, Instant)>) -> Result<Option<Lease>, String> {
        let lease = self.api.get_opt(NAME).await.map_err(|error| error.to_string())?;
        let version = lease.as_ref().and_then(|lease| lease.metadata.resource_version.clone()).unwrap_or_default();
        let now = Instant::now();
        let since = match seen {
            Some((known, since)) if *known == version => *since,
            _ => seen.insert((version, now)).1,
        };
        let moved = match (decide(lease.as_ref(), &self.name, now.saturating_duration_since(since), self.pace), lease) {
            (Move::Wait, _) => return Ok(None),
            (Move::Create, _) | (_, None) => {
                let metadata = ObjectMeta { name: Some(NAME.to_string()), ..ObjectMeta::default() };
                let lease = self.with_holder(Lease { metadata, spec: None }, &self.name, true);
                self.api.create(&PostParams::default(), &lease).await
            }
            (Move::Take, Some(lease)) => self.replace(lease, &self.name, true).await,
            (Move::Renew, Some(lease)) => self.replace(lease, &self.name, false).await,
        };
        match moved {
            Ok(lease) => Ok(Some(lease)),
            // Somebody was faster.
            Err(kube::Error::Api(status)) if status.is_conflict() || status.is_already_exists() => Ok(None),
            Err(error) => Err(error.to_string()),
        }
    }

    /// Replaces the very version that was seen.
    async fn replace(&self, lease: Lease, holder: &str, is_new: bool) -> kube::Result<Lease> {
        self.api.replace(NAME, &PostParams::default(), &self.with_holder(lease, holder, is_new)).await
    }

    fn with_holder(&self, mut lease: Lease, holder: &str, is_new: bool) -> Lease {
        let now = MicroTime(Timestamp::try_from(SystemTime::now()).unwrap_or_default());
        let spec = lease.spec.get_or_insert_with(LeaseSpec::default);
        if is_new {
            spec.acquire_time = Some(now.clone());
            spec.lease_transitions = Some(spec.lease_transitions.unwrap_or(-1).saturating_add(1));
        }
        spec.holder_identity = Some(holder.to_string());
        spec.lease_duration_seconds = i32::try_from(self.pace.lease.as_secs().max(1)).ok();
        spec.renew_time = Some(now);
        lease.metadata.managed_fields = None;
        lease
    }
}

/// The name of this replica: its pod's, which is its host's, with something that no earlier process of that name had.
pub fn replica_name(host: &str) -> String {
    let mut noise = [0u8; 4];
    crate::identity::fill_random(&mut noise);
    let noise: String = noise.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("{host}_{noise}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lease(holder: Option<&str>, seconds: Option<i32>) -> Lease {
        let spec = LeaseSpec {
            holder_identity: holder.map(str::to_string),
            lease_duration_seconds: seconds,
            ..LeaseSpec::default()
        };
        Lease { spec: Some(spec), ..Lease::default() }
    }

    #[test]
    fn what_is_done_about_a_lease() {
        let just_before = LEASE - Duration::from_millis(1);
        for (what, lease, unchanged, expected) in [
            ("there is none", None, Duration::ZERO, Move::Create),
            ("ours", Some(lease(Some("me"), Some(15))), Duration::ZERO, Move::Renew),
            ("ours, long ago", Some(lease(Some("me"), Some(15))), LEASE * 9, Move::Renew),
            ("given back", Some(lease(Some(""), Some(15))), Duration::ZERO, Move::Take),
            ("nobody's yet", Some(lease(None, None)), Duration::ZERO, Move::Take),
            ("no spec", Some(Lease::default()), Duration::ZERO, Move::Take),
            ("another's", Some(lease(Some("it"), Some(15))), just_before, Move::Wait),
            ("another's, silent", Some(lease(Some("it"), Some(15))), LEASE, Move::Take),
            ("another's, who says less", Some(lease(Some("it"), Some(1))), just_before, Move::Wait),
            ("another's, who says more", Some(lease(Some("it"), Some(30))), LEASE * 2 - RETRY, Move::Wait),
            ("another's, who says far too much", Some(lease(Some("it"), Some(i32::MAX))), LEASE * 4, Move::Take),
            ("another's, who says nonsense", Some(lease(Some("it"), Some(-1))), LEASE, Move::Take),
        ] {
            assert_eq!(decide(lease.as_ref(), "me", unchanged, Pace::default()), expected, "{what}");
        }
    }

    #[test]
    fn a_leader_has_stopped_before_another_begins() {
        assert!(RENEW_DEADLINE + WRITE_TIMEOUT < LEASE);
        // A renewal that takes as long as it may is still one.
        assert!(RETRY + WRITE_TIMEOUT < RENEW_DEADLINE);
    }

    #[tokio::test]
    async fn a_term_ends_by_itself() {
        let (short, long) = (Duration::from_millis(300), Duration::from_secs(600));
        let (sender, until) = watch::channel(None);
        let mut leadership = Leadership { until };
        assert!(!leadership.is_held());
        let start = Instant::now();
        sender.send_replace(Some(start + short));
        leadership.held().await;
        leadership.lost().await;
        assert!(start.elapsed() >= short && !leadership.is_held());
        // Renewed in time, it goes on; given back, it ends at once.
        sender.send_replace(Some(Instant::now() + long));
        let mut losing = leadership.clone();
        let lost = tokio::spawn(async move { losing.lost().await });
        sender.send_replace(Some(Instant::now() + long * 2));
        tokio::time::sleep(short).await;
        assert!(!lost.is_finished() && leadership.is_held());
        sender.send_replace(None);
        lost.await.unwrap();
        assert!(!leadership.is_held());
    }
}
