//! What the agent shows of itself: the sections of `/config_dump` and `/connections`, as JSON.

use std::time::UNIX_EPOCH;

use serde_json::{Value, json};

use super::Agent;
use crate::capture::StraightReader;
use crate::config::{self, Config};
use crate::identity::Identities;
use crate::limit::Limit;
use crate::proxy::{LiveConnection, Proxy};
use crate::state::MeshState;
use crate::telemetry::{CertificateFacts, RootFacts};
use crate::{
    admin, apiserver, capture, cni, conditions, ctl, discovery, extauth, hbone, http, identity, issuers, proxy,
    resilience, routes, routing, sandboxes, telemetry, tokens,
};

/// Who this is, since when, and how it is.
pub fn agent(agent: &Agent) -> Value {
    let missing = agent.readiness.missing();
    json!({
        "version": env!("CARGO_PKG_VERSION"),
        "node": agent.config.node,
        "pid": std::process::id(),
        "started": unix_seconds(agent.started),
        "now": unix_seconds(std::time::SystemTime::now()),
        "notReady": missing.into_iter().collect::<std::collections::BTreeMap<_, _>>(),
        "connectionsByWorker": agent.proxy.loads(),
        "descriptorsForConnections": agent.descriptors.count(),
        "logLevel": agent.logs.levels.current(),
        "accessLog": agent.logs.access.filter().to_string(),
        "logLinesDropped": telemetry::logs::dropped_lines(),
    })
}

/// The configuration as it was understood, by the names of the flags. Nothing in it is secret.
pub fn settings(agent: &Agent) -> Value {
    settings_of(&agent.config)
}

fn settings_of(config: &Config) -> Value {
    let Config {
        node,
        discovery,
        daemonset,
        capture,
        cni_socket,
        identity,
        issuers,
        proxy,
        http,
        logs,
        otlp,
        metrics: shown,
    } = config;
    let config::Capture { cgroup_root, bpf_pins, bpf_object, map_connections, tc, bpf_log, same_node_kernel } = capture;
    let config::Identity { ca, trust_domain, svid_ttl } = identity;
    let config::Proxy { outbound_mode, workers, drain_window, pod } = proxy;
    let config::PodBudget { connections, accept_rate, accept_burst, handshakes, buffer } = pod;
    let config::Http { admin, metrics, readiness, map } = http;
    let config::Logs { format, level, access } = logs;
    let duration = |duration: &std::time::Duration| humantime::format_duration(*duration).to_string();
    let mut settings = json!({
        "node": node,
        "discovery": match discovery {
            config::Discovery::Directory(world) => format!("dir:{}", world.display()),
            config::Discovery::Kubernetes { .. } => "kubernetes".to_string(),
        },
        "daemonset": daemonset.as_ref().map(ToString::to_string),
        "kubeconfig": match discovery {
            config::Discovery::Directory(_) => None,
            config::Discovery::Kubernetes { kubeconfig } => kubeconfig.as_ref(),
        },
        "cgroup-root": cgroup_root,
        "bpf-pins": bpf_pins,
        "bpf-object": bpf_object,
        "map-connections": map_connections,
        "tc": match tc {
            config::Tc::Auto => "auto",
            config::Tc::Tcx => "tcx",
            config::Tc::Clsact => "clsact",
        },
        "bpf-log": bpf_log,
        "same-node-kernel": same_node_kernel,
        "cni-socket": cni_socket,
        "ca": match ca {
            config::Ca::Memory => "memory".to_string(),
            config::Ca::Directory(path) => format!("dir:{}", path.display()),
            config::Ca::Remote(remote) => remote.address.to_string(),
        },
        "ca-roots": match ca {
            config::Ca::Remote(remote) => Some(&remote.roots),
            config::Ca::Memory | config::Ca::Directory(_) => None,
        },
        "ca-token": match ca {
            config::Ca::Remote(remote) => Some(&remote.token),
            config::Ca::Memory | config::Ca::Directory(_) => None,
        },
        "trust-domain": trust_domain,
        "svid-ttl": duration(svid_ttl),
        "jwks-ca": issuers.ca,
        "jwks-allow": issuers.allowed.to_string(),
        "outbound-mode": match outbound_mode {
            routing::OutboundMode::AllowAny => "allow-any",
            routing::OutboundMode::RegistryOnly => "registry-only",
        },
        "workers": workers,
        "pod-connections": connections,
        "pod-accept-rate": accept_rate,
        "pod-accept-burst": accept_burst,
        "pod-handshakes": handshakes,
        "pod-buffer": buffer,
        "drain-window": duration(drain_window),
        "admin": admin.to_string(),
        "metrics": metrics.to_string(),
        "readiness": readiness.to_string(),
        "map": map.as_ref().map(ToString::to_string),
        "log-format": match format {
            telemetry::logs::Format::Text => "text",
            telemetry::logs::Format::Json => "json",
        },
        "log-level": level,
        "access-log": access.to_string(),
        "metrics-series": shown.series,
        "istio-metrics": shown.istio,
    });
    if let (Some(settings), Value::Object(otlp)) = (settings.as_object_mut(), otlp_settings_of(otlp)) {
        settings.extend(otlp);
    }
    settings
}

fn otlp_settings_of(otlp: &config::Otlp) -> Value {
    let config::Otlp { collector, credentials, signals, interval, sampling } = otlp;
    json!({
        "otlp": collector.as_ref().map(ToString::to_string),
        // Where they are; what is in there nobody is shown.
        "otlp-ca": credentials.ca,
        "otlp-client": credentials.client,
        "otlp-headers-file": credentials.headers,
        "otlp-signals": signals.to_string(),
        "otlp-interval": humantime::format_duration(*interval).to_string(),
        "trace-sampling": sampling.as_percent(),
    })
}

/// Where the world comes from, how old it is, and what was refused.
pub fn discovery(agent: &Agent) -> Value {
    let health = agent.health.report();
    // By this node's clock: who asks may have another.
    let age = health.seen.and_then(|seen| seen.elapsed().ok());
    json!({
        "stateVersion": agent.state.current().version,
        "ageSeconds": age.map(|age| age.as_secs_f64()),
        "health": &*health,
    })
}

/// The certificates; never a key.
pub fn identities(agent: &Agent) -> Value {
    json!({
        "authority": agent.identities.authority(),
        "trouble": agent.identities.trouble(),
        "roots": agent.identities.roots().into_iter().map(root).collect::<Vec<_>>(),
        "svids": agent.identities.status().into_iter().map(svid).collect::<Vec<_>>(),
    })
}

fn svid(status: identity::SvidStatus) -> Value {
    json!({
        "id": status.id.to_string(),
        "notAfter": status.not_after.map(unix_seconds),
        "secondsLeft": status.seconds_left,
        "issued": status.issued.map(unix_seconds),
        "root": status.root.map(|root| root.to_string()),
        "serial": status.serial,
        "generation": status.generation,
        "lastError": status.last_error,
        "failures": status.failures,
    })
}

fn root(root: identity::RootStatus) -> Value {
    json!({
        "root": root.id.to_string(),
        "notAfter": unix_seconds(root.not_after),
        "signs": root.is_signer,
        "peers": root.peers,
    })
}

/// The keys of tokens' issuers that are fetched, and how that goes.
pub fn issuers(agent: &Agent) -> Value {
    let one = |status: issuers::KeysStatus| {
        json!({
            "uri": status.uri,
            "inForce": status.in_force,
            "ageSeconds": status.age.map(|age| age.as_secs()),
            "fetched": status.good,
            "failed": status.failed,
            "trouble": status.trouble.map(|(_, words)| words),
        })
    };
    agent.keys.status().into_iter().map(one).collect()
}

/// Every limit with its unit and reason.
pub fn limits(_: &Agent) -> Value {
    let show = |room: &'static str| move |Limit { name, value, unit, reason }: Limit| json!({ "room": room, "name": name, "value": value, "unit": unit, "reason": reason });
    all_limits().into_iter().flat_map(|(room, limits)| limits.into_iter().map(show(room))).collect()
}

fn all_limits() -> Vec<(&'static str, Vec<Limit>)> {
    vec![
        ("capture", capture::limits()),
        ("proxy", proxy::limits::all()),
        ("resilience", resilience::limits()),
        ("tokens", tokens::limits::all()),
        ("issuers", issuers::limits::all()),
        ("extauth", extauth::limits::all()),
        ("routes", routes::limits::all()),
        ("routing", routing::limits()),
        ("hbone", hbone::limits::all()),
        ("http", http::limits::all()),
        ("identity", identity::limits()),
        ("controller", crate::controller::limits()),
        ("apiserver", apiserver::limits()),
        ("departure", crate::departure::limits()),
        ("discovery", discovery::limits()),
        ("sandboxes", sandboxes::limits()),
        ("cni", cni::limits()),
        ("conditions", conditions::limits()),
        ("telemetry", telemetry::limits()),
        ("admin", admin::limits()),
        ("map", crate::map::limits()),
        ("ctl", ctl::limits()),
        ("bench", crate::bench::limits()),
        ("app", super::limits()),
    ]
}

/// Services and their endpoints.
pub fn services(agent: &Agent) -> Value {
    services_of(&agent.state.current())
}

/// The same of any world.
pub fn services_of(state: &MeshState) -> Value {
    let port = |port: &crate::state::ServicePort| {
        json!({
            "name": port.name,
            "port": port.port,
            "nodePort": port.node_port,
            "protocol": port.protocol,
            "endpoints": addresses(&port.endpoints),
            "nodeLocal": port.node_local.as_deref().map(addresses),
        })
    };
    let one = |service: &std::sync::Arc<crate::state::Service>| {
        json!({
            "namespace": service.namespace,
            "name": service.name,
            "clusterIPs": service.cluster_ips,
            "externalIPs": service.external.ips,
            "loadBalancerIPs": service.external.load_balancer_ips,
            "sessionAffinity": format!("{:?}", service.affinity),
            "ports": service.ports.iter().map(port).collect::<Vec<_>>(),
        })
    };
    state.services().map(one).collect()
}

fn addresses(endpoints: &[crate::state::Endpoint]) -> Vec<String> {
    endpoints.iter().map(|e| std::net::SocketAddr::new(e.ip, e.port).to_string()).collect()
}

/// Every route with its conditions, by Gateway API's words, and what it does in ours; and the ReferenceGrants.
pub fn routes(agent: &Agent) -> Value {
    routes_of(&agent.state.current())
}

/// The same of any world.
pub fn routes_of(state: &MeshState) -> Value {
    let grant =
        |(namespace, name, grant): (&std::sync::Arc<str>, &std::sync::Arc<str>, &crate::state::ReferenceGrant)| {
            let from = grant
                .from
                .iter()
                .map(|(kind, namespace)| json!([crate::state::Kind::of_route(*kind).to_string(), namespace]));
            json!({
                "namespace": namespace,
                "name": name,
                "from": from.collect::<Vec<_>>(),
                "services": grant.to,
            })
        };
    json!({ "routes": state.shown_routes(), "referenceGrants": state.reference_grants().map(grant).collect::<Vec<_>>() })
}

/// Every policy object as it was understood, and those that could not be read.
pub fn policies(agent: &Agent) -> Value {
    json!(agent.state.current().policies())
}

/// Every ExternalAuthorizer as it was understood.
pub fn authorizers(agent: &Agent) -> Value {
    json!(agent.state.current().authorizers())
}

/// The pods of this node, with the policy that stands before each.
pub fn workloads(agent: &Agent) -> Value {
    let state = agent.state.current();
    let usage = agent.proxy.usage();
    let one = |workload: &std::sync::Arc<crate::state::Workload>| {
        let taken = usage.iter().find(|usage| usage.pod == workload.name && usage.namespace == workload.namespace);
        let gate = format!("{}{}/{}", capture::POD_GATE, workload.namespace, workload.name);
        let captured = agent.readiness.trouble(&gate).filter(|_| workload.enrolled);
        json!({
            "uid": workload.uid,
            "namespace": workload.namespace,
            "name": workload.name,
            "identity": workload.identity.to_string(),
            "ips": workload.ips,
            "enrolled": workload.enrolled,
            "refusal": workload.refusal,
            "captured": captured.as_ref().map(Option::is_none),
            "notCaptured": captured.flatten(),
            "excluded": {
                "outboundPorts": workload.exclusions.outbound_ports,
                "inboundPorts": workload.exclusions.inbound_ports,
                "outboundCIDRs": workload.exclusions.outbound_networks,
            },
            "probePorts": workload.probe_ports,
            "forwarded": if workload.forwards { "append" } else { "set" },
            "taken": taken.map(taken_json),
            "policy": state.inbound_policy(&workload.uid),
        })
    };
    state.local_workloads().map(one).collect()
}

fn taken_json(usage: &telemetry::WorkloadUsage) -> Value {
    let telemetry::WorkloadUsage { namespace: _, pod: _, connections, tunnels, handshakes, buffered_bytes, refused } =
        usage;
    json!({
        "connections": connections,
        "tunnels": tunnels,
        "handshakes": handshakes,
        "bufferedBytes": buffered_bytes,
        "overBudget": refused.iter().copied().collect::<std::collections::BTreeMap<_, _>>(),
    })
}

/// The tunnels to other pods, of all workers.
pub async fn tunnels(proxy: Proxy) -> Value {
    let one = |tunnel: hbone::TunnelStatus| {
        json!({
            "sourceUid": tunnel.key.source_uid,
            "destination": tunnel.key.destination.to_string(),
            "address": tunnel.key.address,
            "generation": tunnel.generation,
            "streams": tunnel.streams,
            "retired": tunnel.retired,
            "since": unix_seconds(tunnel.since),
        })
    };
    proxy.tunnels().await.into_iter().map(one).collect()
}

/// The live connections: of all workers, and those that go from pod to pod by the kernel alone.
pub async fn connections(proxy: Proxy, straight: StraightReader) -> Value {
    let of_workers = proxy.connections().await;
    // Some thousand calls of the kernel where there are as many.
    let of_kernel = tokio::task::spawn_blocking(move || straight.connections()).await.unwrap_or_default();
    let of_kernel = of_kernel.iter().flat_map(proxy::straight_records).map(uncarried);
    of_workers.into_iter().map(connection).chain(of_kernel).collect()
}

/// One that no worker carries. What it carried is known when it ends.
fn uncarried(record: telemetry::ConnectionRecord) -> Value {
    let mut shown = connection(LiveConnection { worker: 0, record });
    if let Some(fields) = shown.as_object_mut() {
        fields.retain(|name, _| !["worker", "bytesSent", "bytesReceived"].contains(&&**name));
    }
    shown
}

fn connection(LiveConnection { worker, record }: LiveConnection) -> Value {
    json!({
        "worker": worker,
        "direction": record.direction.name(),
        "transport": record.transport.name(),
        "source": { "pod": record.source_pod, "identity": record.source_identity.map(|id| id.to_string()) },
        "client": record.client,
        "dialled": record.dialled,
        "service": record.service,
        "destination": {
            "pod": record.destination_pod,
            "identity": record.destination_identity.map(|id| id.to_string()),
        },
        "server": record.server,
        "traceId": record.trace_id,
        "rule": record.rule,
        "audited": record.audited,
        "bytesSent": record.bytes_sent,
        "bytesReceived": record.bytes_received,
        "ageSeconds": record.duration.as_secs_f64(),
    })
}

/// Certificates and roots, for the metrics.
pub fn certificates(identities: &Identities) -> (Vec<CertificateFacts>, Vec<RootFacts>) {
    let certificate = |status: identity::SvidStatus| CertificateFacts {
        identity: status.id,
        expiry: status.not_after.map(unix_seconds),
        left: status.seconds_left,
        issued: status.issued.map(unix_seconds),
        failures: status.failures,
    };
    let root = |root: identity::RootStatus| RootFacts {
        root: root.id.to_string(),
        expiry: unix_seconds(root.not_after),
        signs: root.is_signer,
        peers: root.peers,
    };
    let certificates = identities.status().into_iter().map(certificate).collect();
    (certificates, identities.roots().into_iter().map(root).collect())
}

fn unix_seconds(time: std::time::SystemTime) -> f64 {
    time.duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::path::Path;

    use super::*;

    /// What bounds nothing at run time: numbers of the kernel's interface, forms of names, ranges of settings, what another
    /// constant of the list is made of, and the sizes of a test world.
    const NO_LIMITS: &[&str] = &[
        "ACCOUNT",
        "ANSWERS",
        "ANY_COOKIE",
        "ANY_INTERFACE",
        "ANY_STATE",
        "AN_HOUR",
        "AROUND_EDGE",
        "BLOCK",
        "CALLS",
        "CGROUP_SOCK_OPS",
        "CHUNK",
        "CLIENT",
        "CONFIG",
        "DIGEST_BYTES",
        "DRAIN_WINDOW_MAX",
        "ENVIRONMENT",
        "FAILING",
        "FIELD_OVERHEAD",
        "FIRST",
        "FIRST_MINOR",
        "FIRST_V4",
        "FIRST_WINDOW",
        "FLOOD",
        "GATHER",
        "HASH",
        "HEAD",
        "HEADER",
        "ITSELF",
        "JOIN",
        "LARGE",
        "LARGEST_RECORD",
        "LATER",
        "LEAST",
        "LEAST_FRAME",
        "LINK",
        "LIST",
        "LO",
        "LONGEST_MESSAGE",
        "LOOPBACK",
        "MAP_KEYS",
        "MASK",
        "MAX_ID_BYTES",
        "MAX_NAMESPACE_BYTES",
        "MAX_SERVICE_ACCOUNT_BYTES",
        "MAX_TRUST_DOMAIN_BYTES",
        "MOST",
        "MOST_ANCESTORS",
        "MOST_AROUND",
        "MOST_BLOCK",
        "MOST_FRAME",
        "MOST_STREAM",
        "NAMESPACES",
        "NOBODY",
        "NODES",
        "NOTE",
        "NOT_CAPTURED",
        "NOW",
        "ONLY_IF_ABSENT",
        "OTHER",
        "OTHERS",
        "OUT",
        "PER_MILLION",
        "PICTURE_BYTES",
        "PODS",
        "PORT",
        "PREFIX",
        "RECORD",
        "RESULTS",
        "ROUND",
        "ROUNDS",
        "ROUND_TIME",
        "RTT",
        "SERVICE",
        "SERVICES",
        "SHARDS",
        "SHOWN",
        "SHOWN_BYTES",
        "SK_LOOKUP",
        "SMALL",
        "SVID_TTL_MAX",
        "SVID_TTL_MIN",
        "TABLE",
        "TCX_EGRESS",
        "TCX_INGRESS",
        "TOTAL_RETRANS",
        "UNKNOWN",
        "UNREADABLE",
        "UP",
        "V4_BITS",
        "VERIFIER_LIMIT",
        "WORDS",
        "WORKERS_MAX",
        "WORKLOADS",
        "WRITE_BY_OTHERS",
    ];

    #[test]
    fn every_flag_is_among_the_settings() {
        use clap::{CommandFactory, Parser};

        let needed = ["mesh-agent", "run", "--node=n", "--discovery=dir:/w", "--ca=memory", "--cgroup-root=/c"];
        let crate::cli::Command::Run(flags) = crate::cli::Cli::parse_from(needed).command else { panic!("not run") };
        let nothing = crate::config::Surroundings {
            variable: &|_| None,
            read: &|_| Err(std::io::ErrorKind::NotFound.into()),
            cpus: std::num::NonZeroUsize::MIN,
        };
        let shown = settings_of(&Config::load(*flags, &nothing).unwrap());
        let run = crate::cli::Cli::command().find_subcommand("run").unwrap().clone();
        let flags: BTreeSet<&str> =
            run.get_arguments().filter_map(|flag| flag.get_long()).filter(|name| *name != "config").collect();
        let shown: BTreeSet<&str> = shown.as_object().unwrap().keys().map(String::as_str).collect();
        assert_eq!(shown, flags);
    }

    /// The fixtures of `ctl` are what agents show: what is renamed here is renamed there.
    #[test]
    fn meshctl_reads_what_is_shown() {
        let fixture = |name: &str| -> Value {
            let path = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/src/ctl/fixtures")).join(name);
            serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
        };
        let (dump, connections) = (fixture("config_dump.json"), fixture("connections.json"));
        assert_eq!(keys(&dump["identities"]["svids"][0]), keys(&svid(svid_status())));
        assert_eq!(keys(&dump["discovery"]["health"]), keys(&json!(discovery::Report::default())));
        let shown = connection(LiveConnection { worker: 0, record: record() });
        for part in ["/0", "/0/source", "/0/destination"] {
            let own = part.trim_start_matches("/0");
            assert_eq!(keys(connections.pointer(part).unwrap()), keys(shown.pointer(own).unwrap()), "{part}");
        }
    }

    fn svid_status() -> identity::SvidStatus {
        identity::SvidStatus {
            id: crate::spiffe::SpiffeId::new("cluster.local", "shop", "web").unwrap(),
            not_after: None,
            seconds_left: None,
            issued: None,
            root: None,
            serial: String::new(),
            generation: 0,
            last_error: None,
            failures: 0,
        }
    }

    fn record() -> telemetry::ConnectionRecord {
        telemetry::ConnectionRecord {
            direction: telemetry::Direction::Outbound,
            transport: telemetry::Transport::Tunnel,
            source_pod: None,
            source_identity: None,
            client: "10.0.0.1:1".parse().unwrap(),
            dialled: None,
            service: None,
            destination_pod: None,
            destination_identity: None,
            server: None,
            trace_id: None,
            rule: None,
            audited: Vec::new(),
            result: telemetry::ConnectionResult::Ok,
            bytes_sent: 0,
            bytes_received: 0,
            duration: std::time::Duration::ZERO,
            network: None,
        }
    }

    fn keys(object: &Value) -> BTreeSet<&str> {
        object.as_object().unwrap().keys().map(String::as_str).collect()
    }

    #[test]
    fn every_bound_is_shown_once() {
        let listed: Vec<(&str, &str)> = all_limits()
            .into_iter()
            .flat_map(|(room, limits)| limits.into_iter().map(move |l| (room, l.name)))
            .collect();
        let twice: Vec<_> =
            listed.iter().filter(|one| listed.iter().filter(|other| other == one).count() > 1).collect();
        assert!(twice.is_empty(), "{twice:?}");
        let names: BTreeSet<&str> = listed.iter().map(|(_, name)| *name).chain(NO_LIMITS.iter().copied()).collect();
        let mut unlisted = Vec::new();
        constants(Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/src")), &mut |name| {
            if !names.contains(name) {
                unlisted.push(name.to_string());
            }
        });
        assert_eq!(unlisted, [""; 0], "neither shown in /config_dump nor known to be no bound");
    }

    /// The names of all numeric constants of the sources.
    fn constants(directory: &Path, found: &mut impl FnMut(&str)) {
        for entry in std::fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                constants(&path, found);
            } else if path.file_name().is_some_and(|name| name == "fuzzing.rs") {
                // Not in an agent that runs.
            } else if path.extension().is_some_and(|ending| ending == "rs") {
                for line in std::fs::read_to_string(&path).unwrap().lines() {
                    let Some((_, declared)) = line.split_once("const ") else { continue };
                    let Some((name, rest)) = declared.split_once(": ") else { continue };
                    let is_name = name.chars().all(|c| c.is_ascii_uppercase() || c.is_ascii_digit() || c == '_');
                    let is_number =
                        ["Duration =", "usize =", "u64 =", "u32 ="].iter().any(|kind| rest.starts_with(kind));
                    if is_name && name.len() > 1 && is_number {
                        found(name);
                    }
                }
            }
        }
    }
}
