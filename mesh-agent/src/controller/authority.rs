//! What signs now, on this replica: followed from the Secret and the ConfigMap, whoever of the replicas leads.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwapOption;
use tracing::{info, warn};

use super::roots::{Material, Published};
use crate::identity::{Clock, Root, RootId, Serving, Signing, roots};
use crate::readiness::Readiness;

/// How long the certificate of the port is good for; it is made anew at two thirds.
pub(super) const SERVING_LIFETIME: Duration = Duration::from_secs(24 * 3600);

/// The gate of this part.
pub const GATE: &str = "authority";

/// What signs, and what is shown to agents. Read without a lock.
pub struct Authority {
    trust_domain: String,
    names: Vec<String>,
    settle: Duration,
    clock: Clock,
    readiness: Readiness,
    signing: ArcSwapOption<Standing>,
    serving: ArcSwapOption<Serving>,
}

struct Standing {
    material: Material,
    signing: Arc<Signing>,
}

impl Authority {
    /// Nothing signs yet. `names` are those that agents call the port by; a root signs when it has been published for
    /// `settle`.
    pub fn new(trust_domain: &str, names: Vec<String>, settle: Duration, clock: Clock, readiness: Readiness) -> Self {
        readiness.waiting(GATE, "the root is not there yet");
        Self {
            trust_domain: trust_domain.to_string(),
            names,
            settle,
            clock,
            readiness,
            signing: ArcSwapOption::empty(),
            serving: ArcSwapOption::empty(),
        }
    }

    /// What signs.
    ///
    /// # Errors
    /// Nothing does yet; for people.
    pub fn signing(&self) -> Result<Arc<Signing>, String> {
        let standing = self.signing.load();
        let signing = standing.as_ref().map(|standing| standing.signing.clone());
        signing.ok_or_else(|| "no root signs yet: see /readyz of the controller".to_string())
    }

    /// What is shown to agents.
    pub fn serving(&self) -> Option<Arc<Serving>> {
        self.serving.load_full()
    }

    /// Takes what is there now: the Secret, what was read last of what is published, and why that is not what is there.
    /// Says what is to be published: the roots of the Secret, that which signs first.
    pub fn take(
        &self,
        material: Result<&Material, &str>,
        published: &Published,
        unread: Option<&str>,
    ) -> Option<Vec<Root>> {
        match self.see(material, published) {
            Ok((wanted, trouble)) => {
                match unread.or(trouble.as_deref()) {
                    Some(trouble) => self.waiting(trouble),
                    None => self.readiness.ready(GATE),
                }
                self.renew_serving();
                Some(wanted)
            }
            Err(trouble) => {
                self.waiting(&trouble);
                self.renew_serving();
                None
            }
        }
    }

    /// What is wrong while something else signs is no reason to take nobody in.
    fn waiting(&self, trouble: &str) {
        match self.signing.load().is_some() {
            true => self.readiness.noted(GATE, trouble),
            false => self.readiness.waiting(GATE, trouble),
        }
    }

    fn see(
        &self,
        material: Result<&Material, &str>,
        published: &Published,
    ) -> Result<(Vec<Root>, Option<String>), String> {
        let material = material?;
        let standing = self.signing.load();
        let known = standing.as_ref().filter(|standing| standing.material == *material);
        let signing = match known {
            Some(standing) => standing.signing.clone(),
            None => {
                let Material { tls_crt, tls_key, ca_crt, next: _ } = material;
                let read = Signing::parse(tls_crt, tls_key, ca_crt, &self.trust_domain);
                Arc::new(read.map_err(|error| error.to_string())?)
            }
        };
        let wanted = wanted(material, signing.root())?;
        let now = self.clock.now();
        match published.wait(signing.root(), self.settle, now) {
            Some(left) => {
                let root = signing.root();
                let trouble = format!("root {root} signs in {} s, when every agent trusts it", left.as_secs() + 1);
                Ok((wanted, Some(trouble)))
            }
            None => {
                if known.is_none() {
                    info!(root = %signing.root(), until = ?signing.not_after(), "certificates are signed by this");
                    self.signing.store(Some(Arc::new(Standing { material: material.clone(), signing })));
                    self.serving.store(None);
                }
                Ok((wanted, None))
            }
        }
    }

    fn renew_serving(&self) {
        let Ok(signing) = self.signing() else { return };
        let now = self.clock.now();
        let is_good = self.serving().is_some_and(|serving| is_fresh(&serving, &signing, now));
        if is_good {
            return;
        }
        match signing.serving(&self.names, SERVING_LIFETIME, &self.clock) {
            Ok(serving) => self.serving.store(Some(Arc::new(serving))),
            Err(error) => {
                warn!(%error, "no certificate for the port of the authority");
                self.waiting(&error.to_string());
            }
        }
    }
}

fn is_fresh(serving: &Serving, signing: &Signing, now: SystemTime) -> bool {
    // What ends with its issuer would not be good for longer if it were made anew.
    let is_longest = serving.not_after() >= signing.not_after();
    is_longest || serving.not_after().duration_since(now).is_ok_and(|left| left > SERVING_LIFETIME / 3)
}

/// The roots of the Secret, that which signs first.
pub(super) fn wanted(material: &Material, signer: RootId) -> Result<Vec<Root>, String> {
    let mut wanted = roots("ca.crt", &material.ca_crt).map_err(|error| error.to_string())?;
    if let Some(next) = &material.next {
        wanted.extend(roots("next.crt", &next.crt).map_err(|error| error.to_string())?);
    }
    wanted.sort_by_key(|root| root.id != signer);
    Ok(wanted)
}
