//! TrafficPolicies between two agents: several endpoints, real applications that are slow, broken or gone.

mod choice;
mod limits;
mod retries;
mod timeouts;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use http::{HeaderMap, Request, Response, StatusCode, Version};
use hyper::body::Incoming;

use super::Pair;
use super::requests::{Answer, Client, app, nothing, read, text};
use super::support::*;

/// A client on node 1 and several servers behind one Service that speaks HTTP.
struct Farm {
    pair: Pair,
    app_protocol: &'static str,
    /// The servers' pods; the first is the pair's.
    others: Vec<Pod>,
}

impl Farm {
    /// With so many servers on node 2.
    async fn start(servers: usize) -> Self {
        Self::start_on("http", &vec!["node2"; servers]).await
    }

    /// With a server on each of these nodes.
    async fn start_on(app_protocol: &'static str, nodes: &[&str]) -> Self {
        let mesh = Mesh::start();
        let client = fresh_ip();
        let servers: Vec<_> = nodes.iter().map(|node| (*node, fresh_ip())).collect();
        mesh.apply("world.yaml", &world(app_protocol, client, &servers));
        let client = mesh.enrol(client).await;
        let mut pods = Vec::new();
        for (_, ip) in &servers {
            pods.push(mesh.enrol(*ip).await);
        }
        let server = pods.remove(0);
        Self { pair: Pair { mesh, client, server }, app_protocol, others: pods }
    }

    /// The server of this number.
    fn server(&self, number: usize) -> &Pod {
        number.checked_sub(1).map_or(&self.pair.server, |other| &self.others[other])
    }

    /// What the server of this number answers.
    fn serve(
        &self,
        number: usize,
        answer: impl Fn(Request<Incoming>) -> Answer + Send + Sync + 'static,
    ) -> Arc<Served> {
        let served = Arc::<Served>::default();
        let counted = served.clone();
        let version = if self.app_protocol == "http" { Version::HTTP_11 } else { Version::HTTP_2 };
        app((self.server(number).ip, 8080), version, move |request| {
            counted.0.fetch_add(1, Ordering::SeqCst);
            answer(request)
        });
        served
    }

    /// Attaches a TrafficPolicy to the Service.
    fn policy(&self, says: &str) {
        self.pair.mesh.apply("traffic.yaml", &policy("Service", "web", says));
    }

    async fn connect(&self) -> Client {
        Client::connect(&self.pair, Version::HTTP_11).await
    }

    /// What became of the client's node's connections to applications, and of tries.
    fn numbers(&self) -> mesh_agent::telemetry::UpstreamNumbers {
        self.pair.mesh.nodes[0].requests.numbers()
    }

    /// Waits until requests are counted under this word.
    async fn told(&self, word: &str) {
        let metrics = &self.pair.mesh.nodes[0].metrics;
        eventually(word, || metrics.encode().contains(&format!("error_type=\"{word}\""))).await;
    }
}

fn world(app_protocol: &str, client: std::net::Ipv4Addr, servers: &[(&str, std::net::Ipv4Addr)]) -> String {
    let service = service_yaml("web", "server", "10.96.0.7", 80, 8080)
        .replace("protocol: TCP", &format!("protocol: TCP, appProtocol: {app_protocol}"));
    let pods = servers.iter().enumerate().map(|(number, (node, ip))| {
        pod_yaml("server", node, *ip).replace("name: server,", &format!("name: server-{number},"))
    });
    [pod_yaml("client", "node1", client), service].into_iter().chain(pods).collect()
}

fn policy(kind: &str, name: &str, says: &str) -> String {
    let group = if kind == "Service" { "" } else { "group: gateway.networking.k8s.io, " };
    format!(
        "apiVersion: nodemesh.dev/v1alpha1
kind: TrafficPolicy
metadata: {{namespace: shop, name: {name}-traffic}}
spec:
  targetRefs: [{{{group}kind: {kind}, name: {name}}}]
{}",
        says.lines().map(|line| format!("  {line}\n")).collect::<String>()
    )
}

/// The requests that a server got.
#[derive(Default)]
struct Served(AtomicUsize);

impl Served {
    fn count(&self) -> usize {
        self.0.load(Ordering::SeqCst)
    }
}

/// Answers with a word.
fn saying(word: &'static str) -> impl Fn(Request<Incoming>) -> Answer + Send + Sync + 'static {
    move |_| Box::pin(std::future::ready(Response::new(text(word))))
}

/// Answers with a status.
fn failing(status: u16) -> impl Fn(Request<Incoming>) -> Answer + Send + Sync + 'static {
    move |_| {
        let mut response = Response::new(text("failed"));
        *response.status_mut() = StatusCode::from_u16(status).unwrap();
        Box::pin(std::future::ready(response))
    }
}

/// GET with a field, and what came of it.
async fn get_with(client: &mut Client, name: &str, value: &str) -> (StatusCode, HeaderMap, String) {
    let request = Request::get(client.uri("/")).header(name, value);
    let response = client.ask(request, nothing()).await;
    let fields = response.headers().clone();
    let (status, body) = read(response).await;
    (status, fields, body)
}
