//! The controller against a real API server: who gets which certificate, who leads, how a root is replaced.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use k8s_openapi::api::authentication::v1::TokenRequest;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, Node, Pod, Secret, Service, ServiceAccount};
use k8s_openapi::api::events::v1::Event;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{
    ApiResource, DeleteParams, DynamicObject, GroupVersionKind, ListParams, Patch, PatchParams, PostParams,
};
use kube::{Api, Client};
use mesh_agent::controller::lease::{Leadership, Pace};
use mesh_agent::controller::{
    AUDIENCE, CONFIG_MAP, Config, Controller, ROOTS_KEY, Rotation, RotationError, SECRET, Tally, World,
};
use mesh_agent::discovery::{self, Health, Source};
use mesh_agent::drain::Drain;
use mesh_agent::identity::{self, CaError, CertificateAuthority, Identities, Phase, Remote, RemoteCa};
use mesh_agent::map::{self, Asked, Heard, Source as _};
use mesh_agent::readiness::Readiness;
use mesh_agent::spiffe::SpiffeId;
use mesh_agent::state::StateWriter;
use mesh_agent::told::Told;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tonic::metadata::AsciiMetadataValue;
use tonic::transport::Channel;

use crate::apiserver_rig::{PATIENCE, Plane};
use crate::support::{TRUST_DOMAIN, loopback, uri};

/// Runs a test with the API server on threads of its own. Ten minutes are forever.
fn cluster(test: &str, body: impl AsyncFnOnce(Bed)) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let Some(plane) = Plane::shared(test).await else { return };
        let bed = Bed::new(plane, test).await;
        tokio::time::timeout(Duration::from_secs(600), body(bed)).await.expect("the test hangs");
    });
}

/// A namespace for the mesh and one for its users, on an API server that others use as well.
struct Bed {
    client: Client,
    namespace: String,
    users: String,
    home: tempfile::TempDir,
    kubeconfig: PathBuf,
}

struct Replica {
    address: SocketAddr,
    readiness: Readiness,
    leadership: Leadership,
    tally: Arc<Tally>,
    drain: Drain,
    running: tokio::task::JoinHandle<()>,
}

/// Soon, and not so soon that a leader which a busy machine holds up for a moment is none any more.
const SOON: Pace = Pace {
    lease: Duration::from_secs(10),
    renew_deadline: Duration::from_secs(7),
    retry: Duration::from_millis(500),
    write_timeout: Duration::from_secs(2),
};

async fn eventually<T>(what: &str, mut look: impl AsyncFnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(seen) = look().await {
            return seen;
        }
        assert!(start.elapsed() < PATIENCE, "not within {PATIENCE:?}: {what}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

impl Bed {
    async fn new(plane: &Plane, test: &str) -> Self {
        let client = plane.admin().await;
        let name = test.replace('_', "-");
        let (namespace, users) = (format!("{name}-mesh"), format!("{name}-users"));
        for name in [&namespace, &users] {
            let namespace: Namespace = serde_json::from_value(json!({ "metadata": { "name": name } })).unwrap();
            Api::<Namespace>::all(client.clone()).create(&PostParams::default(), &namespace).await.unwrap();
        }
        for name in ["node-1", "node-2"] {
            let node: Node = serde_json::from_value(json!({ "metadata": { "name": name } })).unwrap();
            // Another test may have been faster.
            let _ = Api::<Node>::all(client.clone()).create(&PostParams::default(), &node).await;
        }
        let kubeconfig = plane.kubeconfig("admin");
        let bed = Self { client, namespace, users, home: tempfile::tempdir().unwrap(), kubeconfig };
        bed.account(&bed.namespace, "nodemesh-agent").await;
        bed
    }

    fn api<K>(&self, namespace: &str) -> Api<K>
    where
        K: kube::Resource<Scope = k8s_openapi::NamespaceResourceScope, DynamicType = ()>,
    {
        Api::namespaced(self.client.clone(), namespace)
    }

    async fn account(&self, namespace: &str, name: &str) {
        let account: ServiceAccount = serde_json::from_value(json!({ "metadata": { "name": name } })).unwrap();
        let _ = self.api::<ServiceAccount>(namespace).create(&PostParams::default(), &account).await;
    }

    /// A running pod.
    async fn pod(&self, namespace: &str, name: &str, account: &str, node: &str) -> Pod {
        self.account(namespace, account).await;
        let pod: Pod = serde_json::from_value(json!({
            "metadata": { "name": name },
            "spec": {
                "serviceAccountName": account, "nodeName": node, "automountServiceAccountToken": false,
                "containers": [{ "name": "app", "image": "none" }],
            },
        }))
        .unwrap();
        self.api::<Pod>(namespace).create(&PostParams::default(), &pod).await.unwrap();
        self.phase(namespace, name, "Running").await
    }

    async fn phase(&self, namespace: &str, name: &str, phase: &str) -> Pod {
        let patch = Patch::Merge(json!({ "status": { "phase": phase } }));
        self.api::<Pod>(namespace).patch_status(name, &PatchParams::default(), &patch).await.unwrap()
    }

    /// A token as kubelet mounts it: for an audience, bound to a pod.
    async fn token(&self, namespace: &str, account: &str, audience: &str, pod: Option<&Pod>) -> String {
        let bound = pod.map(
            |pod| json!({ "kind": "Pod", "apiVersion": "v1", "name": pod.metadata.name, "uid": pod.metadata.uid }),
        );
        let request = json!({
            "apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest",
            "spec": { "audiences": [audience], "boundObjectRef": bound, "expirationSeconds": 3600 },
        });
        let answer: TokenRequest = self
            .api::<ServiceAccount>(namespace)
            .create_subresource("token", account, &PostParams::default(), &request)
            .await
            .unwrap();
        answer.status.unwrap().token.unwrap()
    }

    /// An agent's pod on a node, and its token.
    async fn agent(&self, node: &str) -> String {
        let name = format!("agent-{node}");
        let pod = self.pod(&self.namespace, &name, "nodemesh-agent", node).await;
        self.token(&self.namespace, "nodemesh-agent", AUDIENCE, Some(&pod)).await
    }

    async fn controller(&self, replica: &str) -> Replica {
        self.controller_as(self.client.clone(), replica, Duration::from_secs(2)).await
    }

    async fn controller_as(&self, client: Client, replica: &str, settle: Duration) -> Replica {
        self.start(client, replica, settle, None).await
    }

    async fn start(&self, client: Client, replica: &str, settle: Duration, heard: Option<Heard>) -> Replica {
        let listener = TcpListener::bind(loopback()).await.unwrap();
        let address = listener.local_addr().unwrap();
        let config = Config {
            namespace: self.namespace.clone(),
            trust_domain: TRUST_DOMAIN.to_string(),
            agents: mesh_agent::controller::ServiceAccount {
                namespace: self.namespace.clone(),
                name: "nodemesh-agent".to_string(),
            },
            names: vec!["127.0.0.1".to_string()],
            longest: Duration::from_secs(3600),
            replica: replica.to_string(),
            settle,
            pace: SOON,
        };
        let (readiness, drain) = (Readiness::default(), Drain::new());
        let (writer, state) = StateWriter::new("");
        let health = Health::default();
        let source = Source::Kubernetes { kubeconfig: Some(self.kubeconfig.clone()), pace: discovery::Pace::default() };
        let whole = discovery::Config { node: String::new(), trust_domain: TRUST_DOMAIN.to_string() };
        let (ready, sandboxes) = (Readiness::default(), mesh_agent::sandboxes::Sandboxes::default());
        tokio::spawn(discovery::run(source, whole, writer, health.clone(), ready, sandboxes, drain.token()));
        let mut controller = Controller::new(config, client, World { state, health }, readiness.clone());
        if let Some(heard) = heard {
            controller = controller.listening(heard);
        }
        let (leadership, tally) = (controller.leadership(), controller.tally());
        let running = tokio::spawn(controller.run(listener, drain.token()));
        Replica { address, readiness, leadership, tally, drain, running }
    }

    /// What agents have mounted, brought up to date by [`Bed::mount`].
    fn roots(&self) -> PathBuf {
        self.home.path().join("roots.pem")
    }

    /// What kubelet does with the ConfigMap.
    async fn mount(&self) -> String {
        let roots: ConfigMap = self.api::<ConfigMap>(&self.namespace).get(CONFIG_MAP).await.unwrap();
        let text = roots.data.unwrap()[ROOTS_KEY].clone();
        std::fs::write(self.home.path().join("next"), &text).unwrap();
        std::fs::rename(self.home.path().join("next"), self.roots()).unwrap();
        text
    }

    fn remote(&self, replica: &Replica, token: &str) -> RemoteCa {
        let file =
            self.home.path().join(format!("token-{}", token.len() + token.bytes().map(usize::from).sum::<usize>()));
        std::fs::write(&file, token).unwrap();
        let address = format!("https://{}", replica.address).parse().unwrap();
        RemoteCa::new(Remote { address, roots: self.roots(), token: file })
    }

    fn id(&self, account: &str) -> SpiffeId {
        SpiffeId::new(TRUST_DOMAIN, &self.users, account).unwrap()
    }

    async fn ask(&self, replica: &Replica, token: &str, account: &str) -> Result<(), CaError> {
        let id = self.id(account);
        self.ask_named(replica, token, &id, id.as_str()).await
    }

    /// Asks for `id` by a signing request that names `name`.
    async fn ask_named(&self, replica: &Replica, token: &str, id: &SpiffeId, name: &str) -> Result<(), CaError> {
        let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
        let mut params = rcgen::CertificateParams::default();
        params.subject_alt_names = vec![uri(name)];
        let csr = params.serialize_request(&key).unwrap().pem().unwrap();
        let request = identity::CertificateRequest { id: id.clone(), csr, lifetime: Duration::from_secs(600) };
        let issued = self.remote(replica, token).issue(request).await?;
        assert_eq!(identity::peer_id(Some(&issued.chain)).unwrap(), *id);
        Ok(())
    }
}

impl Replica {
    async fn ready(&self) {
        eventually("the controller to be ready", async || self.readiness.missing().is_empty().then_some(())).await;
    }

    fn counted(&self, word: &str) -> u64 {
        self.tally.certificates().into_iter().find(|(counted, _)| *counted == word).map_or(0, |(_, count)| count)
    }

    async fn end(self) {
        self.drain.start();
        self.running.await.unwrap();
    }
}

#[test]
fn an_agent_gets_what_lives_on_its_node_and_nothing_else() {
    cluster("grants", async |bed| {
        let controller = bed.controller("one").await;
        controller.ready().await;
        bed.mount().await;
        let agent = bed.agent("node-1").await;
        let web = bed.pod(&bed.users, "web-1", "web", "node-1").await;
        bed.pod(&bed.users, "api-1", "api", "node-2").await;

        // A pod that the watch may not know yet.
        bed.ask(&controller, &agent, "web").await.unwrap();
        assert_eq!(controller.counted("issued"), 1);
        // Asked again, the API server is not asked about the token again.
        bed.ask(&controller, &agent, "web").await.unwrap();
        assert!(controller.tally.reviews().contains(&("remembered", 1)), "{:?}", controller.tally.reviews());

        let refused = async |what: &str, token: &str, account: &str, words: &str, counted: &str| {
            let before = controller.counted(counted);
            let error = bed.ask(&controller, token, account).await.unwrap_err();
            assert!(matches!(error, CaError::Refused(_)), "{what}: {error}");
            assert!(error.to_string().contains(words), "{what}: {error}");
            assert_eq!(controller.counted(counted), before + 1, "{what}: {:?}", controller.tally.certificates());
        };
        refused(
            "a pod of another node",
            &agent,
            "api",
            "no live pod of that service account is on node \"node-1\"",
            "no-pod",
        )
        .await;
        refused("no pod at all", &agent, "nobody", "0 known elsewhere", "no-pod").await;

        let pod = bed.api::<Pod>(&bed.namespace).get("agent-node-1").await.unwrap();
        let wrong_audience = bed.token(&bed.namespace, "nodemesh-agent", "api", Some(&pod)).await;
        refused("another audience", &wrong_audience, "web", "does not believe the token", "token").await;
        let unbound = bed.token(&bed.namespace, "nodemesh-agent", AUDIENCE, None).await;
        refused("a token of no pod", &unbound, "web", "bound to no pod", "token-unbound").await;
        let web_token = bed.token(&bed.users, "web", AUDIENCE, Some(&web)).await;
        refused("the workload itself", &web_token, "web", "is not that of the mesh's agents", "not-an-agent").await;
        refused("a forged token", "eyJhbGciOiJub25lIn0.e30.", "web", "does not believe the token", "token").await;

        let (web_id, api_id) = (bed.id("web"), bed.id("api"));
        let error = bed.ask_named(&controller, &agent, &web_id, api_id.as_str()).await.unwrap_err();
        assert!(error.to_string().contains("the signing request names"), "{error}");
        let elsewhere = SpiffeId::new("elsewhere", &bed.users, "web").unwrap();
        let error = bed.ask_named(&controller, &agent, &elsewhere, elsewhere.as_str()).await.unwrap_err();
        assert!(error.to_string().contains("is not that of this mesh"), "{error}");

        bed.phase(&bed.users, "web-1", "Succeeded").await;
        eventually("a pod that has ended to count no more", async || bed.ask(&controller, &agent, "web").await.err())
            .await;
        bed.pod(&bed.users, "web-2", "web", "node-1").await;
        bed.ask(&controller, &agent, "web").await.unwrap();
        bed.api::<Pod>(&bed.users).delete("web-2", &DeleteParams::default().grace_period(0)).await.unwrap();
        eventually("a pod that is gone to count no more", async || bed.ask(&controller, &agent, "web").await.err())
            .await;

        // The agent's own pod is gone, and its token is remembered.
        bed.pod(&bed.users, "web-3", "web", "node-1").await;
        bed.ask(&controller, &agent, "web").await.unwrap();
        let gone = DeleteParams::default().grace_period(0);
        bed.api::<Pod>(&bed.namespace).delete("agent-node-1", &gone).await.unwrap();
        eventually("an agent that is gone to get nothing more", async || {
            let error = bed.ask(&controller, &agent, "web").await.err();
            error.filter(|error| matches!(error, CaError::Refused(_)))
        })
        .await;
        controller.end().await;
    });
}

/// What the map is told of; nothing of it is told here but who tells.
struct Cluster;

impl map::Cluster for Cluster {
    fn pods(&self) -> map::Pods {
        map::Pods::new()
    }

    fn shown(&self) -> Value {
        json!({})
    }
}

/// An agent that says that it is another, and counts what it is asked.
#[derive(Clone, Default)]
struct Liar(Arc<AtomicU64>);

impl map::Source for Liar {
    fn ask(&self, _: &'static str) -> Asked<'_, Vec<Told>> {
        Box::pin(std::future::ready(Vec::new()))
    }

    fn ask_one(&self, path: &'static str) -> Asked<'_, Result<Bytes, String>> {
        self.0.fetch_add(u64::from(path == "/denials"), Ordering::Relaxed);
        let answer =
            if path == "/denials" { "[]".to_string() } else { json!({"agent": {"node": "node-2"}}).to_string() };
        Box::pin(std::future::ready(Ok(answer.into())))
    }
}

/// To one replica.
struct Line(RemoteCa);

impl map::Line for Line {
    fn open(&self) -> Asked<'_, Result<(Channel, AsciiMetadataValue), String>> {
        Box::pin(async move { self.0.call().await.map_err(|error| error.to_string()) })
    }
}

#[test]
fn an_agent_tells_the_map_of_its_own_node_and_nobody_else_is_heard() {
    cluster("told", async |bed| {
        let heard = Heard::new(Cluster);
        let client = bed.client.clone();
        let controller = bed.start(client, "one", Duration::from_secs(2), Some(heard.clone())).await;
        controller.ready().await;
        bed.mount().await;
        let agent = bed.agent("node-1").await;
        let web = bed.pod(&bed.users, "web-1", "web", "node-1").await;
        let web_token = bed.token(&bed.users, "web", AUDIENCE, Some(&web)).await;
        let quick = map::Patience { again: Duration::from_millis(200), ..map::Patience::default() };
        let nodes = async || {
            let told = heard.ask("/denials").await.into_iter();
            told.map(|told| (told.name.node, told.name.pod.unwrap_or_default())).collect::<Vec<_>>()
        };

        let telling = tokio::spawn(map::tell(Liar::default(), Line(bed.remote(&controller, &web_token)), quick));
        tokio::time::sleep(Duration::from_secs(3)).await;
        assert!(nodes().await.is_empty(), "a workload is no agent: {:?}", nodes().await);
        telling.abort();

        let liar = Liar::default();
        let telling = tokio::spawn(map::tell(liar.clone(), Line(bed.remote(&controller, &agent)), quick));
        let told =
            eventually("the agent to be heard", async || Some(nodes().await).filter(|told| !told.is_empty())).await;
        assert_eq!(told, [("node-1".to_string(), "agent-node-1".to_string())], "by its token, whatever it says");

        // Nobody looks: it told once, or once more where its stream was lost. Somebody does: it tells by itself, until they
        // leave.
        let made = || liar.0.load(Ordering::Relaxed);
        let quiet = async || {
            let then = made();
            tokio::time::sleep(Duration::from_secs(6)).await;
            (made() == then).then_some(then)
        };
        let then = eventually("it to tell nobody who does not look", &quiet).await;
        heard.attend(true);
        eventually("it to tell by itself", async || (made() >= then + 3).then_some(())).await;
        heard.attend(false);
        eventually("it to tell no more when they left", &quiet).await;
        telling.abort();
        controller.end().await;
    });
}

#[test]
fn two_replicas_make_one_root_and_one_of_them_leads() {
    cluster("leaders", async |bed| {
        let (one, two) = (bed.controller("one").await, bed.controller("two").await);
        one.ready().await;
        two.ready().await;
        let secret = bed.api::<Secret>(&bed.namespace).get(SECRET).await.unwrap();
        let roots = bed.mount().await;
        let root = String::from_utf8(secret.data.unwrap()["ca.crt"].0.clone()).unwrap();
        assert!(roots.ends_with(&root) && roots.starts_with("# signs: "), "{roots}");
        eventually("one of them to lead", async || {
            (one.leadership.is_held() != two.leadership.is_held()).then_some(())
        })
        .await;

        // Both serve.
        let agent = bed.agent("node-1").await;
        bed.pod(&bed.users, "web-1", "web", "node-1").await;
        for replica in [&one, &two] {
            bed.ask(replica, &agent, "web").await.unwrap();
        }

        // The leader goes as a process is told to: the other one leads at once.
        let lease = async || bed.api::<Lease>(&bed.namespace).get("nodemesh-controller").await.unwrap().spec.unwrap();
        let transitions = async || lease().await.lease_transitions.unwrap();
        let before = transitions().await;
        let (leader, other) = if one.leadership.is_held() { (one, two) } else { (two, one) };
        leader.end().await;
        eventually("the other replica to lead", async || other.leadership.is_held().then_some(())).await;
        assert_eq!(transitions().await, before + 1);

        // The leader dies: a third one waits until the Lease has been still for long enough.
        let third = bed.controller("three").await;
        third.ready().await;
        other.running.abort();
        let renewed = lease().await.renew_time.unwrap().0;
        eventually("the third replica to lead", async || third.leadership.is_held().then_some(())).await;
        // By what both wrote: when this test looked is another matter.
        let waited = lease().await.acquire_time.unwrap().0.as_millisecond() - renewed.as_millisecond();
        assert!(waited > (SOON.lease - SOON.retry * 2).as_millis() as i64, "{waited} ms");
        // And keeps what there is.
        assert_eq!(bed.mount().await, roots);
        bed.ask(&third, &agent, "web").await.unwrap();
        third.end().await;
    });
}

/// A definition that takes anything; what is asked of objects is the business of the committed ones.
async fn define(bed: &Bed, group: &str, version: &str, kind: &str, plural: &str) -> Api<DynamicObject> {
    let anything = json!({ "type": "object", "x-kubernetes-preserve-unknown-fields": true });
    let definition: CustomResourceDefinition = serde_json::from_value(json!({
        "metadata": {
            "name": format!("{plural}.{group}"),
            "annotations": { "api-approved.kubernetes.io": "unapproved, a test" },
        },
        "spec": {
            "group": group, "scope": "Namespaced",
            "names": { "kind": kind, "plural": plural, "singular": kind.to_lowercase() },
            "versions": [{
                "name": version, "served": true, "storage": true, "subresources": { "status": {} },
                "schema": { "openAPIV3Schema": anything },
            }],
        },
    }))
    .unwrap();
    Api::all(bed.client.clone()).create(&PostParams::default(), &definition).await.unwrap();
    let resource = ApiResource::from_gvk_with_plural(&GroupVersionKind::gvk(group, version, kind), plural);
    let api = Api::namespaced_with(bed.client.clone(), &bed.users, &resource);
    eventually("the definition to be served", async || api.list(&ListParams::default()).await.ok().map(drop)).await;
    api
}

fn object(api_version: &str, kind: &str, name: &str, spec: Value) -> DynamicObject {
    let object = json!({ "apiVersion": api_version, "kind": kind, "metadata": { "name": name }, "spec": spec });
    serde_json::from_value(object).unwrap()
}

/// Waits for conditions, as `type=status/reason`, of our entry of a list, that are of the object's generation.
async fn told(api: &Api<DynamicObject>, name: &str, list: &str, expected: &[&str]) -> DynamicObject {
    let mut last = Value::Null;
    let start = Instant::now();
    while start.elapsed() < PATIENCE {
        let object = api.get(name).await.unwrap();
        last = object.data["status"].clone();
        let entries = last[list].as_array().cloned().unwrap_or_default();
        let ours = entries.iter().find(|entry| entry["controllerName"] == "nodemesh.dev/controller");
        let conditions = ours.map(|entry| entry["conditions"].as_array().cloned().unwrap_or_default());
        let word = |value: &Value| value.as_str().unwrap().to_string();
        let one = |one: &Value| format!("{}={}/{}", word(&one["type"]), word(&one["status"]), word(&one["reason"]));
        let conditions = conditions.unwrap_or_default();
        let words: Vec<String> = conditions.iter().map(one).collect();
        let is_current = conditions.iter().all(|one| one["observedGeneration"].as_i64() == object.metadata.generation);
        if words == expected && is_current {
            return object;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    panic!("{name}: {expected:?} is not said within {PATIENCE:?}: {last:#}");
}

#[test]
fn routes_and_policies_are_told_how_they_stand() {
    cluster("status", async |bed| {
        let routes = define(&bed, "gateway.networking.k8s.io", "v1", "HTTPRoute", "httproutes").await;
        let policies = define(&bed, "nodemesh.dev", "v1alpha1", "PeerAuthentication", "peerauthentications").await;
        let callers = define(&bed, "nodemesh.dev", "v1alpha1", "AuthorizationPolicy", "authorizationpolicies").await;
        let (one, two) = (bed.controller("one").await, bed.controller("two").await);
        let service: Service = serde_json::from_value(json!({
            "metadata": { "name": "web" },
            "spec": { "selector": { "app": "web" }, "ports": [{ "name": "http", "port": 80 }] },
        }))
        .unwrap();
        bed.api::<Service>(&bed.users).create(&PostParams::default(), &service).await.unwrap();
        let parent = json!({ "group": "", "kind": "Service", "name": "web", "port": 80 });
        let gateway = json!({ "group": "gateway.networking.k8s.io", "kind": "Gateway", "name": "edge" });
        let spec = |backend: &str| {
            json!({
                "parentRefs": [gateway, parent],
                "rules": [{ "backendRefs": [{ "group": "", "kind": "Service", "name": backend, "port": 80 }] }],
            })
        };
        let route = object("gateway.networking.k8s.io/v1", "HTTPRoute", "r", spec("web"));
        routes.create(&PostParams::default(), &route).await.unwrap();
        let all_well = ["Accepted=True/Accepted", "ResolvedRefs=True/ResolvedRefs"];
        let route = told(&routes, "r", "parents", &all_well).await;
        assert_eq!(route.data["status"]["parents"].as_array().unwrap().len(), 1, "the Gateway is somebody else's");
        assert_eq!(route.data["status"]["parents"][0]["parentRef"], parent);

        // Nothing changes: nothing is written.
        tokio::time::sleep(Duration::from_secs(3)).await;
        let later = routes.get("r").await.unwrap();
        assert_eq!(later.metadata.resource_version, route.metadata.resource_version);

        // Another controller speaks of the Gateway, and its word stays.
        let foreign = json!({ "parentRef": gateway, "controllerName": "example.com/edge", "conditions": [] });
        let both = json!({ "status": { "parents": [foreign, route.data["status"]["parents"][0]] } });
        routes.patch_status("r", &PatchParams::default(), &Patch::Merge(both)).await.unwrap();
        let change = Patch::Merge(json!({ "spec": spec("nobody") }));
        routes.patch("r", &PatchParams::default(), &change).await.unwrap();
        let lost = ["Accepted=True/Accepted", "ResolvedRefs=False/BackendNotFound"];
        let route = told(&routes, "r", "parents", &lost).await;
        assert_eq!(route.data["status"]["parents"][0], foreign);

        // A version that cannot be read, with the field at fault.
        let wrong = json!({ "spec": { "rules": [{ "matches": [{ "path": { "type": "Guess", "value": "/" } }] }] } });
        routes.patch("r", &PatchParams::default(), &Patch::Merge(wrong)).await.unwrap();
        let route = told(&routes, "r", "parents", &["Accepted=False/UnsupportedValue"]).await;
        let message = route.data["status"]["parents"][1]["conditions"][0]["message"].as_str().unwrap();
        assert!(message.starts_with("spec.rules[0].matches[0]"), "{message}");
        eventually("an event of the refusal", async || {
            let events = bed.api::<Event>(&bed.users).list(&ListParams::default()).await.unwrap();
            events.items.into_iter().find(|event| {
                event.regarding.as_ref().is_some_and(|about| about.kind.as_deref() == Some("HTTPRoute"))
                    && event.note.as_deref().is_some_and(|note| note.starts_with("spec.rules[0].matches[0]"))
            })
        })
        .await;

        let targets = json!([{ "kind": "Namespace" }]);
        let policy = object(
            "nodemesh.dev/v1alpha1",
            "PeerAuthentication",
            "p",
            json!({ "targetRefs": targets, "mode": "STRICT" }),
        );
        policies.create(&PostParams::default(), &policy).await.unwrap();
        let fine = ["Accepted=True/Accepted", "ResolvedRefs=True/ResolvedRefs", "Programmed=True/Programmed"];
        told(&policies, "p", "ancestors", &fine).await;
        policies
            .patch("p", &PatchParams::default(), &Patch::Merge(json!({ "spec": { "mode": "LAX" } })))
            .await
            .unwrap();
        let policy = told(&policies, "p", "ancestors", &["Accepted=False/Invalid", "Programmed=False/Invalid"]).await;
        let message = policy.data["status"]["ancestors"][0]["conditions"][0]["message"].as_str().unwrap();
        assert!(message.starts_with("spec.mode"), "{message}");

        // A target that is not there, until it is.
        let allow = json!({ "targetRefs": [{ "kind": "Service", "name": "late" }], "action": "ALLOW", "rules": [] });
        let allow = object("nodemesh.dev/v1alpha1", "AuthorizationPolicy", "a", allow);
        callers.create(&PostParams::default(), &allow).await.unwrap();
        let lost =
            ["Accepted=False/TargetNotFound", "ResolvedRefs=True/ResolvedRefs", "Programmed=False/TargetNotFound"];
        told(&callers, "a", "ancestors", &lost).await;
        let mut late = service.clone();
        late.metadata.name = Some("late".to_string());
        bed.api::<Service>(&bed.users).create(&PostParams::default(), &late).await.unwrap();
        told(&callers, "a", "ancestors", &fine).await;

        // The leader goes, and the other one speaks.
        let (leader, other) = if one.leadership.is_held() { (one, two) } else { (two, one) };
        leader.end().await;
        policies
            .patch("p", &PatchParams::default(), &Patch::Merge(json!({ "spec": { "mode": "STRICT" } })))
            .await
            .unwrap();
        told(&policies, "p", "ancestors", &fine).await;
        other.end().await;
    });
}

/// Roots are replaced while identities of two nodes renew their certificates all the time and dial each other.
#[test]
fn a_root_is_replaced_and_no_peer_refuses_another() {
    cluster("rotation", async |bed| {
        let controller = bed.controller("one").await;
        controller.ready().await;
        let first = bed.mount().await;
        let agent = bed.agent("node-1").await;
        bed.pod(&bed.users, "web-1", "web", "node-1").await;
        let ca = Arc::new(bed.remote(&controller, &agent));
        let settings = identity::Config { trust_domain: TRUST_DOMAIN.to_string(), lifetime: Duration::from_secs(600) };
        // Two agents, of which each knows of roots what it has mounted.
        let agents: Vec<Identities> = (0..2).map(|_| Identities::new(ca.clone(), settings.clone())).collect();
        let drain = Drain::new();
        for agent in &agents {
            agent.want(&[bed.id("web")].into());
            tokio::spawn(agent.clone().run(drain.token()));
            agent.ready(&bed.id("web")).await;
        }
        let root_of = |agent: &Identities| agent.svid(&bed.id("web")).unwrap().root;
        let before = root_of(&agents[0]);

        // Somebody brings another root. Handshakes go on in both directions, with renewals in between.
        let next = identity::new_root(TRUST_DOMAIN).unwrap();
        let data =
            json!({ "stringData": { "tls.crt": next.certificate, "tls.key": next.key, "ca.crt": next.certificate } });
        let secrets = bed.api::<Secret>(&bed.namespace);
        secrets.patch(SECRET, &PatchParams::default(), &Patch::Merge(data)).await.unwrap();
        let (start, mut handshakes) = (Instant::now(), 0);
        loop {
            bed.mount().await;
            for (client, server) in [(&agents[0], &agents[1]), (&agents[1], &agents[0])] {
                let (client, server) = (client.svid(&bed.id("web")).unwrap(), server.svid(&bed.id("web")).unwrap());
                shake(&client, &server).await.unwrap_or_else(|error| panic!("after {:?}: {error}", start.elapsed()));
                handshakes += 1;
            }
            agents[handshakes / 2 % 2].force_rotate();
            // A slow machine makes few of them in the time that a root takes.
            if handshakes > 10 && agents.iter().all(|agent| root_of(agent) != before) {
                break;
            }
            assert!(start.elapsed() < PATIENCE, "the next root does not sign");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        let roots = bed.mount().await;
        let earlier = first.split_once('\n').unwrap().1;
        assert!(roots.contains(earlier) && roots.contains(&next.certificate), "{roots}");

        // The earlier one is dropped as people do it, and then one of ours replaces theirs.
        let rotation = Rotation::new(bed.client.clone(), &bed.namespace, TRUST_DOMAIN).settling(Duration::from_secs(2));
        let done = async |phase| {
            eventually("the phase", async || match rotation.rotate(phase, false).await {
                Ok(told) => Some(told),
                Err(RotationError::TooSoon(_)) => None,
                Err(RotationError::Phase(why)) if why.contains("does not sign yet") => None,
                Err(error) => panic!("{phase:?}: {error}"),
            })
            .await;
        };
        done(Phase::Finish).await;
        assert!(!bed.mount().await.contains(earlier));
        done(Phase::Prepare).await;
        let refusal = rotation.rotate(Phase::Finish, false).await.unwrap_err().to_string();
        assert!(refusal.contains("switch first"), "{refusal}");
        done(Phase::Switch).await;
        done(Phase::Finish).await;
        let told = rotation.status().await.unwrap();
        assert!(told.len() == 2 && told[0].starts_with("signs") && told[1].contains("no rotation"), "{told:?}");
        let roots = bed.mount().await;
        assert!(!roots.contains(&next.certificate), "{roots}");
        let theirs = root_of(&agents[0]);
        eventually("certificates of the last root", async || {
            agents.iter().for_each(Identities::force_rotate);
            agents.iter().all(|agent| root_of(agent) != theirs).then_some(())
        })
        .await;
        for (client, server) in [(&agents[0], &agents[1]), (&agents[1], &agents[0])] {
            shake(&client.svid(&bed.id("web")).unwrap(), &server.svid(&bed.id("web")).unwrap()).await.unwrap();
        }
        drain.start();
        controller.end().await;
    });
}

/// A certificate below a company's root, as cert-manager brings it.
#[test]
fn an_intermediate_that_was_brought_signs_and_is_shown() {
    cluster("intermediate", async |bed| {
        let key = || rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
        let authority = |name: &str| {
            let mut params = rcgen::CertificateParams::default();
            params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
            params.key_usages = vec![rcgen::KeyUsagePurpose::KeyCertSign];
            params.distinguished_name.push(rcgen::DnType::CommonName, name);
            params
        };
        let root = rcgen::CertifiedIssuer::self_signed(authority("a company"), key()).unwrap();
        let below = key();
        let intermediate = authority("a cluster of it").signed_by(&below, &root).unwrap();
        let secret: Secret = serde_json::from_value(json!({
            "metadata": { "name": SECRET }, "type": "kubernetes.io/tls",
            "stringData": {
                "tls.crt": intermediate.pem(), "tls.key": below.serialize_pem(), "ca.crt": root.pem(),
            },
        }))
        .unwrap();
        bed.api::<Secret>(&bed.namespace).create(&PostParams::default(), &secret).await.unwrap();

        let controller = bed.controller("one").await;
        controller.ready().await;
        let roots = bed.mount().await;
        assert!(roots.contains(&root.pem()) && !roots.contains(&intermediate.pem()), "{roots}");
        let agent = bed.agent("node-1").await;
        bed.pod(&bed.users, "web-1", "web", "node-1").await;
        let ca = Arc::new(bed.remote(&controller, &agent));
        let settings = identity::Config { trust_domain: TRUST_DOMAIN.to_string(), lifetime: Duration::from_secs(600) };
        let (identities, drain) = (Identities::new(ca, settings), Drain::new());
        identities.want(&[bed.id("web")].into());
        tokio::spawn(identities.clone().run(drain.token()));
        identities.ready(&bed.id("web")).await;
        // Each end is shown the intermediate by the other, and knows the root alone.
        let svid = identities.svid(&bed.id("web")).unwrap();
        shake(&svid, &svid).await.unwrap();
        let rotation = Rotation::new(bed.client.clone(), &bed.namespace, TRUST_DOMAIN);
        let refusal = rotation.rotate(Phase::Prepare, true).await.unwrap_err().to_string();
        assert!(refusal.contains("not the mesh's own"), "{refusal}");
        drain.start();
        controller.end().await;
    });
}

/// A handshake of two identities, each checking the other.
async fn shake(client: &identity::Svid, server: &identity::Svid) -> std::io::Result<()> {
    let (near, far) = tokio::io::duplex(64 << 10);
    let connector = tokio_rustls::TlsConnector::from(client.client.clone());
    let acceptor = tokio_rustls::TlsAcceptor::from(server.server.clone());
    let name = rustls::pki_types::ServerName::try_from("peer").unwrap();
    let (dialled, accepted) = tokio::join!(connector.connect(name, near), acceptor.accept(far));
    let (dialled, accepted) = (dialled?, accepted?);
    client.peer(dialled.get_ref().1.peer_certificates()).map_err(std::io::Error::other)?;
    server.peer(accepted.get_ref().1.peer_certificates()).map_err(std::io::Error::other)?;
    Ok(())
}
