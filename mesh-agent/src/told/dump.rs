//! What is read of an agent's `/config_dump`. Agents of other versions say more or less: what is missing is shown as
//! unknown, never guessed.

use std::collections::BTreeMap;
use std::net::IpAddr;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// The sections below; the services of a large cluster would be most of an answer.
pub const PATH: &str = "/config_dump?sections=agent,discovery,identities,workloads";

/// An agent's own account of itself. A section that it could not make is an error, in words.
pub struct Dump {
    /// Who it is.
    pub agent: Result<AgentSection, String>,
    /// Its world.
    pub discovery: Result<DiscoverySection, String>,
    /// Its certificates.
    pub identities: Result<IdentitiesSection, String>,
    /// The pods of its node.
    pub workloads: Result<Vec<WorkloadEntry>, String>,
}

/// Who an agent is.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct AgentSection {
    pub version: String,
    pub node: String,
    /// Unix time.
    pub started: f64,
    /// Unix time when it was asked, by its node's clock. None where it does not say.
    pub now: Option<f64>,
    pub not_ready: BTreeMap<String, String>,
    pub connections_by_worker: Vec<u64>,
}

/// How old an agent's world is.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct DiscoverySection {
    pub state_version: Option<u64>,
    pub age_seconds: Option<f64>,
    pub health: HealthEntry,
}

/// How the source of the world is.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct HealthEntry {
    pub unreachable: Option<String>,
    pub objects: Option<u64>,
    pub findings: Vec<FindingEntry>,
    pub watches: Vec<WatchEntry>,
}

/// Something wrong with an object.
#[derive(Clone, Debug, Default, Deserialize, Serialize, PartialEq, Eq, PartialOrd, Ord)]
#[serde(default)]
pub struct FindingEntry {
    pub kind: String,
    /// `<namespace>/<name>`
    pub object: String,
    pub field: String,
    pub reason: String,
}

/// A list of the API server that an agent follows.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct WatchEntry {
    pub watch: String,
    /// `following` where all is well.
    pub state: String,
    pub reason: Option<String>,
}

/// Certificates and roots.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct IdentitiesSection {
    pub authority: Option<Value>,
    pub trouble: Option<String>,
    pub roots: Vec<RootEntry>,
    pub svids: Vec<SvidEntry>,
}

/// A root that is trusted.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct RootEntry {
    pub root: String,
    /// Unix time.
    pub not_after: f64,
    pub signs: bool,
}

/// A workload's certificate.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct SvidEntry {
    pub id: String,
    /// Unix time.
    pub not_after: Option<f64>,
    pub seconds_left: Option<f64>,
    /// Unix time.
    pub issued: Option<f64>,
    pub root: Option<String>,
    pub serial: String,
    pub last_error: Option<String>,
    pub failures: u64,
}

/// A pod of the node.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct WorkloadEntry {
    pub namespace: String,
    pub name: String,
    pub identity: String,
    pub enrolled: bool,
    /// Why it is not, although a label says that it should be.
    pub refusal: Option<String>,
    /// None where the agent does not say.
    pub captured: Option<bool>,
    pub not_captured: Option<String>,
    pub ips: Vec<IpAddr>,
    /// The policy before it, as its agent shows it.
    pub policy: Value,
}

impl SvidEntry {
    /// Whether there is a certificate and it has not ended, by the node's clock.
    pub fn is_in_force(&self) -> bool {
        self.seconds_left.is_some_and(|left| left > 0.0)
    }
}

/// A whole answer, section by section.
pub fn sections(answer: &[u8]) -> Result<Value, String> {
    serde_json::from_slice(answer).map_err(|error| format!("no /config_dump: {error}"))
}

impl Dump {
    /// Reads an answer.
    pub fn read(answer: &[u8]) -> Result<Self, String> {
        let mut dump = sections(answer)?;
        Ok(Self {
            agent: section(&mut dump, "agent"),
            discovery: section(&mut dump, "discovery"),
            identities: section(&mut dump, "identities"),
            workloads: section(&mut dump, "workloads"),
        })
    }
}

/// One section of an answer.
pub fn section<T: DeserializeOwned>(dump: &mut Value, name: &str) -> Result<T, String> {
    let value = dump.get_mut(name).map(Value::take).ok_or_else(|| format!("{name}: the agent says nothing of it"))?;
    if let Some(error) = value.get("error").and_then(Value::as_str) {
        return Err(format!("{name}: {error}"));
    }
    serde_json::from_value(value).map_err(|error| format!("{name}: {error}"))
}
