//! Tables of precedence and of refusals. The environment, the files and the machine are values here.

use std::ffi::OsString;
use std::io;
use std::path::Path;

use clap::{CommandFactory, Parser};

use super::*;
use crate::cli::{Cli, Command};

const NEEDED: [&str; 6] = ["--node", "worker-1", "--discovery", "dir:/world", "--ca", "memory"];
const MOUNTINFO: &str = "\
22 1 254:0 / / rw - ext4 /dev/vda rw
30 22 0:26 / /sys/fs/cgroup ro,nosuid - tmpfs tmpfs ro
31 30 0:27 / /sys/fs/cgroup/uni\\040fied rw,nosuid shared:9 - cgroup2 cgroup2 rw
";

#[derive(Default)]
struct Given<'a> {
    flags: &'a [&'a str],
    environment: &'a [(&'a str, &'a str)],
    file: Option<&'a str>,
    mountinfo: Option<&'a str>,
}

fn load(given: &Given<'_>) -> Result<Config, Refusals> {
    let config_flag: &[&str] = if given.file.is_some() { &["--config", "/agent.yaml"] } else { &[] };
    let arguments = ["mesh-agent", "run"].iter().chain(config_flag).chain(given.flags);
    let Command::Run(args) = Cli::try_parse_from(arguments).expect("flags that exist").command else {
        panic!("not the run command")
    };
    let variable = |name: &str| -> Option<OsString> {
        given.environment.iter().find(|(given, _)| *given == name).map(|(_, text)| text.into())
    };
    let read = |path: &Path| -> io::Result<String> {
        let text = match path.to_str() {
            Some("/agent.yaml") => given.file,
            Some("/proc/self/mountinfo") => Some(given.mountinfo.unwrap_or(MOUNTINFO)),
            _ => None,
        };
        text.map(str::to_string).ok_or_else(|| io::ErrorKind::NotFound.into())
    };
    let cpus = NonZeroUsize::new(6).unwrap();
    Config::load(*args, &Surroundings { variable: &variable, read: &read, cpus })
}

fn with_needed<'a>(flags: &[&'a str]) -> Vec<&'a str> {
    NEEDED.iter().chain(flags).copied().collect()
}

#[test]
fn defaults() {
    let config = load(&Given { flags: &NEEDED, ..Given::default() }).unwrap();
    let expected = Config {
        node: "worker-1".into(),
        discovery: Discovery::Directory("/world".into()),
        daemonset: None,
        capture: Capture {
            cgroup_root: "/sys/fs/cgroup/uni fied".into(),
            bpf_pins: "/sys/fs/bpf/nodemesh".into(),
            bpf_object: None,
            map_connections: 262_144,
            tc: Tc::Auto,
            bpf_log: false,
            same_node_kernel: false,
        },
        cni_socket: None,
        identity: Identity {
            ca: Ca::Memory,
            trust_domain: "cluster.local".into(),
            svid_ttl: Duration::from_secs(4 * 3600),
        },
        issuers: issuers::Reach::default(),
        proxy: Proxy {
            outbound_mode: OutboundMode::AllowAny,
            workers: NonZeroUsize::new(6).unwrap(),
            drain_window: Duration::from_secs(600),
            pod: PodBudget {
                connections: 32_768,
                accept_rate: 5_000,
                accept_burst: 20_000,
                handshakes: 1_024,
                buffer: 256 << 20,
            },
        },
        http: Http {
            admin: Address::Tcp("127.0.0.1:15000".parse().unwrap()),
            metrics: Address::Tcp("[::]:15020".parse().unwrap()),
            readiness: Address::Tcp("[::]:15021".parse().unwrap()),
            map: None,
        },
        logs: Logs { format: logs::Format::Text, level: "info".into(), access: access_log::Filter::default() },
        otlp: Otlp {
            collector: None,
            credentials: otlp::Credentials::default(),
            signals: "traces,logs,metrics".parse().unwrap(),
            interval: Duration::from_secs(60),
            sampling: spans::Sampling::percent(1.0).unwrap(),
        },
        metrics: metrics::Settings { series: metrics::DEFAULT_SERIES, istio: false },
    };
    assert_eq!(config, expected);
}

#[test]
fn a_flag_wins_over_the_environment_and_that_over_the_file() {
    let drain = |flag: Option<&str>, variable: Option<&str>, file: Option<&str>| {
        let file = file.map(|text| format!("drain-window: {text}\n"));
        let environment: Vec<_> = variable.map(|text| ("NODEMESH_DRAIN_WINDOW", text)).into_iter().collect();
        let flag: Vec<_> = flag.map(|text| ["--drain-window", text]).into_iter().flatten().collect();
        let flags = with_needed(&flag);
        let given = Given { flags: &flags, environment: &environment, file: file.as_deref(), mountinfo: None };
        load(&given).unwrap().proxy.drain_window.as_secs()
    };
    for (flag, variable, file, expected) in [
        (None, None, None, 600),
        (None, None, Some("3s"), 3),
        (None, Some("2s"), None, 2),
        (None, Some("2s"), Some("3s"), 2),
        (Some("1s"), None, Some("3s"), 1),
        (Some("1s"), Some("2s"), Some("3s"), 1),
        (None, Some(""), Some("3s"), 3),
    ] {
        assert_eq!(drain(flag, variable, file), expected, "{flag:?} {variable:?} {file:?}");
    }
}

#[test]
fn every_flag_is_read_from_every_source() {
    let values = [
        ("node", "n.example"),
        ("discovery", "kubernetes"),
        ("kubeconfig", "/etc/kubeconfig"),
        ("daemonset", "nodemesh-system/nodemesh-agent"),
        ("cgroup-root", "/cg"),
        ("bpf-pins", "/bpf/nodemesh-7"),
        ("bpf-object", "mesh-ebpf"),
        ("map-connections", "4096"),
        ("tc", "clsact"),
        ("bpf-log", "true"),
        ("same-node-kernel", "true"),
        ("cni-socket", "/run/nodemesh/cni.sock"),
        ("ca", "https://ca.example:15012"),
        ("ca-roots", "/roots.pem"),
        ("ca-token", "/token"),
        ("trust-domain", "mesh.example"),
        ("svid-ttl", "30m"),
        ("jwks-ca", "/etc/issuers.pem"),
        ("jwks-allow", "http,127.0.0.0/8"),
        ("outbound-mode", "registry-only"),
        ("workers", "3"),
        ("pod-connections", "16384"),
        ("pod-accept-rate", "100"),
        ("pod-accept-burst", "300"),
        ("pod-handshakes", "10"),
        ("pod-buffer", "4Mi"),
        ("drain-window", "90s"),
        ("admin", "unix:/run/a.sock"),
        ("metrics", "10.0.0.1:1"),
        ("readiness", "unix:/run/r.sock"),
        ("map", "127.0.0.1:15080"),
        ("log-format", "json"),
        ("log-level", "debug,access=off"),
        ("access-log", "failures"),
        ("otlp", "https://otel:4318"),
        ("otlp-ca", "/ca.pem"),
        ("otlp-client", "/client"),
        ("otlp-headers-file", "/headers"),
        ("otlp-signals", "logs"),
        ("otlp-interval", "5s"),
        ("trace-sampling", "0.1"),
        ("metrics-series", "2000"),
        ("istio-metrics", "true"),
    ];
    let run = Cli::command().find_subcommand("run").unwrap().clone();
    let known: Vec<_> =
        run.get_arguments().filter_map(|flag| flag.get_long()).filter(|name| *name != "config").collect();
    assert_eq!(known.len(), values.len(), "a flag is missing in this table: {known:?}");

    let flags: Vec<String> = values.iter().map(|(name, text)| format!("--{name}={text}")).collect();
    let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
    let by_flag = load(&Given { flags: &flags, ..Given::default() }).unwrap();

    let variables: Vec<_> = values.iter().map(|(name, text)| (crate::cli::environment_name(name), *text)).collect();
    let variables: Vec<_> = variables.iter().map(|(name, text)| (name.as_str(), *text)).collect();
    let by_environment = load(&Given { environment: &variables, ..Given::default() }).unwrap();

    let file: String = values.iter().map(|(name, text)| format!("{name}: {text}\n")).collect();
    let by_file = load(&Given { file: Some(&file), ..Given::default() }).unwrap();

    assert_eq!(by_flag, by_environment);
    assert_eq!(by_flag, by_file);
    assert_eq!(by_flag.discovery, Discovery::Kubernetes { kubeconfig: Some("/etc/kubeconfig".into()) });
    assert_eq!(by_flag.capture.bpf_object.as_deref(), Some(Path::new("mesh-ebpf")));
    assert_eq!(by_flag.capture.cgroup_root, Path::new("/cg"));
    assert_eq!(by_flag.proxy.workers.get(), 3);
    assert!(by_flag.capture.bpf_log && by_flag.capture.same_node_kernel);
    let Ca::Remote(remote) = by_flag.identity.ca else { panic!("not remote") };
    assert_eq!(
        (remote.address.to_string().as_str(), remote.token.to_str()),
        ("https://ca.example:15012", Some("/token"))
    );
    assert_eq!(by_flag.proxy.pod.buffer, 4 << 20);
    assert_eq!(by_flag.logs.access.to_string(), "failures");
}

#[test]
fn wrong_values_are_refused_with_the_right_form() {
    for (flag, wrong, expected) in [
        ("--node", "Worker_1", "lower case"),
        ("--node", "", "lower case"),
        ("--discovery", "/world", "dir:"),
        ("--discovery", "dir:", "dir:"),
        ("--discovery", "Kubernetes", "kubernetes for the API server"),
        ("--kubeconfig", "", "kubeconfig"),
        ("--daemonset", "nodemesh-agent", "namespace"),
        ("--daemonset", "a/b/c", "namespace"),
        ("--cgroup-root", "relative", "absolute"),
        ("--bpf-pins", "/sys/fs/bpf", "\"nodemesh\""),
        ("--map-connections", "10", "1024 to 16777216"),
        ("--map-connections", "-1", "1024 to 16777216"),
        ("--tc", "TCX", "auto, tcx or clsact"),
        ("--bpf-log", "maybe", "true or false"),
        ("--ca", "disk", "dir:"),
        ("--ca", "https://no-port", "https:// and host and port"),
        ("--ca-roots", "/roots.pem", "nothing unless --ca is https://"),
        ("--ca-token", "/token", "nothing unless --ca is https://"),
        ("--trust-domain", "spiffe://x", "trust domain"),
        ("--svid-ttl", "1s", "from 10s"),
        ("--svid-ttl", "4", "for example 4h"),
        ("--outbound-mode", "any", "allow-any or registry-only"),
        ("--workers", "0", "1 to 1024"),
        ("--pod-connections", "0", "1 to 16777216"),
        ("--pod-accept-rate", "fast", "1 to 16777216"),
        ("--pod-accept-burst", "-1", "1 to 16777216"),
        ("--pod-handshakes", "1e3", "1 to 16777216"),
        ("--pod-buffer", "256MB", "Ki, Mi and Gi"),
        ("--pod-buffer", "1Ki", "from 1Mi"),
        ("--access-log", "errors", "failures"),
        ("--otlp", "tls://otel:4318", "with TLS https:// or grpcs://"),
        ("--otlp-ca", "", "certificates (PEM)"),
        ("--otlp-client", "", "tls.crt and tls.key"),
        ("--otlp-headers-file", "", "NAME: VALUE"),
        ("--otlp", "otel:4318", "http://"),
        ("--otlp", "grpc://otel", "grpc://HOST:PORT"),
        ("--otlp-signals", "spans", "traces, logs, metrics"),
        ("--otlp-signals", "", "traces, logs, metrics"),
        ("--otlp-interval", "10ms", "from 1s"),
        ("--trace-sampling", "101", "0 to 100"),
        ("--trace-sampling", "1%", "0 to 100"),
        ("--metrics-series", "100", "1000 to 16777216"),
        ("--istio-metrics", "yes", "true or false"),
        ("--drain-window", "ten minutes", "for example 10m"),
        ("--admin", "0.0.0.0:15000", "loopback"),
        ("--map", "0.0.0.0:15080", "loopback"),
        ("--admin", "[::ffff:10.0.0.1]:15000", "loopback"),
        ("--admin", "unix:", "unix:PATH"),
        ("--metrics", "15020", "IP:PORT"),
        ("--log-format", "xml", "text or json"),
        ("--log-level", "info,mesh_agent=loud", "TARGET=LEVEL"),
    ] {
        let argument = format!("{flag}={wrong}");
        // Given twice, a flag would be clap's refusal: the needed ones come from the environment here.
        let environment =
            [("NODEMESH_NODE", "worker-1"), ("NODEMESH_DISCOVERY", "dir:/world"), ("NODEMESH_CA", "memory")];
        let Refusals(refusals) =
            load(&Given { flags: &[&argument], environment: &environment, ..Given::default() }).unwrap_err();
        let [refusal] = &refusals[..] else { panic!("{argument}: {refusals:?}") };
        let told = refusal.to_string();
        assert!(told.starts_with(flag) && told.contains(expected), "{argument}: {told}");
        assert!(told.contains("for example"), "{told}");
    }
}

#[test]
fn the_examples_in_refusals_are_accepted() {
    // Each refusal shows a value; whoever copies it must get further.
    let wrong = ["node", "discovery", "cgroup-root", "bpf-pins", "map-connections", "tc", "bpf-log", "ca"];
    let wrong = wrong.iter().chain(&["trust-domain", "svid-ttl", "outbound-mode", "workers", "drain-window", "admin"]);
    let wrong =
        wrong.chain(&["pod-connections", "pod-accept-rate", "pod-accept-burst", "pod-handshakes", "pod-buffer"]);
    for name in wrong.chain(&[
        "metrics",
        "readiness",
        "log-format",
        "log-level",
        "access-log",
        "otlp",
        "otlp-signals",
        "otlp-interval",
        "trace-sampling",
        "metrics-series",
        "istio-metrics",
    ]) {
        let variable = crate::cli::environment_name(name);
        let mut environment =
            vec![("NODEMESH_NODE", "worker-1"), ("NODEMESH_DISCOVERY", "dir:/world"), ("NODEMESH_CA", "memory")];
        environment.retain(|(needed, _)| *needed != variable);
        environment.push((&variable, "?!"));
        let Refusals(refusals) = load(&Given { environment: &environment, ..Given::default() }).unwrap_err();
        let [Refusal::Value { example, .. }] = refusals[..] else { panic!("{name}: {refusals:?}") };
        environment.pop();
        environment.push((&variable, example));
        assert!(load(&Given { environment: &environment, ..Given::default() }).is_ok(), "{name}: {example}");
    }
}

#[test]
fn what_is_of_tls_is_not_given_for_a_collector_without() {
    let collectors = [("http://otel:4318", 2), ("grpc://otel:4317", 2), ("https://otel", 0), ("grpcs://otel:4317", 0)];
    for (collector, refused) in collectors {
        let flags = ["--otlp", collector, "--otlp-ca", "/ca.pem", "--otlp-client", "/c", "--otlp-headers-file", "/h"];
        let told = load(&Given { flags: &with_needed(&flags), ..Given::default() });
        let told = told.err().map(|refusals| refusals.to_string()).unwrap_or_default();
        assert_eq!(told.matches("a collector with TLS beside it").count(), refused, "{collector}: {told}");
        assert!(!told.contains("headers"), "headers go with any: {told}");
    }
}

#[test]
fn all_refusals_are_told_at_once_and_by_origin() {
    let given = Given {
        flags: &["--tc", "x"],
        environment: &[("NODEMESH_WORKERS", "many")],
        file: Some("ca: disk\nbpf-log: 3\n"),
        mountinfo: Some(""),
    };
    let told = load(&given).unwrap_err().to_string();
    for expected in [
        "--node is needed",
        "--discovery is needed",
        "no cgroup v2 is mounted",
        "--tc \"x\" is refused",
        "NODEMESH_WORKERS=\"many\" is refused",
        "ca in the configuration file: \"disk\" is refused",
        "bpf-log in the configuration file: \"3\" is refused",
    ] {
        assert!(told.contains(expected), "{expected:?} is not in:\n{told}");
    }
}

#[test]
fn a_file_that_is_not_understood_is_refused() {
    for (file, expected) in [
        ("drain_window: 3m\n", "line 1 column 1: unknown field `drain_window`"),
        ("config: other.yaml\n", "unknown field `config`"),
        ("tc: auto\ntc: tcx\n", "duplicate"),
        ("tc: [auto]\n", "line 1"),
        ("- tc\n", "/agent.yaml"),
    ] {
        let told = load(&Given { flags: &NEEDED, file: Some(file), ..Given::default() }).unwrap_err().to_string();
        assert!(told.starts_with("/agent.yaml: ") && told.contains(expected), "{file:?}: {told}");
        assert_eq!(told.lines().count(), 1, "{told}");
    }
    for empty in ["", "# nothing\n", "tc:\n"] {
        load(&Given { flags: &NEEDED, file: Some(empty), ..Given::default() }).unwrap();
    }
}

#[test]
fn a_missing_file_is_named() {
    let flags = with_needed(&["--config", "/nowhere.yaml"]);
    let told = load(&Given { flags: &flags, ..Given::default() }).unwrap_err().to_string();
    assert!(told.starts_with("/nowhere.yaml: "), "{told}");
}

#[test]
fn help_states_the_defaults() {
    let help = Cli::command().find_subcommand_mut("run").unwrap().render_help().to_string();
    let help = help.split_whitespace().collect::<Vec<_>>().join(" ");
    for default in [
        default::BPF_PINS,
        default::TRUST_DOMAIN,
        default::OUTBOUND_MODE,
        default::ADMIN,
        default::METRICS,
        default::READINESS,
        default::LOG_FORMAT,
        default::LOG_LEVEL,
        default::DRAIN_WINDOW,
        default::POD_CONNECTIONS,
        default::POD_ACCEPT_RATE,
        default::POD_ACCEPT_BURST,
        default::POD_HANDSHAKES,
        default::POD_BUFFER,
        default::ACCESS_LOG,
        default::OTLP_SIGNALS,
        default::OTLP_INTERVAL,
        default::TRACE_SAMPLING,
        default::MAP_CONNECTIONS,
        default::SVID_TTL,
        default::TC,
        default::BPF_LOG,
        default::SAME_NODE_KERNEL,
    ] {
        assert!(help.contains(&format!("[default: {default}]")), "{default}");
    }
}

#[test]
fn the_command_line_is_consistent() {
    Cli::command().debug_assert();
}
