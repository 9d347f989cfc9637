//! Whether an agent that ends takes the mesh with it: when the DaemonSet that it belongs to is being deleted.
//!
//! A restart, an upgrade and an uninstall begin alike, with SIGTERM. What outlives the agent keeps pods closed in the first
//! two, and must not stay after the third. What cannot be told is taken for a restart: never plaintext past policy.

use std::time::Duration;

use k8s_openapi::api::apps::v1::DaemonSet;
use kube::Api;

use crate::apiserver::{ApiServer, chain};
use crate::config::{Config, Discovery, OwnDaemonSet};

/// How long the API server may take to say it; the agent serves on meanwhile.
pub(super) const PATIENCE: Duration = Duration::from_secs(10);

/// What an ending agent does with its node.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Departure {
    /// The mesh leaves: every pod goes, then programs and maps.
    Leaves,
    /// Another agent comes.
    Stays,
    /// It cannot be told, for this reason; as if another agent came.
    Unknown(String),
}

/// Whether this agent is the last one of its node.
pub(super) async fn is_meant(config: &Config) -> bool {
    let (Discovery::Kubernetes { kubeconfig }, Some(own)) = (&config.discovery, &config.daemonset) else {
        return false;
    };
    let departure = match ApiServer::find(kubeconfig.clone()).await {
        Ok(server) => ask(&server, own).await,
        Err(error) => Departure::Unknown(chain(&error)),
    };
    if let Departure::Unknown(reason) = &departure {
        tracing::warn!(reason, "whether the mesh is uninstalled cannot be told; its pods stay captured");
    }
    departure == Departure::Leaves
}

/// Asks the API server.
async fn ask(server: &ApiServer, own: &OwnDaemonSet) -> Departure {
    let client = match server.client() {
        Ok(client) => client,
        Err(error) => return Departure::Unknown(chain(&error)),
    };
    let sets: Api<DaemonSet> = Api::namespaced(client, &own.namespace);
    match tokio::time::timeout(PATIENCE, sets.get_opt(&own.name)).await {
        Ok(answer) => decide(answer),
        Err(_) => Departure::Unknown(format!("no answer in {} s", PATIENCE.as_secs())),
    }
}

fn decide(answer: Result<Option<DaemonSet>, kube::Error>) -> Departure {
    match answer {
        Ok(None) => Departure::Leaves,
        Ok(Some(set)) if set.metadata.deletion_timestamp.is_some() => Departure::Leaves,
        Ok(Some(_)) => Departure::Stays,
        Err(error) => Departure::Unknown(chain(&error)),
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

    use super::*;

    #[test]
    fn only_a_daemonset_that_goes_takes_the_mesh_with_it() {
        let mut set = DaemonSet::default();
        assert_eq!(decide(Ok(None)), Departure::Leaves);
        assert_eq!(decide(Ok(Some(set.clone()))), Departure::Stays);
        set.metadata.deletion_timestamp = Some(Time(k8s_openapi::jiff::Timestamp::UNIX_EPOCH));
        assert_eq!(decide(Ok(Some(set))), Departure::Leaves);
        let forbidden =
            kube::Error::Api(Box::new(kube::core::Status::failure("no rights", "Forbidden").with_code(403)));
        assert!(matches!(decide(Err(forbidden)), Departure::Unknown(_)));
    }
}
