//! Loads from two pods of a cluster whose API server is played: what is made, asked, shown, and deleted whatever happens.

use std::ffi::OsString;
use std::sync::{Arc, Mutex};

use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::AsyncReadExt as _;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;

use super::*;
use crate::ctl::args::{Ctl, Question};
use crate::ctl::cluster_tests::{STATUS, STDOUT, kubeconfig, respond, send, status, upgrade};
use crate::ctl::parsed;
use crate::ctl::table::Paint;

/// What a pod's load does.
#[derive(Clone, Copy, PartialEq)]
enum Says {
    /// Every answer takes so many milliseconds; all but those of so many requests come.
    Took(u64, u64),
    /// Nothing is answered.
    Refused,
    /// The agents' image has no such command.
    Old,
    /// It goes on.
    Hangs,
}
use Says::{Hangs, Old, Refused, Took};

/// An API server with one DaemonSet, and pods that run at once.
struct Played {
    _place: TempDir,
    kubeconfig: std::path::PathBuf,
    world: Arc<World>,
}

struct World {
    plain: Says,
    meshed: Says,
    /// The second pod is not taken.
    is_full: bool,
    /// Nobody captures a pod.
    is_deaf: bool,
    /// As they were posted.
    pods: Mutex<Vec<Value>>,
    deleted: Mutex<Vec<String>>,
    asked: Notify,
}

impl Played {
    async fn start(plain: Says, meshed: Says, is_full: bool, is_deaf: bool) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (place, kubeconfig) = kubeconfig(&format!("http://{}", listener.local_addr().unwrap()));
        let (pods, deleted, asked) = (Mutex::default(), Mutex::default(), Notify::new());
        let world = Arc::new(World { plain, meshed, is_full, is_deaf, pods, deleted, asked });
        let played = Self { _place: place, kubeconfig, world: world.clone() };
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(stream, world.clone()));
            }
        });
        played
    }

    /// As it is typed, until it ends or somebody wants no more.
    async fn bench(&self, typed: &[&str], interrupted: impl Future<Output = ()>) -> Result<(Verdict, String)> {
        let own = ["--context", "here", "--kubeconfig"].into_iter().map(OsString::from);
        let typed = ["meshctl", "bench", "http://web.shop/", "--from", "shop/client"].iter().chain(typed);
        let typed = typed.map(OsString::from).chain(own).chain([self.kubeconfig.clone().into()]).collect();
        let Ctl { whom, command } = parsed("meshctl", typed).unwrap();
        let Ok(Question::Bench(args)) = command.question() else { panic!("no bench") };
        let LoadArgs { url, rate, connections, length } = &args.load;
        let load = Load::new(url, *rate, *connections, *length, whom.timeout)?;
        let cluster = Cluster::find(&whom).await?;
        let from = args.from.as_ref().unwrap();
        let wanted = pods::Wanted { from, node: args.node.as_deref(), wait: args.wait, load: &load };
        let measured = pods::measure(&cluster, &wanted, interrupted).await?;
        let mut out = Vec::new();
        let mut screen = Screen { out: &mut out, is_terminal: false, paint: Paint::Plain };
        let verdict = show(&compared(measured), args.output, &mut screen)?;
        Ok((verdict, String::from_utf8(out).unwrap()))
    }

    /// Every pod that was asked for was deleted, and was one of the two.
    fn expect_nothing_left(&self) {
        let (deleted, posted) = (self.world.deleted.lock().unwrap(), self.world.pods.lock().unwrap());
        assert_eq!(deleted.len(), 2, "{deleted:?}");
        for pod in posted.iter() {
            assert!(deleted.iter().any(|name| pod["metadata"]["name"] == **name), "{pod} is left: {deleted:?}");
        }
    }
}

async fn serve(mut stream: TcpStream, world: Arc<World>) {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let Ok(byte) = stream.read_u8().await else { return };
        head.push(byte);
    }
    let head = String::from_utf8(head).unwrap();
    let mut words = head.split(' ');
    let (method, target) = (words.next().unwrap(), words.next().unwrap());
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")).map_or(0, |n| n.parse().unwrap());
    let mut body = vec![0; length];
    stream.read_exact(&mut body).await.unwrap();
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    if path == "/apis/apps/v1/namespaces/nodemesh-system/daemonsets/nodemesh-agent" {
        let containers = json!([{"name": "agent", "image": "registry/nodemesh:1"}]);
        let set = json!({"metadata": {}, "spec": {"selector": {}, "template": {"spec": {"containers": containers}}}});
        return respond(stream, "200 OK", &set).await;
    }
    let name = path.strip_prefix("/api/v1/namespaces/shop/pods").unwrap().trim_start_matches('/').to_string();
    match (method, name.strip_suffix("/exec")) {
        ("POST", _) => {
            let pod: Value = serde_json::from_slice(&body).unwrap();
            let is_second = !world.pods.lock().unwrap().is_empty();
            if world.is_full && is_second {
                return respond(stream, "403 Forbidden", &status(403, "pods is forbidden: exceeded quota")).await;
            }
            world.pods.lock().unwrap().push(pod.clone());
            respond(stream, "201 Created", &pod).await;
        }
        ("DELETE", _) => {
            world.deleted.lock().unwrap().push(name);
            respond(
                stream,
                "200 OK",
                &json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success"}),
            )
            .await;
        }
        (_, Some(pod)) => exec(stream, &head, pod, query, &world).await,
        (_, None) => {
            let pods = world.pods.lock().unwrap().clone();
            let mut pod = pods.into_iter().find(|pod| pod["metadata"]["name"] == *name).unwrap();
            let captured = if world.is_deaf { "False" } else { "True" };
            let captured = json!({"type": "nodemesh.dev/Captured", "status": captured, "reason": "NotCaptured"});
            let is_meshed = pod["metadata"]["labels"]["nodemesh.dev/mesh"] == "enabled";
            let ready = json!({"type": "Ready", "status": "True"});
            pod["spec"]["nodeName"] = "n1".into();
            pod["status"] = json!({
                "phase": "Running", "conditions": if is_meshed { json!([ready, captured]) } else { json!([ready]) },
            });
            respond(stream, "200 OK", &pod).await;
        }
    }
}

async fn exec(mut stream: TcpStream, head: &str, pod: &str, query: &str, world: &World) {
    for part in [
        "command=%2Fmesh-agent&command=bench&command=http%3A%2F%2Fweb.shop%2F&command=--rate%3D",
        "command=--timeout%3D10s",
        "container=bench",
    ] {
        assert!(query.contains(part), "{part} is not in {query}");
    }
    let says = if pod.contains("-plain-") { world.plain } else { world.meshed };
    upgrade(&mut stream, head).await;
    world.asked.notify_one();
    let (said, ended) = match says {
        Took(millis, lost) => (summary(millis, lost).to_string(), lost == 0),
        Refused => (summary(0, 1000).to_string(), false),
        Old => ("error: unrecognized subcommand 'bench'".to_string(), false),
        Hangs => {
            let _ = stream.read_to_end(&mut Vec::new()).await;
            return;
        }
    };
    send(&mut stream, STDOUT, said.as_bytes()).await;
    let ended = if ended { "Success" } else { "Failure" };
    send(
        &mut stream,
        STATUS,
        json!({"metadata": {}, "status": ended, "message": "exit code 1"}).to_string().as_bytes(),
    )
    .await;
    let _ = stream.read_to_end(&mut Vec::new()).await;
}

/// Of a load whose answers all took as long.
fn summary(millis: u64, lost: u64) -> Value {
    let seconds = millis as f64 / 1e3;
    let latency =
        json!({"mean": seconds, "p50": seconds, "p90": seconds, "p99": seconds, "p999": seconds, "max": seconds});
    let (answered, lost) = (1000 - lost, json!({"reset": lost}));
    json!({
        "url": "http://web.shop/", "rate": 100, "connections": 4, "durationSeconds": 10.0, "requests": 1000, "ok": answered,
        "failed": 1000 - answered, "late": 0, "answeredPerSecond": answered as f64 / 10.0, "receivedBytes": 0,
        "latencySeconds": if answered > 0 { latency } else { Value::Null },
        "statuses": if answered > 0 { json!({"200": answered}) } else { json!({}) },
        "errors": if answered < 1000 { lost } else { json!({}) },
    })
}

#[tokio::test]
async fn both_pods_are_asked_and_compared() {
    let played = Played::start(Took(2, 0), Took(3, 0), false, false).await;
    let (verdict, text) = played.bench(&["--node", "n1"], std::future::pending()).await.unwrap();
    let expected = "\
http://web.shop/: 100 requests a second for 10s, 4 connections, from shop/client on n1
FIGURE       PLAIN    MESHED   RATIO
requests     1000     1000
failed       0        0
answered/s   100.0    100.0
mean         2.00ms   3.00ms   1.50
p50          2.00ms   3.00ms   1.50
p90          2.00ms   3.00ms   1.50
p99          2.00ms   3.00ms   1.50
p99.9        2.00ms   3.00ms   1.50
max          2.00ms   3.00ms   1.50
plain: answered: 1000 by 200
meshed: answered: 1000 by 200
";
    assert_eq!((verdict, text.as_str()), (Verdict::Well, expected));
    played.expect_nothing_left();
    let pods = played.world.pods.lock().unwrap().clone();
    let label = |pod: &Value, name: &str| pod["metadata"]["labels"][name].as_str().unwrap().to_string();
    let into: Vec<String> = pods.iter().map(|pod| label(pod, "nodemesh.dev/mesh")).collect();
    assert_eq!(into, ["disabled", "enabled"]);
    assert_eq!(label(&pods[0], "nodemesh.dev/bench"), label(&pods[1], "nodemesh.dev/bench"));
    for pod in &pods {
        let spec = &pod["spec"];
        assert_eq!(
            (&spec["containers"][0]["image"], &spec["serviceAccountName"]),
            (&json!("registry/nodemesh:1"), &json!("client"))
        );
        assert_eq!(spec["automountServiceAccountToken"], false);
        // Two minutes to come, twice a load of ten seconds and an answer that may take as long twice and half a minute, and one.
        assert_eq!(spec["activeDeadlineSeconds"], 120 + 2 * (10 + 20 + 30) + 60);
        let own = &spec["affinity"]["podAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"][0];
        assert_eq!(
            own["labelSelector"]["matchLabels"]["nodemesh.dev/bench"],
            pod["metadata"]["labels"]["nodemesh.dev/bench"]
        );
        assert!(spec["affinity"]["nodeAffinity"].to_string().contains("\"values\":[\"n1\"]"), "{spec}");
    }
}

#[tokio::test]
async fn who_lets_nobody_in_without_an_identity_is_not_compared() {
    let played = Played::start(Refused, Took(3, 0), false, false).await;
    let (verdict, text) = played.bench(&[], std::future::pending()).await.unwrap();
    assert_eq!(verdict, Verdict::Well, "{text}");
    assert!(!text.contains("PLAIN") && text.contains("MESHED\n"), "{text}");
    assert!(
        text.ends_with(
            "without the mesh nothing is let in (not answered: 1000 reset), so there is nothing to compare with\n"
        ),
        "{text}"
    );
    let (_, text) = played.bench(&["-o", "json"], std::future::pending()).await.unwrap();
    let told: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(
        (&told["plainIsRefused"], &told["ratio"], &told["meshed"]["ok"]),
        (&json!(true), &Value::Null, &json!(1000))
    );
}

#[tokio::test]
async fn a_request_that_fails_is_told() {
    for (plain, meshed, line) in [
        (Took(2, 0), Took(3, 7), "meshed: not answered: 7 reset\n"),
        (Took(2, 7), Took(3, 0), "plain: not answered: 7 reset\n"),
        (Took(2, 0), Refused, "meshed: not answered: 1000 reset\n"),
    ] {
        let played = Played::start(plain, meshed, false, false).await;
        let (verdict, text) = played.bench(&[], std::future::pending()).await.unwrap();
        assert_eq!(verdict, Verdict::Wrong, "{text}");
        assert!(text.contains(line) && text.contains("PLAIN"), "{text}");
    }
}

#[tokio::test]
async fn pods_are_deleted_whatever_happens() {
    let table = [
        ("another version", Old, false, false, "; the agents' image is too old for it: meshctl upgrade"),
        ("no room", Took(1, 0), true, false, "exceeded quota"),
        ("no agent", Took(1, 0), false, true, "is not captured: NotCaptured"),
    ];
    for (what, plain, is_full, is_deaf, expected) in table {
        let played = Played::start(plain, Took(1, 0), is_full, is_deaf).await;
        let error = format!("{:#}", played.bench(&["--wait", "1s"], std::future::pending()).await.unwrap_err());
        assert!(error.contains(expected), "{what}: {error}");
        played.expect_nothing_left();
    }
    let played = Played::start(Hangs, Hangs, false, false).await;
    let asked = played.world.clone();
    let interrupted = played.bench(&[], async move { asked.asked.notified().await }).await.unwrap_err();
    assert_eq!(interrupted.to_string(), "interrupted");
    played.expect_nothing_left();
}

#[test]
fn whose_pods_they_are_to_be_like() {
    for (text, expected) in [
        ("shop", Some(("shop", "default"))),
        ("shop/web", Some(("shop", "web"))),
        ("", None),
        ("/web", None),
        ("shop/", None),
        ("a/b/c", None),
    ] {
        let account = text.parse::<Account>().ok();
        let account = account.as_ref().map(|account| (account.namespace.as_str(), account.service_account.as_str()));
        assert_eq!(account, expected, "{text}");
    }
}
