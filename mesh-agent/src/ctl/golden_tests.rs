//! What commands print of a mesh whose world is manifests/samples, compared with files in fixtures/golden. After a change that
//! is meant: `GOLDEN=write cargo test -p mesh-agent --lib ctl::`, then look at what git shows.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Value, json};

use super::tests::{DUMP, Rig, json_of};
use super::*;
use crate::discovery;
use crate::telemetry::{ConnectionRecord, ConnectionResult, Direction, Metrics, RequestRecord, Transport};

fn here(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

fn samples() -> PathBuf {
    here("../manifests/samples")
}

/// What an agent of a node says whose world is the samples.
fn dump(node: &str) -> Value {
    let config = discovery::Config { node: node.to_string(), trust_domain: "cluster.local".to_string() };
    let (state, findings) = discovery::load(&samples(), &config).unwrap();
    let workload = |workload: &std::sync::Arc<crate::state::Workload>| {
        json!({
            "namespace": workload.namespace,
            "name": workload.name,
            "identity": workload.identity.to_string(),
            "enrolled": workload.enrolled,
            "captured": workload.enrolled,
            "policy": state.inbound_policy(&workload.uid),
        })
    };
    let mut dump = json_of(DUMP);
    dump["agent"]["node"] = node.into();
    dump["agent"]["now"] = reach::now().into();
    dump["discovery"]["health"]["findings"] = json!(findings);
    dump["workloads"] = state.local_workloads().map(workload).collect();
    let (objects, _) = commands::objects_of(&samples(), None).unwrap();
    for section in ["routes", "policies", "authorizers"] {
        dump[section] = objects[section].clone();
    }
    dump
}

/// Two agents; what `change` does is done to the second one's.
async fn rig(change: impl FnOnce(&mut Value)) -> Rig {
    let mut rig = Rig::new();
    let mut second = dump("node-2");
    change(&mut second);
    rig.agent("one", dump("node-1"), json!([]), Metrics::new()).await;
    rig.agent("two", second, json!([]), Metrics::new()).await;
    rig
}

fn golden(name: &str, text: &str) {
    let file = here("src/ctl/fixtures/golden").join(name);
    let text = text.replace(&samples().display().to_string(), "manifests/samples");
    if std::env::var_os("GOLDEN").is_some_and(|what| what == "write") {
        std::fs::create_dir_all(file.parent().unwrap()).unwrap();
        std::fs::write(&file, &text).unwrap();
    }
    let expected = std::fs::read_to_string(&file).unwrap_or_default();
    assert!(text == expected, "{name} is otherwise:\n{text}");
}

const BOTH: [&str; 2] = ["one", "two"];

#[tokio::test]
async fn routes_of_every_service() {
    let rig = rig(|_| {}).await;
    let (verdict, text) = rig.ask(&BOTH, &["routes"]).await;
    golden("routes.txt", &text);
    assert_eq!(verdict, Verdict::Well);
    let (_, text) = rig.ask(&BOTH, &["routes", "-o", "wide"]).await;
    golden("routes-wide.txt", &text);
    let (_, text) = rig.ask(&BOTH, &["routes", "--service", "shop/cache", "-o", "json"]).await;
    golden("routes.json", &text);
    let (verdict, text) = rig.ask(&BOTH, &["routes", "--namespace", "none"]).await;
    assert_eq!((verdict, text.as_str()), (Verdict::Well, "no routes: requests go to the Service that was dialled\n"));
}

#[tokio::test]
async fn routes_that_lead_nowhere_are_told() {
    let mut broken = dump("node-1");
    let route = &mut broken["routes"]["routes"][1];
    route["parents"][0]["conditions"][0] = json!({"type": "Accepted", "status": false, "reason": "NoMatchingParent", "message": "there is no such Service"});
    route["rules"][0]["backends"][0]["endpoints"] = 0.into();
    let mut rig = Rig::new();
    rig.agent("one", broken, json!([]), Metrics::new()).await;
    let (verdict, text) = rig.ask(&["one", "away"], &["routes"]).await;
    assert_eq!(verdict, Verdict::Wrong);
    golden("routes-broken.txt", &text);
}

#[tokio::test]
async fn policies_of_a_pod() {
    let rig = rig(|_| {}).await;
    for (pod, file) in
        [("shop/api-0", "explain-api.txt"), ("shop/store-0", "explain-store.txt"), ("shop/web-0", "explain-web.txt")]
    {
        let (verdict, text) = rig.ask(&BOTH, &["policy", "explain", pod]).await;
        golden(file, &text);
        assert_eq!(verdict, Verdict::Well, "{text}");
    }
    let (_, text) = rig.ask(&BOTH, &["policy", "explain", "shop/store-0", "-o", "json"]).await;
    golden("explain-store.json", &text);
    let (verdict, text) = rig.ask(&BOTH, &["policy", "explain", "shop/none"]).await;
    assert_eq!(verdict, Verdict::Wrong);
    assert!(text.starts_with("no agent that answered has shop/none"), "{text}");
}

#[tokio::test]
async fn agents_that_differ() {
    let same = rig(|_| {}).await;
    let (verdict, text) = same.ask(&BOTH, &["config", "diff"]).await;
    assert_eq!((verdict, text.starts_with("no difference in ")), (Verdict::Well, true), "{text}");
    let differ = rig(|dump| {
        dump["policies"]["authorizationPolicies"].as_array_mut().unwrap().remove(0);
        dump["routes"]["routes"][0]["rules"][0]["backends"][0]["weight"] = 7.into();
        // Not the author's, and not compared.
        dump["routes"]["routes"][0]["generation"] = 99.into();
        dump["authorizers"] = json!([{"id": "shop/extra"}]);
    })
    .await;
    let (verdict, text) = differ.ask(&BOTH, &["config", "diff"]).await;
    golden("diff-agents.txt", &text);
    assert_eq!(verdict, Verdict::Wrong);
    let (_, text) = differ.ask(&BOTH, &["config", "diff", "-o", "json"]).await;
    golden("diff-agents.json", &text);
}

#[tokio::test]
async fn yaml_that_is_in_force_or_not() {
    let samples = samples().display().to_string();
    let same = rig(|_| {}).await;
    let (verdict, text) = same.ask(&BOTH, &["config", "diff", &samples]).await;
    assert_eq!(verdict, Verdict::Well, "{text}");
    let differ = rig(|dump| {
        dump["policies"]["peerAuthentications"][0]["mode"] = "permissive".into();
        dump["authorizers"] = json!([{"id": "shop/extra"}]);
    })
    .await;
    let (verdict, text) = differ.ask(&BOTH, &["config", "diff", &samples]).await;
    golden("diff-yaml.txt", &text);
    assert_eq!(verdict, Verdict::Wrong);
}

#[tokio::test]
async fn check_of_single_agents() {
    let rig = rig(|dump| {
        dump["agent"]["version"] = "0.0.9".into();
        dump["agent"]["now"] = (reach::now() + 90.0).into();
    })
    .await;
    let (verdict, text) = rig.ask(&["one"], &["check"]).await;
    // The roots' end is a date, and the time goes on.
    let of_roots = |line: &&str| !line.contains("roots: ");
    let without_roots = |text: &str| text.lines().filter(of_roots).map(|line| format!("{line}\n")).collect::<String>();
    golden("check-well.txt", &without_roots(&text));
    assert_eq!(verdict, Verdict::Well);
    let (verdict, text) = rig.ask(&["one", "two", "away"], &["check"]).await;
    let text = text.replace(" 1m29s ", " 1m30s ");
    golden("check.txt", &without_roots(&text));
    assert_eq!(verdict, Verdict::Wrong);
    let (verdict, text) = rig.ask(&["away"], &["check", "-o", "json"]).await;
    assert_eq!((verdict, &json_of(&text)["healthy"]), (Verdict::Unasked, &json!(false)));
}

fn request(path: &'static str, status: u16) -> RequestRecord {
    RequestRecord {
        method: Some(http::Method::GET),
        path: Some(path.parse().unwrap()),
        status: http::StatusCode::from_u16(status).ok(),
        service: Some("shop/api".into()),
        source_pod: Some("shop/web-0".into()),
        duration: Duration::from_micros(1500),
        ..RequestRecord::blank(Direction::Outbound, "10.1.1.1:5000".parse().unwrap())
    }
}

fn denied() -> ConnectionRecord {
    ConnectionRecord {
        direction: Direction::Inbound,
        transport: Transport::Plaintext,
        source_pod: Some("outside/stranger".into()),
        source_identity: None,
        client: "10.1.1.9:6000".parse().unwrap(),
        dialled: None,
        service: None,
        destination_pod: Some("shop/api-0".into()),
        destination_identity: None,
        server: None,
        trace_id: None,
        rule: Some("shop/strict".into()),
        audited: Vec::new(),
        result: ConnectionResult::Denied { reason: "plaintext" },
        bytes_sent: 0,
        bytes_received: 0,
        duration: Duration::from_micros(300),
        network: None,
    }
}

/// What is heard while things end at both agents.
async fn heard(rig: &Rig, agents: &[&str], typed: &[&str]) -> (Verdict, String) {
    let logs: Vec<_> = rig.logs.values().cloned().collect();
    let telling = async {
        // Who listens may come at any time: it hears what ends from then on.
        for _ in 0..40 {
            tokio::time::sleep(Duration::from_millis(20)).await;
            for log in &logs {
                log.write_request(&request("/items?token=secret", 200));
                log.write_request(&request("/broken", 503));
                log.write(&denied());
            }
        }
    };
    let (answer, ()) = tokio::join!(rig.ask(agents, typed), telling);
    answer
}

#[tokio::test]
async fn what_ends_is_heard() {
    let rig = rig(|_| {}).await;
    let table: [(&[&str], &[&str]); 5] = [
        (
            &["flows", "--for", "500ms"],
            &[
                "shop/api-0 <- outside/stranger plaintext 0/0 0.3ms denied: plaintext policy=shop/strict",
                "shop/web-0 -> shop/api GET /broken 503 1.5ms",
                "shop/web-0 -> shop/api GET /items 200 1.5ms",
            ],
        ),
        (
            &["flows", "--for", "500ms", "--kind", "connection"],
            &["shop/api-0 <- outside/stranger plaintext 0/0 0.3ms denied: plaintext policy=shop/strict"],
        ),
        (&["tap", "--for", "500ms", "--status", "5xx"], &["shop/web-0 -> shop/api GET /broken 503 1.5ms"]),
        (
            &["tap", "--for", "500ms", "--service", "shop/api", "--path", "/it"],
            &["shop/web-0 -> shop/api GET /items 200 1.5ms"],
        ),
        (&["tap", "--for", "300ms", "--namespace", "none"], &[]),
    ];
    for (typed, expected) in table {
        let (verdict, text) = heard(&rig, &BOTH, typed).await;
        assert_eq!(verdict, Verdict::Well, "{text}");
        assert!(!text.contains("secret"), "{text}");
        // Without the time, each once.
        let words = |line: &str| line.split_whitespace().skip(1).collect::<Vec<_>>().join(" ");
        let shown: std::collections::BTreeSet<String> = text.lines().map(words).collect();
        let expected: std::collections::BTreeSet<String> = expected.iter().map(|line| (*line).to_string()).collect();
        assert_eq!(shown, expected, "{typed:?}");
    }
    let (verdict, text) = heard(&rig, &["one", "away"], &["flows", "--for", "300ms", "-o", "json"]).await;
    assert_eq!(verdict, Verdict::Wrong, "one is not heard");
    for line in text.lines() {
        assert_eq!(json_of(line)["node"], "one", "{line}");
    }
    assert!(text.lines().count() > 3, "{text}");
    let (verdict, text) = heard(&rig, &["away"], &["tap"]).await;
    assert_eq!((verdict, text.as_str()), (Verdict::Unasked, ""), "with nobody to hear there is nothing to wait for");
}
