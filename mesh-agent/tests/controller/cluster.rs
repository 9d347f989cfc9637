//! The controller against a real API server: who gets which certificate, who leads, how a root is replaced.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use k8s_openapi::api::authentication::v1::TokenRequest;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, Node, Pod, Secret, ServiceAccount};
use kube::api::{DeleteParams, Patch, PatchParams, PostParams};
use kube::{Api, Client};
use mesh_agent::controller::lease::{Leadership, Pace};
use mesh_agent::controller::{AUDIENCE, CONFIG_MAP, Config, Controller, ROOTS_KEY, SECRET, Tally};
use mesh_agent::drain::Drain;
use mesh_agent::identity::{self, CaError, CertificateAuthority, Remote, RemoteCa};
use mesh_agent::readiness::Readiness;
use mesh_agent::spiffe::SpiffeId;
use serde_json::json;
use tokio::net::TcpListener;

use crate::apiserver_rig::{Rig, rig};
use crate::support::{TRUST_DOMAIN, loopback, uri};

/// Runs a test with the API server on threads of its own. Five minutes are forever.
fn cluster(test: &str, body: impl AsyncFnOnce(Bed)) {
    let Some(rig) = rig(test) else { return };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let bed = Bed::new(rig, test).await;
        tokio::time::timeout(Duration::from_secs(300), body(bed)).await.expect("the test hangs");
    });
}

/// A namespace for the mesh and one for its users, on an API server that others use as well.
struct Bed {
    client: Client,
    namespace: String,
    users: String,
    home: tempfile::TempDir,
}

struct Replica {
    address: SocketAddr,
    readiness: Readiness,
    leadership: Leadership,
    tally: Arc<Tally>,
    drain: Drain,
    running: tokio::task::JoinHandle<()>,
}

const SOON: Pace = Pace {
    lease: Duration::from_secs(4),
    renew_deadline: Duration::from_secs(3),
    retry: Duration::from_millis(500),
    write_timeout: Duration::from_millis(900),
};

async fn eventually<T>(what: &str, mut look: impl AsyncFnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(seen) = look().await {
            return seen;
        }
        assert!(start.elapsed() < Duration::from_secs(60), "not within a minute: {what}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

impl Bed {
    async fn new(rig: &Rig, test: &str) -> Self {
        let client = rig.client().await;
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
        let bed = Self { client, namespace, users, home: tempfile::tempdir().unwrap() };
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
        let controller = Controller::new(config, client, readiness.clone());
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
        let error = eventually("an agent that is gone to get nothing more", async || {
            bed.ask(&controller, &agent, "web").await.err()
        })
        .await;
        assert!(matches!(error, CaError::Refused(_)), "{error}");
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
        assert_ne!(one.leadership.is_held(), two.leadership.is_held());

        // Both serve.
        let agent = bed.agent("node-1").await;
        bed.pod(&bed.users, "web-1", "web", "node-1").await;
        for replica in [&one, &two] {
            bed.ask(replica, &agent, "web").await.unwrap();
        }

        // The leader goes as a process is told to: the other one leads at once.
        let (leader, other) = if one.leadership.is_held() { (one, two) } else { (two, one) };
        leader.end().await;
        eventually("the other replica to lead", async || other.leadership.is_held().then_some(())).await;
        let lease = bed.api::<Lease>(&bed.namespace).get("nodemesh-controller").await.unwrap().spec.unwrap();
        assert_eq!(lease.lease_transitions, Some(1));

        // The leader dies: a third one waits until the Lease has been still for long enough.
        let third = bed.controller("three").await;
        third.ready().await;
        let died = Instant::now();
        other.running.abort();
        eventually("the third replica to lead", async || third.leadership.is_held().then_some(())).await;
        assert!(died.elapsed() > SOON.lease - SOON.retry * 2, "{:?}", died.elapsed());
        // And keeps what there is.
        assert_eq!(bed.mount().await, roots);
        bed.ask(&third, &agent, "web").await.unwrap();
        third.end().await;
    });
}
