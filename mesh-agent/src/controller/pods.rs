//! The pods of the cluster, as a watch tells of them, down to what decisions are made by; and a fresh look at those of one
//! question.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::SystemTime;

use futures_util::{Stream, TryStreamExt as _};
use k8s_openapi::api::core::v1::Pod;
use kube::api::ListParams;
use kube::runtime::watcher::{self, Event};
use kube::runtime::{WatchStreamExt as _, watcher as watch};
use kube::{Api, Client};
use tracing::warn;

use super::authorize::{Caller, Known, Phase, PodFacts};
use crate::readiness::Readiness;
use crate::spiffe::SpiffeId;

/// Pods of one answer of the API server while the watch begins.
pub(super) const PAGE: u32 = 500;
/// Most pods of a fresh look: those of one namespace on one node.
pub(super) const MOST_BEARERS: u32 = 1000;

/// The gate of this part.
pub const GATE: &str = "pods";

/// All pods. Cheap to clone.
#[derive(Clone, Default)]
pub struct Pods {
    shared: Arc<RwLock<Table>>,
}

#[derive(Default)]
struct Table {
    pods: HashMap<Name, PodFacts>,
    /// By namespace and service account.
    accounts: HashMap<(String, String), HashSet<Name>>,
    /// Those that a list in progress has named; the rest goes at its end.
    listed: Option<HashSet<Name>>,
    /// The watch has told all and is not broken.
    is_current: bool,
}

/// Namespace and name.
type Name = (String, String);

impl Pods {
    /// What is known that matters for a question; none while the watch is broken, so that nothing is granted by what was
    /// true before.
    pub fn known(&self, caller: &Caller, id: &SpiffeId) -> Option<Known> {
        let table = self.read();
        if !table.is_current {
            return None;
        }
        let names = table.accounts.get(&(id.namespace().to_string(), id.service_account().to_string()));
        let bearers = names.into_iter().flatten().filter_map(|name| table.pods.get(name).cloned()).collect();
        let caller = table.pods.get(&(caller.account.namespace.clone(), caller.pod.clone())).cloned();
        Some(Known { caller, bearers })
    }

    /// One pod; none while the watch is broken.
    pub fn pod(&self, namespace: &str, name: &str) -> Option<PodFacts> {
        let table = self.read();
        let pod = table.pods.get(&(namespace.to_string(), name.to_string()));
        pod.filter(|_| table.is_current).cloned()
    }

    /// Watches until dropped.
    pub async fn follow(self, client: Client, readiness: Readiness) {
        let config = watcher::Config::default().page_size(PAGE);
        let events = watch(Api::<Pod>::all(client), config).default_backoff();
        self.hear(std::pin::pin!(events), &readiness).await;
    }

    async fn hear(&self, mut events: impl Stream<Item = watcher::Result<Event<Pod>>> + Unpin, readiness: &Readiness) {
        loop {
            match events.try_next().await {
                Ok(Some(event)) => {
                    let mut table = self.write();
                    table.apply(event);
                    if table.is_current {
                        readiness.ready(GATE);
                    }
                }
                Ok(None) => return,
                Err(error) => {
                    self.write().is_current = false;
                    warn!(error = %error, "pods cannot be watched: each certificate asks the API server anew");
                    readiness.noted(GATE, format!("pods cannot be watched: {error}"));
                }
            }
        }
    }

    fn read(&self) -> RwLockReadGuard<'_, Table> {
        self.shared.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Table> {
        self.shared.write().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Table {
    fn apply(&mut self, event: Event<Pod>) {
        match event {
            Event::Init => self.listed = Some(HashSet::new()),
            Event::InitApply(pod) => {
                let name = self.put(&pod);
                if let (Some(listed), Some(name)) = (&mut self.listed, name) {
                    listed.insert(name);
                }
            }
            Event::InitDone => {
                if let Some(listed) = self.listed.take() {
                    let gone: Vec<Name> = self.pods.keys().filter(|name| !listed.contains(*name)).cloned().collect();
                    gone.iter().for_each(|name| self.remove(name));
                }
                self.is_current = true;
            }
            Event::Apply(pod) => {
                self.put(&pod);
                // A watch that broke has found its place again.
                self.is_current = self.listed.is_none();
            }
            Event::Delete(pod) => {
                if let Some(facts) = facts(&pod) {
                    self.remove(&(facts.namespace, facts.name));
                }
                self.is_current = self.listed.is_none();
            }
        }
    }

    fn put(&mut self, pod: &Pod) -> Option<Name> {
        let facts = facts(pod)?;
        let name = (facts.namespace.clone(), facts.name.clone());
        self.remove(&name);
        let account = (facts.namespace.clone(), facts.service_account.clone());
        self.accounts.entry(account).or_default().insert(name.clone());
        self.pods.insert(name.clone(), facts);
        Some(name)
    }

    fn remove(&mut self, name: &Name) {
        let Some(facts) = self.pods.remove(name) else { return };
        let account = (facts.namespace, facts.service_account);
        if let Some(names) = self.accounts.get_mut(&account) {
            names.remove(name);
            if names.is_empty() {
                self.accounts.remove(&account);
            }
        }
    }
}

/// What the API server says now of the pods that matter for a question.
///
/// # Errors
/// It cannot be asked.
pub async fn look(client: &Client, caller: &Caller, id: &SpiffeId) -> kube::Result<Known> {
    let own = Api::<Pod>::namespaced(client.clone(), &caller.account.namespace).get_opt(&caller.pod).await?;
    let caller = own.as_ref().and_then(facts);
    let Some(node) = caller.as_ref().and_then(|pod| pod.node.as_deref()) else {
        return Ok(Known { caller, bearers: Vec::new() });
    };
    let there = ListParams::default().fields(&format!("spec.nodeName={node}")).limit(MOST_BEARERS);
    let pods = Api::<Pod>::namespaced(client.clone(), id.namespace()).list(&there).await?;
    let is_bearer = |pod: &PodFacts| pod.service_account == id.service_account();
    Ok(Known { caller, bearers: pods.items.iter().filter_map(facts).filter(is_bearer).collect() })
}

/// The facts of a pod; none of one without a name or uid, which the API server does not serve.
pub fn facts(pod: &Pod) -> Option<PodFacts> {
    let (metadata, spec, status) = (&pod.metadata, pod.spec.as_ref()?, pod.status.as_ref());
    let phase = match status.and_then(|status| status.phase.as_deref()) {
        // Before its first status.
        None | Some("" | "Pending") => Phase::Pending,
        Some("Running") => Phase::Running,
        Some(_) => Phase::Over,
    };
    Some(PodFacts {
        namespace: metadata.namespace.clone()?,
        name: metadata.name.clone()?,
        uid: metadata.uid.clone()?,
        node: spec.node_name.clone().filter(|node| !node.is_empty()),
        service_account: spec.service_account_name.clone().unwrap_or_else(|| "default".to_string()),
        phase,
        gone_at: metadata.deletion_timestamp.as_ref().map(|time| SystemTime::from(time.0)),
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::controller::authorize::ServiceAccount;

    fn pod(name: &str, uid: &str, account: &str, node: &str, phase: &str) -> Pod {
        serde_json::from_value(json!({
            "metadata": { "namespace": "shop", "name": name, "uid": uid },
            "spec": { "containers": [], "serviceAccountName": account, "nodeName": node },
            "status": { "phase": phase },
        }))
        .unwrap()
    }

    fn bearers(pods: &Pods, account: &str) -> Option<Vec<String>> {
        let agents = ServiceAccount { namespace: "shop".to_string(), name: "agent".to_string() };
        let caller = Caller { account: agents, pod: "agent-1".to_string(), pod_uid: String::new(), node: None };
        let id = SpiffeId::new("cluster.local", "shop", account).unwrap();
        let mut uids: Vec<String> = pods.known(&caller, &id)?.bearers.into_iter().map(|pod| pod.uid).collect();
        uids.sort();
        Some(uids)
    }

    fn told(pods: &Pods, events: Vec<Event<Pod>>) {
        events.into_iter().for_each(|event| pods.write().apply(event));
    }

    #[test]
    fn nothing_is_known_before_the_list_is_whole() {
        let pods = Pods::default();
        told(&pods, vec![Event::Init, Event::InitApply(pod("web-1", "1", "web", "node-1", "Running"))]);
        assert_eq!(bearers(&pods, "web"), None);
        told(&pods, vec![Event::InitDone]);
        assert_eq!(bearers(&pods, "web"), Some(vec!["1".to_string()]));
    }

    #[test]
    fn pods_come_change_and_go() {
        let pods = Pods::default();
        let running = |name, uid, account| pod(name, uid, account, "node-1", "Running");
        told(&pods, vec![Event::Init, Event::InitDone]);
        told(&pods, vec![Event::Apply(running("a", "1", "web")), Event::Apply(running("b", "2", "web"))]);
        assert_eq!(bearers(&pods, "web").unwrap(), ["1", "2"]);
        // The same name, made anew with another account.
        told(&pods, vec![Event::Apply(running("a", "3", "api"))]);
        assert_eq!(
            (bearers(&pods, "web").unwrap(), bearers(&pods, "api").unwrap()),
            (vec!["2".into()], vec!["3".into()])
        );
        told(&pods, vec![Event::Delete(running("a", "3", "api"))]);
        assert_eq!(bearers(&pods, "api").unwrap(), [""; 0]);
        // A new list does not name b.
        told(&pods, vec![Event::Init, Event::InitApply(running("c", "4", "web")), Event::InitDone]);
        assert_eq!(bearers(&pods, "web").unwrap(), ["4"]);
        assert_eq!(pods.read().accounts.len(), 1, "an account without pods is kept");
    }

    #[test]
    fn what_is_read_of_a_pod() {
        let read = |phase: &str| facts(&pod("a", "1", "web", "node-1", phase)).unwrap();
        for (phase, expected) in [
            ("", Phase::Pending),
            ("Pending", Phase::Pending),
            ("Running", Phase::Running),
            ("Succeeded", Phase::Over),
            ("Failed", Phase::Over),
            ("Unknown", Phase::Over),
        ] {
            assert_eq!(read(phase).phase, expected, "{phase:?}");
        }
        let unscheduled = facts(&pod("a", "1", "web", "", "Pending")).unwrap();
        assert_eq!(unscheduled.node, None);
        let deleted: Pod = serde_json::from_value(json!({
            "metadata": { "namespace": "shop", "name": "a", "uid": "1", "deletionTimestamp": "1970-01-01T00:01:40Z" },
            "spec": { "containers": [] },
        }))
        .unwrap();
        let facts = facts(&deleted).unwrap();
        let hundred = SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(100);
        assert_eq!((facts.gone_at, facts.service_account.as_str()), (Some(hundred), "default"));
    }
}
