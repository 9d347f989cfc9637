//! The kinds that are watched, and what the API server calls them.
//!
//! ServiceAccounts are not among them: a pod says which account it has, a policy which accounts it means, and nothing of
//! the account's own object would change what either says.

use kube::api::{ApiResource, GroupVersionKind};
use kube::runtime::watcher;

use crate::discovery::crd;
use crate::discovery::gateway;
use crate::state::Kind;

/// One list that is followed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Watch {
    /// Its name, for people and metrics: the resource with its group, as RBAC and kubectl have it.
    pub name: &'static str,
    /// What is in it.
    pub kind: Kind,
    group: &'static str,
    /// Versions that `object::read` takes, the best first.
    versions: &'static [&'static str],
    plural: &'static str,
    /// Which of the objects.
    fields: Option<String>,
}

/// Every list that an agent of `node` follows. Pods of the node have a list of their own, which is short: they are seen
/// while the long one is still on its way. No pod is in both. Without a node there is one list of all pods.
pub fn watches(node: &str) -> Vec<Watch> {
    let core: &[(&str, Kind, &str)] = &[
        ("namespaces", Kind::Namespace, "namespaces"),
        ("nodes", Kind::Node, "nodes"),
        ("services", Kind::Service, "services"),
    ];
    let gateway: &[(&str, Kind, &str, &[&str])] = &[
        ("httproutes.gateway.networking.k8s.io", Kind::HttpRoute, "httproutes", &["v1", "v1beta1"]),
        ("grpcroutes.gateway.networking.k8s.io", Kind::GrpcRoute, "grpcroutes", &["v1"]),
        ("tcproutes.gateway.networking.k8s.io", Kind::TcpRoute, "tcproutes", &["v1"]),
        ("tlsroutes.gateway.networking.k8s.io", Kind::TlsRoute, "tlsroutes", &["v1"]),
        ("referencegrants.gateway.networking.k8s.io", Kind::ReferenceGrant, "referencegrants", &["v1", "v1beta1"]),
    ];
    let ours: &[(&str, Kind, &str)] = &[
        ("peerauthentications.nodemesh.dev", Kind::PeerAuthentication, "peerauthentications"),
        ("authorizationpolicies.nodemesh.dev", Kind::AuthorizationPolicy, "authorizationpolicies"),
        ("requestauthentications.nodemesh.dev", Kind::RequestAuthentication, "requestauthentications"),
        ("trafficpolicies.nodemesh.dev", Kind::TrafficPolicy, "trafficpolicies"),
        ("externalauthorizers.nodemesh.dev", Kind::ExternalAuthorizer, "externalauthorizers"),
    ];
    let watch = |name, kind, group, versions, plural| Watch { name, kind, group, versions, plural, fields: None };
    let slices =
        watch("endpointslices.discovery.k8s.io", Kind::EndpointSlice, "discovery.k8s.io", &["v1"], "endpointslices");
    let pods = |name, fields| Watch { fields, ..watch(name, Kind::Pod, "", &["v1"], "pods") };
    let pods = match node {
        "" => vec![pods("pods", None)],
        node => vec![
            pods("pods (this node)", Some(format!("spec.nodeName={node}"))),
            pods("pods (elsewhere)", Some(format!("spec.nodeName!={node}"))),
        ],
    };
    let core = core.iter().map(|&(name, kind, plural)| watch(name, kind, "", &["v1"], plural));
    let gateway =
        gateway.iter().map(|&(name, kind, plural, versions)| watch(name, kind, gateway::GROUP, versions, plural));
    let ours = ours.iter().map(|&(name, kind, plural)| watch(name, kind, crd::GROUP, &[crd::VERSION], plural));
    core.chain([slices]).chain(pods).chain(gateway).chain(ours).collect()
}

impl Watch {
    /// What the API server may call it, the best first.
    pub fn resources(&self) -> impl Iterator<Item = ApiResource> {
        let resource = |version: &&str| {
            let kind = GroupVersionKind::gvk(self.group, version, &self.kind.to_string());
            ApiResource::from_gvk_with_plural(&kind, self.plural)
        };
        self.versions.iter().map(resource)
    }

    /// Whether every API server serves it: there is no definition that could be taken away.
    pub fn is_built_in(&self) -> bool {
        ![gateway::GROUP, crd::GROUP].contains(&self.group)
    }

    /// How it is followed. An ordinary list, in pages, and not a streaming one: that may begin with what some API server
    /// has in its cache, which may be older than what is in force here.
    pub fn config(&self, page: u32, timeout_seconds: u32) -> watcher::Config {
        let config = watcher::Config::default().page_size(page).timeout(timeout_seconds);
        match &self.fields {
            Some(fields) => config.fields(fields),
            None => config,
        }
    }

    /// What an account needs to follow it, for the operator.
    pub fn rule(&self) -> String {
        let group = if self.group.is_empty() { "\"\"" } else { self.group };
        format!("verbs list and watch on {} of API group {group}", self.plural)
    }
}
