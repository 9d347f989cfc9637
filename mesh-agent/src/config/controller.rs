//! What `mesh-agent controller` is to do.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use super::meaning::{
    LOG_FORMAT, LOG_LEVEL, Reader, Row, SVID_TTL_MAX, SVID_TTL_MIN, TRUST_DOMAIN, address, dns_name, duration, path,
};
use super::{Refusals, Surroundings, default};
use crate::admin::Address;
use crate::cli::ControllerArgs;
use crate::telemetry::logs;

/// What `mesh-agent controller` is to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ControllerConfig {
    /// The namespace of the mesh's own objects.
    pub namespace: String,
    /// This replica's pod; none was named.
    pub pod: Option<String>,
    /// Who we are to the API server; none was named.
    pub kubeconfig: Option<PathBuf>,
    /// The trust domain of every identity.
    pub trust_domain: String,
    /// How long a certificate is valid at most.
    pub svid_ttl_max: Duration,
    /// The service account of the agents.
    pub agents: String,
    /// Names and IP addresses by which agents call it.
    pub names: Vec<String>,
    /// Where certificates are asked for.
    pub listen: SocketAddr,
    /// /readyz and /metrics.
    pub http: Address,
    /// The live map.
    pub map: Option<SocketAddr>,
    /// Who has what is in there may look.
    pub map_token_file: Option<PathBuf>,
    /// Text or JSON.
    pub log_format: logs::Format,
    /// A level or a list of filter directives.
    pub log_level: String,
}

impl ControllerConfig {
    /// Puts `flags` over the environment over the defaults, and says what they mean, or everything that is wrong with them.
    ///
    /// # Errors
    /// What is wrong.
    pub fn load(flags: ControllerArgs, surroundings: &Surroundings<'_>) -> Result<Self, Refusals> {
        let mut reader = Reader { refusals: Vec::new() };
        match meaning(&mut reader, flags.or_environment(surroundings.variable)) {
            Some(config) if reader.refusals.is_empty() => Ok(config),
            Some(_) | None => Err(Refusals(reader.refusals)),
        }
    }
}

fn meaning(reader: &mut Reader, typed: ControllerArgs) -> Option<ControllerConfig> {
    let ControllerArgs {
        namespace,
        pod,
        kubeconfig,
        trust_domain,
        svid_ttl_max,
        agents,
        names,
        listen,
        http,
        map,
        map_token_file,
        log_format,
        log_level,
    } = typed;
    let namespace = reader.value(&NAMESPACE, namespace);
    let pod = pod.map(|setting| reader.value(&POD, Some(setting)));
    let kubeconfig = kubeconfig.map(|setting| reader.value(&KUBECONFIG, Some(setting)));
    let trust_domain = reader.value(&TRUST_DOMAIN, trust_domain);
    let svid_ttl_max = reader.value(&SVID_TTL_MAX_SETTING, svid_ttl_max);
    let agents = reader.value(&AGENTS, agents);
    let names = match names {
        Some(setting) => reader.value(&NAMES, Some(setting)),
        None => namespace.as_deref().map(service_names),
    };
    let listen = reader.value(&LISTEN, listen);
    let http = reader.value(&HTTP, http);
    let map = map.map(|setting| reader.value(&MAP, Some(setting)));
    let map_token_file = map_token_file.map(|setting| reader.value(&MAP_TOKEN_FILE, Some(setting)));
    let log_format = reader.value(&LOG_FORMAT, log_format);
    let log_level = reader.value(&LOG_LEVEL, log_level);
    Some(ControllerConfig {
        namespace: namespace?,
        pod: match pod {
            Some(pod) => Some(pod?),
            None => None,
        },
        kubeconfig: match kubeconfig {
            Some(path) => Some(path?),
            None => None,
        },
        trust_domain: trust_domain?,
        svid_ttl_max: svid_ttl_max?,
        agents: agents?,
        names: names?,
        listen: listen?,
        http: http?,
        map: match map {
            Some(map) => Some(map?),
            None => None,
        },
        map_token_file: match map_token_file {
            Some(file) => Some(file?),
            None => None,
        },
        log_format: log_format?,
        log_level: log_level?,
    })
}

/// The names of the Service in our manifests.
fn service_names(namespace: &str) -> Vec<String> {
    const SERVICE: &str = "nodemesh-controller";
    ["", ".svc", ".svc.cluster.local"]
        .iter()
        .map(|ending| format!("{SERVICE}.{namespace}{ending}"))
        .chain([SERVICE.to_string()])
        .collect()
}

const NAMESPACE: Row<String> = Row {
    name: "namespace",
    default: Some(default::NAMESPACE),
    expected: "the name of a namespace",
    example: "nodemesh-system",
    parse: |text| dns_name(text, "-"),
};

const POD: Row<String> = Row {
    name: "pod",
    default: None,
    expected: "the name of a pod",
    example: "nodemesh-controller-0",
    parse: |text| dns_name(text, "-."),
};

const KUBECONFIG: Row<PathBuf> = Row {
    name: "kubeconfig",
    default: None,
    expected: "the path of a kubeconfig",
    example: "/etc/kubernetes/admin.conf",
    parse: path,
};

const MAP: Row<SocketAddr> = Row {
    name: "map",
    default: None,
    expected: "an address and a port",
    example: "127.0.0.1:15080",
    parse: |text| text.to_str()?.parse().ok(),
};

const MAP_TOKEN_FILE: Row<PathBuf> = Row {
    name: "map-token-file",
    default: None,
    expected: "the path of a file with a token",
    example: "/etc/nodemesh/map-token",
    parse: path,
};

const SVID_TTL_MAX_SETTING: Row<Duration> = Row {
    name: "svid-ttl-max",
    default: Some(default::SVID_TTL_MAX),
    expected: "a duration from 10s to 7days",
    example: "24h",
    parse: |text| duration(text).filter(|ttl| (SVID_TTL_MIN..=SVID_TTL_MAX).contains(ttl)),
};

const AGENTS: Row<String> = Row {
    name: "agents",
    default: Some(default::AGENTS),
    expected: "the name of a service account",
    example: "nodemesh-agent",
    parse: |text| dns_name(text, "-."),
};

const NAMES: Row<Vec<String>> = Row {
    name: "names",
    default: None,
    expected: "names of DNS and IP addresses, joined by commas",
    example: "nodemesh-controller.nodemesh-system.svc,10.96.0.12",
    parse: |text| {
        let name = |name: &str| match name.parse::<IpAddr>() {
            Ok(_) => Some(name.to_string()),
            Err(_) => dns_name(name.as_ref(), "-."),
        };
        text.to_str()?.split(',').map(name).collect()
    },
};

const LISTEN: Row<SocketAddr> = Row {
    name: "listen",
    default: Some(default::LISTEN),
    expected: "IP:PORT",
    example: "0.0.0.0:15012",
    parse: |text| text.to_str()?.parse().ok(),
};

const HTTP: Row<Address> = Row {
    name: "http",
    default: Some(default::CONTROLLER_HTTP),
    expected: "IP:PORT or unix:PATH",
    example: "0.0.0.0:15014",
    parse: address,
};
