//! From texts to meaning: one table row per setting, one function per concern.

use std::ffi::OsStr;
use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::{
    Ca, Capture, Config, Discovery, Http, Identity, Logs, Otlp, PodBudget, Proxy, Refusal, Refusals, Surroundings, Tc,
    default,
};
use crate::admin::Address;
use crate::cli::{Origin, RunArgs, Setting};
use crate::departure::OwnDaemonSet;
use crate::identity::{Remote, RemoteAddress};
use crate::issuers;
use crate::routing::OutboundMode;
use crate::telemetry::{access_log, logs, metrics as shown, otlp, spans};

/// Shorter lives would be renewed more often than a CA and a clock can be trusted to follow.
pub(super) const SVID_TTL_MIN: Duration = Duration::from_secs(10);
/// A stolen key is of use for that long.
pub(super) const SVID_TTL_MAX: Duration = Duration::from_secs(7 * 24 * 3600);
/// Longer than any rollout; more is a slip of the pen.
const DRAIN_WINDOW_MAX: Duration = Duration::from_secs(7 * 24 * 3600);
const WORKERS_MAX: usize = 1024;
/// Below it a busy pod alone fills the map; above it the map takes more than 2.5 GB.
const MAP_CONNECTIONS: std::ops::RangeInclusive<u32> = 1024..=16_777_216;

/// More than a machine has ports for.
const POD_COUNT: std::ops::RangeInclusive<u32> = 1..=16_777_216;
/// Shorter ones are all work; longer ones are no use to whoever looks.
const OTLP_INTERVALS: std::ops::RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(3600);
/// One connection's window at the least.
const POD_BUFFER_RANGE: std::ops::RangeInclusive<usize> = 1 << 20..=1 << 40;

impl Config {
    /// Puts `flags` over the environment over the file over the defaults, and says what they mean, or everything that
    /// is wrong with them.
    pub fn load(flags: RunArgs, surroundings: &Surroundings<'_>) -> Result<Self, Refusals> {
        let typed = flags.or(RunArgs::from_environment(surroundings.variable));
        let file = match &typed.config {
            Some(path) => read_file(path, surroundings).map_err(|refusal| Refusals(vec![refusal]))?,
            None => RunArgs::default(),
        };
        let mut reader = Reader { refusals: Vec::new() };
        match meaning(&mut reader, typed.or(file), surroundings) {
            Some(config) if reader.refusals.is_empty() => Ok(config),
            Some(_) | None => Err(Refusals(reader.refusals)),
        }
    }
}

/// The cgroup directory that was named, or where cgroup v2 is mounted; for the commands other than `run`.
pub fn cgroup_root(named: Option<PathBuf>, surroundings: &Surroundings<'_>) -> Result<PathBuf, Refusals> {
    named.or_else(|| surroundings.cgroup2_mount()).ok_or_else(|| Refusals(vec![Refusal::NoCgroup2]))
}

/// What a directory of pins looks like.
pub const PINS_EXPECTED: &str =
    "an absolute path on bpffs that contains \"nodemesh\", for all below it is ours to remove";

/// Whether a path may be one of pins: its name must say that it is ours.
pub fn is_pins_path(path: &Path) -> bool {
    path.is_absolute() && path.to_string_lossy().contains("nodemesh")
}

fn read_file(path: &Path, surroundings: &Surroundings<'_>) -> Result<RunArgs, Refusal> {
    let refusal = |reason: String| Refusal::File { path: path.to_owned(), reason };
    let text = (surroundings.read)(path).map_err(|error| refusal(error.to_string()))?;
    // A file of comments alone is an empty set of settings.
    let settings: Option<RunArgs> = serde_saphyr::from_str(&text).map_err(|error| refusal(first_line(&error)))?;
    Ok(settings.unwrap_or_default())
}

/// The message without the picture of the lines around it.
fn first_line(error: &serde_saphyr::Error) -> String {
    let message = error.to_string();
    let line = message.lines().next().unwrap_or_default();
    line.strip_prefix("error: ").unwrap_or(line).to_string()
}

/// Reads every setting, also after one was refused, so that all refusals are told at once. `None` means refused.
fn meaning(reader: &mut Reader, typed: RunArgs, surroundings: &Surroundings<'_>) -> Option<Config> {
    let RunArgs {
        config: _,
        node,
        discovery,
        kubeconfig,
        daemonset,
        cgroup_root,
        bpf_pins,
        bpf_object,
        map_connections,
        tc,
        bpf_log,
        same_node_kernel,
        cni_socket,
        ca,
        ca_roots,
        ca_token,
        trust_domain,
        svid_ttl,
        jwks_ca,
        jwks_allow,
        outbound_mode,
        workers,
        pod_connections,
        pod_accept_rate,
        pod_accept_burst,
        pod_handshakes,
        pod_buffer,
        drain_window,
        admin,
        metrics,
        readiness,
        map,
        log_format,
        log_level,
        access_log,
        otlp,
        otlp_ca,
        otlp_client,
        otlp_headers_file,
        otlp_signals,
        otlp_interval,
        trace_sampling,
        metrics_series,
        istio_metrics,
    } = typed;
    let node = reader.value(&NODE, node);
    let discovery = reader.value(&DISCOVERY, discovery);
    let kubeconfig = kubeconfig.map(|setting| reader.value(&KUBECONFIG, Some(setting)));
    let daemonset = daemonset.map(|setting| reader.value(&DAEMONSET, Some(setting)));
    let cgroup_root = match cgroup_root {
        Some(setting) => reader.value(&CGROUP_ROOT, Some(setting)),
        None => reader.found(surroundings.cgroup2_mount(), Refusal::NoCgroup2),
    };
    let bpf_pins = reader.value(&BPF_PINS, bpf_pins);
    let bpf_object = bpf_object.map(|setting| reader.value(&BPF_OBJECT, Some(setting)));
    let map_connections = reader.value(&MAP_CONNECTIONS_SETTING, map_connections);
    let tc = reader.value(&TC, tc);
    let bpf_log = reader.value(&BPF_LOG, bpf_log);
    let same_node_kernel = reader.value(&SAME_NODE_KERNEL, same_node_kernel);
    let ca = reader.value(&CA, ca);
    let ca = match ca {
        Some(TypedCa::Remote(address)) => {
            let (roots, token) = (reader.value(&CA_ROOTS, ca_roots), reader.value(&CA_TOKEN, ca_token));
            roots.zip(token).map(|(roots, token)| Ca::Remote(Remote { address, roots, token }))
        }
        Some(TypedCa::Here(ca)) => {
            // Whoever says whom to trust must not find that nobody asked.
            for (row, setting) in [(&CA_ROOTS, ca_roots), (&CA_TOKEN, ca_token)] {
                if let Some(Setting { text, origin }) = setting {
                    let expected = "nothing unless --ca is https://HOST:PORT".to_string();
                    let example = "with --ca https://nodemesh-controller.nodemesh-system.svc:15012";
                    reader.refusals.push(Refusal::Value { name: row.name, origin, text, expected, example });
                }
            }
            Some(ca)
        }
        None => None,
    };
    let trust_domain = reader.value(&TRUST_DOMAIN, trust_domain);
    let svid_ttl = reader.value(&SVID_TTL, svid_ttl);
    let cni_socket = cni_socket.map(|setting| reader.value(&CNI_SOCKET, Some(setting)));
    let jwks_ca = jwks_ca.map(|setting| reader.value(&JWKS_CA, Some(setting)));
    let jwks_allow = jwks_allow.map(|setting| reader.value(&JWKS_ALLOW, Some(setting)));
    let outbound_mode = reader.value(&OUTBOUND_MODE, outbound_mode);
    let workers = match workers {
        Some(setting) => reader.value(&WORKERS, Some(setting)),
        None => Some(surroundings.cpus),
    };
    let connections = reader.value(&POD_CONNECTIONS, pod_connections);
    let accept_rate = reader.value(&POD_ACCEPT_RATE, pod_accept_rate);
    let accept_burst = reader.value(&POD_ACCEPT_BURST, pod_accept_burst);
    let handshakes = reader.value(&POD_HANDSHAKES, pod_handshakes);
    let buffer = reader.value(&POD_BUFFER, pod_buffer);
    let drain_window = reader.value(&DRAIN_WINDOW, drain_window);
    let admin = reader.value(&ADMIN, admin);
    let metrics = reader.value(&METRICS, metrics);
    let readiness = reader.value(&READINESS, readiness);
    let map = map.map(|setting| reader.value(&MAP, Some(setting)));
    let format = reader.value(&LOG_FORMAT, log_format);
    let level = reader.value(&LOG_LEVEL, log_level);
    let access = reader.value(&ACCESS_LOG, access_log);
    let collector = otlp.map(|setting| reader.value(&OTLP, Some(setting)));
    let is_plain = collector.as_ref().is_some_and(|read| read.as_ref().is_some_and(|one| !one.is_encrypted()));
    for (row, setting) in [(&OTLP_CA, &otlp_ca), (&OTLP_CLIENT, &otlp_client)] {
        reader.only_with_tls(row, setting.as_ref().filter(|_| is_plain));
    }
    let otlp_ca = otlp_ca.map(|setting| reader.value(&OTLP_CA, Some(setting)));
    let otlp_client = otlp_client.map(|setting| reader.value(&OTLP_CLIENT, Some(setting)));
    let otlp_headers = otlp_headers_file.map(|setting| reader.value(&OTLP_HEADERS_FILE, Some(setting)));
    let signals = reader.value(&OTLP_SIGNALS, otlp_signals);
    let interval = reader.value(&OTLP_INTERVAL, otlp_interval);
    let sampling = reader.value(&TRACE_SAMPLING, trace_sampling);
    let series = reader.value(&METRICS_SERIES, metrics_series);
    let istio = reader.value(&ISTIO_METRICS, istio_metrics);
    Some(Config {
        node: node?,
        discovery: match discovery? {
            Discovery::Directory(path) => Discovery::Directory(path),
            Discovery::Kubernetes { .. } => Discovery::Kubernetes {
                kubeconfig: match kubeconfig {
                    Some(path) => Some(path?),
                    None => None,
                },
            },
        },
        daemonset: match daemonset {
            Some(daemonset) => Some(daemonset?),
            None => None,
        },
        capture: Capture {
            cgroup_root: cgroup_root?,
            bpf_pins: bpf_pins?,
            bpf_object: match bpf_object {
                Some(path) => Some(path?),
                None => None,
            },
            map_connections: map_connections?,
            tc: tc?,
            bpf_log: bpf_log?,
            same_node_kernel: same_node_kernel?,
        },
        cni_socket: match cni_socket {
            Some(path) => Some(path?),
            None => None,
        },
        identity: Identity { ca: ca?, trust_domain: trust_domain?, svid_ttl: svid_ttl? },
        issuers: issuers::Reach {
            ca: match jwks_ca {
                Some(path) => Some(path?),
                None => None,
            },
            allowed: match jwks_allow {
                Some(allowed) => allowed?,
                None => issuers::Allowed::default(),
            },
        },
        proxy: Proxy {
            outbound_mode: outbound_mode?,
            workers: workers?,
            drain_window: drain_window?,
            pod: PodBudget {
                connections: connections?,
                accept_rate: accept_rate?,
                accept_burst: accept_burst?,
                handshakes: handshakes?,
                buffer: buffer?,
            },
        },
        http: Http {
            admin: admin?,
            metrics: metrics?,
            readiness: readiness?,
            map: match map {
                Some(map) => Some(map?),
                None => None,
            },
        },
        logs: Logs { format: format?, level: level?, access: access? },
        otlp: Otlp {
            collector: match collector {
                Some(collector) => Some(collector?),
                None => None,
            },
            credentials: otlp::Credentials {
                ca: otlp_ca.flatten(),
                client: otlp_client.flatten(),
                headers: otlp_headers.flatten(),
            },
            signals: signals?,
            interval: interval?,
            sampling: sampling?,
        },
        metrics: shown::Settings { series: series?, istio: istio? },
    })
}

/// Reads settings and collects what is wrong with them.
pub(super) struct Reader {
    pub refusals: Vec<Refusal>,
}

impl Reader {
    pub(super) fn value<T>(&mut self, row: &Row<T>, setting: Option<Setting>) -> Option<T> {
        let &Row { name, default, expected, example, parse } = row;
        let default = default.map(|text| Setting { text: text.into(), origin: Origin::Default });
        let Some(Setting { text, origin }) = setting.or(default) else {
            self.refusals.push(Refusal::Missing { name, expected, example });
            return None;
        };
        let value = parse(&text);
        if value.is_none() {
            let expected = expected.to_string();
            self.refusals.push(Refusal::Value { name, origin, text, expected, example });
        }
        value
    }

    /// Refuses what is of use with TLS alone.
    fn only_with_tls<T>(&mut self, row: &Row<T>, setting: Option<&Setting>) {
        let Some(Setting { text, origin }) = setting.cloned() else { return };
        let &Row { name, example, .. } = row;
        let expected = "a collector with TLS beside it, --otlp https://… or grpcs://…".to_string();
        self.refusals.push(Refusal::Value { name, origin, text, expected, example });
    }

    fn found<T>(&mut self, value: Option<T>, otherwise: Refusal) -> Option<T> {
        if value.is_none() {
            self.refusals.push(otherwise);
        }
        value
    }
}

/// What a setting is called and takes.
pub(super) struct Row<T> {
    pub name: &'static str,
    pub default: Option<&'static str>,
    pub expected: &'static str,
    pub example: &'static str,
    pub parse: fn(&OsStr) -> Option<T>,
}

const NODE: Row<String> = Row {
    name: "node",
    default: None,
    expected: "the Kubernetes name of this node (lower case letters, digits, - and .)",
    example: "worker-1",
    parse: |text| dns_name(text, "-."),
};

const DISCOVERY: Row<Discovery> = Row {
    name: "discovery",
    default: None,
    expected: "dir: and a directory of Kubernetes YAML, or kubernetes for the API server of the cluster",
    example: "dir:/etc/nodemesh/world",
    parse: |text| match text == "kubernetes" {
        true => Some(Discovery::Kubernetes { kubeconfig: None }),
        false => directory(text).map(Discovery::Directory),
    },
};

const DAEMONSET: Row<OwnDaemonSet> = Row {
    name: "daemonset",
    default: None,
    expected: "a namespace, a slash and a name",
    example: "nodemesh-system/nodemesh-agent",
    parse: |text| text.to_str()?.parse().ok(),
};

const KUBECONFIG: Row<PathBuf> = Row {
    name: "kubeconfig",
    default: None,
    expected: "the path of a kubeconfig",
    example: "/etc/nodemesh/kubeconfig",
    parse: path,
};

const CGROUP_ROOT: Row<PathBuf> = Row {
    name: "cgroup-root",
    default: None,
    expected: "the absolute path of a cgroup v2 directory",
    example: "/sys/fs/cgroup",
    parse: absolute_path,
};

const BPF_PINS: Row<PathBuf> = Row {
    name: "bpf-pins",
    default: Some(default::BPF_PINS),
    expected: PINS_EXPECTED,
    example: "/sys/fs/bpf/nodemesh",
    parse: |text| path(text).filter(|path| is_pins_path(path)),
};

const BPF_OBJECT: Row<PathBuf> = Row {
    name: "bpf-object",
    default: None,
    expected: "the path of the object that `cargo xtask build-ebpf` makes",
    example: "target/bpf/mesh-ebpf",
    parse: path,
};

const MAP_CONNECTIONS_SETTING: Row<u32> = Row {
    name: "map-connections",
    default: Some(default::MAP_CONNECTIONS),
    expected: "a number from 1024 to 16777216",
    example: "262144",
    parse: |text| text.to_str()?.parse().ok().filter(|number| MAP_CONNECTIONS.contains(number)),
};

const TC: Row<Tc> = Row {
    name: "tc",
    default: Some(default::TC),
    expected: "auto, tcx or clsact",
    example: "auto",
    parse: |text| match text.to_str()? {
        "auto" => Some(Tc::Auto),
        "tcx" => Some(Tc::Tcx),
        "clsact" => Some(Tc::Clsact),
        _ => None,
    },
};

const BPF_LOG: Row<bool> = Row {
    name: "bpf-log",
    default: Some(default::BPF_LOG),
    expected: "true or false",
    example: "true",
    parse: |text| text.to_str()?.parse().ok(),
};

const SAME_NODE_KERNEL: Row<bool> = Row {
    name: "same-node-kernel",
    default: Some(default::SAME_NODE_KERNEL),
    expected: "true or false",
    example: "true",
    parse: |text| text.to_str()?.parse().ok(),
};

/// What --ca alone says.
enum TypedCa {
    Here(Ca),
    Remote(RemoteAddress),
}

const CA: Row<TypedCa> = Row {
    name: "ca",
    default: None,
    expected: "dir: and a directory for the root, memory for a single agent, or https:// and host and port",
    example: "dir:/var/lib/nodemesh/ca",
    parse: |text| match text.to_str() {
        Some("memory") => Some(TypedCa::Here(Ca::Memory)),
        Some(url) if url.starts_with("https:") => url.parse().ok().map(TypedCa::Remote),
        Some(_) | None => directory(text).map(|path| TypedCa::Here(Ca::Directory(path))),
    },
};

const CA_ROOTS: Row<PathBuf> = Row {
    name: "ca-roots",
    default: None,
    expected: "the path of a file with certificates (PEM)",
    example: "/etc/nodemesh/roots/roots.pem",
    parse: path,
};

const CA_TOKEN: Row<PathBuf> = Row {
    name: "ca-token",
    default: None,
    expected: "the path of a file with a projected service account token",
    example: "/var/run/secrets/nodemesh/token",
    parse: path,
};

pub(super) const TRUST_DOMAIN: Row<String> = Row {
    name: "trust-domain",
    default: Some(default::TRUST_DOMAIN),
    expected: "a SPIFFE trust domain (lower case letters, digits, -, . and _)",
    example: "cluster.local",
    parse: |text| dns_name(text, "-._"),
};

const SVID_TTL: Row<Duration> = Row {
    name: "svid-ttl",
    default: Some(default::SVID_TTL),
    expected: "a duration from 10s to 7days",
    example: "4h",
    parse: |text| duration(text).filter(|ttl| (SVID_TTL_MIN..=SVID_TTL_MAX).contains(ttl)),
};

const CNI_SOCKET: Row<PathBuf> = Row {
    name: "cni-socket",
    default: None,
    expected: "an absolute path",
    example: "/run/nodemesh/cni.sock",
    parse: absolute_path,
};

const JWKS_CA: Row<PathBuf> = Row {
    name: "jwks-ca",
    default: None,
    expected: "the path of a file with certificates (PEM)",
    example: "/etc/nodemesh/issuers-ca.pem",
    parse: path,
};

const JWKS_ALLOW: Row<issuers::Allowed> = Row {
    name: "jwks-allow",
    default: None,
    expected: "http, ranges of addresses, or both, joined by commas",
    example: "http,127.0.0.0/8",
    parse: |text| text.to_str()?.parse().ok(),
};

const OUTBOUND_MODE: Row<OutboundMode> = Row {
    name: "outbound-mode",
    default: Some(default::OUTBOUND_MODE),
    expected: "allow-any or registry-only",
    example: "registry-only",
    parse: |text| match text.to_str()? {
        "allow-any" => Some(OutboundMode::AllowAny),
        "registry-only" => Some(OutboundMode::RegistryOnly),
        _ => None,
    },
};

const WORKERS: Row<NonZeroUsize> = Row {
    name: "workers",
    default: None,
    expected: "a number from 1 to 1024",
    example: "4",
    parse: |text| text.to_str()?.parse().ok().filter(|number: &NonZeroUsize| number.get() <= WORKERS_MAX),
};

const POD_CONNECTIONS: Row<u32> = count_row("pod-connections", default::POD_CONNECTIONS, "32768");
const POD_ACCEPT_RATE: Row<u32> = count_row("pod-accept-rate", default::POD_ACCEPT_RATE, "5000");
const POD_ACCEPT_BURST: Row<u32> = count_row("pod-accept-burst", default::POD_ACCEPT_BURST, "20000");
const POD_HANDSHAKES: Row<u32> = count_row("pod-handshakes", default::POD_HANDSHAKES, "1024");

const fn count_row(name: &'static str, default: &'static str, example: &'static str) -> Row<u32> {
    Row {
        name,
        default: Some(default),
        expected: "a number from 1 to 16777216",
        example,
        parse: |text| text.to_str()?.parse().ok().filter(|number| POD_COUNT.contains(number)),
    }
}

const POD_BUFFER: Row<usize> = Row {
    name: "pod-buffer",
    default: Some(default::POD_BUFFER),
    expected: "a size from 1Mi to 1024Gi (Ki, Mi and Gi are powers of 1024)",
    example: "256Mi",
    parse: |text| size(text.to_str()?).filter(|size| POD_BUFFER_RANGE.contains(size)),
};

const DRAIN_WINDOW: Row<Duration> = Row {
    name: "drain-window",
    default: Some(default::DRAIN_WINDOW),
    expected: "a duration up to 7days",
    example: "10m",
    parse: |text| duration(text).filter(|window| *window <= DRAIN_WINDOW_MAX),
};

const ADMIN: Row<Address> = Row {
    name: "admin",
    default: Some(default::ADMIN),
    expected: "a loopback IP:PORT or unix:PATH (whoever reaches it can change the agent)",
    example: "unix:/run/nodemesh/admin.sock",
    parse: |text| {
        address(text).filter(|address| match address {
            Address::Tcp(tcp) => is_loopback(tcp),
            Address::Unix(_) => true,
        })
    },
};

const MAP: Row<SocketAddr> = Row {
    name: "map",
    default: None,
    expected: "a loopback IP:PORT (whoever reaches it sees who talks to whom; meshctl map takes a token)",
    example: "127.0.0.1:15080",
    parse: |text| text.to_str()?.parse().ok().filter(is_loopback),
};

const METRICS: Row<Address> = Row {
    name: "metrics",
    default: Some(default::METRICS),
    expected: "IP:PORT or unix:PATH",
    example: "0.0.0.0:15020",
    parse: address,
};

const READINESS: Row<Address> = Row {
    name: "readiness",
    default: Some(default::READINESS),
    expected: "IP:PORT or unix:PATH",
    example: "0.0.0.0:15021",
    parse: address,
};

pub(super) const LOG_FORMAT: Row<logs::Format> = Row {
    name: "log-format",
    default: Some(default::LOG_FORMAT),
    expected: "text or json",
    example: "json",
    parse: |text| match text.to_str()? {
        "text" => Some(logs::Format::Text),
        "json" => Some(logs::Format::Json),
        _ => None,
    },
};

pub(super) const LOG_LEVEL: Row<String> = Row {
    name: "log-level",
    default: Some(default::LOG_LEVEL),
    expected: "error, warn, info, debug, trace, off, or a list of TARGET=LEVEL",
    example: "info,mesh_agent::hbone=debug,access=off",
    parse: |text| {
        let text = text.to_str()?;
        logs::parse_filter(text).is_ok().then(|| text.to_string())
    },
};

const ACCESS_LOG: Row<access_log::Filter> = Row {
    name: "access-log",
    default: Some(default::ACCESS_LOG),
    expected: "all, off, or words such as failures, result=NAME, namespace=NAME, pod=NAMESPACE/NAME, sample=N",
    example: "failures,namespace=shop",
    parse: |text| text.to_str()?.parse().ok(),
};

const OTLP: Row<otlp::Collector> = Row {
    name: "otlp",
    default: None,
    expected: "http://HOST:PORT or grpc://HOST:PORT of a collector that takes OTLP; with TLS https:// or grpcs://",
    example: "grpc://127.0.0.1:4317",
    parse: |text| text.to_str()?.parse().ok(),
};

const OTLP_CA: Row<PathBuf> = Row {
    name: "otlp-ca",
    default: None,
    expected: "the path of a file with certificates (PEM)",
    example: "/etc/nodemesh/collector-ca.pem",
    parse: path,
};

const OTLP_CLIENT: Row<PathBuf> = Row {
    name: "otlp-client",
    default: None,
    expected: "the path of a directory with tls.crt and tls.key (PEM)",
    example: "/etc/nodemesh/collector-client",
    parse: path,
};

const OTLP_HEADERS_FILE: Row<PathBuf> = Row {
    name: "otlp-headers-file",
    default: None,
    expected: "the path of a file with lines of NAME: VALUE",
    example: "/etc/nodemesh/collector-headers",
    parse: path,
};

const OTLP_SIGNALS: Row<otlp::Signals> = Row {
    name: "otlp-signals",
    default: Some(default::OTLP_SIGNALS),
    expected: "one or more of traces, logs, metrics, joined by commas",
    example: "traces,metrics",
    parse: |text| text.to_str()?.parse().ok(),
};

const OTLP_INTERVAL: Row<Duration> = Row {
    name: "otlp-interval",
    default: Some(default::OTLP_INTERVAL),
    expected: "a duration from 1s to 1h",
    example: "30s",
    parse: |text| duration(text).filter(|interval| OTLP_INTERVALS.contains(interval)),
};

const TRACE_SAMPLING: Row<spans::Sampling> = Row {
    name: "trace-sampling",
    default: Some(default::TRACE_SAMPLING),
    expected: "a number of percent from 0 to 100",
    example: "0.5",
    parse: |text| spans::Sampling::percent(text.to_str()?.parse().ok()?),
};

const METRICS_SERIES: Row<usize> = Row {
    name: "metrics-series",
    default: Some(default::METRICS_SERIES),
    expected: "a number from 1000 to 16777216",
    example: "100000",
    parse: |text| text.to_str()?.parse().ok().filter(|number| (1_000..=16_777_216).contains(number)),
};

const ISTIO_METRICS: Row<bool> = Row {
    name: "istio-metrics",
    default: Some(default::ISTIO_METRICS),
    expected: "true or false",
    example: "true",
    parse: |text| text.to_str()?.parse().ok(),
};

/// `256Mi`, as Kubernetes writes it; a number alone is bytes.
fn size(text: &str) -> Option<usize> {
    let (number, unit) = text.split_at(text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len()));
    let unit: usize = match unit {
        "" => 1,
        "Ki" => 1 << 10,
        "Mi" => 1 << 20,
        "Gi" => 1 << 30,
        _ => return None,
    };
    number.parse::<usize>().ok()?.checked_mul(unit)
}

pub(super) fn path(text: &OsStr) -> Option<PathBuf> {
    (!text.is_empty()).then(|| text.into())
}

fn absolute_path(text: &OsStr) -> Option<PathBuf> {
    path(text).filter(|path| path.is_absolute())
}

/// `dir:PATH`
fn directory(text: &OsStr) -> Option<PathBuf> {
    path(text.to_str()?.strip_prefix("dir:")?.as_ref())
}

pub(super) fn address(text: &OsStr) -> Option<Address> {
    text.to_str()?.parse().ok()
}

fn is_loopback(address: &SocketAddr) -> bool {
    address.ip().to_canonical().is_loopback()
}

pub(super) fn duration(text: &OsStr) -> Option<Duration> {
    humantime::parse_duration(text.to_str()?).ok()
}

/// A lower-case DNS name with these marks between letters and digits.
pub(super) fn dns_name(text: &OsStr, marks: &str) -> Option<String> {
    let text = text.to_str()?;
    let is_plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    let is_name = (1..=253).contains(&text.len())
        && text.chars().all(|c| is_plain(c) || marks.contains(c))
        && text.starts_with(is_plain)
        && text.ends_with(is_plain);
    is_name.then(|| text.to_string())
}
