//! The words of CNI: what a runtime tells a plugin, and what it wants to hear.

use std::io::Read;
use std::net::IpAddr;
use std::path::PathBuf;

use serde::Deserialize;
use serde_json::{Value, json};

/// The versions of the specification that the plugin speaks: a chained plugin passes results on as they are.
pub const VERSIONS: [&str; 5] = ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"];
/// Some kilobytes are usual.
pub(super) const MAX_CONFIG: usize = 1 << 20;

/// The plugin's part of a network's configuration, from standard input.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NetworkConfig {
    pub cni_version: String,
    /// What the plugins before this one made.
    #[serde(default)]
    pub prev_result: Option<Value>,
    /// Where the agent answers.
    #[serde(default)]
    pub socket: Option<PathBuf>,
    /// How to ask the API server where no agent answers.
    #[serde(default)]
    pub kubeconfig: Option<PathBuf>,
}

/// Which pod a sandbox is for, from CNI_ARGS.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PodName {
    pub namespace: String,
    pub name: String,
    pub uid: String,
}

/// An error as the specification wants it on standard output.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    pub code: u32,
    pub message: String,
}

/// Error codes of the specification.
pub mod code {
    /// Invalid necessary environment variables.
    pub const ENVIRONMENT: u32 = 4;
    /// Failed to decode content.
    pub const UNREADABLE: u32 = 6;
    /// Invalid network config.
    pub const CONFIG: u32 = 7;
    /// Try again later.
    pub const LATER: u32 = 11;
    /// The first of a plugin's own: the container is not as it should be.
    pub const NOT_CAPTURED: u32 = 100;
}

impl Failure {
    pub fn new(code: u32, message: impl Into<String>) -> Self {
        Self { code, message: message.into() }
    }

    pub fn to_json(&self, version: &str) -> Value {
        json!({"cniVersion": version, "code": self.code, "msg": self.message})
    }
}

impl NetworkConfig {
    pub fn read(from: impl Read) -> Result<Self, Failure> {
        let mut text = String::new();
        let read = from.take(MAX_CONFIG as u64).read_to_string(&mut text);
        read.map_err(|error| Failure::new(code::UNREADABLE, format!("reading the configuration: {error}")))?;
        let config = serde_json::from_str(&text);
        config.map_err(|error| Failure::new(code::UNREADABLE, format!("the configuration is not readable: {error}")))
    }
}

impl PodName {
    /// Reads `K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web-0;K8S_POD_UID=…`; what is not said stays empty.
    pub fn read(arguments: &str) -> Self {
        let mut pod = Self::default();
        for (name, value) in arguments.split(';').filter_map(|argument| argument.split_once('=')) {
            match name {
                "K8S_POD_NAMESPACE" => pod.namespace = value.into(),
                "K8S_POD_NAME" => pod.name = value.into(),
                "K8S_POD_UID" => pod.uid = value.into(),
                _ => {}
            }
        }
        pod
    }

    /// Whether it is a pod's sandbox that all is known of.
    pub fn is_whole(&self) -> bool {
        ![&self.namespace, &self.name, &self.uid].into_iter().any(String::is_empty)
    }
}

/// The pod's own addresses in a result, in its order: those of interfaces inside the sandbox, and those of no interface.
pub fn pod_ips(result: &Value) -> Vec<IpAddr> {
    let interfaces = result["interfaces"].as_array().map(Vec::as_slice).unwrap_or_default();
    let is_inside = |index: u64| {
        let interface = usize::try_from(index).ok().and_then(|index| interfaces.get(index));
        interface.is_none_or(|interface| !interface["sandbox"].as_str().unwrap_or_default().is_empty())
    };
    let listed = result["ips"].as_array().map(Vec::as_slice).unwrap_or_default();
    let own = listed.iter().filter(|ip| ip["interface"].as_u64().is_none_or(is_inside));
    own.filter_map(|ip| {
        let address = ip["address"].as_str()?;
        let address = address.split_once('/').map_or(address, |(address, _)| address);
        address.parse::<IpAddr>().ok().map(|ip| ip.to_canonical())
    })
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_in_results_as_plugins_give_them() {
        let table = [
            (
                "ptp, dual stack",
                r#"{"interfaces":[{"name":"veth1"},{"name":"eth0","sandbox":"/run/netns/x"}],
                    "ips":[{"address":"10.244.1.2/24","gateway":"10.244.1.1","interface":1},{"address":"fd00::2/64","interface":1}]}"#,
                vec!["10.244.1.2", "fd00::2"],
            ),
            (
                "calico: no index",
                r#"{"cniVersion":"0.3.1","interfaces":[{"name":"cali1"}],"ips":[{"version":"4","address":"192.168.1.5/32"}]}"#,
                vec!["192.168.1.5"],
            ),
            (
                "cilium: the host's own address comes along",
                r#"{"interfaces":[{"name":"lxc1","sandbox":""},{"name":"eth0","sandbox":"/run/netns/x"}],
                    "ips":[{"address":"10.0.0.9/32","interface":0},{"address":"10.0.1.9/32","interface":1}]}"#,
                vec!["10.0.1.9"],
            ),
            ("nothing", r#"{"ips":[{"address":"nonsense"}]}"#, vec![]),
            ("no result", "null", vec![]),
        ];
        for (what, result, expected) in table {
            let expected: Vec<IpAddr> = expected.into_iter().map(|ip| ip.parse().unwrap()).collect();
            assert_eq!(pod_ips(&serde_json::from_str(result).unwrap()), expected, "{what}");
        }
    }

    #[test]
    fn pods_are_named_by_arguments() {
        let given =
            "IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web-0;K8S_POD_INFRA_CONTAINER_ID=a;K8S_POD_UID=u-1";
        let pod = PodName::read(given);
        assert_eq!((&*pod.namespace, &*pod.name, &*pod.uid), ("shop", "web-0", "u-1"));
        assert!(pod.is_whole());
        assert!(!PodName::read("").is_whole() && !PodName::read("K8S_POD_NAME=x;K8S_POD_NAMESPACE=y").is_whole());
    }
}
