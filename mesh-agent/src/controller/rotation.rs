//! Replacing the root of a cluster by another that the mesh makes, phase by phase: `ca rotate --ca kubernetes`.
//!
//! ```text
//!            Secret                      ConfigMap (by the controller that leads)
//! prepare    + next.crt next.key         + the next root, which signs nothing
//! switch     next becomes tls and ca     it signs, when every agent has had time to trust it
//! finish                                 - every root that the Secret does not name
//! cancel     - next.crt next.key         - the next root
//! ```
//! What a phase does is decided here on what both hold; [`roots`](super::roots) says what the controllers make of it.

use std::time::{Duration, SystemTime};

use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use kube::api::PostParams;
use kube::{Api, Client};
use time::OffsetDateTime;

use super::authority::wanted;
use super::roots::{CONFIG_MAP, Material, Next, Published, SECRET, SETTLE};
use crate::identity::{self, NewRoot, Phase, Root, RootId, Signing};

/// How often a write is tried anew that another was faster than.
pub(super) const TRIES: usize = 5;

/// Why a phase was not done.
#[derive(Debug, thiserror::Error)]
pub enum RotationError {
    /// It does not follow what is there.
    #[error("{0}")]
    Phase(String),
    /// Agents may not have taken the last phase yet.
    #[error("agents may not have taken the last phase yet: {} s more, or --force", .0.as_secs() + 1)]
    TooSoon(Duration),
    /// What is there cannot be read.
    #[error("{0}")]
    Unreadable(String),
    /// The API server refused, or did not answer.
    #[error("{0}")]
    Api(#[from] kube::Error),
    /// Making a key or a certificate failed.
    #[error("making the root: {0}")]
    Generate(String),
    /// Others kept writing.
    #[error("{0} was written by others {TRIES} times meanwhile: try again")]
    Contended(&'static str),
}

/// The Secret and the ConfigMap of a cluster's roots.
pub struct Rotation {
    secrets: Api<Secret>,
    config_maps: Api<ConfigMap>,
    trust_domain: String,
    settle: Duration,
}

/// What a phase changes, and what is told of it.
struct Change {
    secret: Option<Material>,
    roots: Option<RootsChange>,
    told: Vec<String>,
}

/// What a phase changes of whom agents trust. An edit, so that it can be done over to what another wrote meanwhile.
#[derive(Clone, Debug, PartialEq, Eq)]
enum RootsChange {
    /// This one may sign at once.
    Settled(Root),
    /// None but these.
    Keep(Vec<RootId>),
}

/// What both hold.
struct Standing {
    material: Material,
    /// The roots of the Secret, that which signs first.
    wanted: Vec<Root>,
    published: Published,
}

impl Rotation {
    /// By these rights, in this namespace.
    pub fn new(client: Client, namespace: &str, trust_domain: &str) -> Self {
        Self {
            secrets: Api::namespaced(client.clone(), namespace),
            config_maps: Api::namespaced(client, namespace),
            trust_domain: trust_domain.to_string(),
            settle: SETTLE,
        }
    }

    /// With another time than [`SETTLE`] for agents to take a phase.
    pub fn settling(self, settle: Duration) -> Self {
        Self { settle, ..self }
    }

    /// What is there, a line each.
    ///
    /// # Errors
    /// It cannot be had or read.
    pub async fn status(&self) -> Result<Vec<String>, RotationError> {
        let (_, material) = self.secret().await?;
        let (_, published) = self.roots().await?;
        Ok(Standing::of(material, published, &self.trust_domain)?.told())
    }

    /// Does one phase; says what was done and what comes next. `is_forced` does not wait for agents.
    ///
    /// # Errors
    /// It was not done, or not wholly; it can be run again.
    pub async fn rotate(&self, phase: Phase, is_forced: bool) -> Result<Vec<String>, RotationError> {
        for _ in 0..TRIES {
            let (secret, material) = self.secret().await?;
            let (_, published) = self.roots().await?;
            let standing = Standing::of(material, published, &self.trust_domain)?;
            let make = || identity::new_root(&self.trust_domain).map_err(|error| error.to_string());
            let settle = if is_forced { Duration::ZERO } else { self.settle };
            let change = decide(phase, &standing, settle, SystemTime::now(), make)?;
            if let Some(material) = &change.secret
                && !self.write_secret(secret, material).await?
            {
                continue;
            }
            if let Some(edit) = &change.roots {
                self.edit_roots(edit).await?;
            }
            return Ok(change.told);
        }
        Err(RotationError::Contended(SECRET))
    }

    async fn secret(&self) -> Result<(Secret, Material), RotationError> {
        let secret = self.secrets.get(SECRET).await?;
        let material = Material::of(&secret).map_err(RotationError::Unreadable)?;
        Ok((secret, material))
    }

    async fn roots(&self) -> Result<(ConfigMap, Published), RotationError> {
        let config_map = self.config_maps.get(CONFIG_MAP).await?;
        let published = Published::of(&config_map).map_err(RotationError::Unreadable)?;
        Ok((config_map, published))
    }

    /// Whether it was: another may have been faster.
    async fn write_secret(&self, mut secret: Secret, material: &Material) -> Result<bool, RotationError> {
        // What else somebody keeps in it stays.
        let data = secret.data.get_or_insert_default();
        Material::KEYS.iter().for_each(|key| drop(data.remove(*key)));
        data.extend(material.data());
        is_written(self.secrets.replace(SECRET, &PostParams::default(), &secret).await)
    }

    async fn edit_roots(&self, edit: &RootsChange) -> Result<(), RotationError> {
        for _ in 0..TRIES {
            let (config_map, published) = self.roots().await?;
            let next = edit.done_to(published.clone()).config_map(config_map.metadata);
            if is_written(self.config_maps.replace(CONFIG_MAP, &PostParams::default(), &next).await)? {
                return Ok(());
            }
        }
        Err(RotationError::Contended(CONFIG_MAP))
    }
}

fn is_written<T>(answer: kube::Result<T>) -> Result<bool, RotationError> {
    match answer {
        Ok(_) => Ok(true),
        Err(kube::Error::Api(status)) if status.is_conflict() => Ok(false),
        Err(error) => Err(error.into()),
    }
}

impl RootsChange {
    fn done_to(&self, mut published: Published) -> Published {
        match self {
            Self::Settled(root) => {
                if published.roots.iter().all(|known| known.id != root.id) {
                    published.roots.push(root.clone());
                }
                published.since.insert(root.id.to_string(), 0);
            }
            Self::Keep(kept) => {
                published.roots.retain(|root| kept.contains(&root.id));
                published.since.retain(|id, _| kept.iter().any(|kept| kept.to_string() == *id));
            }
        }
        published
    }
}

impl Standing {
    fn of(material: Material, published: Published, trust_domain: &str) -> Result<Self, RotationError> {
        let Material { tls_crt, tls_key, ca_crt, next: _ } = &material;
        let signing = Signing::parse(tls_crt, tls_key, ca_crt, trust_domain)
            .map_err(|error| RotationError::Unreadable(format!("Secret {SECRET}: {error}")))?;
        let wanted = wanted(&material, signing.root()).map_err(RotationError::Unreadable)?;
        Ok(Self { material, wanted, published })
    }

    fn signer(&self) -> Result<&Root, RotationError> {
        self.wanted.first().ok_or_else(|| RotationError::Unreadable(format!("Secret {SECRET} holds no root")))
    }

    /// The root that is prepared.
    fn next(&self) -> Result<Option<(&Next, Root)>, RotationError> {
        let Some(next) = &self.material.next else { return Ok(None) };
        let mut roots =
            identity::roots("next.crt", &next.crt).map_err(|error| RotationError::Unreadable(error.to_string()))?;
        Ok(Some((next, roots.remove(0))))
    }

    /// Whether what signs is the root itself, and not a certificate below somebody else's.
    fn signs_by_its_root(&self) -> Result<bool, RotationError> {
        let chain = identity::roots("tls.crt", &self.material.tls_crt)
            .map_err(|error| RotationError::Unreadable(error.to_string()))?;
        Ok(chain.first().map(|first| first.id) == Some(self.signer()?.id))
    }

    /// Roots that agents trust and the Secret does not name.
    fn earlier(&self) -> impl Iterator<Item = &Root> {
        self.published.roots.iter().filter(|root| self.wanted.iter().all(|wanted| wanted.id != root.id))
    }

    fn told(&self) -> Vec<String> {
        let next = self.next().ok().flatten().map(|(_, root)| root.id);
        let mut lines: Vec<String> = Vec::new();
        for root in &self.published.roots {
            let what = if self.published.signs == Some(root.id) { "signs" } else { "is trusted" };
            let note = if next == Some(root.id) { "  next" } else { "" };
            let until = OffsetDateTime::from(root.not_after).date();
            lines.push(format!("{what:<10} {}  valid until {until}{note}", root.id));
        }
        lines.push(match (next, self.earlier().next()) {
            (Some(_), _) => "a next root is prepared: --phase switch, or cancel".to_string(),
            (None, Some(_)) => "an earlier root is still trusted: --phase finish when nothing rests on it".to_string(),
            (None, None) => "no rotation is under way".to_string(),
        });
        lines
    }
}

/// Decides what a phase changes. `settle` is how long agents have to take the phase before.
fn decide(
    phase: Phase,
    standing: &Standing,
    settle: Duration,
    now: SystemTime,
    make: impl FnOnce() -> Result<NewRoot, String>,
) -> Result<Change, RotationError> {
    match phase {
        Phase::Prepare => prepare(standing, make),
        Phase::Switch => switch(standing, settle, now),
        Phase::Finish => finish(standing, settle, now),
        Phase::Cancel => cancel(standing),
    }
}

fn prepare(standing: &Standing, make: impl FnOnce() -> Result<NewRoot, String>) -> Result<Change, RotationError> {
    let told = |id: &RootId| {
        vec![
            format!("root {id} is made; agents trust it within minutes, nothing is signed by it"),
            "next: --phase switch".to_string(),
        ]
    };
    if let Some((_, next)) = standing.next()? {
        return Ok(Change { secret: None, roots: None, told: told(&next.id) });
    }
    if !standing.signs_by_its_root()? {
        return refuse(format!(
            "Secret {SECRET} signs below a root that is not the mesh's own: whoever brings the Secret replaces it; a new \
             root of its ca.crt is trusted beside the earlier one until --phase finish"
        ));
    }
    if standing.earlier().next().is_some() {
        return refuse("the last rotation is not finished: --phase finish first".to_string());
    }
    let NewRoot { certificate, key } = make().map_err(RotationError::Generate)?;
    let made = Next { crt: certificate, key };
    let material = Material { next: Some(made), ..standing.material.clone() };
    let roots = identity::roots("next.crt", &material.next.as_ref().map(|next| next.crt.clone()).unwrap_or_default());
    let id = roots.map_err(|error| RotationError::Generate(error.to_string()))?.remove(0).id;
    Ok(Change { secret: Some(material), roots: None, told: told(&id) })
}

fn switch(standing: &Standing, settle: Duration, now: SystemTime) -> Result<Change, RotationError> {
    let Some((Next { crt, key }, root)) = standing.next()? else {
        return refuse("no next root: --phase prepare first".to_string());
    };
    if let Some(left) = standing.published.wait(root.id, settle, now).filter(|_| !settle.is_zero()) {
        return Err(RotationError::TooSoon(left));
    }
    let told = vec![
        format!("root {} signs; certificates are renewed within minutes", root.id),
        format!("root {} stays trusted", standing.signer()?.id),
        "next: --phase finish, which cuts what still rests on it: see nodemesh_root_peers".to_string(),
    ];
    let material = Material { tls_crt: crt.clone(), tls_key: key.clone(), ca_crt: crt.clone(), next: None };
    // The controllers wait by the ConfigMap; who is in a hurry has it say that there is nothing to wait for.
    let roots = settle.is_zero().then_some(RootsChange::Settled(root));
    Ok(Change { secret: Some(material), roots, told })
}

fn finish(standing: &Standing, settle: Duration, now: SystemTime) -> Result<Change, RotationError> {
    if standing.material.next.is_some() {
        return refuse("a next root is prepared: --phase switch first, or cancel".to_string());
    }
    let gone: Vec<String> = standing.earlier().map(|root| root.id.to_string()).collect();
    if gone.is_empty() {
        return refuse("no earlier root is trusted: there is nothing to finish".to_string());
    }
    let signer = standing.signer()?.id;
    if standing.published.signs != Some(signer) {
        return refuse(format!(
            "root {signer} of Secret {SECRET} does not sign yet: /readyz of the controller says why, and when it will"
        ));
    }
    if let Some(left) = standing.published.rests(settle, now) {
        return Err(RotationError::TooSoon(left));
    }
    let kept = standing.wanted.iter().map(|root| root.id).collect();
    let told = vec![format!(
        "root {} is no longer trusted; tunnels that rest on it are closed within minutes",
        gone.join(", root ")
    )];
    Ok(Change { secret: None, roots: Some(RootsChange::Keep(kept)), told })
}

fn cancel(standing: &Standing) -> Result<Change, RotationError> {
    let Some((_, next)) = standing.next()? else {
        return refuse("no next root is prepared: there is nothing to cancel".to_string());
    };
    let kept = standing.published.roots.iter().map(|root| root.id).filter(|id| *id != next.id).collect();
    let material = Material { next: None, ..standing.material.clone() };
    let told = vec!["the prepared root is gone; nothing was signed by it".to_string()];
    Ok(Change { secret: Some(material), roots: Some(RootsChange::Keep(kept)), told })
}

fn refuse<T>(reason: String) -> Result<T, RotationError> {
    Err(RotationError::Phase(reason))
}

#[cfg(test)]
mod tests {
    use super::super::roots::publish;
    use super::*;

    const TRUST_DOMAIN: &str = "cluster.local";

    /// A cluster whose leader does at once what it sees.
    struct Cluster {
        standing: Standing,
        now: SystemTime,
    }

    impl Cluster {
        fn new() -> Self {
            let material = Material::of_root(identity::new_root(TRUST_DOMAIN).unwrap());
            let standing = Standing::of(material, Published::default(), TRUST_DOMAIN).unwrap();
            let mut cluster = Self { standing, now: SystemTime::now() };
            cluster.publish();
            cluster.later(SETTLE);
            cluster
        }

        fn publish(&mut self) {
            self.standing.published = publish(&self.standing.wanted, &self.standing.published, SETTLE, self.now);
        }

        fn later(&mut self, time: Duration) {
            self.now += time;
            self.publish();
        }

        fn try_it(&mut self, phase: Phase, settle: Duration) -> Result<(), RotationError> {
            let make = || identity::new_root(TRUST_DOMAIN).map_err(|error| error.to_string());
            let Change { secret, roots, told } = decide(phase, &self.standing, settle, self.now, make)?;
            assert!(!told.is_empty());
            let mut published = self.standing.published.clone();
            if let Some(edit) = roots {
                published = edit.done_to(published);
            }
            let material = secret.unwrap_or_else(|| self.standing.material.clone());
            self.standing = Standing::of(material, published, TRUST_DOMAIN).unwrap();
            self.publish();
            Ok(())
        }

        fn done(&mut self, phase: Phase) {
            self.try_it(phase, SETTLE).unwrap();
        }

        fn refused(&mut self, phase: Phase) -> String {
            self.try_it(phase, SETTLE).unwrap_err().to_string()
        }

        fn roots(&self) -> Vec<RootId> {
            self.standing.published.roots.iter().map(|root| root.id).collect()
        }

        fn signs(&self) -> RootId {
            self.standing.published.signs.unwrap()
        }
    }

    #[test]
    fn each_phase_waits_for_agents_and_none_can_be_left_out() {
        let mut cluster = Cluster::new();
        let old = cluster.signs();
        assert!(cluster.refused(Phase::Switch).contains("prepare first"));
        assert!(cluster.refused(Phase::Finish).contains("nothing to finish"));
        assert!(cluster.refused(Phase::Cancel).contains("nothing to cancel"));

        cluster.done(Phase::Prepare);
        let next = cluster.roots()[1];
        assert_eq!((cluster.roots(), cluster.signs()), (vec![old, next], old));
        assert!(cluster.standing.told().iter().any(|line| line.ends_with("next") && line.contains(&next.to_string())));
        assert!(cluster.refused(Phase::Switch).contains("--force"), "agents are given no time");
        assert!(cluster.refused(Phase::Finish).contains("switch first"));
        cluster.done(Phase::Prepare);
        assert_eq!(cluster.roots(), [old, next], "run again, it makes no other");

        cluster.later(SETTLE);
        cluster.done(Phase::Switch);
        assert_eq!((cluster.roots(), cluster.signs()), (vec![old, next], next));
        assert!(cluster.refused(Phase::Prepare).contains("finish first"));
        assert!(cluster.refused(Phase::Cancel).contains("nothing to cancel"));
        assert!(cluster.refused(Phase::Finish).contains("--force"), "agents are given no time");
        cluster.later(SETTLE);
        cluster.done(Phase::Finish);
        assert_eq!((cluster.roots(), cluster.signs()), (vec![next], next));
        assert_eq!(cluster.standing.told().last().unwrap(), "no rotation is under way");
    }

    #[test]
    fn what_was_prepared_can_be_thrown_away() {
        let mut cluster = Cluster::new();
        let old = cluster.signs();
        cluster.done(Phase::Prepare);
        cluster.done(Phase::Cancel);
        cluster.later(SETTLE);
        assert_eq!((cluster.roots(), cluster.signs()), (vec![old], old));
    }

    #[test]
    fn who_is_in_a_hurry_does_not_wait() {
        let mut cluster = Cluster::new();
        let old = cluster.signs();
        for phase in [Phase::Prepare, Phase::Switch, Phase::Finish] {
            cluster.try_it(phase, Duration::ZERO).unwrap();
        }
        assert_eq!(cluster.roots().len(), 1);
        assert_ne!(cluster.signs(), old);
    }

    #[test]
    fn a_root_that_others_brought_is_theirs_to_replace() {
        let mut cluster = Cluster::new();
        let theirs = Material::of_root(identity::new_root(TRUST_DOMAIN).unwrap());
        cluster.standing = Standing::of(theirs, cluster.standing.published.clone(), TRUST_DOMAIN).unwrap();
        cluster.publish();
        assert!(cluster.refused(Phase::Finish).contains("does not sign yet"));
        cluster.later(SETTLE);
        assert!(cluster.refused(Phase::Finish).contains("--force"));
        cluster.later(SETTLE);
        cluster.done(Phase::Finish);
        assert_eq!(cluster.roots(), [cluster.signs()]);
    }
}
