//! What is shown of what agents say, and what is said of wrong use. The agents are the admin server of this library, on unix
//! sockets, with answers that real ones gave.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::task::JoinHandle;

use super::*;
use crate::admin::{Address, Listener, Sources, Surface, hook, provider, serve};
use crate::readiness::Readiness;
use crate::spiffe::SpiffeId;
use crate::telemetry::{AccessLog, ConnectionKey, Direction, Metrics, Transport};

pub(super) const DUMP: &str = include_str!("fixtures/config_dump.json");
const CONNECTIONS: &str = include_str!("fixtures/connections.json");
const OTHER_END: &str = include_str!("fixtures/connections_of_the_other_end.json");

/// Agents at sockets of their own.
pub(super) struct Rig {
    place: TempDir,
    servers: Vec<JoinHandle<()>>,
    /// Where each tells what ends.
    pub(super) logs: BTreeMap<String, AccessLog>,
}

impl Drop for Rig {
    fn drop(&mut self) {
        self.servers.iter().for_each(JoinHandle::abort);
    }
}

impl Rig {
    pub(super) fn new() -> Self {
        Self { place: tempfile::tempdir().unwrap(), servers: Vec::new(), logs: BTreeMap::new() }
    }

    fn address(&self, name: &str) -> String {
        format!("unix:{}", self.place.path().join(name).display())
    }

    /// An agent that shows these sections and connections.
    pub(super) async fn agent(&mut self, name: &str, dump: Value, connections: Value, metrics: Metrics) {
        let section = |name: &str| {
            let value = dump[name].clone();
            provider(move || std::future::ready(value.clone()))
        };
        let names = ["agent", "discovery", "identities", "workloads", "routes", "policies", "authorizers"];
        let mut config_dump: BTreeMap<_, _> = names.into_iter().map(|name| (name, section(name))).collect();
        // What nobody asks for here is not made.
        config_dump.insert("services", provider(std::future::pending));
        let nothing = || hook(|| async { Err("not here".to_string()) });
        let sources = Sources {
            readiness: Readiness::default(),
            metrics,
            config_dump,
            connections: provider(move || std::future::ready(connections.clone())),
            rotate: nothing(),
            drain: nothing(),
            log_filter: None,
            access_log: self.logs.entry(name.to_string()).or_default().clone(),
        };
        let address: Address = self.address(name).parse().unwrap();
        let listener = Listener::bind(&address).await.unwrap();
        self.servers.push(tokio::spawn(serve(listener, Surface::Admin, Arc::new(sources))));
    }

    /// What a command answers that asks these agents, and prints. Names of sockets are as they were given.
    pub(super) async fn ask(&self, agents: &[&str], typed: &[&str]) -> (Verdict, String) {
        let (verdict, text) = self.typed(agents, typed).await;
        (verdict.unwrap(), text)
    }

    /// Why a command is not even begun.
    pub(super) async fn refused(&self, agents: &[&str], typed: &[&str]) -> String {
        format!("{:#}", self.typed(agents, typed).await.0.unwrap_err())
    }

    async fn typed(&self, agents: &[&str], typed: &[&str]) -> (Result<Verdict>, String) {
        let addresses = agents.iter().flat_map(|agent| ["--admin".to_string(), self.address(agent)]);
        let typed = ["meshctl"].into_iter().chain(typed.iter().copied()).map(str::to_string);
        let Ctl { whom, command } = parsed("meshctl", typed.chain(addresses).map(OsString::from).collect()).unwrap();
        let Ok(question) = command.question() else { panic!("no question") };
        let mut out = Vec::new();
        let mut screen = Screen { out: &mut out, is_terminal: false, paint: Paint::Plain };
        let verdict = ask(&whom, &question, &mut screen).await;
        let text = String::from_utf8(out).unwrap();
        (verdict, text.replace(&format!("unix:{}/", self.place.path().display()), ""))
    }
}

pub(super) fn json_of(text: &str) -> Value {
    serde_json::from_str(text).unwrap()
}

/// Lines without their gaps: columns are as broad as what a socket's path made them.
fn words_of(text: &str) -> Vec<String> {
    text.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect()
}

/// The second node: not ready, one pod of two not captured, a certificate that ended, an old world.
fn troubled() -> Value {
    let mut dump = json_of(DUMP);
    dump["agent"]["node"] = "worker-2".into();
    dump["agent"]["version"] = "0.0.9".into();
    dump["agent"]["notReady"] = json!({"discovery": "nothing was read", "pod/shop/web-0": "no routes"});
    dump["discovery"]["ageSeconds"] = 400.0.into();
    dump["discovery"]["health"]["unreachable"] = "connection refused".into();
    dump["discovery"]["health"]["findings"] = json!([{"field": "spec"}]);
    dump["identities"]["svids"][0]["secondsLeft"] = (-5.0).into();
    dump["identities"]["svids"][0]["lastError"] = "the controller refuses".into();
    dump["workloads"][0]["captured"] = false.into();
    dump["workloads"][0]["notCaptured"] = "no routes".into();
    dump
}

/// Two agents, and a third address at which there is none.
async fn rig() -> Rig {
    let mut rig = Rig::new();
    let metrics = Metrics::new();
    rig.agent("one", json_of(DUMP), json_of(CONNECTIONS), metrics).await;
    rig.agent("two", troubled(), json_of(OTHER_END), Metrics::new()).await;
    rig
}

#[tokio::test]
async fn status_of_a_mesh_that_is_well() {
    let rig = rig().await;
    let (verdict, text) = rig.ask(&["one"], &["status"]).await;
    let expected = "\
NODE       VERSION   READY   PODS   CAPTURED   CERTIFICATES   CONFIG AGE   CONNECTIONS
worker-1   0.1.0     yes     3      2/2        2/2 2h11m      0s           4
";
    assert_eq!((verdict, text.as_str()), (Verdict::Well, expected));
}

#[tokio::test]
async fn status_says_what_is_wrong_and_goes_on_without_who_is_away() {
    let rig = rig().await;
    let (verdict, _) = rig.ask(&["away"], &["status"]).await;
    assert_eq!(verdict, Verdict::Unasked);
    let (verdict, text) = rig.ask(&["two", "away", "one"], &["status", "-o", "wide"]).await;
    let expected = "\
NODE       VERSION   READY   PODS   CAPTURED   CERTIFICATES   CONFIG AGE   CONNECTIONS   OBJECTS   FINDINGS   STATE   POD
away       -         ?       -      -          -              -            -             -         -          -       -
worker-1   0.1.0     yes     3      2/2        2/2 2h11m      0s           4             117       0          42      -
worker-2   0.0.9     no      3      1/2        1/2 2h11m      6m40s        4             117       1          42      -

away: does not answer: No such file or directory (os error 2)
worker-2: not ready: discovery: nothing was read
worker-2: pod shop/web-0 is not captured: no routes
worker-2: spiffe://cluster.local/ns/shop/sa/web has no certificate in force: the controller refuses
worker-2: its world is as it was: connection refused
note: the agents are of different versions: 0.0.9 (1), 0.1.0 (1)
note: findings about objects of the cluster: 1; discovery in /config_dump and meshctl config validate PATH name them
";
    assert_eq!((verdict, words_of(&text)), (Verdict::Wrong, words_of(expected)), "{text}");
}

#[tokio::test]
async fn status_for_machines() {
    let rig = rig().await;
    let (verdict, text) = rig.ask(&["one", "away"], &["status", "-o", "json"]).await;
    let shown = json_of(&text);
    assert_eq!((verdict, &shown["healthy"]), (Verdict::Wrong, &json!(false)));
    let away = &shown["agents"][0];
    assert_eq!((&away["node"], &away["version"], &away["ready"]), (&json!("away"), &Value::Null, &Value::Null));
    assert_eq!(away["trouble"].as_array().map(Vec::len), Some(1));
    let expected = json!({
        "node": "worker-1",
        "pod": null,
        "answered": true,
        "version": "0.1.0",
        "started": 1790000000.25,
        "ready": true,
        "pods": {"total": 3, "enrolled": 2, "captured": 2},
        "certificates": {"wanted": 2, "inForce": 2, "soonestSeconds": 7860.0, "late": 0},
        "config": {"version": 42, "ageSeconds": 0.4, "objects": 117, "findings": 0},
        "connections": 4,
        "trouble": [],
    });
    assert_eq!(shown["agents"][1], expected);
    let (_, text) = rig.ask(&["one"], &["status", "-o", "yaml"]).await;
    let yaml: Value = serde_saphyr::from_str(&text).unwrap();
    assert_eq!(yaml["agents"][0], expected, "{text}");
}

#[tokio::test]
async fn an_agent_that_says_less_is_shown_with_less() {
    let mut rig = Rig::new();
    let mut dump = json_of(DUMP);
    for workload in dump["workloads"].as_array_mut().unwrap() {
        workload.as_object_mut().unwrap().remove("captured");
        workload.as_object_mut().unwrap().remove("notCaptured");
    }
    dump["discovery"] = json!({"error": "this section was not ready in time"});
    rig.agent("old", dump, json!([]), Metrics::new()).await;
    let (verdict, text) = rig.ask(&["old"], &["status"]).await;
    let expected = "\
NODE       VERSION   READY   PODS   CAPTURED   CERTIFICATES   CONFIG AGE   CONNECTIONS
worker-1   0.1.0     yes     3      ?/2        2/2 2h11m      -            4

worker-1: discovery: this section was not ready in time
";
    assert_eq!((verdict, text.as_str()), (Verdict::Wrong, expected));
}

#[tokio::test]
async fn a_connection_that_two_agents_know_is_one_line() {
    let rig = rig().await;
    let (verdict, text) = rig.ask(&["one", "two"], &["connections"]).await;
    let expected = "\
SOURCE           DESTINATION        IDENTITY         TRANSPORT      BYTES           AGE
[fd00::9]:5555   shop/cart-0:8080   -                plaintext      10/20           2h1m
shop/web-0       203.0.113.9:443    -                pass-through   517/0           3s
shop/web-0       shop/api-1:8080    ns/shop/sa/web   tunnel         1.5Ki/716.8Ki   1m35s
";
    assert_eq!((verdict, text.as_str()), (Verdict::Well, expected));
    // Without the caller's agent there is the other's word.
    let (_, text) = rig.ask(&["two"], &["connections", "-o", "wide"]).await;
    assert!(text.contains("10.244.1.5:40112   shop/api-1:8080   spiffe://cluster.local/ns/shop/sa/web"), "{text}");
    assert!(text.contains("shop/api-callers"), "{text}");
}

#[tokio::test]
async fn connections_are_chosen() {
    let rig = rig().await;
    let table: [(&[&str], usize); 8] = [
        (&[], 4),
        (&["--namespace", "shop"], 4),
        (&["--namespace", "sho"], 0),
        (&["--pod", "web-0"], 2),
        (&["--pod", "shop/api-1"], 2),
        (&["--pod", "other/api-1"], 0),
        (&["--transport", "plaintext"], 1),
        (&["--transport", "tunnel", "--pod", "cart-0"], 0),
    ];
    for (filters, count) in table {
        let typed = [&["connections", "-o", "json"], filters].concat();
        let (verdict, text) = rig.ask(&["one", "two", "away"], &typed).await;
        let shown = json_of(&text);
        assert_eq!(shown["connections"].as_array().map(Vec::len), Some(count), "{filters:?}: {text}");
        assert_eq!(verdict, Verdict::Wrong, "one does not answer");
        assert_eq!(shown["unanswered"][0]["node"], "away");
    }
    let (_, text) = rig.ask(&["one"], &["connections", "-o", "json", "--transport", "plaintext"]).await;
    // Everything that the agent says, and who says it.
    let mut expected = json_of(CONNECTIONS)[2].clone();
    expected["node"] = "one".into();
    assert_eq!(json_of(&text)["connections"][0], expected);
    let (_, text) = rig.ask(&["one"], &["connections", "--namespace", "none"]).await;
    assert_eq!(text, "no such connections\n");
}

#[tokio::test]
async fn identities_and_that_of_a_pod() {
    let rig = rig().await;
    let (verdict, text) = rig.ask(&["one", "two"], &["identity"]).await;
    let expected = "\
IDENTITY          NODE       PODS   ENDS IN   ROOT
ns/shop/sa/cart   worker-1   1      2h11m     9f2c4e6a8b0d
ns/shop/sa/cart   worker-2   1      2h11m     9f2c4e6a8b0d
ns/shop/sa/web    worker-1   1      2h30m     9f2c4e6a8b0d
ns/shop/sa/web    worker-2   1      ended     9f2c4e6a8b0d
";
    assert_eq!((verdict, text.as_str()), (Verdict::Wrong, expected));

    let (verdict, text) = rig.ask(&["one"], &["identity", "shop/web-0"]).await;
    assert_eq!(verdict, Verdict::Well, "{text}");
    for line in [
        "pod            shop/web-0\n",
        "identity       spiffe://cluster.local/ns/shop/sa/web\n",
        "certificate    serial 4a51, ends in 2h30m, issued ",
        "signed by      root 9f2c4e6a8b0d1f3355779911bbddff00, ends in ",
        "also trusted   root 00112233445566778899aabbccddeeff, ends in ",
    ] {
        assert!(text.contains(line), "{line:?} in {text}");
    }
    let (verdict, text) = rig.ask(&["two"], &["identity", "shop/web-0"]).await;
    assert_eq!(verdict, Verdict::Wrong);
    assert!(text.contains("has ended") && text.contains("last error     the controller refuses"), "{text}");

    // In the mesh's sight, and not of it; and one that is nowhere.
    for pod in ["other/other-0", "shop/none"] {
        let (verdict, text) = rig.ask(&["one"], &["identity", pod]).await;
        assert_eq!(verdict, Verdict::Wrong);
        assert!(text.starts_with(&format!("no agent that answered has {pod} in the mesh")), "{text}");
    }
    let (_, text) = rig.ask(&["one"], &["identity", "shop/web-0", "-o", "json"]).await;
    let shown = json_of(&text);
    assert_eq!(shown["identities"].as_array().map(Vec::len), Some(1));
    assert_eq!(shown["identities"][0]["root"]["signs"], true);
    assert_eq!(shown["identities"][0]["pods"], json!(["shop/web-0"]));
}

fn counted(metrics: &Metrics, direction: Direction, transport: Transport, from: Option<&str>, to: Option<&str>) {
    let id = |account: &str| SpiffeId::new("cluster.local", "shop", account).unwrap();
    let key = ConnectionKey { direction, transport, source: from.map(id), destination: to.map(id) };
    let open = metrics.opened(&key);
    open.progress(2048, 10);
    // Still open: it is counted until it is dropped.
    std::mem::forget(open);
}

#[tokio::test]
async fn a_graph_of_what_real_metrics_say() {
    let (callers, servers) = (Metrics::new(), Metrics::new());
    use Direction::{Inbound, Outbound};
    use Transport::{PassThrough, Plaintext, Requests, SameNode, Tunnel};
    for (direction, transport, from, to) in [
        (Outbound, Tunnel, Some("web"), Some("api")),
        (Outbound, Tunnel, Some("web"), Some("api")),
        (Outbound, PassThrough, Some("web"), None),
        (Outbound, Requests, Some("web"), None),
        (Outbound, SameNode, Some("web"), Some("cart")),
        (Inbound, SameNode, Some("web"), Some("cart")),
    ] {
        counted(&callers, direction, transport, from, to);
    }
    counted(&servers, Inbound, Tunnel, Some("web"), Some("api"));
    counted(&servers, Inbound, Tunnel, Some("web"), Some("api"));
    counted(&servers, Inbound, Plaintext, None, Some("api"));
    let mut rig = Rig::new();
    rig.agent("callers", json_of(DUMP), json!([]), callers).await;
    rig.agent("servers", json_of(DUMP), json!([]), servers).await;

    let agents = ["callers", "servers"];
    let (verdict, text) = rig.ask(&agents, &["graph"]).await;
    let expected = "\
FROM       HOW                  TO          OPENED   OPEN   BYTES
shop/web   ==same-node==>       shop/cart   1        1      2.0Ki/10
shop/web   ==mTLS==>            shop/api    2        2      4.0Ki/20
shop/web   --pass-through-->    unknown     1        1      2.0Ki/10
unknown    --plaintext-->       shop/api    1        1      2.0Ki/10
";
    let sorted = |text: &str| {
        let mut lines = words_of(text);
        lines.sort();
        lines
    };
    assert_eq!((verdict, sorted(&text)), (Verdict::Well, sorted(expected)), "{text}");

    let (_, text) = rig.ask(&agents, &["graph", "-o", "json"]).await;
    let shown = json_of(&text);
    assert_eq!(shown["nodes"], json!(["shop/api", "shop/cart", "shop/web", "unknown"]));
    let tunnel = shown["edges"].as_array().unwrap().iter().find(|edge| edge["transport"] == "tunnel").unwrap();
    let expected = json!({
        "from": "shop/web", "to": "shop/api", "transport": "tunnel", "proved": true,
        "opened": 2, "open": 2, "sentBytes": 4096, "receivedBytes": 20,
    });
    assert_eq!(tunnel, &expected);
    let (_, text) = rig.ask(&agents, &["graph", "-o", "yaml"]).await;
    assert_eq!(serde_saphyr::from_str::<serde_json::Value>(&text).unwrap(), shown, "{text}");

    let (_, text) = rig.ask(&agents, &["graph", "-o", "dot", "--namespace", "shop"]).await;
    assert!(text.contains("\"shop/web\" -> \"shop/api\" [label=\"tunnel (2)\", color=darkgreen];"), "{text}");
    assert!(text.contains("\"unknown\" -> \"shop/api\" [label=\"plaintext (1)\", color=red, style=dashed];"), "{text}");
    let (verdict, text) = rig.ask(&["away", "callers"], &["graph", "-o", "dot", "--namespace", "none"]).await;
    assert!(text.contains("// away does not answer") && !text.contains("->"), "{text}");
    assert_eq!(verdict, Verdict::Wrong);
}

#[tokio::test]
async fn what_is_carried_now() {
    let metrics = Metrics::new();
    let id = |account: &str| SpiffeId::new("cluster.local", "shop", account).unwrap();
    let (direction, transport) = (Direction::Outbound, Transport::Tunnel);
    let open =
        metrics.opened(&ConnectionKey { direction, transport, source: Some(id("web")), destination: Some(id("api")) });
    let mut rig = Rig::new();
    rig.agent("one", json_of(DUMP), json!([]), metrics).await;
    let carrying = tokio::spawn(async move {
        for sent in 1u64.. {
            open.progress(sent << 20, 0);
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    });
    let (verdict, text) = rig.ask(&["one", "away"], &["top", "-o", "json", "--interval", "200ms"]).await;
    let shown = json_of(&text);
    let rate = &shown["rates"][0];
    assert_eq!(
        (&rate["from"], &rate["to"], &rate["open"]),
        (&json!("shop/web"), &json!("shop/api"), &json!(1)),
        "{text}"
    );
    assert!(rate["sentBytesPerSecond"].as_f64().unwrap() > 1e6, "{text}");
    assert_eq!((verdict, &shown["unanswered"][0]["node"]), (Verdict::Wrong, &json!("away")));
    let (verdict, text) = rig.ask(&["one"], &["top", "--once", "--interval", "100ms"]).await;
    carrying.abort();
    assert!(text.starts_with("FROM       TO         TRANSPORT   OPEN   OPENED/S   SENT/S"), "{text}");
    assert_eq!((verdict, text.lines().count()), (Verdict::Well, 2), "{text}");
}

#[tokio::test]
async fn who_is_silent_is_not_waited_for() {
    let rig = Rig::new();
    // Takes connections, and says nothing.
    let _silent = tokio::net::UnixListener::bind(rig.place.path().join("silent")).unwrap();
    let begun = std::time::Instant::now();
    let (verdict, text) = rig.ask(&["silent"], &["connections", "--timeout", "200ms"]).await;
    assert_eq!(verdict, Verdict::Unasked, "there is nobody else");
    assert!(text.contains("silent: does not answer: no answer within 200ms"), "{text}");
    assert!(begun.elapsed() < Duration::from_secs(10));
}

#[test]
fn wrong_use_is_answered_with_the_right_one() {
    command("meshctl").debug_assert();
    let table: [(&[&str], &str); 9] = [
        (&["staus"], "status"),
        (&["connections", "--transport", "tls"], "possible values: tunnel"),
        (&["status", "-o", "xml"], "possible values: table, wide, json, yaml"),
        (&["status", "--admin", "localhost"], "expected IP:PORT or unix:PATH"),
        (&["status", "--timeout", "0s"], "expected more than nothing"),
        (&["status", "--timeout", "soon"], "invalid value 'soon' for '--timeout"),
        (&["policy", "test"], "--from <WHO>"),
        (&["graph", "-o", "png"], "possible values: ascii, dot, json, yaml"),
        (&["completion", "tcsh"], "possible values: bash, zsh, fish"),
    ];
    for (typed, expected) in table {
        let typed = ["meshctl"].iter().chain(typed).map(OsString::from).collect();
        let refusal = parsed("meshctl", typed).unwrap_err();
        assert!(refusal.to_string().contains(expected), "{expected:?} in {refusal}");
        assert_eq!(refusal.exit_code(), 2);
    }
}

#[test]
fn what_other_programs_call_it_leads_here() {
    let table = [
        ("proxy-status", Some("status")),
        ("validate", Some("config validate PATH")),
        ("svid", Some("identity")),
        ("frobnicate", None),
    ];
    for (typed, expected) in table {
        let refusal = parsed("meshctl", vec!["meshctl".into(), typed.into()]).unwrap_err();
        assert_eq!(right_command(&refusal), expected, "{typed}");
    }
    // What is told is a command.
    for (_, right) in RIGHT {
        let word = right.split(' ').next().unwrap();
        assert!(command("meshctl").find_subcommand(word).is_some(), "{right}");
    }
}

#[tokio::test]
async fn questions_that_cannot_be_asked() {
    let table: [(&[&str], &str); 3] = [
        (&["identity", "web-0", "--admin", "unix:/nowhere"], "expected NAMESPACE/POD"),
        (&["status", "--admin", "unix:/nowhere", "--context", "prod"], "give one or the other"),
        (&["status", "--kubeconfig", "/nowhere/config"], "--admin IP:PORT or --admin unix:PATH"),
    ];
    for (typed, expected) in table {
        let typed = ["meshctl"].iter().chain(typed).map(OsString::from).collect();
        let Ctl { whom, command } = parsed("meshctl", typed).unwrap();
        let Ok(question) = command.question() else { panic!() };
        let mut screen = Screen { out: &mut Vec::new(), is_terminal: false, paint: Paint::Plain };
        let error = ask(&whom, &question, &mut screen).await.unwrap_err();
        assert!(format!("{error:#}").contains(expected), "{expected:?} in {error:#}");
    }
}

#[test]
fn as_a_plugin_of_kubectl() {
    let table = [
        ("/usr/local/bin/kubectl-mesh", PLUGIN, "Usage: kubectl mesh "),
        ("./meshctl", "meshctl", "Usage: meshctl "),
        ("renamed", "meshctl", "Usage: meshctl "),
    ];
    for (program, expected, usage) in table {
        let name = name(Some(&program.into()));
        assert_eq!(name, expected);
        let help = parsed(name, vec![program.into(), "--help".into()]).unwrap_err().to_string();
        assert!(help.contains(usage), "{help}");
        assert!(help.contains("kubectl-mesh"), "{help}");
        let help = parsed(name, vec![program.into(), "status".into(), "--help".into()]).unwrap_err().to_string();
        assert!(help.contains(&format!("{usage}status")), "{help}");
    }
}

#[test]
fn what_is_printed_to_whom_reads_no_more() {
    struct Gone;
    impl Write for Gone {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(io::ErrorKind::BrokenPipe.into())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let mut screen = Screen { out: &mut Gone, is_terminal: false, paint: Paint::Plain };
    screen.print("much").unwrap();
}
