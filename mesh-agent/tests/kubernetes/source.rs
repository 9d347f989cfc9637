//! What discovery does while the API server is there, slow to come, in the way, or gone.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use mesh_agent::discovery::{self, Config, WatchState};
use serde_json::json;
use tempfile::TempDir;
use tokio::net::TcpListener;

use super::world::{Agent, NODE, deny_web, namespace, pod, role, shop};
use crate::apiserver_rig::{Hand, Plane, eventually, free_port};

const PODS_HERE: &str = "pods (this node)";
const PODS_ELSEWHERE: &str = "pods (elsewhere)";
const POLICIES: &str = "authorizationpolicies.nodemesh.dev";
const ROUTES: &str = "httproutes.gateway.networking.k8s.io";

macro_rules! need {
    ($plane:expr) => {
        match $plane.await {
            Some(plane) => plane,
            None => return,
        }
    };
}

/// Born before the API server: the gate says why it waits. Then the whole world in one snapshot, and what is labelled is
/// meshed at once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_waits_for_the_api_server_and_then_sees_changes_at_once() {
    let mut plane = need!(Plane::prepared("an_agent_waits_for_the_api_server"));
    let agent = Agent::start(&plane, "admin");
    agent.eventually("why it waits", |agent| agent.gate().contains("no answer")).await;
    assert_eq!(agent.state.current().version, 0);
    assert!(agent.health.report().seen.is_none() && agent.health.report().unreachable.is_some());

    plane.start_apiserver();
    plane.ready().await;
    let hand = Hand { client: plane.admin().await };
    agent.ready().await;
    hand.define().await;
    hand.create_all(&shop()).await;
    agent.eventually("the pods", |agent| agent.pods() == 2 && agent.is_enrolled("10.1.1.1")).await;
    agent.eventually("all is well", |agent| agent.health.report().unreachable.is_none()).await;

    // Labels at run time: of a namespace, of a pod.
    hand.create(&namespace("bare", json!({}))).await;
    let late = pod("bare", "late", NODE, "10.1.1.7");
    hand.create(&late).await;
    agent.eventually("the pod", |agent| agent.has("10.1.1.7")).await;
    assert!(!agent.is_enrolled("10.1.1.7"));
    let mut times = Vec::new();
    for round in 0..20 {
        let (label, enrolled) = if round % 2 == 0 { (json!("enabled"), true) } else { (json!(null), false) };
        let since = Instant::now();
        hand.patch(&late, json!({"metadata": {"labels": {"nodemesh.dev/mesh": label}}})).await;
        agent.eventually("the label", |agent| agent.is_enrolled("10.1.1.7") == enrolled).await;
        times.push(since.elapsed());
    }
    times.sort();
    let (median, slowest) = (times[10], times[19]);
    eprintln!("a label on a pod: in force after {median:?}, at most {slowest:?} of 20, the request included");
    // The slowest of them tells of the machine, not of us.
    assert!(median.as_secs() < 2, "{times:?}");

    hand.create(&deny_web()).await;
    agent.eventually("the policy", |agent| !agent.web_may()).await;
    hand.delete(&deny_web()).await;
    agent.eventually("its end", Agent::web_may).await;
    hand.delete(&late).await;
    agent.eventually("the pod's end", |agent| !agent.has("10.1.1.7")).await;
}

/// Kinds that the API server does not serve are empty, and are there as soon as they are defined. When a definition goes,
/// its objects do.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn definitions_may_come_later_and_go() {
    let plane = need!(Plane::start("definitions_may_come_later_and_go"));
    let hand = Hand { client: plane.admin().await };
    hand.create_all(&shop()).await;
    let agent = Agent::start(&plane, "admin");
    agent.ready().await;
    assert_eq!(agent.stands(POLICIES), Some(WatchState::NotServed));
    assert_eq!(agent.stands(ROUTES), Some(WatchState::NotServed));
    agent.eventually("the pods", |agent| agent.pods() == 2 && agent.web_may()).await;

    hand.define().await;
    hand.create(&deny_web()).await;
    agent.eventually("the policy", |agent| !agent.web_may()).await;
    agent.eventually("the watch", |agent| agent.stands(POLICIES) == Some(WatchState::Following)).await;
    assert_eq!(agent.stands(ROUTES), Some(WatchState::NotServed));

    let definition = json!({"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": "authorizationpolicies.nodemesh.dev"}});
    hand.delete(&definition).await;
    agent.eventually("the end of the kind", |agent| agent.stands(POLICIES) == Some(WatchState::NotServed)).await;
    agent.eventually("the end of its objects", Agent::web_may).await;
}

/// What is not allowed is named, with what is missing: the gate waits at the start. Later the last good state stays.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_account_that_may_not_read_is_told_what_it_lacks() {
    let plane = need!(Plane::start("an_account_that_may_not_read"));
    let hand = Hand { client: plane.admin().await };
    hand.define().await;
    hand.create_all(&shop()).await;
    hand.create(&deny_web()).await;
    let without = role("authorizationpolicies");
    hand.create_all(&without).await;
    let agent = Agent::start(&plane, "agent");
    // The API server knows of the role a moment after it was made: until then nothing is allowed.
    agent.eventually("the rest", |agent| agent.stands(PODS_HERE) == Some(WatchState::Following)).await;
    agent
        .eventually("what is missing", |agent| {
            let gate = agent.gate();
            let words = ["not allowed", POLICIES, "verbs list and watch on authorizationpolicies"];
            words.iter().all(|word| gate.contains(word)) && agent.stands(POLICIES) == Some(WatchState::Forbidden)
        })
        .await;
    assert_eq!(agent.state.current().version, 0);

    let whole = role("");
    hand.patch(&whole[0], json!({"rules": whole[0]["rules"]})).await;
    agent.ready().await;
    assert!(!agent.web_may());

    // What was allowed is taken away: a watch that is open goes on, so the API server has to forget it.
    hand.patch(&whole[0], json!({"rules": without[0]["rules"]})).await;
    let mut plane = plane;
    plane.kill_apiserver();
    agent.eventually("the loss", |agent| agent.health.report().unreachable.is_some()).await;
    plane.start_apiserver();
    plane.ready().await;
    let words = ["not allowed", "the last good state is in force"];
    agent.eventually("what is missing", |agent| words.iter().all(|word| agent.note().contains(word))).await;
    assert!(!agent.web_may(), "a list that failed took a policy away");
    assert_eq!(agent.readiness.missing(), []);
}

/// The API server dies, and what it has when it comes back is not what it had: the list is made anew, what vanished goes,
/// and what was there all the time is never gone.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_api_server_that_comes_back_with_another_world() {
    let mut plane = need!(Plane::start("an_api_server_that_comes_back"));
    let hand = Hand { client: plane.admin().await };
    hand.define().await;
    hand.create_all(&shop()).await;
    hand.create(&deny_web()).await;
    let going = pod("shop", "going", "node-2", "10.1.2.9");
    hand.create(&going).await;
    let agent = Agent::start(&plane, "admin");
    agent.ready().await;
    agent.eventually("all", |agent| agent.pods() == 3 && !agent.web_may()).await;
    let api = agent.state.current().workload_by_ip("10.1.1.1".parse().unwrap()).unwrap().clone();

    plane.kill_apiserver();
    agent.eventually("the loss", |agent| agent.health.report().unreachable.is_some()).await;
    let lost = agent.health.report();
    assert!(lost.seen.is_some() && lost.unreachable_since.is_some());
    assert_eq!((agent.pods(), agent.web_may(), agent.readiness.missing()), (3, false, Vec::new()));
    agent.eventually("a note", |agent| agent.note().contains("the last good state is in force")).await;

    // Another world, which comes to be where the agent does not look, and no record of how: a watch cannot be taken up
    // where it was.
    let place = plane.move_to(free_port());
    plane.start_apiserver();
    plane.ready().await;
    let hand = Hand { client: plane.admin().await };
    hand.delete(&going).await;
    hand.create(&pod("shop", "coming", "node-2", "10.1.2.8")).await;
    plane.kill_apiserver();
    plane.move_to(place);
    plane.forget_history();
    plane.start_apiserver();
    plane.ready().await;
    agent
        .eventually("the new world", |agent| {
            assert!(
                !agent.web_may() && agent.has("10.1.1.1") && agent.has("10.1.2.1"),
                "what stayed was gone for a moment"
            );
            !agent.has("10.1.2.9") && agent.has("10.1.2.8")
        })
        .await;
    agent
        .eventually("all is well", |agent| {
            agent.health.report().unreachable.is_none() && agent.readiness.notes().is_empty()
        })
        .await;
    assert!(agent.lists(PODS_ELSEWHERE) >= 2, "{:#?}", agent.health.report().watches);
    let again = agent.state.current().workload_by_ip("10.1.1.1".parse().unwrap()).unwrap().clone();
    assert_eq!(again, api, "what did not change is as it was");
    let hand = Hand { client: plane.admin().await };
    let since = Instant::now();
    hand.delete(&deny_web()).await;
    agent.eventually("changes come", Agent::web_may).await;
    eprintln!("after its return a change is in force after {:?}", since.elapsed());
}

/// The same objects, from files and from the API server, mean the same.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn files_and_the_api_server_mean_the_same() {
    let plane = need!(Plane::start("files_and_the_api_server_mean_the_same"));
    let hand = Hand { client: plane.admin().await };
    hand.define().await;
    hand.create_all(&shop()).await;
    hand.create(&deny_web()).await;
    let agent = Agent::start(&plane, "admin");
    agent.ready().await;
    agent.eventually("all", |agent| agent.pods() == 2 && !agent.web_may()).await;
    let kinds = "nodes,namespaces,pods,services,endpointslices,authorizationpolicies,peerauthentications";
    let text = std::cell::RefCell::default();
    // A kind is served a moment before it is in the list of kinds.
    eventually("kubectl to know the kinds", || async {
        let (ok, said) = plane.kubectl(&["get", kinds, "-A", "-o", "yaml"], "");
        *text.borrow_mut() = said;
        ok
    })
    .await;
    let text = text.into_inner();
    let place = tempfile::tempdir().unwrap();
    std::fs::write(place.path().join("all.yaml"), text).unwrap();
    let config = Config { node: NODE.into(), trust_domain: "cluster.local".into() };
    let (state, findings) = discovery::load(place.path(), &config).unwrap();
    assert_eq!(findings, []);
    let told = |state: &mesh_agent::state::MeshState| {
        let mut pods: Vec<_> = state.workloads().collect();
        pods.sort_by_key(|pod| pod.uid.clone());
        let policies: Vec<_> = pods.iter().map(|pod| state.inbound_policy(&pod.uid)).collect();
        let mut services: Vec<_> = state.services().collect();
        services.sort_by_key(|service| service.name.clone());
        format!("{pods:#?}\n{policies:#?}\n{services:#?}")
    };
    assert_eq!(told(&agent.state.current()), told(&state));
}

/// Something between an agent and the API server that ends every watch as soon as it has begun.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watch_that_is_closed_at_once_is_not_asked_for_without_pause() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let place = tempfile::tempdir().unwrap();
    let kubeconfig = kubeconfig_of(&place, listener.local_addr().unwrap());
    let watches = Arc::new(Mutex::new(BTreeMap::<String, usize>::new()));
    tokio::spawn(impatient(listener, watches.clone()));
    let begun = Instant::now();
    let agent = Agent::by(kubeconfig, NODE);
    let most = || watches.lock().unwrap().values().max().copied().unwrap_or_default();
    agent.eventually("it to ask time and again", |_| most() >= 20).await;
    tokio::time::sleep(Duration::from_secs(3)).await;
    // Sixty each quarter of a minute that has begun, as `apiserver` has it, however long a busy machine took.
    let (most, seconds) = (most(), begun.elapsed().as_secs());
    assert!(most as u64 <= 60 * (1 + seconds / 15), "{most} in {seconds} s: {:?}", watches.lock().unwrap());
}

/// For a server of a test's own.
pub fn kubeconfig_of(place: &TempDir, server: SocketAddr) -> PathBuf {
    let kubeconfig = place.path().join("kubeconfig");
    let config = json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "x",
        "clusters": [{"name": "c", "cluster": {"server": format!("http://{server}")}}],
        "users": [{"name": "u", "user": {}}],
        "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
    });
    std::fs::write(&kubeconfig, config.to_string()).unwrap();
    kubeconfig
}

/// Every list is empty, every watch is over at once. Counts them by path and selector.
async fn impatient(listener: TcpListener, watches: Arc<Mutex<BTreeMap<String, usize>>>) {
    let answer = move |request: http::Request<Incoming>| {
        let query = request.uri().query().unwrap_or_default();
        let body = if query.contains("watch=true") {
            let selector = query.split('&').find(|part| part.starts_with("fieldSelector")).unwrap_or_default();
            *watches.lock().unwrap().entry(format!("{} {selector}", request.uri().path())).or_default() += 1;
            Bytes::new()
        } else {
            json!({"kind": "List", "apiVersion": "v1", "metadata": {"resourceVersion": "1"}, "items": []})
                .to_string()
                .into()
        };
        let answer = http::Response::builder().header("content-type", "application/json").body(Full::new(body));
        async move { Ok::<_, Infallible>(answer.unwrap()) }
    };
    while let Ok((connection, _)) = listener.accept().await {
        let answer = answer.clone();
        tokio::spawn(async move {
            let server = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
            let _ = server.serve_connection(TokioIo::new(connection), service_fn(answer)).await;
        });
    }
}
