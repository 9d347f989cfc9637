//! Tests over real sockets, in raw HTTP: what curl and the kubelet would see.

use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};
use tokio::task::JoinHandle;

use super::*;

fn sources() -> Sources {
    let rotations = Arc::new(AtomicUsize::new(0));
    Sources {
        readiness: Readiness::default(),
        metrics: Metrics::new(),
        config_dump: BTreeMap::from([
            ("identity", provider(|| async { json!({ "svids": 2 }) })),
            ("stuck", provider(std::future::pending)),
            ("broken", provider(|| async { panic!("a provider with a fault") })),
        ]),
        connections: provider(|| async { json!([{ "client": "10.0.0.1:1" }]) }),
        rotate: hook(move || {
            let count = rotations.fetch_add(1, Ordering::Relaxed) + 1;
            async move { Ok(format!("rotation {count}")) }
        }),
        drain: hook(|| async { Err("draining already".to_string()) }),
        log_filter: None,
        access_log: AccessLog::default(),
    }
}

struct Server {
    address: SocketAddr,
    sources: Arc<Sources>,
    task: JoinHandle<()>,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn server(surface: Surface) -> Server {
    let listener = Listener::bind(&"127.0.0.1:0".parse().unwrap()).await.unwrap();
    let Address::Tcp(address) = *listener.address() else { panic!("not TCP") };
    let sources = Arc::new(sources());
    let task = tokio::spawn(serve(listener, surface, sources.clone()));
    Server { address, sources, task }
}

/// Status, head and body of the answer to one request on a connection of its own.
async fn exchange<S: AsyncReadExt + AsyncWriteExt + Unpin>(mut stream: S, request: &str) -> (u16, String, String) {
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    let read = tokio::time::timeout(Duration::from_secs(30), stream.read_to_string(&mut answer));
    read.await.expect("an answer in time").unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(0);
    (status, head.to_ascii_lowercase(), body.to_string())
}

async fn ask(address: SocketAddr, method: &str, path: &str, headers: &str, body: &str) -> (u16, String, String) {
    let length = body.len();
    let request = format!(
        "{method} {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-length: {length}\r\n{headers}\r\n{body}"
    );
    exchange(TcpStream::connect(address).await.unwrap(), &request).await
}

async fn get(server: &Server, path: &str) -> (u16, String, String) {
    ask(server.address, "GET", path, "", "").await
}

#[tokio::test]
async fn readyz_names_what_is_missing() {
    let server = server(Surface::Readiness).await;
    assert_eq!(get(&server, "/readyz").await.0, 200);
    server.sources.readiness.waiting("pod/shop/web-0", "not captured\nyet");
    server.sources.readiness.waiting("discovery", "nothing was read");
    server.sources.readiness.ready("capture");
    let (status, _, body) = get(&server, "/readyz?verbose").await;
    assert_eq!(status, 503);
    assert_eq!(body, "not ready\ndiscovery: nothing was read\npod/shop/web-0: not captured yet\n");
    server.sources.readiness.remove("pod/shop/web-0");
    server.sources.readiness.ready("discovery");
    let (status, _, body) = get(&server, "/readyz").await;
    assert_eq!((status, body.as_str()), (200, "ready\n"));
}

#[tokio::test]
async fn metrics_are_openmetrics() {
    let server = server(Surface::Metrics).await;
    let (status, head, body) = get(&server, "/metrics").await;
    assert_eq!(status, 200);
    assert!(head.contains("content-type: application/openmetrics-text; version=1.0.0"), "{head}");
    assert!(body.contains("nodemesh_build_info") && body.ends_with("# EOF\n"), "{body}");
}

#[tokio::test]
async fn a_surface_has_its_own_endpoints_alone() {
    for (surface, found) in [
        (Surface::Metrics, vec!["/metrics"]),
        (Surface::Readiness, vec!["/readyz"]),
        (Surface::Admin, vec!["/metrics", "/readyz", "/connections"]),
    ] {
        let server = server(surface).await;
        for path in ["/metrics", "/readyz", "/connections"] {
            let expected = if found.contains(&path) { 200 } else { 404 };
            assert_eq!(get(&server, path).await.0, expected, "{surface:?} {path}");
        }
        let (status, _, body) = get(&server, "/").await;
        let listed: Value = serde_json::from_str(&body).unwrap();
        assert_eq!(status, 404);
        assert!(listed["endpoints"].to_string().contains(found[0]), "{body}");
    }
}

#[tokio::test]
async fn a_section_that_fails_costs_itself_alone() {
    let server = server(Surface::Admin).await;
    let (status, head, body) = get(&server, "/config_dump").await;
    assert_eq!(status, 200);
    assert!(head.contains("content-type: application/json"));
    let dump: Value = serde_json::from_str(&body).unwrap();
    assert_eq!(dump["identity"], json!({ "svids": 2 }));
    assert!(dump["stuck"]["error"].is_string() && dump["broken"]["error"].is_string(), "{dump}");
}

#[tokio::test]
async fn sections_that_nobody_asks_for_are_not_made() {
    let server = server(Surface::Admin).await;
    let begun = std::time::Instant::now();
    for (path, expected) in [
        ("/config_dump?sections=identity", json!({ "identity": { "svids": 2 } })),
        ("/config_dump?verbose&sections=none,identity", json!({ "identity": { "svids": 2 } })),
        ("/config_dump?sections=", json!({})),
    ] {
        let (status, _, body) = get(&server, path).await;
        assert_eq!((status, serde_json::from_str::<Value>(&body).unwrap()), (200, expected), "{path}");
    }
    assert!(begun.elapsed() < super::respond::SECTION_TIMEOUT, "the section that hangs was waited for");
}

#[tokio::test]
async fn hooks_run_by_post_and_say_how_it_went() {
    let server = server(Surface::Admin).await;
    assert_eq!(get(&server, "/rotate").await.0, 405);
    let (status, _, body) = ask(server.address, "POST", "/rotate", "", "").await;
    assert_eq!((status, body.as_str()), (200, "rotation 1\n"), "the GET has rotated nothing");
    let (status, _, body) = ask(server.address, "POST", "/drain", "", "").await;
    assert_eq!((status, body.as_str()), (500, "draining already\n"));
    let (status, head, _) = ask(server.address, "DELETE", "/connections", "", "").await;
    assert!(status == 405 && head.contains("allow: get, head"), "{head}");
    let (status, head, body) = ask(server.address, "HEAD", "/readyz", "", "").await;
    assert_eq!((status, body.as_str()), (200, ""), "{head}");
}

#[tokio::test]
async fn the_log_level_is_read_and_set() {
    let (_subscriber, filter) =
        logs::subscriber(logs::Format::Text, logs::parse_filter("info").unwrap(), std::io::sink);
    let mut sources = sources();
    sources.log_filter = Some(filter.clone());
    let listener = Listener::bind(&"127.0.0.1:0".parse().unwrap()).await.unwrap();
    let Address::Tcp(address) = *listener.address() else { panic!("not TCP") };
    let task = tokio::spawn(serve(listener, Surface::Admin, Arc::new(sources)));
    assert_eq!(ask(address, "GET", "/log-level", "", "").await.2, "info\n");
    assert_eq!(ask(address, "PUT", "/log-level", "", "debug,access=off\n").await.0, 200);
    assert_eq!(filter.current(), "access=off,debug");
    let (status, _, body) = ask(address, "PUT", "/log-level", "", "mesh_agent=loud").await;
    assert!(status == 400 && body.contains("is no log filter"), "{body}");
    assert_eq!(ask(address, "PUT", "/log-level", "", &"x".repeat(5000)).await.0, 413);
    assert_eq!(filter.current(), "access=off,debug");
    task.abort();
}

#[tokio::test]
async fn the_access_log_is_read_and_replaced() {
    let server = server(Surface::Admin).await;
    let put = async |filter: &str| ask(server.address, "PUT", "/access-log", "", filter).await;
    assert_eq!(get(&server, "/access-log").await.2, "all\n");
    let (status, _, body) = put("failures,namespace=shop\n").await;
    assert_eq!((status, body.as_str()), (200, "failures,namespace=shop\n"));
    let (status, _, body) = put("errors").await;
    assert!(status == 400 && body.contains("\"errors\""), "{status} {body}");
    assert_eq!(get(&server, "/access-log").await.2, "failures,namespace=shop\n");
    assert_eq!(server.sources.access_log.filter().to_string(), "failures,namespace=shop");
}

#[tokio::test]
async fn web_pages_are_refused() {
    let server = server(Surface::Admin).await;
    assert_eq!(ask(server.address, "POST", "/rotate", "origin: http://localhost\r\n", "").await.0, 403);
    for (host, expected) in [
        ("127.0.0.1:15000", 200),
        ("[::1]:15000", 200),
        ("[::1]", 200),
        ("LocalHost", 200),
        ("", 200),
        ("rebound.example:15000", 403),
        ("127.0.0.1.example", 403),
    ] {
        let request = format!("GET /connections HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n");
        let (status, _, _) = exchange(TcpStream::connect(server.address).await.unwrap(), &request).await;
        assert_eq!(status, expected, "{host:?}");
    }
}

#[tokio::test]
async fn a_request_has_limits() {
    let server = server(Surface::Admin).await;
    let long = format!("x-long: {}\r\n", "x".repeat(64 * 1024));
    let many: String = (0..200).map(|number| format!("x-{number}: 1\r\n")).collect();
    for headers in [many, long] {
        let request = format!("GET /readyz HTTP/1.1\r\nhost: localhost\r\n{headers}\r\n");
        let mut stream = TcpStream::connect(server.address).await.unwrap();
        // The server may close before everything is written.
        let _ = stream.write_all(request.as_bytes()).await;
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer).await;
        let answer = String::from_utf8_lossy(&answer);
        assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 431"), "{answer}");
    }
    assert_eq!(get(&server, "/readyz").await.0, 200);
}

#[tokio::test]
async fn a_unix_socket_is_private_and_goes_with_its_listener() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("run/nodemesh/admin.sock");
    let address = Address::Unix(path.clone());
    let listener = Listener::bind(&address).await.unwrap();
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    let task = tokio::spawn(serve(listener, Surface::Admin, Arc::new(sources())));
    // As `curl --unix-socket … http://localhost/readyz` sends it.
    let request = "GET /readyz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nAccept: */*\r\n\r\n";
    let (status, _, body) = exchange(UnixStream::connect(&path).await.unwrap(), request).await;
    assert_eq!((status, body.as_str()), (200, "ready\n"));
    let error = Listener::bind(&address).await.err().expect("somebody answers there");
    assert_eq!(error.kind(), std::io::ErrorKind::AddrInUse);
    task.abort();
    let _ = task.await;
    assert_eq!(names_in(path.parent().unwrap()), Vec::<String>::new());
}

#[tokio::test]
async fn a_stale_socket_is_replaced_and_another_file_is_not() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("admin.sock");
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    let first = Listener::bind(&Address::Unix(path.clone())).await.unwrap();
    // A successor that took the name keeps its file.
    std::fs::remove_file(&path).unwrap();
    let second = Listener::bind(&Address::Unix(path.clone())).await.unwrap();
    drop(first);
    assert!(path.exists());
    drop(second);
    assert!(!path.exists());

    std::fs::write(&path, "precious").unwrap();
    assert!(Listener::bind(&Address::Unix(path.clone())).await.is_err());
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "precious");
}

#[test]
fn addresses() {
    for (text, expected) in [
        ("127.0.0.1:15000", Some("127.0.0.1:15000")),
        ("[::1]:1", Some("[::1]:1")),
        ("unix:/run/x.sock", Some("unix:/run/x.sock")),
        ("unix:", None),
        ("/run/x.sock", None),
        ("localhost:15000", None),
        (":15000", None),
        ("::1:15000", None),
    ] {
        let address = text.parse::<Address>().ok().map(|address| address.to_string());
        assert_eq!(address.as_deref(), expected, "{text}");
    }
}

fn names_in(directory: &Path) -> Vec<String> {
    std::fs::read_dir(directory)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
        .collect()
}

#[tokio::test]
async fn an_agent_is_asked_as_a_probe_does_it() {
    let server = server(Surface::Admin).await;
    let address = Address::Tcp(server.address);
    let ready = super::ask(&address, "/readyz").await.unwrap();
    assert_eq!((ready.is_ok, ready.body.as_ref()), (true, b"ready\n".as_slice()));
    server.sources.readiness.waiting("capture", "no object".to_string());
    let waiting = super::ask(&address, "/readyz").await.unwrap();
    assert!(!waiting.is_ok);
    assert!(String::from_utf8_lossy(&waiting.body).contains("no object"), "{waiting:?}");
    assert!(!super::ask(&address, "/nothing").await.unwrap().is_ok);
    assert!(super::ask(&address, "no path").await.is_err());
    assert!(super::ask(&"unix:/nonexistent/nodemesh.sock".parse().unwrap(), "/readyz").await.is_err());
}

fn ended(path: &'static str) -> crate::telemetry::RequestRecord {
    crate::telemetry::RequestRecord {
        path: Some(path.parse().unwrap()),
        ..crate::telemetry::RequestRecord::blank(crate::telemetry::Direction::Outbound, "10.0.0.1:1".parse().unwrap())
    }
}

#[tokio::test]
async fn flows_go_on_while_somebody_reads() {
    let server = server(Surface::Admin).await;
    let address = Address::Tcp(server.address);
    let log = server.sources.access_log.clone();
    let mut text = String::new();
    let followed = follow(&address, "/flows?path=/a", |part| {
        if text.is_empty() {
            // The first line is empty, and says that somebody listens now.
            ["/a", "/b", "/a/c?secret"].iter().for_each(|path| log.write_request(&ended(path)));
        }
        text.push_str(std::str::from_utf8(part).unwrap());
        text.lines().filter(|line| !line.is_empty()).count() < 2
    });
    assert_eq!(followed.await.unwrap(), None);
    let lines: Vec<Value> =
        text.lines().filter(|line| !line.is_empty()).map(|line| serde_json::from_str(line).unwrap()).collect();
    let paths: Vec<&str> = lines.iter().map(|line| line["path"].as_str().unwrap()).collect();
    assert_eq!(paths, ["/a", "/a/c"]);
    let refused = follow(&address, "/flows?colour=red", |_| true).await.unwrap().unwrap();
    assert!(!refused.is_ok && refused.body.starts_with(b"colour=red is refused"), "{refused:?}");
}

#[tokio::test]
async fn few_follow_and_who_goes_away_makes_room() {
    let server = server(Surface::Admin).await;
    let open = || async {
        let mut stream = TcpStream::connect(server.address).await.unwrap();
        stream.write_all(b"GET /flows HTTP/1.1\r\nhost: localhost\r\n\r\n").await.unwrap();
        let mut status = [0; 12];
        stream.read_exact(&mut status).await.unwrap();
        (stream, String::from_utf8_lossy(&status).into_owned())
    };
    let mut readers = Vec::new();
    loop {
        let (stream, status) = open().await;
        if status.ends_with("503") {
            break;
        }
        assert!(status.ends_with("200"), "{status}");
        readers.push(stream);
        assert!(readers.len() < 100, "nobody is refused");
    }
    drop(readers);
    let came = async {
        while !open().await.1.ends_with("200") {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), came).await.expect("room again");
}
