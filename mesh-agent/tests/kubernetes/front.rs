//! What stands before the API server answers in its place: discovery must know the one from the other. No API server is
//! needed: here is one that serves a world that stands still.

use std::convert::Infallible;
use std::time::Duration;

use http::{Request, Response, StatusCode, Uri};
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use mesh_agent::discovery::WatchState;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::watch;

use super::source::kubeconfig_of;
use super::world::{Agent, NODE, PACE, deny_web, shop};

const PODS_HERE: &str = "pods (this node)";
const POLICIES: &str = "authorizationpolicies.nodemesh.dev";
const ROUTES: &str = "httproutes.gateway.networking.k8s.io";

/// Who answers.
#[derive(Clone, Copy)]
enum Answers {
    /// The API server; whether the mesh's kinds are defined.
    ApiServer { defined: bool },
    /// A balancer that has lost it.
    Balancer,
}

/// A balancer that answers 404 for whatever it is asked takes nothing away, however long it does. What the API server
/// itself does not serve any more goes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_404_from_in_front_of_the_api_server_takes_nothing_away() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let place = tempfile::tempdir().unwrap();
    let kubeconfig = kubeconfig_of(&place, listener.local_addr().unwrap());
    let answers = watch::Sender::new(Answers::ApiServer { defined: true });
    tokio::spawn(serve(listener, answers.subscribe()));
    let agent = Agent::by(kubeconfig, NODE);
    agent.ready().await;
    let is_whole = |agent: &Agent| agent.pods() == 2 && agent.is_enrolled("10.1.1.1") && !agent.web_may();
    assert!(is_whole(&agent), "{:#?}", agent.health.report());
    assert_eq!(agent.stands(ROUTES), Some(WatchState::NotServed), "by the list of what is served");

    answers.send_replace(Answers::Balancer);
    for watch in [PODS_HERE, POLICIES, "namespaces"] {
        agent.eventually(watch, |agent| agent.stands(watch) == Some(WatchState::Refused)).await;
    }
    for _ in 0..20 {
        tokio::time::sleep(2 * PACE.certain / 20).await;
        assert!(is_whole(&agent), "{:#?}", agent.health.report());
    }
    let note = agent.note();
    assert!(note.contains("404 <html>") && note.contains("/apis does not confirm it"), "{note}");
    assert!(note.len() < 2000, "{note}");

    answers.send_replace(Answers::ApiServer { defined: true });
    agent.eventually("all is well", |agent| agent.readiness.notes().is_empty()).await;
    assert!(is_whole(&agent), "{:#?}", agent.health.report());

    answers.send_replace(Answers::ApiServer { defined: false });
    agent.eventually("the end of the kind", |agent| agent.stands(POLICIES) == Some(WatchState::NotServed)).await;
    assert!(is_whole(&agent), "not at once");
    agent.eventually("the end of its objects", Agent::web_may).await;
    assert_eq!(agent.pods(), 2);
}

async fn serve(listener: TcpListener, answers: watch::Receiver<Answers>) {
    let answer = move |request: Request<Incoming>| {
        let (asked, answers) = (request.uri().clone(), answers.clone());
        async move { Ok::<_, Infallible>(respond(asked, answers).await) }
    };
    while let Ok((connection, _)) = listener.accept().await {
        let answer = answer.clone();
        tokio::spawn(async move {
            let server = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
            let _ = server.serve_connection(TokioIo::new(connection), service_fn(answer)).await;
        });
    }
}

async fn respond(asked: Uri, mut answers: watch::Receiver<Answers>) -> Response<Full<Bytes>> {
    let (path, query) = (asked.path(), asked.query().unwrap_or_default());
    let is_watch = query.contains("watch=true");
    if is_watch {
        answers.mark_unchanged();
        // Not for good: the answer may have changed just before.
        let _ = tokio::time::timeout(Duration::from_secs(1), answers.changed()).await;
    }
    let with = |status: StatusCode, kind: &str, body: String| {
        Response::builder().status(status).header("content-type", kind).body(Full::new(body.into())).unwrap()
    };
    let defined = match *answers.borrow() {
        Answers::Balancer => {
            let page = format!("<html>\n{}</html>", "nothing here\n".repeat(1000));
            return with(StatusCode::NOT_FOUND, "text/html", page);
        }
        Answers::ApiServer { defined } => defined,
    };
    match served(path, query, defined) {
        None => with(StatusCode::NOT_FOUND, "text/plain", "404 page not found\n".to_string()),
        Some(_) if is_watch => with(StatusCode::OK, "application/json", String::new()),
        Some(answer) => with(StatusCode::OK, "application/json", answer.to_string()),
    }
}

/// What an API server has under a path.
fn served(path: &str, query: &str, defined: bool) -> Option<Value> {
    let ours = "nodemesh.dev/v1alpha1";
    let group = |name: &str, version: &str| {
        let version = json!({"groupVersion": format!("{name}/{version}"), "version": version});
        json!({"name": name, "versions": [version]})
    };
    if path == "/apis" {
        let ours = defined.then(|| group("nodemesh.dev", "v1alpha1"));
        let groups: Vec<Value> = [group("discovery.k8s.io", "v1")].into_iter().chain(ours).collect();
        return Some(json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": groups}));
    }
    if path.starts_with("/apis/gateway") || (path.contains(ours) && !defined) {
        return None;
    }
    let is_here = |object: &Value| match (&object["spec"]["nodeName"], query.contains("spec.nodeName%21%3D")) {
        (Value::String(node), is_elsewhere) => (node == NODE) != is_elsewhere,
        _ => true,
    };
    let is_meant = |object: &Value| {
        let version = object["apiVersion"].as_str().unwrap();
        let root = if version == "v1" { "/api" } else { "/apis" };
        let kind = object["kind"].as_str().unwrap().to_lowercase();
        let plural = kind.strip_suffix('y').map_or_else(|| format!("{kind}s"), |kind| format!("{kind}ies"));
        path == format!("{root}/{version}/{plural}") && is_here(object)
    };
    let mut items: Vec<Value> = shop().into_iter().chain([deny_web()]).filter(is_meant).collect();
    for item in &mut items {
        item["metadata"]["resourceVersion"] = json!("1");
        item["metadata"]["uid"] = item["metadata"]["name"].clone();
    }
    Some(json!({"kind": "List", "apiVersion": "v1", "metadata": {"resourceVersion": "1"}, "items": items}))
}
