//! The Secret of what signs and the ConfigMap of whom to trust: every replica follows them, the leader makes and keeps
//! them.

use std::fmt::Debug;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use futures_util::TryStreamExt as _;
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::PostParams;
use kube::runtime::{WatchStreamExt as _, watcher};
use kube::{Api, Client, Resource};
use serde::de::DeserializeOwned;
use tokio::sync::watch;
use tracing::{info, warn};

use super::authority::Authority;
use super::lease::{Leadership, WRITE_TIMEOUT};
use super::roots::{CONFIG_MAP, Material, Published, SECRET, publish};
use crate::identity::{self, Root};

/// Between two looks at what time alone changes: that a root may sign, that a certificate is to be renewed.
pub(super) const TICK: Duration = Duration::from_secs(1);

/// The type of a Secret with tls.crt and tls.key.
const TLS_SECRET: &str = "kubernetes.io/tls";

/// An object, as a watch tells of it.
#[derive(Clone, Debug, Default)]
enum Seen<T> {
    /// Nobody has told yet.
    #[default]
    Unknown,
    Absent,
    Present(Arc<T>),
}

impl<T> Seen<T> {
    fn present(&self) -> Option<&T> {
        match self {
            Self::Present(object) => Some(object),
            Self::Unknown | Self::Absent => None,
        }
    }
}

/// What the leader is to write.
enum Write {
    /// A root of our own.
    Secret,
    /// The roots as they should be.
    Roots(Published),
}

/// The ConfigMap as it was read last. Agents have those roots, whatever became of it since.
#[derive(Default)]
struct LastRead {
    published: Published,
    /// Why what is there now is not read.
    trouble: Option<String>,
}

impl LastRead {
    fn see(&mut self, roots: &Seen<ConfigMap>) {
        let trouble = match roots.present().map(Published::of) {
            Some(Ok(published)) => {
                self.published = published;
                None
            }
            Some(Err(error)) => Some(format!(
                "{error}. Nothing is published until it is put right, or deleted: then the leader makes it of what it \
                 read last, and of the Secret alone if it has read nothing since it started"
            )),
            None => None,
        };
        if let Some(trouble) = trouble.as_deref().filter(|trouble| self.trouble.as_deref() != Some(trouble)) {
            warn!("{trouble}");
        }
        self.trouble = trouble;
    }
}

/// Keeps both.
pub struct Keeper {
    client: Client,
    namespace: String,
    trust_domain: String,
    settle: Duration,
    authority: Arc<Authority>,
    leadership: Leadership,
    secret: watch::Sender<Seen<Secret>>,
    roots: watch::Sender<Seen<ConfigMap>>,
}

impl Keeper {
    /// Has seen nothing yet.
    pub fn new(
        client: Client,
        namespace: &str,
        trust_domain: &str,
        settle: Duration,
        authority: Arc<Authority>,
        leadership: Leadership,
    ) -> Self {
        Self {
            client,
            namespace: namespace.to_string(),
            trust_domain: trust_domain.to_string(),
            settle,
            authority,
            leadership,
            secret: watch::Sender::default(),
            roots: watch::Sender::default(),
        }
    }

    /// Follows and keeps until dropped.
    pub async fn run(self) {
        let (mut secret, mut roots) = (self.secret.subscribe(), self.roots.subscribe());
        let keep = async {
            let mut read = LastRead::default();
            let mut tick = tokio::time::interval(TICK);
            tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
            loop {
                tokio::select! {
                    _ = secret.changed() => {}
                    _ = roots.changed() => {}
                    _ = tick.tick() => {}
                }
                let seen = (secret.borrow_and_update().clone(), roots.borrow_and_update().clone());
                if self.keep(&seen.0, &seen.1, &mut read).await.is_err() {
                    // Not as fast as the API server says no.
                    tokio::time::sleep(TICK).await;
                }
            }
        };
        tokio::join!(
            follow(self.api::<Secret>(), SECRET, &self.secret),
            follow(self.api::<ConfigMap>(), CONFIG_MAP, &self.roots),
            keep,
        );
    }

    /// One look at both: what signs here, and what the leader writes.
    async fn keep(&self, secret: &Seen<Secret>, roots: &Seen<ConfigMap>, read: &mut LastRead) -> Result<(), ()> {
        let material = match secret {
            Seen::Unknown => Err(format!("Secret {SECRET} was not read yet")),
            Seen::Absent => Err(format!("Secret {SECRET} is not there: the leader makes it")),
            Seen::Present(secret) => Material::of(secret),
        };
        read.see(roots);
        let material = material.as_ref().map_err(String::as_str);
        let wanted = self.authority.take(material, &read.published, read.trouble.as_deref());
        let Some(write) = decide(secret, roots, wanted.as_deref(), read, self.settle) else { return Ok(()) };
        if !self.leadership.is_held() {
            return Ok(());
        }
        let written = tokio::time::timeout(WRITE_TIMEOUT, self.write(write, roots)).await;
        match written {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => {
                warn!(%error, "the authority's objects cannot be written: trying again");
                Err(())
            }
            Err(_) => {
                warn!("the authority's objects cannot be written: the API server does not answer; trying again");
                Err(())
            }
        }
    }

    async fn write(&self, write: Write, roots: &Seen<ConfigMap>) -> kube::Result<()> {
        match write {
            Write::Secret => {
                let Ok(root) = identity::new_root(&self.trust_domain) else { return Ok(()) };
                let secret = Secret {
                    metadata: ObjectMeta { name: Some(SECRET.to_string()), ..ObjectMeta::default() },
                    data: Some(Material::of_root(root).data()),
                    type_: Some(TLS_SECRET.to_string()),
                    ..Secret::default()
                };
                // Of several that are created under one name one is; the watch tells which.
                match self.api::<Secret>().create(&PostParams::default(), &secret).await {
                    Ok(secret) => {
                        info!(secret = SECRET, "a root was made");
                        self.secret.send_replace(Seen::Present(Arc::new(secret)));
                        Ok(())
                    }
                    Err(kube::Error::Api(status)) if status.is_already_exists() || status.is_conflict() => Ok(()),
                    Err(error) => Err(error),
                }
            }
            Write::Roots(published) => {
                let api = self.api::<ConfigMap>();
                let metadata = roots.present().map(|roots| roots.metadata.clone()).unwrap_or_default();
                let wanted = published.config_map(metadata);
                let written = match roots.present() {
                    Some(_) => api.replace(CONFIG_MAP, &PostParams::default(), &wanted).await,
                    None => api.create(&PostParams::default(), &wanted).await,
                };
                let written = written?;
                let shown: Vec<String> = published.roots.iter().map(|root| root.id.to_string()).collect();
                info!(roots = shown.join(" "), config_map = CONFIG_MAP, "roots were published");
                self.roots.send_replace(Seen::Present(Arc::new(written)));
                Ok(())
            }
        }
    }

    fn api<K>(&self) -> Api<K>
    where
        K: Resource<Scope = k8s_openapi::NamespaceResourceScope, DynamicType = ()>,
    {
        Api::namespaced(self.client.clone(), &self.namespace)
    }
}

/// Decides what is to be written. Nothing while something was not read, or cannot be.
fn decide(
    secret: &Seen<Secret>,
    roots: &Seen<ConfigMap>,
    wanted: Option<&[Root]>,
    read: &LastRead,
    settle: Duration,
) -> Option<Write> {
    if matches!(secret, Seen::Absent) {
        return Some(Write::Secret);
    }
    if matches!(roots, Seen::Unknown) || read.trouble.is_some() {
        return None;
    }
    let next = publish(wanted?, &read.published, settle, SystemTime::now());
    let is_there = matches!(roots, Seen::Present(_));
    (next != read.published || !is_there).then_some(Write::Roots(next))
}

/// Follows one object.
async fn follow<K>(api: Api<K>, name: &'static str, seen: &watch::Sender<Seen<K>>)
where
    K: Resource + Clone + DeserializeOwned + Debug + Send + 'static,
{
    let mut events = std::pin::pin!(watcher::watch_object(api, name).default_backoff());
    loop {
        match events.try_next().await {
            Ok(Some(Some(object))) => drop(seen.send_replace(Seen::Present(Arc::new(object)))),
            Ok(Some(None)) => drop(seen.send_replace(Seen::Absent)),
            Ok(None) => return,
            Err(error) => warn!(%error, name, "cannot be watched: what was seen last stays"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::authority::GATE;
    use super::super::roots::{ROOTS_KEY, SETTLE};
    use super::*;
    use crate::identity::{Clock, RootId};
    use crate::readiness::Readiness;

    const TRUST_DOMAIN: &str = "cluster.local";

    /// A controller that leads and does at once what it sees.
    struct Leader {
        authority: Authority,
        readiness: Readiness,
        material: Material,
        roots: Seen<ConfigMap>,
        read: LastRead,
    }

    impl Leader {
        fn new() -> Self {
            let readiness = Readiness::default();
            let authority = Authority::new(TRUST_DOMAIN, Vec::new(), SETTLE, Clock::system(), readiness.clone());
            let (roots, read) = (Seen::Absent, LastRead::default());
            Self { authority, readiness, material: material(), roots, read }
        }

        /// What it writes.
        fn looks(&mut self) -> Option<Published> {
            self.read.see(&self.roots);
            let trouble = self.read.trouble.as_deref();
            let wanted = self.authority.take(Ok(&self.material), &self.read.published, trouble);
            let secret = Seen::Present(Arc::new(Secret::default()));
            let written = match decide(&secret, &self.roots, wanted.as_deref(), &self.read, SETTLE)? {
                Write::Roots(written) => written,
                Write::Secret => panic!("the Secret is there"),
            };
            self.roots = Seen::Present(Arc::new(written.config_map(ObjectMeta::default())));
            Some(written)
        }

        /// Until it has nothing more to write: whom agents trust, and what signs here.
        fn settles(&mut self) -> (Vec<RootId>, RootId) {
            while self.looks().is_some() {}
            let roots = self.read.published.roots.iter().map(|root| root.id).collect();
            (roots, self.authority.signing().unwrap().root())
        }
    }

    fn material() -> Material {
        Material::of_root(identity::new_root(TRUST_DOMAIN).unwrap())
    }

    #[test]
    fn roots_that_cannot_be_read_or_are_gone_are_not_forgotten() {
        let mut leader = Leader::new();
        let (trusted, first) = leader.settles();
        assert_eq!(trusted, [first]);

        // Somebody spoils it, and somebody replaces the root meanwhile.
        let Seen::Present(good) = leader.roots.clone() else { panic!("it was written") };
        let mut spoiled = ConfigMap::clone(&good);
        spoiled.data = Some([(ROOTS_KEY.to_string(), "-----BEGIN CERTIFICATE-----\n".to_string())].into());
        leader.roots = Seen::Present(Arc::new(spoiled));
        leader.material = material();
        assert_eq!(leader.looks(), None, "over what cannot be read nothing is written");
        assert_eq!(leader.authority.signing().unwrap().root(), first);
        let (notes, missing) = (leader.readiness.notes(), leader.readiness.missing());
        assert!(is_told(&notes) && missing.is_empty(), "{notes:?} {missing:?}");

        // Then it is deleted: it comes back as it was, and the new root waits as any other.
        leader.roots = Seen::Absent;
        let (trusted, signs) = leader.settles();
        assert_eq!((trusted.len(), trusted[0], signs), (2, first, first));
        let next = trusted[1];
        assert!(leader.read.published.wait(next, SETTLE, SystemTime::now()).is_some(), "no agent has it yet");

        // A controller that has read nothing since it started signs nothing while it cannot read.
        let mut other = Leader::new();
        other.roots = Seen::Present(Arc::new(ConfigMap::default()));
        assert_eq!(other.looks(), None);
        assert!(other.authority.signing().is_err() && is_told(&other.readiness.missing()));
    }

    fn is_told(gates: &[(String, String)]) -> bool {
        gates.iter().any(|(gate, told)| gate == GATE && told.contains("roots.pem") && told.contains("put right"))
    }
}
