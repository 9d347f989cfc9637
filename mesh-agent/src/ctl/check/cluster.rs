//! What the API server says of the cluster and of the mesh's own objects, with the rights of whoever asks; and what that
//! means.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use anyhow::Result;
use k8s_openapi::api::apps::v1::{DaemonSet, Deployment};
use k8s_openapi::api::authorization::v1::{ResourceAttributes, SelfSubjectAccessReview, SelfSubjectAccessReviewSpec};
use k8s_openapi::api::core::v1::{Node, PodTemplateSpec};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{ListParams, PostParams};
use kube::{Api, Client};

use super::{Line, Part, some_of};
use crate::apiserver::{ApiServer, chain};

/// The mesh's own objects, as manifests/base names them.
const AGENTS: &str = "nodemesh-agent";
const CONTROLLER: &str = "nodemesh-controller";
/// The container that puts the plugin of the container network on the node.
const PLUGIN: &str = "cni";
/// The Gateway API, by its resources and the versions of them that are read, the best first.
const GATEWAY: &str = "gateway.networking.k8s.io";
const ROUTES: [(&str, &[&str]); 5] = [
    ("httproutes", &["v1", "v1beta1"]),
    ("grpcroutes", &["v1"]),
    ("tcproutes", &["v1"]),
    ("tlsroutes", &["v1"]),
    ("referencegrants", &["v1", "v1beta1"]),
];
/// Where a release of the Gateway API says which it is.
const BUNDLE: &str = "gateway.networking.k8s.io/bundle-version";
const OURS: &str = "nodemesh.dev";
const POLICIES: [(&str, &[&str]); 5] = [
    ("peerauthentications", &["v1alpha1"]),
    ("authorizationpolicies", &["v1alpha1"]),
    ("requestauthentications", &["v1alpha1"]),
    ("trafficpolicies", &["v1alpha1"]),
    ("externalauthorizers", &["v1alpha1"]),
];
/// The first minor version of Kubernetes 1 whose API server knows all that our definitions say.
const FIRST_MINOR: u32 = 31;
/// The first kernel that has what the programs need.
const FIRST_KERNEL: (u32, u32) = (5, 15);

/// Whom to ask for what.
pub struct Asked<'a> {
    /// The API server.
    pub server: &'a ApiServer,
    /// Of the mesh's own objects.
    pub namespace: &'a str,
    /// For one answer.
    pub timeout: Duration,
}

/// What was said. What was not is why it was not.
pub struct Facts {
    server: String,
    namespace: String,
    /// The API server's, as `v1.36.0`, and the minor number in it.
    pub version: Result<(String, Option<u32>), String>,
    /// By group: the version in which each resource is served.
    gateway: Result<BTreeMap<String, BTreeSet<String>>, String>,
    ours: Result<BTreeMap<String, BTreeSet<String>>, String>,
    /// The Gateway API's release, where the definitions may be read.
    bundle: Option<String>,
    /// What meshctl needs, and whether the caller may.
    rights: Vec<(Right, Result<bool, String>)>,
    nodes: Result<Vec<NodeFacts>, String>,
    agents: Result<Option<Rollout>, String>,
    controller: Result<Option<Rollout>, String>,
    /// The nodes that have a pod of the agents.
    pub with_agents: BTreeSet<String>,
}

/// Something that meshctl does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Right {
    verb: &'static str,
    group: &'static str,
    resource: &'static str,
    /// In the mesh's namespace, or in all.
    is_namespaced: bool,
    /// What is not possible without it.
    needed_for: &'static str,
}

const fn right(verb: &'static str, resource: &'static str, needed_for: &'static str) -> Right {
    Right { verb, group: "", resource, is_namespaced: true, needed_for }
}

const RIGHTS: [Right; 4] = [
    right("list", "pods", "to find the agents"),
    right("create", "pods/exec", "to ask the agents"),
    right("get", "pods/exec", "to ask the agents"),
    Right { is_namespaced: false, ..right("list", "nodes", "to see nodes without an agent") },
];

#[derive(Clone, Debug, Default)]
struct NodeFacts {
    name: String,
    labels: BTreeMap<String, String>,
    kernel: String,
    os: String,
    is_ready: bool,
}

/// How far a DaemonSet or Deployment is.
#[derive(Clone, Debug, Default)]
struct Rollout {
    wanted: i32,
    updated: i32,
    ready: i32,
    images: Vec<(String, String)>,
    /// What nodes need to have one.
    node_selector: BTreeMap<String, String>,
    /// `NODEMESH_CA`, where it is set.
    authority: Option<String>,
}

impl Asked<'_> {
    /// Asks, one thing after the other: they are few.
    pub async fn look(&self) -> Result<Facts> {
        let client = self.server.client()?;
        let version = self.within(client.apiserver_version()).await.map(|info| {
            let minor = info.minor.trim_end_matches(|c: char| !c.is_ascii_digit()).parse().ok();
            (info.git_version, minor)
        });
        let mut facts = Facts {
            server: self.server.address(),
            namespace: self.namespace.to_string(),
            version,
            gateway: Err(String::new()),
            ours: Err(String::new()),
            bundle: None,
            rights: Vec::new(),
            nodes: Err(String::new()),
            agents: Err(String::new()),
            controller: Err(String::new()),
            with_agents: BTreeSet::new(),
        };
        if facts.version.is_err() {
            return Ok(facts);
        }
        facts.gateway = self.served(&client, GATEWAY, &["v1", "v1beta1"]).await;
        facts.ours = self.served(&client, OURS, &["v1alpha1"]).await;
        let definitions: Api<CustomResourceDefinition> = Api::all(client.clone());
        let name = format!("httproutes.{GATEWAY}");
        let definition = self.within(definitions.get_opt(&name)).await.ok().flatten();
        facts.bundle = definition.and_then(|found| found.metadata.annotations?.remove(BUNDLE));
        for right in RIGHTS {
            facts.rights.push((right, self.may(&client, right).await));
        }
        let nodes: Api<Node> = Api::all(client.clone());
        let listed = self.within(nodes.list(&ListParams::default())).await;
        facts.nodes = listed.map(|list| list.items.into_iter().map(NodeFacts::new).collect());
        let agents: Api<DaemonSet> = Api::namespaced(client.clone(), self.namespace);
        facts.agents = self.within(agents.get_opt(AGENTS)).await.map(|found| found.map(Rollout::of_daemon_set));
        let controllers: Api<Deployment> = Api::namespaced(client, self.namespace);
        facts.controller =
            self.within(controllers.get_opt(CONTROLLER)).await.map(|found| found.map(Rollout::of_deployment));
        Ok(facts)
    }

    async fn within<T>(&self, asked: impl Future<Output = kube::Result<T>>) -> Result<T, String> {
        match tokio::time::timeout(self.timeout, asked).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(kube::Error::Api(status))) => Err(status.message.clone()),
            Ok(Err(error)) => Err(chain(&error)),
            Err(_) => Err(format!("no answer within {}", humantime::format_duration(self.timeout))),
        }
    }

    /// What a group has, by the API server's own table: everybody may read that.
    async fn served(
        &self,
        client: &Client,
        group: &str,
        versions: &[&str],
    ) -> Result<BTreeMap<String, BTreeSet<String>>, String> {
        let mut served = BTreeMap::<String, BTreeSet<String>>::new();
        for version in versions {
            let name = format!("{group}/{version}");
            let listed = tokio::time::timeout(self.timeout, client.list_api_group_resources(&name));
            match listed.await {
                Ok(Ok(list)) => {
                    for resource in list.resources {
                        served.entry(resource.name).or_default().insert((*version).to_string());
                    }
                }
                Ok(Err(kube::Error::Api(status))) if status.code == 404 => {}
                Ok(Err(error)) => return Err(chain(&error)),
                Err(_) => return Err("no answer in time".into()),
            }
        }
        Ok(served)
    }

    async fn may(&self, client: &Client, right: Right) -> Result<bool, String> {
        let Right { verb, group, resource, is_namespaced, needed_for: _ } = right;
        let (resource, part) =
            resource.split_once('/').map_or((resource, None), |(resource, part)| (resource, Some(part)));
        let review = SelfSubjectAccessReview {
            spec: SelfSubjectAccessReviewSpec {
                resource_attributes: Some(ResourceAttributes {
                    verb: Some(verb.into()),
                    group: Some(group.into()),
                    resource: Some(resource.into()),
                    subresource: part.map(Into::into),
                    namespace: is_namespaced.then(|| self.namespace.to_string()),
                    ..ResourceAttributes::default()
                }),
                ..SelfSubjectAccessReviewSpec::default()
            },
            ..SelfSubjectAccessReview::default()
        };
        let reviews: Api<SelfSubjectAccessReview> = Api::all(client.clone());
        let reviewed = self.within(reviews.create(&PostParams::default(), &review)).await?;
        Ok(reviewed.status.is_some_and(|status| status.allowed))
    }
}

impl NodeFacts {
    fn new(node: Node) -> Self {
        let status = node.status.unwrap_or_default();
        let info = status.node_info.unwrap_or_default();
        let conditions = status.conditions.unwrap_or_default();
        Self {
            name: node.metadata.name.unwrap_or_default(),
            labels: node.metadata.labels.unwrap_or_default(),
            kernel: info.kernel_version,
            os: info.operating_system,
            is_ready: conditions.iter().any(|one| one.type_ == "Ready" && one.status == "True"),
        }
    }

    /// Major and minor, where they can be read.
    fn kernel_numbers(&self) -> Option<(u32, u32)> {
        let mut numbers = self.kernel.split(|c: char| !c.is_ascii_digit()).map(str::parse);
        Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
    }
}

impl Rollout {
    fn of_daemon_set(set: DaemonSet) -> Self {
        let status = set.status.unwrap_or_default();
        let template = set.spec.template;
        Self {
            wanted: status.desired_number_scheduled,
            updated: status.updated_number_scheduled.unwrap_or_default(),
            ready: status.number_ready,
            ..Self::of_template(template)
        }
    }

    fn of_deployment(deployment: Deployment) -> Self {
        let status = deployment.status.unwrap_or_default();
        let spec = deployment.spec;
        Self {
            wanted: spec.replicas.unwrap_or(1),
            updated: status.updated_replicas.unwrap_or_default(),
            ready: status.ready_replicas.unwrap_or_default(),
            ..Self::of_template(spec.template)
        }
    }

    fn of_template(template: PodTemplateSpec) -> Self {
        let spec = template.spec.unwrap_or_default();
        let variables = spec.containers.iter().filter_map(|container| container.env.as_ref()).flatten();
        let authority =
            variables.filter(|variable| variable.name == "NODEMESH_CA").find_map(|variable| variable.value.clone());
        let image = |container: &k8s_openapi::api::core::v1::Container| {
            (container.name.clone(), container.image.clone().unwrap_or_default())
        };
        Self {
            images: spec.containers.iter().map(image).collect(),
            node_selector: spec.node_selector.unwrap_or_default(),
            authority,
            ..Self::default()
        }
    }

    fn image(&self, container: &str) -> Option<&str> {
        self.images.iter().find(|(name, _)| name == container).map(|(_, image)| image.as_str())
    }

    fn is_done(&self) -> bool {
        self.ready >= self.wanted && self.updated >= self.wanted
    }

    fn told(&self) -> String {
        let Self { wanted, updated, ready, .. } = self;
        format!("{ready} of {wanted} ready, {updated} of {wanted} as last applied")
    }
}

impl Facts {
    /// A line for each thing.
    pub fn judge(&self) -> Vec<Line> {
        let reached = self.reached();
        if self.version.is_err() {
            return vec![reached];
        }
        let mut lines = vec![reached, self.policies(), self.routes(), self.rights(), self.kernels()];
        // Of a mesh that is not there yet nothing more is to be said.
        if !matches!(self.agents, Ok(None)) {
            lines.extend([self.covered(), self.rollout(), self.controller(), self.plugin()]);
        }
        lines
    }

    /// The lines about what the mesh needs and does not bring.
    pub fn fitness(&self) -> Vec<Line> {
        match self.version {
            Err(_) => vec![self.reached()],
            Ok(_) => vec![self.reached(), self.kernels()],
        }
    }

    fn reached(&self) -> Line {
        let name = "API server";
        match &self.version {
            Err(error) => Line::failed(
                Part::Cluster,
                name,
                format!("{}: {error}", self.server),
                "see that kubectl get --raw /version answers; --kubeconfig and --context are kubectl's",
            ),
            Ok((version, Some(minor))) if *minor < FIRST_MINOR => Line::failed(
                Part::Cluster,
                name,
                format!("{version} at {}", self.server),
                format!(
                    "upgrade it to 1.{FIRST_MINOR} or later: older ones do not know what the policies' definitions check"
                ),
            ),
            Ok((version, _)) => Line::ok(Part::Cluster, name, format!("{version} at {}", self.server)),
        }
    }

    fn policies(&self) -> Line {
        let name = "definitions of policies";
        match &self.ours {
            Err(error) => Line::unknown(Part::Cluster, name, error, None),
            Ok(served) => match missing(&POLICIES, served).as_slice() {
                [] => Line::ok(Part::Cluster, name, format!("{OURS}/v1alpha1, all {}", POLICIES.len())),
                missing => Line::failed(
                    Part::Cluster,
                    name,
                    format!("not served: {}", some_of(missing)),
                    "kubectl apply --server-side -k manifests/crds (installing the mesh does it, too)",
                ),
            },
        }
    }

    fn routes(&self) -> Line {
        let name = "Gateway API";
        let release = self.bundle.as_deref().map_or_else(String::new, |bundle| format!(", release {bundle}"));
        match &self.gateway {
            Err(error) => Line::unknown(Part::Cluster, name, error, None),
            Ok(served) => match missing(&ROUTES, served).as_slice() {
                [] => Line::ok(Part::Cluster, name, format!("all kinds of routes{release}")),
                missing => Line::warning(
                    Part::Cluster,
                    name,
                    format!("not served in a version that is read: {}{release}", some_of(missing)),
                    "nothing, where no such routes are wanted; else install its release 1.6 or later, \
                     kubectl apply --server-side -f standard-install.yaml (docs/routes.md)",
                ),
            },
        }
    }

    fn rights(&self) -> Line {
        let name = "your rights";
        let place = |right: &Right| if right.is_namespaced { format!(" -n {}", self.namespace) } else { String::new() };
        let mut lacking = Vec::new();
        let mut unseen = Vec::new();
        for (right, may) in &self.rights {
            let Right { verb, resource, needed_for, .. } = right;
            match may {
                Ok(true) => {}
                Ok(false) => lacking.push(format!("{verb} {resource}{} ({needed_for})", place(right))),
                Err(error) => unseen.push(error.clone()),
            }
        }
        match (lacking.is_empty(), unseen.is_empty()) {
            (false, _) => Line::failed(
                Part::Cluster,
                name,
                format!("you may not {}", some_of(&lacking)),
                "ask whoever grants rights in this cluster; whoever may exec in the agents' pods is root on the nodes",
            ),
            (true, false) => Line::unknown(Part::Cluster, name, some_of(&unseen), None),
            (true, true) => Line::ok(Part::Cluster, name, "all that meshctl needs"),
        }
    }

    /// Nodes on which no agent could work.
    fn kernels(&self) -> Line {
        let name = "nodes";
        let nodes = match &self.nodes {
            Err(error) => return Line::unknown(Part::Cluster, name, error, None),
            Ok(nodes) => nodes,
        };
        let of_linux = || nodes.iter().filter(|node| node.os == "linux");
        let old: Vec<String> = of_linux()
            .filter(|node| node.kernel_numbers().is_some_and(|kernel| kernel < FIRST_KERNEL))
            .map(|node| format!("{} has Linux {}", node.name, node.kernel))
            .collect();
        let away: Vec<String> = nodes.iter().filter(|node| !node.is_ready).map(|node| node.name.clone()).collect();
        let (major, minor) = FIRST_KERNEL;
        match (old.is_empty(), away.is_empty()) {
            (false, _) => Line::failed(
                Part::Cluster,
                name,
                some_of(&old),
                format!(
                    "Linux {major}.{minor} or later is needed; keep the agents off these nodes by a nodeSelector till then"
                ),
            ),
            (true, false) => Line::warning(
                Part::Cluster,
                name,
                format!("not ready: {}", some_of(&away)),
                "kubectl describe node has why; the mesh waits for them",
            ),
            (true, true) => Line::ok(
                Part::Cluster,
                name,
                format!("{} of Linux {major}.{minor} or later, all ready", of_linux().count()),
            ),
        }
    }

    /// Nodes that should have an agent and have none: their pods cannot be in the mesh.
    fn covered(&self) -> Line {
        let name = "nodes have an agent";
        let (Ok(nodes), Ok(Some(agents))) = (&self.nodes, &self.agents) else {
            return Line::unknown(Part::Mesh, name, "nodes or DaemonSet cannot be seen", None);
        };
        let is_wanted = |node: &&NodeFacts| {
            node.os == "linux"
                && agents.node_selector.iter().all(|(label, value)| node.labels.get(label) == Some(value))
        };
        let bare: Vec<String> = nodes
            .iter()
            .filter(is_wanted)
            .filter(|node| !self.with_agents.contains(&node.name))
            .map(|node| node.name.clone())
            .collect();
        match bare.is_empty() {
            true => Line::ok(Part::Mesh, name, format!("all {}", nodes.iter().filter(is_wanted).count())),
            false => Line::failed(
                Part::Mesh,
                name,
                format!("none on {}", some_of(&bare)),
                format!("kubectl -n {} describe daemonset {AGENTS} says what keeps it away", self.namespace),
            ),
        }
    }

    fn rollout(&self) -> Line {
        self.rolled_out("agents are rolled out", "daemonset", AGENTS, &self.agents)
    }

    fn controller(&self) -> Line {
        let name = "controller";
        let authority = self.agents.as_ref().ok().and_then(|agents| agents.as_ref()?.authority.as_deref());
        match (&self.controller, authority) {
            (Ok(None), Some(authority)) if !authority.contains(CONTROLLER) => {
                Line::ok(Part::Mesh, name, format!("none, and none is needed: certificates come from {authority}"))
            }
            (Ok(None), _) => Line::failed(
                Part::Mesh,
                name,
                format!("there is no Deployment {CONTROLLER}, and agents ask it for certificates"),
                "apply the manifests again; what is valid serves until it ends",
            ),
            (controller, _) => self.rolled_out(name, "deployment", CONTROLLER, controller),
        }
    }

    fn rolled_out(
        &self,
        name: &'static str,
        kind: &str,
        object: &str,
        found: &Result<Option<Rollout>, String>,
    ) -> Line {
        match found {
            Err(error) => Line::unknown(Part::Mesh, name, error, None),
            Ok(None) => {
                Line::failed(Part::Mesh, name, format!("there is no {kind} {object}"), "apply the manifests again")
            }
            Ok(Some(rollout)) if rollout.is_done() => Line::ok(Part::Mesh, name, rollout.told()),
            Ok(Some(rollout)) => Line::failed(
                Part::Mesh,
                name,
                rollout.told(),
                format!(
                    "kubectl -n {0} rollout status {kind}/{object}; kubectl -n {0} get pods -l app.kubernetes.io/name={object} \
                     has the pods that wait",
                    self.namespace
                ),
            ),
        }
    }

    /// Whether pods start captured, and whether agents, plugin and controller are of one image.
    fn plugin(&self) -> Line {
        let name = "CNI plugin";
        let Ok(Some(agents)) = &self.agents else {
            return Line::unknown(Part::Mesh, name, "the DaemonSet cannot be seen", None);
        };
        match (agents.image(PLUGIN), agents.image("agent")) {
            (Some(plugin), Some(agent)) if plugin != agent => Line::warning(
                Part::Mesh,
                name,
                format!("it is of image {plugin}, the agents of {agent}"),
                "apply the overlay with one image for both",
            ),
            (Some(_), _) => Line::ok(Part::Mesh, name, "installed: pods start captured"),
            (None, _) => Line::ok(Part::Mesh, name, "not installed: pods are captured a moment after they start"),
        }
    }
}

/// The resources that are not served in a version that is read.
fn missing(wanted: &[(&str, &[&str])], served: &BTreeMap<String, BTreeSet<String>>) -> Vec<String> {
    let is_served = |resource: &str, versions: &[&str]| {
        served.get(resource).is_some_and(|served| versions.iter().any(|version| served.contains(*version)))
    };
    let absent = wanted.iter().filter(|(resource, versions)| !is_served(resource, versions));
    absent.map(|(resource, _)| (*resource).to_string()).collect()
}

#[cfg(test)]
mod tests {
    use super::super::Judged;
    use super::*;

    fn served(names: &[(&str, &str)]) -> BTreeMap<String, BTreeSet<String>> {
        names.iter().map(|(name, version)| ((*name).to_string(), BTreeSet::from([(*version).to_string()]))).collect()
    }

    fn fit() -> Facts {
        let all = |table: &[(&str, &[&str])]| {
            served(&table.iter().map(|(name, versions)| (*name, versions[0])).collect::<Vec<_>>())
        };
        let node = |name: &str| NodeFacts {
            name: name.into(),
            labels: BTreeMap::from([("kubernetes.io/os".into(), "linux".into())]),
            kernel: "6.18.1-generic".into(),
            os: "linux".into(),
            is_ready: true,
        };
        let rollout = |image: &str| Rollout {
            wanted: 2,
            updated: 2,
            ready: 2,
            images: vec![("agent".into(), image.into())],
            node_selector: BTreeMap::from([("kubernetes.io/os".into(), "linux".into())]),
            authority: Some("https://nodemesh-controller.nodemesh-system.svc:15012".into()),
        };
        Facts {
            server: "https://here".into(),
            namespace: "nodemesh-system".into(),
            version: Ok(("v1.36.0".into(), Some(36))),
            gateway: Ok(all(&ROUTES)),
            ours: Ok(all(&POLICIES)),
            bundle: Some("v1.6.3".into()),
            rights: RIGHTS.into_iter().map(|right| (right, Ok(true))).collect(),
            nodes: Ok(vec![node("n1"), node("n2")]),
            agents: Ok(Some(rollout("nodemesh:1"))),
            controller: Ok(Some(rollout("nodemesh:1"))),
            with_agents: ["n1", "n2"].map(str::to_string).into(),
        }
    }

    #[test]
    fn a_cluster_that_is_fit() {
        for line in fit().judge() {
            assert_eq!((line.result, &line.todo), (Judged::Ok, &None), "{line:?}");
        }
    }

    #[test]
    fn what_is_wrong_and_what_to_do() {
        type Change = fn(&mut Facts);
        let table: [(&str, Change, Judged, &str, &str); 16] = [
            (
                "API server",
                |f| f.version = Err("refused".into()),
                Judged::Failed,
                "https://here: refused",
                "--raw /version",
            ),
            (
                "API server",
                |f| f.version = Ok(("v1.30.2".into(), Some(30))),
                Judged::Failed,
                "v1.30.2",
                "1.31 or later",
            ),
            (
                "definitions of policies",
                |f| f.ours = Ok(BTreeMap::new()),
                Judged::Failed,
                "peerauthentications, ",
                "manifests/crds",
            ),
            ("definitions of policies", |f| f.ours = Err("late".into()), Judged::Unknown, "late", ""),
            (
                "Gateway API",
                |f| f.gateway = Ok(served(&[("httproutes", "v1beta1"), ("grpcroutes", "v1beta1")])),
                Judged::Warning,
                "read: grpcroutes, tcproutes, tlsroutes, referencegrants",
                "standard-install.yaml",
            ),
            (
                "your rights",
                |f| f.rights[1].1 = Ok(false),
                Judged::Failed,
                "create pods/exec -n nodemesh-system",
                "root on the nodes",
            ),
            ("your rights", |f| f.rights[1].1 = Err("no".into()), Judged::Unknown, "no", ""),
            (
                "nodes",
                |f| f.nodes.as_mut().unwrap()[0].kernel = "5.4.0-1".into(),
                Judged::Failed,
                "n1 has Linux 5.4.0-1",
                "5.15",
            ),
            (
                "nodes",
                |f| f.nodes.as_mut().unwrap()[1].is_ready = false,
                Judged::Warning,
                "not ready: n2",
                "describe node",
            ),
            ("nodes", |f| f.nodes = Err("forbidden".into()), Judged::Unknown, "forbidden", ""),
            ("nodes have an agent", |f| f.with_agents.clear(), Judged::Failed, "none on n1, n2", "describe daemonset"),
            (
                "agents are rolled out",
                |f| f.agents.as_mut().unwrap().as_mut().unwrap().ready = 1,
                Judged::Failed,
                "1 of 2 ready",
                "rollout status daemonset/nodemesh-agent",
            ),
            ("controller", |f| f.controller = Ok(None), Judged::Failed, "no Deployment", "apply"),
            (
                "controller",
                |f| {
                    f.controller = Ok(None);
                    f.agents.as_mut().unwrap().as_mut().unwrap().authority = Some("dir:/var/lib/nodemesh".into());
                },
                Judged::Ok,
                "certificates come from dir:/var/lib/nodemesh",
                "",
            ),
            (
                "CNI plugin",
                |f| f.agents.as_mut().unwrap().as_mut().unwrap().images.push(("cni".into(), "nodemesh:2".into())),
                Judged::Warning,
                "of image nodemesh:2, the agents of nodemesh:1",
                "one image",
            ),
            ("API server", |f| f.version = Ok(("v1.99+".into(), None)), Judged::Ok, "v1.99+", ""),
        ];
        for (name, change, result, found, todo) in table {
            let mut facts = fit();
            change(&mut facts);
            let lines = facts.judge();
            let line = lines.iter().find(|line| line.name == name).unwrap();
            assert_eq!(line.result, result, "{line:?}");
            assert!(line.found.contains(found), "{found:?} in {line:?}");
            assert!(line.todo.as_deref().unwrap_or_default().contains(todo), "{todo:?} in {line:?}");
            let is_wrong = |line: &&Line| matches!(line.result, Judged::Failed | Judged::Warning);
            let others = lines.iter().filter(|line| line.name != name).filter(is_wrong);
            assert_eq!(others.count(), 0, "{lines:?}");
        }
    }

    #[test]
    fn before_the_mesh_is_there_the_cluster_alone_is_judged() {
        let mut facts = fit();
        facts.agents = Ok(None);
        assert!(facts.judge().iter().all(|line| line.part == Part::Cluster));
    }
}
