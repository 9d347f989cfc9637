//! Whom metrics name: who has an address, in Istio's words, and who is still there.

use std::sync::Arc;

use tokio::time::{MissedTickBehavior, interval};

use crate::drain::Token;
use crate::state::{StateReader, Workload};
use crate::telemetry::Metrics;
use crate::telemetry::istio::Party;
use crate::telemetry::table::{Present, SWEEP_INTERVAL};

/// Lets metrics find workloads by their addresses.
pub fn register(metrics: &Metrics, state: StateReader, node: &str) {
    let node: Arc<str> = node.into();
    metrics.register_parties(Box::new(move |ip| {
        state.current().workload_by_ip(ip).map(|workload| party(workload, &node))
    }));
}

/// Lets series go that name whom the mesh does not have any more, until `token`.
pub async fn sweep(metrics: Metrics, state: StateReader, mut token: Token) {
    let mut ticks = interval(SWEEP_INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = ticks.tick() => {}
            () = token.started() => return,
        }
        let world = state.current();
        metrics.sweep(&Present {
            identities: world.workloads().map(|workload| workload.identity.clone()).collect(),
            services: world
                .services()
                .map(|service| format!("{}/{}", service.namespace, service.name).into())
                .collect(),
        });
    }
}

fn party(workload: &Workload, node: &str) -> Party {
    let label = |name: &str| workload.labels.get(name).map(|value| Arc::<str>::from(value.as_str()));
    let made_by: Arc<str> = maker(workload).into();
    let canonical = ["service.istio.io/canonical-name", "app.kubernetes.io/name", "app"].into_iter().find_map(label);
    let revision =
        ["service.istio.io/canonical-revision", "app.kubernetes.io/version", "version"].into_iter().find_map(label);
    Party {
        identity: workload.identity.clone(),
        canonical_service: canonical.unwrap_or_else(|| made_by.clone()),
        workload: made_by,
        canonical_revision: revision.unwrap_or_else(|| "latest".into()),
        app: label("app"),
        version: label("version"),
        is_local: *workload.node == *node,
    }
}

/// What made a pod, by the labels that controllers put on theirs; else the pod itself.
fn maker(workload: &Workload) -> &str {
    let (name, label) = (&*workload.name, |name: &str| workload.labels.get(name).map(String::as_str));
    let before_last = || name.rsplit_once('-').map(|(made_by, _)| made_by);
    if let Some(hash) = label("pod-template-hash") {
        // A Deployment's: <name>-<hash>-<random>
        return before_last().and_then(|set| set.strip_suffix(hash)?.strip_suffix('-')).unwrap_or(name);
    }
    if let Some(job) = label("batch.kubernetes.io/job-name").or_else(|| label("job-name")) {
        return job;
    }
    let is_numbered = label("statefulset.kubernetes.io/pod-name").is_some();
    match is_numbered || label("controller-revision-hash").is_some() {
        true => before_last().unwrap_or(name),
        false => name,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spiffe::SpiffeId;

    fn pod(name: &str, labels: &[(&str, &str)]) -> Workload {
        Workload {
            uid: name.into(),
            name: name.into(),
            namespace: "shop".into(),
            node: "n1".into(),
            identity: SpiffeId::new("cluster.local", "shop", "web").unwrap(),
            ips: Vec::new(),
            labels: labels.iter().map(|(name, value)| (name.to_string(), value.to_string())).collect(),
            named_ports: Default::default(),
            host_ips: Vec::new(),
            host_ports: Vec::new(),
            exclusions: Default::default(),
            probe_ports: Default::default(),
            forwards: false,
            enrolled: true,
            refusal: None,
            host_network: false,
            ready: true,
            terminating: false,
            created: None,
        }
    }

    #[test]
    fn a_pod_is_called_by_what_made_it() {
        for (name, labels, expected) in [
            ("web-7d4f9-x2x9p", &[("pod-template-hash", "7d4f9")][..], "web"),
            ("my-web-7d4f9-x2x9p", &[("pod-template-hash", "7d4f9")], "my-web"),
            // A bare ReplicaSet whose template has that label by hand.
            ("web-x2x9p", &[("pod-template-hash", "7d4f9")], "web-x2x9p"),
            ("db-0", &[("statefulset.kubernetes.io/pod-name", "db-0"), ("controller-revision-hash", "db-5")], "db"),
            ("log-x2x9p", &[("controller-revision-hash", "5")], "log"),
            ("once-x2x9p", &[("batch.kubernetes.io/job-name", "once")], "once"),
            ("alone", &[], "alone"),
            ("alone-1", &[], "alone-1"),
        ] {
            assert_eq!(maker(&pod(name, labels)), expected, "{name}");
        }
    }

    #[test]
    fn canonical_names_are_labels_or_what_made_the_pod() {
        for (labels, expected) in [
            (&[("app", "a"), ("version", "v1")][..], ["a", "v1"]),
            (&[("app", "a"), ("app.kubernetes.io/name", "b")], ["b", "latest"]),
            (&[("service.istio.io/canonical-name", "c"), ("app", "a")], ["c", "latest"]),
            (&[], ["web", "latest"]),
        ] {
            let party = party(&pod("web", labels), "n1");
            assert_eq!([&*party.canonical_service, &*party.canonical_revision], expected);
            assert!(party.is_local);
        }
    }
}
