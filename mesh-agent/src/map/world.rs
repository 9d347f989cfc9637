//! What agents tell of pods, certificates, Services, routes and policies, as one picture of the mesh.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use serde::Deserialize;
use serde::Serialize;
use serde_json::Value;

use super::reading::Party;
use crate::told::Name;
use crate::told::dump::{AgentSection, DiscoverySection, Dump, RootEntry, SvidEntry, WorkloadEntry};

/// What every agent is asked.
pub const OF_AGENTS: &str = crate::told::dump::PATH;
/// What one agent is asked: all know it alike.
pub const OF_ANY: &str = "/config_dump?sections=policies,routes,services";

/// The mesh as its agents see it.
#[derive(Default)]
pub struct World {
    /// By name; those that do not answer with the reason.
    pub agents: BTreeMap<Name, Result<AgentFacts, String>>,
    /// By `<namespace>/<service account>`.
    pub workloads: BTreeMap<String, Workload>,
    /// Services of the cluster.
    pub services: Vec<Service>,
    /// As an agent shows them.
    pub routes: Vec<Value>,
    /// As an agent shows them.
    pub policies: Value,
    /// Why the last three are not known, if so.
    pub trouble: Option<String>,
    /// Which accounts serve a Service, by `<namespace>/<name>`.
    serving: BTreeMap<String, BTreeSet<String>>,
}

/// An agent's account of itself.
pub struct AgentFacts {
    /// Who it is.
    pub agent: AgentSection,
    /// How old its world is.
    pub discovery: Option<DiscoverySection>,
    /// Trouble with who signs certificates.
    pub authority: Option<String>,
    /// Its pods: all, of the mesh, captured.
    pub pods: (usize, usize, usize),
    /// Certificates: in force, all.
    pub certificates: (usize, usize),
}

/// The pods of a service account.
#[derive(Default)]
pub struct Workload {
    /// Its SPIFFE identity.
    pub identity: String,
    /// Its pods.
    pub pods: Vec<Pod>,
    /// The certificate of each agent that has one for it.
    pub certificates: Vec<Certificate>,
    /// `<namespace>/<name>` of Services that lead to it.
    pub services: BTreeSet<String>,
}

/// A pod.
#[derive(Clone, Debug, Serialize)]
pub struct Pod {
    /// Its node.
    pub node: String,
    /// What its agent says of it.
    #[serde(flatten)]
    pub entry: WorkloadEntry,
}

/// A certificate.
#[derive(Clone, Debug, Serialize)]
pub struct Certificate {
    /// The agent's node.
    pub node: String,
    /// What its agent says of it.
    #[serde(flatten)]
    pub entry: SvidEntry,
    /// The root that it rests on.
    pub root_entry: Option<RootEntry>,
}

/// A Service as agents show it.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Service {
    pub namespace: String,
    pub name: String,
    #[serde(rename = "clusterIPs")]
    pub cluster_ips: Vec<IpAddr>,
    pub ports: Vec<ServicePort>,
}

/// One of its ports.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ServicePort {
    pub name: String,
    pub port: u16,
    pub protocol: Value,
    pub endpoints: Vec<SocketAddr>,
}

impl World {
    /// Of what each agent says of itself, and one of them of the cluster.
    pub fn new(told: Vec<(Name, Result<Dump, String>)>, of_any: Result<Value, String>) -> Self {
        let mut world = Self::default();
        let mut by_address = BTreeMap::<IpAddr, String>::new();
        for (name, dump) in told {
            let facts = dump.and_then(|dump| world.take(dump, &mut by_address));
            world.agents.insert(name, facts);
        }
        match of_any {
            Ok(mut shown) => {
                let mut section = |name: &str| shown.get_mut(name).map(Value::take).unwrap_or_default();
                world.policies = section("policies");
                if let Value::Array(routes) = section("routes").get_mut("routes").map(Value::take).unwrap_or_default() {
                    world.routes = routes;
                }
                world.services = serde_json::from_value(section("services")).unwrap_or_default();
            }
            Err(error) => world.trouble = Some(error),
        }
        for service in &world.services {
            let endpoints = service.ports.iter().flat_map(|port| &port.endpoints);
            let name = format!("{}/{}", service.namespace, service.name);
            for account in endpoints.filter_map(|endpoint| by_address.get(&endpoint.ip())) {
                world.serving.entry(name.clone()).or_default().insert(account.clone());
                if let Some(workload) = world.workloads.get_mut(account) {
                    workload.services.insert(name.clone());
                }
            }
        }
        world
    }

    fn take(&mut self, dump: Dump, by_address: &mut BTreeMap<IpAddr, String>) -> Result<AgentFacts, String> {
        let Dump { agent, discovery, identities, workloads } = dump;
        let (agent, pods) = (agent?, workloads?);
        let identities = identities.unwrap_or_default();
        let enrolled = pods.iter().filter(|pod| pod.enrolled).count();
        let captured = pods.iter().filter(|pod| pod.captured == Some(true)).count();
        let in_force = identities.svids.iter().filter(|svid| svid.is_in_force()).count();
        let facts = AgentFacts {
            discovery: discovery.ok(),
            authority: identities.trouble.clone(),
            pods: (pods.len(), enrolled, captured),
            certificates: (in_force, identities.svids.len()),
            agent,
        };
        let node = &facts.agent.node;
        for entry in pods {
            let Some(account) = account(&entry.identity) else { continue };
            for ip in &entry.ips {
                by_address.insert(*ip, account.clone());
            }
            let workload = self.workloads.entry(account).or_default();
            workload.identity = entry.identity.clone();
            workload.pods.push(Pod { node: node.clone(), entry });
        }
        for entry in identities.svids {
            let Some(account) = account(&entry.id) else { continue };
            let root_entry = identities.roots.iter().find(|root| Some(&root.root) == entry.root.as_ref()).cloned();
            let workload = self.workloads.entry(account).or_default();
            workload.identity = entry.id.clone();
            workload.certificates.push(Certificate { node: node.clone(), entry, root_entry });
        }
        Ok(facts)
    }

    /// By whom a party is shown: a Service by who serves it, where that is one.
    pub fn shown(&self, party: &Party) -> Party {
        let Party::Service(name) = party else { return party.clone() };
        let mut serving = self.serving.get(name).into_iter().flatten();
        match (serving.next(), serving.next()) {
            (Some(account), None) => Party::Account(account.clone()),
            _ => party.clone(),
        }
    }
}

/// `spiffe://<trust domain>/ns/<namespace>/sa/<service account>` → `<namespace>/<service account>`
pub fn account(identity: &str) -> Option<String> {
    let (_, path) = identity.strip_prefix("spiffe://")?.split_once("/ns/")?;
    let (namespace, account) = path.split_once("/sa/")?;
    Some(format!("{namespace}/{account}"))
}
