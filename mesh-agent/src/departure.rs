//! Whether what ends on a node takes the mesh with it: when the agents' DaemonSet is being deleted.
//!
//! A restart, an upgrade and an uninstall begin alike, with SIGTERM. What outlives the process keeps pods closed in the
//! first two, and must not stay after the third. What cannot be told is taken for a restart: never plaintext past policy.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use k8s_openapi::api::apps::v1::DaemonSet;
use kube::Api;

use crate::apiserver::{ApiServer, chain};
use crate::limit::{Limit, limits};

/// How long the API server may take to say it; whoever asks serves on meanwhile.
const PATIENCE: Duration = Duration::from_secs(10);

/// The bounds of this room.
pub fn limits() -> Vec<Limit> {
    limits![
        PATIENCE, "milliseconds", "for the API server to say whether the mesh is uninstalled";
    ]
}

/// The DaemonSet of the agents, as `NAMESPACE/NAME`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OwnDaemonSet {
    namespace: String,
    name: String,
}

impl FromStr for OwnDaemonSet {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let is_name = |name: &str| !name.is_empty() && !name.contains('/');
        match text.split_once('/') {
            Some((namespace, name)) if is_name(namespace) && is_name(name) => {
                Ok(Self { namespace: namespace.into(), name: name.into() })
            }
            _ => Err("expected a namespace, a slash and a name"),
        }
    }
}

impl fmt::Display for OwnDaemonSet {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}/{}", self.namespace, self.name)
    }
}

/// What became of the agents' DaemonSet.
#[derive(Clone, Debug, PartialEq)]
pub enum Agents {
    /// It is gone, or is being deleted: the mesh leaves the node.
    Gone,
    /// It is there: another process comes in this one's place.
    There(Box<DaemonSet>),
    /// It cannot be told; as if it were there.
    Unknown,
}

/// Whether the mesh is uninstalled, by the API server that `kubeconfig` names (None: the pod's own).
pub async fn is_meant(kubeconfig: Option<PathBuf>, own: &OwnDaemonSet) -> bool {
    agents(kubeconfig, own).await == Agents::Gone
}

/// Asks the API server what became of the agents. The log says why it cannot be told.
pub async fn agents(kubeconfig: Option<PathBuf>, own: &OwnDaemonSet) -> Agents {
    let told = match tokio::time::timeout(PATIENCE, ask(kubeconfig, own)).await {
        Ok(told) => told,
        Err(_) => Err(format!("no answer in {} s", PATIENCE.as_secs())),
    };
    told.unwrap_or_else(|reason| {
        let daemonset = own.to_string();
        tracing::warn!(daemonset, reason, "whether the mesh is uninstalled cannot be told: what it left stays");
        Agents::Unknown
    })
}

async fn ask(kubeconfig: Option<PathBuf>, own: &OwnDaemonSet) -> Result<Agents, String> {
    let client = ApiServer::find(kubeconfig).await.and_then(|server| server.client());
    let sets: Api<DaemonSet> = Api::namespaced(client.map_err(|error| chain(&error))?, &own.namespace);
    sets.get_opt(&own.name).await.map(seen).map_err(|error| chain(&error))
}

fn seen(found: Option<DaemonSet>) -> Agents {
    match found {
        Some(set) if set.metadata.deletion_timestamp.is_none() => Agents::There(set.into()),
        Some(_) | None => Agents::Gone,
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

    use super::*;

    #[test]
    fn only_a_daemonset_that_goes_takes_the_mesh_with_it() {
        let mut set = DaemonSet::default();
        assert_eq!(seen(None), Agents::Gone);
        assert_eq!(seen(Some(set.clone())), Agents::There(set.clone().into()));
        set.metadata.deletion_timestamp = Some(Time(k8s_openapi::jiff::Timestamp::UNIX_EPOCH));
        assert_eq!(seen(Some(set)), Agents::Gone);
    }

    #[tokio::test]
    async fn what_cannot_be_told_takes_nothing_with_it() {
        let own = "nodemesh-system/nodemesh-agent".parse().unwrap();
        let nowhere = tempfile::tempdir().unwrap().path().join("kubeconfig");
        assert_eq!(agents(Some(nowhere), &own).await, Agents::Unknown);
    }

    #[test]
    fn a_daemonset_is_named_with_its_namespace() {
        let own: OwnDaemonSet = "nodemesh-system/nodemesh-agent".parse().unwrap();
        assert_eq!(own.to_string(), "nodemesh-system/nodemesh-agent");
        for wrong in ["", "nodemesh-agent", "/nodemesh-agent", "nodemesh-system/", "a/b/c"] {
            assert!(wrong.parse::<OwnDaemonSet>().is_err(), "{wrong:?}");
        }
    }
}
