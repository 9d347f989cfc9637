//! What agents have told the controller, and of that what they may tell: whose it is says the controller's own world.
//!
//! A node that lies can lie about its own traffic alone. Pods that the cluster has elsewhere are left out, with their
//! certificates; of an edge counts the end that is on the node, of a refusal likewise.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::time::Instant;

use super::reading::{Party, Reading};
use super::words::{self, Edge, MOST_EDGES_TOLD, Report};
use super::{Asked, Source, world};
use crate::told::{Name, Told};

/// A node that was not heard of for so long is shown as silent.
pub(super) const SILENT: Duration = Duration::from_secs(10);
/// One that was not heard of for so long is forgotten.
pub(super) const FORGOTTEN: Duration = Duration::from_secs(300);
/// What is kept of all nodes together.
pub(super) const MOST_BYTES: usize = 256 << 20;
/// Edges that are read of all nodes together, each as many as the others: 3 KiB each while they are compared.
pub(super) const MOST_EDGES_READ: usize = 131_072;
/// From when agents are asked to tell until what they told was read.
pub(super) const TOLD_WITHIN: Duration = Duration::from_secs(2);
/// An edge that nobody has looked at for so long is asked for no more.
pub(super) const LOOKED_LATELY: Duration = Duration::from_secs(60);
/// Of the names of edges that agents are asked for at once: a welcome is at most 1024 bytes, as older agents have it.
pub(super) const MOST_ASKED_BYTES: usize = 700;
/// Beside the names of each.
const AROUND_EDGE: usize = 12;
/// How old what is known of the cluster's pods may be.
pub(super) const INDEX_AGE: Duration = Duration::from_secs(5);

/// What the controller knows itself.
pub trait Cluster: Send + Sync + 'static {
    /// The pods of each node.
    fn pods(&self) -> Pods;

    /// Services, routes and policies, as an agent shows them.
    fn shown(&self) -> Value;
}

/// Pods by node.
pub type Pods = BTreeMap<String, OnNode>;

/// The pods of a node, by `<namespace>/<name>`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct OnNode {
    /// Their identity and addresses.
    pub pods: BTreeMap<String, (String, Vec<IpAddr>)>,
    /// Whether one of them is in the mesh.
    pub is_meshed: bool,
}

/// What all agents told. Cheap to clone; clones share it.
#[derive(Clone)]
pub struct Heard {
    inner: Arc<Inner>,
}

struct Inner {
    cluster: Box<dyn Cluster>,
    kept: Mutex<Kept>,
    index: Mutex<Option<(Instant, Arc<Pods>)>>,
    wanted: watch::Sender<Wanted>,
    /// Edges that somebody looks at, since when last.
    looked_at: Mutex<BTreeMap<Edge, Instant>>,
    /// Edges that were told and not read in the last round.
    unread: AtomicU64,
}

/// What agents are to tell; each time that it is sent anew they are asked anew.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    /// All, again and again. Else once: nobody looks.
    pub is_always: bool,
    /// Edges that somebody looks at, of which live connections are told too.
    pub edges: Vec<Edge>,
}

#[derive(Default)]
struct Kept {
    nodes: BTreeMap<String, Node>,
    /// The number of the next stream.
    next: u64,
}

/// What one node told last.
struct Node {
    /// The agent's pod.
    pod: String,
    /// The stream whose word counts.
    stream: u64,
    at: Instant,
    counts: Bytes,
    denials: Bytes,
    world: Bytes,
    /// Empty: it was not told.
    connections: Bytes,
}

/// A stream from an agent, the newest of its node.
pub struct Telling {
    heard: Heard,
    node: String,
    stream: u64,
}

/// Why a stream ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotHeard {
    /// A newer stream tells of the node.
    #[error("another agent of this node tells now")]
    Replaced,
    /// Too much is kept.
    #[error("what all nodes tell is more than {MOST_BYTES} bytes")]
    Full,
}

impl Heard {
    /// Nothing was told yet.
    pub fn new(cluster: impl Cluster) -> Self {
        let inner = Inner {
            cluster: Box::new(cluster),
            kept: Mutex::default(),
            index: Mutex::default(),
            wanted: watch::Sender::default(),
            looked_at: Mutex::default(),
            unread: AtomicU64::new(0),
        };
        Self { inner: Arc::new(inner) }
    }

    /// What is kept of all nodes.
    #[cfg(test)]
    pub(super) fn size(&self) -> usize {
        self.kept().nodes.values().map(Node::size).sum()
    }

    /// Every node has told something a moment ago.
    #[cfg(test)]
    pub(super) fn refresh(&self) {
        self.kept().nodes.values_mut().for_each(|node| node.at = Instant::now());
    }

    /// What agents are to tell, and when they are asked again.
    pub fn wanted(&self) -> watch::Receiver<Wanted> {
        self.inner.wanted.subscribe()
    }

    /// An agent begins to tell of its node. Whoever told of it before is not heard any more.
    pub fn begin(&self, node: &str, pod: &str) -> Telling {
        let mut kept = self.kept();
        let stream = kept.next;
        kept.next += 1;
        let fresh = Node {
            pod: pod.to_string(),
            stream,
            at: Instant::now(),
            counts: Bytes::new(),
            denials: Bytes::new(),
            world: Bytes::new(),
            connections: Bytes::new(),
        };
        kept.nodes.insert(node.to_string(), fresh);
        Telling { heard: self.clone(), node: node.to_string(), stream }
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.inner.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn index(&self) -> Arc<Pods> {
        let mut index = self.inner.index.lock().unwrap_or_else(PoisonError::into_inner);
        match &*index {
            Some((since, pods)) if since.elapsed() < INDEX_AGE => pods.clone(),
            _ => {
                let pods = Arc::new(self.inner.cluster.pods());
                *index = Some((Instant::now(), pods.clone()));
                pods
            }
        }
    }

    /// A part of what each node told that is not silent, with its pods.
    fn parts(&self, part: impl Fn(&Node) -> &Bytes) -> Vec<(Name, Option<Bytes>)> {
        let mut kept = self.kept();
        kept.nodes.retain(|_, node| node.at.elapsed() < FORGOTTEN);
        let parts = kept.nodes.iter().map(|(name, node)| {
            let is_silent = node.at.elapsed() >= SILENT || part(node).is_empty();
            let name = Name { node: name.clone(), pod: Some(node.pod.clone()) };
            (name, (!is_silent).then(|| part(node).clone()))
        });
        parts.collect()
    }

    fn denials(&self) -> Vec<Told> {
        self.own_parts(|node| &node.denials, silence, OnNode::denials)
    }

    fn connections(&self) -> Vec<Told> {
        let untold = || "the agents were asked, and tell in a moment".to_string();
        self.own_parts(|node| &node.connections, untold, OnNode::connections)
    }

    /// Of a part of what each node told what is its own; why there is none.
    fn own_parts(
        &self,
        part: fn(&Node) -> &Bytes,
        untold: fn() -> String,
        own: fn(&OnNode, &[u8]) -> Bytes,
    ) -> Vec<Told> {
        let (index, nothing) = (self.index(), OnNode::default());
        let told = self.parts(part).into_iter();
        let told = told.map(|(name, part)| {
            let on_node = index.get(&name.node).unwrap_or(&nothing);
            let answer = part.ok_or_else(untold).map(|part| own(on_node, &part));
            Told { name, answer }
        });
        told.collect()
    }

    /// The edges that somebody has looked at lately, those looked at last as long as there is room for them; in an order that
    /// who looks again does not change.
    fn looked_at(&self) -> Vec<Edge> {
        let mut looked_at = self.inner.looked_at.lock().unwrap_or_else(PoisonError::into_inner);
        looked_at.retain(|_, last| last.elapsed() < LOOKED_LATELY);
        let mut edges: Vec<(Instant, Edge)> = looked_at.iter().map(|(edge, last)| (*last, edge.clone())).collect();
        edges.sort_by_key(|(last, _)| std::cmp::Reverse(*last));
        let mut left = Some(MOST_ASKED_BYTES);
        let mut fits = |edge: &Edge| {
            left = left.and_then(|left| left.checked_sub(edge.from.len() + edge.to.len() + AROUND_EDGE));
            left.is_some()
        };
        let mut edges: Vec<Edge> = edges.into_iter().map(|(_, edge)| edge).take_while(|edge| fits(edge)).collect();
        edges.sort();
        looked_at.retain(|edge, _| edges.contains(edge));
        edges
    }

    fn worlds(&self) -> Vec<Told> {
        let (index, nothing) = (self.index(), OnNode::default());
        let mut told: Vec<Told> = Vec::new();
        for (name, part) in self.parts(|node| &node.world) {
            let own = index.get(&name.node).unwrap_or(&nothing);
            let answer = part.ok_or_else(silence).and_then(|part| own.world(&name.node, &part));
            told.push(Told { name, answer });
        }
        // Whose agent never came.
        let heard: BTreeSet<String> = told.iter().map(|told| told.name.node.clone()).collect();
        for (node, _) in index.iter().filter(|(node, own)| own.is_meshed && !heard.contains(*node)) {
            let why = "this replica of the controller has not heard of it".to_string();
            told.push(Told { name: Name { node: node.clone(), pod: None }, answer: Err(why) });
        }
        told
    }
}

fn silence() -> String {
    format!("told nothing for {} s", SILENT.as_secs())
}

impl Telling {
    /// Keeps what was told.
    ///
    /// # Errors
    /// The stream is to end.
    pub fn take(&self, report: Report) -> Result<(), NotHeard> {
        let mut kept = self.heard.kept();
        let others = kept.nodes.iter().filter(|(name, _)| **name != self.node).map(|(_, node)| node.size());
        let others: usize = others.sum();
        let node = kept.nodes.get_mut(&self.node).filter(|node| node.stream == self.stream);
        let Some(node) = node else { return Err(NotHeard::Replaced) };
        let Report { counts, denials, world, is_sign_of_life, connections } = report;
        node.at = Instant::now();
        if is_sign_of_life {
            return Ok(());
        }
        node.counts = own(&counts);
        node.denials = denials.as_ref().map_or_else(|| std::mem::take(&mut node.denials), own);
        node.world = world.as_ref().map_or_else(|| std::mem::take(&mut node.world), own);
        node.connections = connections.as_ref().map(own).unwrap_or_default();
        if others.saturating_add(node.size()) > MOST_BYTES {
            kept.nodes.remove(&self.node);
            return Err(NotHeard::Full);
        }
        Ok(())
    }
}

/// Not as a part of the whole message, which would be kept with it.
fn own(part: &Bytes) -> Bytes {
    Bytes::copy_from_slice(part)
}

impl Node {
    fn size(&self) -> usize {
        self.counts.len() + self.denials.len() + self.world.len() + self.connections.len()
    }
}

impl OnNode {
    /// An edge counts where its end on this node is one of its pods', or one of many that are told together.
    fn counts(&self, part: &[u8], most: usize) -> (Reading, u64) {
        let (mut reading, more) = words::read_most(part, most);
        let accounts: BTreeSet<String> = self.identities().filter_map(world::account).collect();
        let is_own = |party: &Party| match party {
            Party::Account(account) => accounts.contains(account),
            Party::Other => true,
            Party::Service(_) | Party::Unknown => false,
        };
        reading.retain(|(from, to), ends| {
            if !is_own(from) {
                ends.outbound = Default::default();
            }
            if !is_own(to) {
                ends.inbound = Default::default();
            }
            is_own(from) || is_own(to)
        });
        (reading, more)
    }

    fn identities(&self) -> impl Iterator<Item = &str> {
        self.pods.values().map(|(identity, _)| identity.as_str())
    }

    fn denials(&self, part: &[u8]) -> Bytes {
        self.of_own_pods(part, ["/sourcePod", "/destinationPod"])
    }

    fn connections(&self, part: &[u8]) -> Bytes {
        self.of_own_pods(part, ["/source/pod", "/destination/pod"])
    }

    /// Of a list what has its end on this node at one of its pods: where the pods of caller and called stand in each.
    fn of_own_pods(&self, part: &[u8], [source, destination]: [&str; 2]) -> Bytes {
        let mut told: Vec<Value> = serde_json::from_slice(part).unwrap_or_default();
        told.retain(|one| {
            let end = if one["direction"] == "outbound" { source } else { destination };
            one.pointer(end).and_then(Value::as_str).is_some_and(|pod| self.pods.contains_key(pod))
        });
        json!(told).to_string().into()
    }

    fn world(&self, node: &str, part: &[u8]) -> Result<Bytes, String> {
        let mut told: Value = serde_json::from_slice(part).map_err(|error| format!("cannot be understood: {error}"))?;
        if let Some(agent) = told.get_mut("agent").and_then(Value::as_object_mut) {
            agent.insert("node".to_string(), json!(node));
        }
        if let Some(pods) = told.get_mut("workloads").and_then(Value::as_array_mut) {
            pods.retain_mut(|pod| self.is_own(pod));
        }
        if let Some(svids) = told.pointer_mut("/identities/svids").and_then(Value::as_array_mut) {
            let identities: BTreeSet<&str> = self.identities().collect();
            svids.retain(|svid| svid["id"].as_str().is_some_and(|id| identities.contains(id)));
        }
        Ok(told.to_string().into())
    }

    /// Whether the pod is of this node. Its addresses are then as the cluster has them.
    fn is_own(&self, pod: &mut Value) -> bool {
        let name =
            format!("{}/{}", pod["namespace"].as_str().unwrap_or_default(), pod["name"].as_str().unwrap_or_default());
        let Some((identity, ips)) = self.pods.get(&name) else { return false };
        let is_own = pod["identity"] == identity.as_str();
        if let Some(pod) = pod.as_object_mut() {
            pod.insert("ips".to_string(), json!(ips));
        }
        is_own
    }
}

impl Source for Heard {
    fn ask(&self, path: &'static str) -> Asked<'_, Vec<Told>> {
        let told = match path {
            "/denials" => self.denials(),
            "/connections" => self.connections(),
            world::OF_AGENTS => self.worlds(),
            other => {
                let name = Name { node: "the controller".to_string(), pod: None };
                vec![Told { name, answer: Err(format!("no {other} here")) }]
            }
        };
        Box::pin(std::future::ready(told))
    }

    fn ask_one(&self, path: &'static str) -> Asked<'_, Result<Bytes, String>> {
        let answer = match path {
            world::OF_ANY => Ok(self.inner.cluster.shown().to_string().into()),
            other => Err(format!("no {other} here")),
        };
        Box::pin(std::future::ready(answer))
    }

    fn attend(&self, is_watched: bool) -> Duration {
        let wanted = Wanted { is_always: is_watched, edges: self.looked_at() };
        let mut is_awaited = true;
        self.inner.wanted.send_if_modified(|last| {
            // Who tells always needs not be asked.
            is_awaited = !(last.is_always && is_watched);
            let is_new = is_awaited || last.edges != wanted.edges;
            *last = wanted;
            is_new
        });
        if is_awaited { TOLD_WITHIN } else { Duration::ZERO }
    }

    fn look_at(&self, from: &str, to: &str) -> bool {
        let edge = Edge { from: from.to_string(), to: to.to_string() };
        let mut looked_at = self.inner.looked_at.lock().unwrap_or_else(PoisonError::into_inner);
        let is_new = looked_at.insert(edge, Instant::now()).is_none();
        drop(looked_at);
        if is_new {
            // What was told is not of this one.
            self.kept().nodes.values_mut().for_each(|node| node.connections = Bytes::new());
            let edges = self.looked_at();
            self.inner.wanted.send_modify(|wanted| wanted.edges = edges);
        }
        false
    }

    fn counts(&self) -> Asked<'_, Vec<(Name, Reading)>> {
        let (index, nothing) = (self.index(), OnNode::default());
        let told = self.parts(|node| &node.counts);
        let most = (MOST_EDGES_READ / told.len().max(1)).clamp(1, MOST_EDGES_TOLD);
        let (mut all, mut unread) = (Vec::with_capacity(told.len()), 0);
        for (name, part) in told {
            let Some(part) = part else { continue };
            let (counts, more) = index.get(&name.node).unwrap_or(&nothing).counts(&part, most);
            unread += more;
            all.push((name, counts));
        }
        self.inner.unread.store(unread, Ordering::Relaxed);
        Box::pin(std::future::ready(all))
    }

    fn unread(&self) -> u64 {
        self.inner.unread.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use prost::Message as _;

    use super::super::reading::{Counts, Ends};
    use super::super::teller::MAX_WELCOME_BYTES;
    use super::super::words::Welcome;
    use super::*;
    use crate::told::Counted;

    /// `web` on n1, `api` on n2; nobody of the mesh on n4, and n3 never told anything.
    struct Three;

    fn id(account: &str) -> String {
        format!("spiffe://cluster.local/ns/shop/sa/{account}")
    }

    impl Cluster for Three {
        fn pods(&self) -> Pods {
            let on = |name: &str, last: u8, is_meshed| OnNode {
                pods: BTreeMap::from([(format!("shop/{name}-0"), (id(name), vec![[10, 0, 0, last].into()]))]),
                is_meshed,
            };
            let nodes = [
                ("n1", on("web", 1, true)),
                ("n2", on("api", 2, true)),
                ("n3", on("db", 3, true)),
                ("n4", on("old", 4, false)),
            ];
            nodes.into_iter().map(|(name, node)| (name.to_string(), node)).collect()
        }

        fn shown(&self) -> Value {
            json!({"services": []})
        }
    }

    impl Heard {
        /// So much time goes by.
        fn age(&self, span: Duration) {
            self.kept().nodes.values_mut().for_each(|node| node.at = node.at.checked_sub(span).unwrap());
            let mut looked_at = self.inner.looked_at.lock().unwrap();
            looked_at.values_mut().for_each(|last| *last = last.checked_sub(span).unwrap());
        }
    }

    fn account(name: &str) -> Party {
        Party::Account(format!("shop/{name}"))
    }

    /// Both ends of every edge among these.
    fn counts(edges: &[(Party, Party)]) -> Bytes {
        let one = || Counts { connections: Counted { opened: 1, ..Counted::default() }, ..Counts::default() };
        let ends = || Ends { outbound: one(), inbound: one() };
        words::written(&edges.iter().map(|edge| (edge.clone(), ends())).collect())
    }

    fn world() -> Value {
        let pod = |name: &str, account: &str, ip: &str| json!({"namespace": "shop", "name": name, "identity": id(account), "ips": [ip], "enrolled": true});
        json!({
            "agent": {"node": "n2", "version": "1"},
            "workloads": [pod("web-0", "web", "10.0.0.2"), pod("api-0", "api", "10.0.0.2"), pod("web-0", "api", "10.0.0.1")],
            "identities": {"svids": [{"id": id("web")}, {"id": id("api")}]},
        })
    }

    fn report(counts: Bytes) -> Report {
        let denial = |direction: &str, from: &str, to: &str| json!({"direction": direction, "sourcePod": from, "destinationPod": to});
        let denials = json!([
            denial("outbound", "shop/web-0", "shop/api-0"),
            denial("inbound", "shop/web-0", "shop/api-0"),
            denial("inbound", "shop/api-0", "shop/web-0"),
            denial("outbound", "shop/api-0", "shop/web-0"),
        ]);
        let (denials, world) = (Some(denials.to_string().into()), Some(world().to_string().into()));
        Report { counts, denials, world, ..Report::default() }
    }

    fn answer<'a>(told: &'a [Told], node: &str) -> &'a Result<Bytes, String> {
        &told.iter().find(|told| told.name.node == node).unwrap().answer
    }

    #[tokio::test]
    async fn a_node_that_lies_lies_about_its_own_traffic_alone() {
        let heard = Heard::new(Three);
        let (web, api, db) = (account("web"), account("api"), account("db"));
        let edges = [
            (web.clone(), api.clone()),
            (api.clone(), web.clone()),
            (api.clone(), db.clone()),
            (Party::Other, Party::Other),
        ];
        heard.begin("n1", "agent-n1").take(report(counts(&edges))).unwrap();

        let told = heard.counts().await;
        assert_eq!(told.len(), 1);
        let (name, reading) = &told[0];
        assert_eq!((name.node.as_str(), name.pod.as_deref()), ("n1", Some("agent-n1")));
        let ends = |from: &Party, to: &Party| {
            reading
                .get(&(from.clone(), to.clone()))
                .map(|ends| (ends.outbound.connections.opened, ends.inbound.connections.opened))
        };
        assert_eq!(ends(&web, &api), Some((1, 0)), "the caller's end is its own, the other is not");
        assert_eq!(ends(&api, &web), Some((0, 1)));
        assert_eq!(ends(&api, &db), None, "an edge between others");
        assert_eq!(ends(&Party::Other, &Party::Other), Some((1, 1)));

        let denials = heard.ask("/denials").await;
        let kept: Vec<Value> = serde_json::from_slice(answer(&denials, "n1").as_ref().unwrap()).unwrap();
        let kept: Vec<(&str, &str)> =
            kept.iter().map(|one| (one["direction"].as_str().unwrap(), one["sourcePod"].as_str().unwrap())).collect();
        assert_eq!(kept, [("outbound", "shop/web-0"), ("inbound", "shop/api-0")]);

        let worlds = heard.ask(world::OF_AGENTS).await;
        let world: Value = serde_json::from_slice(answer(&worlds, "n1").as_ref().unwrap()).unwrap();
        assert_eq!(world["agent"]["node"], "n1", "whatever it says");
        let pods = world["workloads"].as_array().unwrap();
        assert_eq!(pods.len(), 1, "a pod of another node, and one that bears another's name: {pods:?}");
        assert_eq!(
            (&pods[0]["name"], &pods[0]["ips"]),
            (&json!("web-0"), &json!(["10.0.0.1"])),
            "its address is the cluster's word"
        );
        assert_eq!(world["identities"]["svids"], json!([{"id": id("web")}]));
        // Those that were never heard of are said to be silent; where nobody is of the mesh there is no agent to hear of.
        assert!(answer(&worlds, "n2").is_err() && answer(&worlds, "n3").is_err());
        assert!(worlds.iter().all(|told| told.name.node != "n4"));
    }

    #[tokio::test]
    async fn what_did_not_change_stays_and_the_newest_stream_counts() {
        let heard = Heard::new(Three);
        let first = heard.begin("n1", "agent-a");
        first.take(report(Bytes::new())).unwrap();
        first.take(Report::default()).unwrap();
        assert!(answer(&heard.ask("/denials").await, "n1").is_ok(), "as before");
        let second = heard.begin("n1", "agent-b");
        assert!(answer(&heard.ask("/denials").await, "n1").is_err(), "nothing of the first is the second's");
        second.take(report(Bytes::new())).unwrap();
        assert_eq!(first.take(Report::default()), Err(NotHeard::Replaced));
        let told = heard.ask(world::OF_AGENTS).await;
        let agent = told.iter().find(|told| told.name.node == "n1").unwrap();
        assert_eq!((agent.name.pod.as_deref(), agent.answer.is_ok()), (Some("agent-b"), true));
    }

    #[tokio::test]
    async fn who_falls_silent_is_shown_and_then_forgotten() {
        let heard = Heard::new(Three);
        let telling = heard.begin("n9", "agent");
        telling.take(report(Bytes::new())).unwrap();
        let is_heard = async || {
            heard
                .ask(world::OF_AGENTS)
                .await
                .into_iter()
                .find(|told| told.name.node == "n9")
                .map(|told| told.answer.is_ok())
        };
        assert_eq!(is_heard().await, Some(true));
        heard.age(SILENT);
        assert_eq!(is_heard().await, Some(false));
        telling.take(Report { is_sign_of_life: true, ..Report::default() }).unwrap();
        assert_eq!(is_heard().await, Some(true), "a sign of life, and all is as before");
        heard.age(FORGOTTEN);
        assert_eq!(is_heard().await, None);
        assert_eq!(telling.take(Report::default()), Err(NotHeard::Replaced), "it begins anew");
    }

    /// Agents are asked once for each round that nobody looks at, and not at all for those that somebody does.
    #[test]
    fn agents_are_asked_as_often_as_somebody_looks() {
        let heard = Heard::new(Three);
        let mut wanted = heard.wanted();
        let (once, always) = (Some(false), Some(true));
        for (is_watched, expected) in
            [(false, once), (false, once), (true, always), (true, None), (true, None), (false, once)]
        {
            let wait = heard.attend(is_watched);
            let asked = wanted.has_changed().unwrap().then(|| wanted.borrow_and_update().is_always);
            assert_eq!(asked, expected, "{is_watched}");
            assert_eq!(wait.is_zero(), expected.is_none(), "they are given the time to tell");
        }
    }

    fn edge(from: &str, to: &str) -> Edge {
        Edge { from: from.to_string(), to: to.to_string() }
    }

    /// Live connections are asked for while somebody looks at their edge, and no more names of edges than a welcome has room for.
    #[test]
    fn live_connections_are_asked_for_while_somebody_looks() {
        let heard = Heard::new(Three);
        let mut wanted = heard.wanted();
        let mut asked = || wanted.has_changed().unwrap().then(|| wanted.borrow_and_update().edges.clone());
        heard.attend(true);
        assert_eq!(asked(), Some(vec![]));
        let (one, other) = (edge("shop/web", "shop/api"), edge("shop/api", "shop/db"));
        let (long, longer) = (edge(&"x".repeat(300), "a"), edge(&"x".repeat(350), "b"));
        for (looks_at, after, expected) in [
            (&one, 0, Some(vec![one.clone()])),
            (&one, 5, None),
            (&other, 1, Some(vec![other.clone(), one.clone()])),
            (&one, 1, None),
            (&long, 1, Some(vec![other.clone(), one.clone(), long.clone()])),
            // The one that was looked at longest ago, and the next, make room.
            (&longer, 1, Some(vec![long.clone(), longer.clone()])),
        ] {
            heard.age(Duration::from_secs(after));
            assert!(!heard.look_at(&looks_at.from, &looks_at.to));
            assert_eq!(asked(), expected, "{looks_at:?}");
            assert!(heard.attend(true).is_zero(), "who tells always is not waited for");
            assert_eq!(asked(), None);
            let edges = heard.inner.wanted.borrow().edges.clone();
            let welcome = Welcome { replica: "r".repeat(253), once: true, edges };
            assert!(welcome.encoded_len() <= MAX_WELCOME_BYTES, "{welcome:?}");
        }
        heard.age(LOOKED_LATELY);
        heard.attend(true);
        assert_eq!(asked(), Some(vec![]), "nobody looks any more");
    }

    #[tokio::test]
    async fn a_node_tells_of_its_own_connections_alone() {
        let heard = Heard::new(Three);
        let telling = heard.begin("n1", "agent-n1");
        let of = |direction: &str| {
            json!({"direction": direction, "source": {"pod": "shop/web-0", "identity": id("web")},
                   "destination": {"pod": "shop/api-0", "identity": id("api")}})
        };
        let told = || Report {
            connections: Some(json!([of("outbound"), of("inbound"), 7, {}]).to_string().into()),
            ..report(Bytes::new())
        };
        let kept = async || {
            let answers = heard.ask("/connections").await;
            answer(&answers, "n1").clone().map(|kept| serde_json::from_slice::<Vec<Value>>(&kept).unwrap())
        };
        telling.take(report(Bytes::new())).unwrap();
        assert!(kept().await.is_err(), "nobody asked");
        heard.look_at("shop/web", "shop/api");
        telling.take(told()).unwrap();
        assert_eq!(kept().await, Ok(vec![of("outbound")]));
        heard.look_at("shop/web", "shop/api");
        assert!(kept().await.is_ok(), "asked for already");
        heard.look_at("shop/api", "shop/web");
        assert!(kept().await.is_err(), "what was told is of another edge");
        telling.take(Report { connections: Some(Bytes::from_static(b"{[")), ..report(Bytes::new()) }).unwrap();
        assert_eq!(kept().await, Ok(vec![]));
        telling.take(report(Bytes::new())).unwrap();
        assert!(kept().await.is_err(), "told no more");
    }

    #[tokio::test]
    async fn what_cannot_be_read_is_nothing_and_all_is_bounded() {
        let heard = Heard::new(Three);
        let noise = Bytes::from_static(b"\xff\x00{[");
        let telling = heard.begin("n1", "agent");
        telling
            .take(Report {
                counts: noise.clone(),
                denials: Some(noise.clone()),
                world: Some(noise),
                ..Report::default()
            })
            .unwrap();
        assert!(heard.counts().await[0].1.is_empty());
        assert_eq!(answer(&heard.ask("/denials").await, "n1").as_deref(), Ok(&b"[]"[..]));
        assert!(answer(&heard.ask(world::OF_AGENTS).await, "n1").is_err());
        // As much as all may have, in parts; then one more.
        let part = Bytes::from(vec![0; MOST_BYTES / 4]);
        let full = || Report { counts: part.clone(), ..Report::default() };
        let all: Vec<Telling> = (0..4).map(|number| heard.begin(&format!("big-{number}"), "agent")).collect();
        let kept = all.iter().filter(|telling| telling.take(full()).is_ok()).count();
        assert_eq!(kept, 3, "with what n1 told four are too many");
        assert_eq!(all[3].take(full()), Err(NotHeard::Replaced), "what was too much is not kept");
    }
}
