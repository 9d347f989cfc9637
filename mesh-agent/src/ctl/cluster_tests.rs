//! The way through the API server, at one that is played: lists of pods, and `exec` by WebSocket as kube-apiserver does it.

use std::ffi::OsString;
use std::path::PathBuf;

use aws_lc_rs::digest;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use super::table::Paint;
use super::{Ctl, Screen, Verdict, ask, parsed};

const DUMP: &str = include_str!("fixtures/config_dump.json");

/// What the API server says of channels of a WebSocket.
pub(super) const STDOUT: u8 = 1;
const STDERR: u8 = 2;
pub(super) const STATUS: u8 = 3;

/// An API server, and a kubeconfig whose current context leads nowhere, and the context `here` to it.
async fn cluster() -> (TempDir, PathBuf) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let server = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(serve(stream));
        }
    });
    kubeconfig(&server)
}

/// The same for any server.
pub(super) fn kubeconfig(server: &str) -> (TempDir, PathBuf) {
    let place = tempfile::tempdir().unwrap();
    let kubeconfig = place.path().join("config");
    let text = json!({
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "nowhere",
        "clusters": [
            {"name": "here", "cluster": {"server": server}},
            {"name": "nowhere", "cluster": {"server": "http://127.0.0.1:1"}},
        ],
        "users": [{"name": "me", "user": {"token": "mine"}}],
        "contexts": [
            {"name": "here", "context": {"cluster": "here", "user": "me"}},
            {"name": "nowhere", "context": {"cluster": "nowhere", "user": "me"}},
        ],
    });
    std::fs::write(&kubeconfig, text.to_string()).unwrap();
    (place, kubeconfig)
}

async fn serve(mut stream: TcpStream) {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let Ok(byte) = stream.read_u8().await else { return };
        head.push(byte);
    }
    let head = String::from_utf8(head).unwrap();
    let target = head.split(' ').nth(1).unwrap_or_default();
    assert!(head.contains("authorization: Bearer mine"), "{head}");
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    match path.strip_prefix("/api/v1/namespaces/").unwrap_or_default() {
        "nodemesh-system/pods" => {
            assert!(query.contains("labelSelector=app.kubernetes.io%2Fname%3Dnodemesh-agent"), "{query}");
            respond(stream, "200 OK", &pods()).await;
        }
        "empty/pods" => respond(stream, "200 OK", &json!({"metadata": {}, "items": []})).await,
        "forbidden/pods" => respond(stream, "403 Forbidden", &status(403, "pods is forbidden")).await,
        "nodemesh-system/pods/agent-d/exec" => {
            respond(stream, "403 Forbidden", &status(403, "pods/exec is forbidden")).await;
        }
        path => match path.strip_prefix("nodemesh-system/pods/").and_then(|path| path.strip_suffix("/exec")) {
            Some(pod) => {
                for part in ["command=%2Fmesh-agent&command=get&command=%2F", "container=agent"] {
                    assert!(query.contains(part), "{query}");
                }
                exec(stream, &head, pod).await;
            }
            None => respond(stream, "404 Not Found", &status(404, "not found")).await,
        },
    }
}

fn pods() -> Value {
    let pod = |name: &str, node: &str, phase: &str| {
        json!({
            "metadata": {"name": name},
            "spec": {"nodeName": node, "containers": []},
            "status": {"phase": phase},
        })
    };
    json!({"metadata": {}, "items": [
        pod("agent-e", "worker-5", "Running"),
        pod("agent-a", "worker-1", "Running"),
        pod("agent-b", "worker-2", "Running"),
        pod("agent-c", "worker-3", "Pending"),
        pod("agent-d", "worker-4", "Running"),
    ]})
}

pub(super) fn status(code: u16, message: &str) -> Value {
    json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "message": message,
        "reason": "Reason", "code": code})
}

pub(super) async fn respond(mut stream: TcpStream, status: &str, body: &Value) {
    let body = body.to_string();
    let answer = format!(
        "HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}",
        body.len()
    );
    let _ = stream.write_all(answer.as_bytes()).await;
}

/// The agents' answers: agent-a's is whole and comes in pieces, agent-b's command fails, agent-e's connection breaks.
async fn exec(mut stream: TcpStream, head: &str, pod: &str) {
    upgrade(&mut stream, head).await;
    let failure = json!({"metadata": {}, "status": "Failure", "reason": "NonZeroExitCode", "message": "exit code 1"});
    match pod {
        "agent-a" => {
            for piece in DUMP.as_bytes().chunks(1000) {
                send(&mut stream, STDOUT, piece).await;
            }
            send(&mut stream, STATUS, br#"{"metadata":{},"status":"Success"}"#).await;
        }
        "agent-b" => {
            send(&mut stream, STDERR, b"error: asking the agent at unix:/run for it: No such file\n").await;
            send(&mut stream, STATUS, failure.to_string().as_bytes()).await;
        }
        _ => {
            send(&mut stream, STDOUT, br#"{"agent": {"#).await;
            return;
        }
    }
    // A server waits for the client to close.
    let _ = stream.read_to_end(&mut Vec::new()).await;
}

/// From here on it is a WebSocket.
pub(super) async fn upgrade(stream: &mut TcpStream, head: &str) {
    let key = head.lines().find_map(|line| line.strip_prefix("sec-websocket-key: ")).unwrap();
    let accept = digest::digest(
        &digest::SHA1_FOR_LEGACY_USE_ONLY,
        format!("{key}258EAFA5-E914-47DA-95CA-C5AB0DC85B11").as_bytes(),
    );
    let answer = format!(
        "HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\nconnection: Upgrade\r\n\
         sec-websocket-accept: {}\r\nsec-websocket-protocol: v5.channel.k8s.io\r\n\r\n",
        base64(accept.as_ref())
    );
    stream.write_all(answer.as_bytes()).await.unwrap();
}

/// A binary frame, which a server does not mask.
pub(super) async fn send(stream: &mut TcpStream, channel: u8, bytes: &[u8]) {
    let length = u16::try_from(bytes.len() + 1).unwrap();
    let mut frame = vec![0x82, 126];
    frame.extend(length.to_be_bytes());
    frame.push(channel);
    frame.extend(bytes);
    stream.write_all(&frame).await.unwrap();
}

fn base64(bytes: &[u8]) -> String {
    const LETTERS: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for chunk in bytes.chunks(3) {
        let bits = chunk.iter().fold(0u32, |bits, byte| bits << 8 | u32::from(*byte)) << (8 * (3 - chunk.len()));
        for place in 0..4 {
            let letter = LETTERS[(bits >> (18 - 6 * place) & 63) as usize];
            text.push(if place <= chunk.len() { letter as char } else { '=' });
        }
    }
    text
}

async fn asked(kubeconfig: &std::path::Path, typed: &[&str]) -> (anyhow::Result<Verdict>, String) {
    let own = ["--kubeconfig".into(), kubeconfig.as_os_str().to_owned()];
    let typed = ["meshctl"].iter().chain(typed).map(OsString::from).chain(own).collect();
    let Ctl { whom, command } = parsed("meshctl", typed).unwrap();
    let Ok(question) = command.question() else { panic!("no question") };
    let mut out = Vec::new();
    let mut screen = Screen { out: &mut out, is_terminal: false, paint: Paint::Plain };
    let verdict = ask(&whom, &question, &mut screen).await;
    (verdict, String::from_utf8(out).unwrap())
}

#[tokio::test]
async fn agents_are_asked_in_their_pods() {
    let (_place, kubeconfig) = cluster().await;
    let begun = std::time::Instant::now();
    let (verdict, text) = asked(&kubeconfig, &["status", "--context", "here", "--timeout", "30s"]).await;
    let expected = "\
NODE       VERSION   READY   PODS   CAPTURED   CERTIFICATES   CONFIG AGE   CONNECTIONS
worker-1   0.1.0     yes     3      2/2        2/2 2h11m      0s           4
worker-2   -         ?       -      -          -              -            -
worker-3   -         ?       -      -          -              -            -
worker-4   -         ?       -      -          -              -            -
worker-5   -         ?       -      -          -              -            -

worker-2: does not answer: error: asking the agent at unix:/run for it: No such file
worker-3: does not answer: its pod agent-c is Pending: kubectl describe pod has why
worker-4: does not answer: you may not exec in its pod: pods/exec is forbidden; see: kubectl auth can-i get pods/exec, and create
worker-5: does not answer: the connection through the API server ended before the answer did
";
    assert_eq!((verdict.unwrap(), text.as_str()), (Verdict::Wrong, expected));
    assert!(begun.elapsed().as_secs() < 25, "a broken connection was waited for");
    let (_, text) = asked(&kubeconfig, &["status", "--context", "here", "-o", "json"]).await;
    let shown: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(shown["agents"][0]["pod"], "agent-a");
}

#[tokio::test]
async fn clusters_that_cannot_be_asked_say_what_to_do() {
    let (_place, kubeconfig) = cluster().await;
    let table: [(&[&str], &[&str]); 4] = [
        (&["status"], &["listing the agents at http://127.0.0.1:1: "]),
        (&["status", "--context", "none"], &["config: ", "--admin IP:PORT"]),
        (&["graph", "--context", "here", "-n", "empty"], &["no agents in namespace empty", "kubectl get pods -A -l"]),
        (
            &["connections", "--context", "here", "--mesh-namespace", "forbidden"],
            &["you may not list the agents: pods is forbidden", "kubectl auth can-i list pods -n forbidden"],
        ),
    ];
    for (typed, expected) in table {
        let (refused, text) = asked(&kubeconfig, typed).await;
        let error = format!("{:#}", refused.unwrap_err());
        for part in expected {
            assert!(error.contains(part), "{typed:?}: {part:?} in {error}");
        }
        assert_eq!(text, "");
    }
}
