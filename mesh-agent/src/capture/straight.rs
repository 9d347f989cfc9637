//! Connections from pod to pod by the kernel alone: publishes whom pods may reach, gives its word for it again and again,
//! and ends what may not go on.
//!
//! One order for every change: what is no more goes from the table first, then all connections are looked through, then what
//! is new comes. A connection that took a path before it went is in the file when the walk comes, or the kernel program
//! finds the path gone and refuses it (`mesh_common::same_node`). As a store may be seen late by another processor, the walk
//! is made once more a round later.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use mesh_common::addr::{Endpoint, FourTuple};
use mesh_common::outcome::Outcome;
use mesh_common::record::Event;
use mesh_common::same_node::{NODE, Path, PathKey, StraightEnd, StraightRecord};

use super::netlink;
use super::pod_thread::PodThread;
use super::room::{self, Counts, Room};
use super::sweep::MAX_KEYS;
use super::tables::Tables;
use crate::named::named;
use crate::podnet::{KernelRefusal, Straight, StraightConnection, StraightPath};
use crate::state::{MeshState, Workload};
use crate::sys;

/// How long paths hold after the agent last gave its word. Longer than a container's restart; no longer than a change of
/// policy may be missed while no agent is there.
pub(super) const LEASE: Duration = Duration::from_secs(30);
/// What the kernel's table holds (`PATHS` in mesh-ebpf).
pub(super) const MAX_PATHS: usize = 65_536;
/// The endpoints of one address among which the kernel picks.
pub(super) const MAX_SLOTS: usize = 16;
/// Rounds between two walks where nothing changed.
pub(super) const WALK_EVERY: u32 = 20;
/// Connections that were cut and whose end was not told yet.
pub(super) const MAX_CUT: usize = 65_536;
/// Connections that are listed when somebody asks.
pub(super) const MAX_LISTED: usize = 4_096;

/// A pod of this node that this agent has something of.
pub(super) struct Neighbour<'a> {
    pub workload: Arc<Workload>,
    /// It is captured, as the world wants it; or it is not to be. None: it is about to be.
    pub is_enrolled: Option<bool>,
    /// The host's end of its link.
    pub interface: Option<u32>,
    pub thread: &'a PodThread,
}

/// What is asked and told about such connections. Clones share nothing: there is one.
pub(super) struct Neighbours {
    /// None where connections are not to go straight.
    decides: Option<Arc<dyn Straight>>,
    /// Who is told what the kernel refused.
    tells: Arc<dyn Straight>,
    /// Pods by the cookie of their namespace, those too that left while their connections ended.
    pods: Mutex<HashMap<u64, Known>>,
    /// Why the sockets of connections were ended that this agent ended, by cookie.
    cut: Mutex<HashMap<u64, &'static str>>,
    /// How many connections a pod may have a part in.
    of_one_pod: u32,
}

struct Known {
    workload: Arc<Workload>,
    /// The host's ends of its links.
    links: BTreeSet<u32>,
}

impl Neighbours {
    /// `is_wanted`: connections are to go straight.
    pub fn new(tells: Arc<dyn Straight>, is_wanted: bool, of_one_pod: u32) -> Self {
        let decides = is_wanted.then(|| tells.clone()).filter(|_| match netlink::can_destroy_sockets() {
            Ok(()) => true,
            Err(error) => {
                tracing::warn!(%error, "this kernel cannot end connections of pods: none goes straight from pod to pod");
                false
            }
        });
        Self { decides, tells, pods: Mutex::default(), cut: Mutex::default(), of_one_pod }
    }

    /// Tells of an end.
    pub fn tell(&self, end: &StraightEnd) {
        let record = end.record();
        let cut = self.cut.lock().unwrap_or_else(PoisonError::into_inner).remove(&record.cookie());
        let (Some(decides), Some(connection)) = (&self.decides, self.connection(end.tuple(), record, end.time()))
        else {
            tracing::debug!(tuple = ?end.tuple(), "a connection between pods that are not known ended");
            return;
        };
        let (sent, received) = end.bytes();
        let (rtt, retransmits) = end.network();
        let rtt = Duration::from_micros(rtt.into());
        let was_open = end.was_open();
        decides.ended(StraightConnection { sent, received, was_open, cut, rtt, retransmits, ..connection });
    }

    /// One that lives at `now`, between pods that are known; what it carried is not known yet.
    fn connection(&self, tuple: &FourTuple, record: &StraightRecord, now: u64) -> Option<StraightConnection> {
        let pods = self.pods.lock().unwrap_or_else(PoisonError::into_inner);
        Some(StraightConnection {
            from: pods.get(&record.client())?.workload.clone(),
            to: pods.get(&record.server())?.workload.clone(),
            client: tuple.source().into(),
            dialled: record.dialled().into(),
            server: tuple.destination().into(),
            sent: 0,
            received: 0,
            duration: Duration::from_nanos(now.saturating_sub(record.time())),
            was_open: true,
            cut: None,
            rtt: Duration::ZERO,
            retransmits: 0,
        })
    }

    /// Tells of a refusal.
    pub fn tell_refusal(&self, event: &Event, world: &MeshState) {
        // One that a newer agent's program knows.
        let Some(outcome) = Outcome::from_number(event.outcome()) else { return };
        let pod = {
            let pods = self.pods.lock().unwrap_or_else(PoisonError::into_inner);
            let by_link = || pods.values().find(|pod| pod.links.contains(&event.interface()));
            pods.get(&event.netns()).or_else(by_link).map(|pod| pod.workload.clone())
        };
        let (source, destination) = (event.source().into(), event.destination().into());
        self.tells.refused(world, KernelRefusal { outcome, pod, source, destination });
    }

    /// The pods that this agent has something of, with the cookies of their namespaces and the host's ends of their links.
    pub fn know<'a>(&self, pods: impl Iterator<Item = (u64, &'a Arc<Workload>, &'a BTreeSet<u32>)>) {
        let known =
            pods.map(|(cookie, workload, links)| (cookie, Known { workload: workload.clone(), links: links.clone() }));
        let known = known.collect();
        *self.pods.lock().unwrap_or_else(PoisonError::into_inner) = known;
    }

    fn note_cut(&self, cookie: u64, reason: &'static str) {
        let mut cut = self.cut.lock().unwrap_or_else(PoisonError::into_inner);
        if cut.len() < MAX_CUT {
            cut.entry(cookie).or_insert(reason);
        }
    }
}

/// Of pods by uid: the cookie of the namespace, the host's end of the link.
type Places = HashMap<Arc<str>, (u64, u32)>;

/// What is in the tables, as far as this agent knows.
#[derive(Default)]
pub(super) struct Paths {
    /// What they were made from; none before the first.
    seen: Option<Seen>,
    published: HashMap<PathKey, Path>,
    /// What was decided last, and what of it the table was made from.
    decided: Option<(Arc<[StraightPath]>, Places)>,
    linked: BTreeSet<u32>,
    /// Rounds since the last walk that found nothing changed.
    rounds: u32,
    walk_again: bool,
    room: Room,
    /// As many connections were on file at the last walk.
    live: i64,
}

/// What paths follow from.
#[derive(PartialEq, Eq)]
struct Seen {
    version: u64,
    enrolled: BTreeMap<u64, Option<u32>>,
}

/// One act on the table of paths.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Act {
    Remove(PathKey),
    Set(PathKey, Path),
}

impl Paths {
    /// Nothing is to go straight, and nothing does.
    pub fn are_idle(&self, neighbours: &Neighbours) -> bool {
        let is_empty = self.published.is_empty() && self.linked.is_empty() && self.live == 0;
        neighbours.decides.is_none() && self.seen.is_some() && is_empty && !self.walk_again
    }

    /// Brings the kernel's tables to what holds now. Cheap where nothing changed.
    pub async fn follow(
        &mut self,
        world: &MeshState,
        pods: &BTreeMap<u64, Neighbour<'_>>,
        neighbours: &Neighbours,
        tables: &Tables,
    ) {
        let enrolled = pods.iter().filter(|(_, pod)| pod.is_enrolled == Some(true));
        let seen =
            Seen { version: world.version, enrolled: enrolled.map(|(key, pod)| (*key, pod.interface)).collect() };
        let is_first = self.seen.is_none();
        let has_changed = self.seen.as_ref() != Some(&seen);
        if is_first {
            self.adopt(tables);
        }
        let acts = if has_changed { self.acts(world, pods, neighbours) } else { Vec::new() };
        let (gone, new): (Vec<Act>, Vec<Act>) = acts.into_iter().partition(|act| matches!(act, Act::Remove(_)));
        self.act(&gone, tables);
        self.rounds = self.rounds.saturating_add(1);
        if has_changed || self.walk_again || self.rounds >= WALK_EVERY {
            let before = Room::live(tables);
            let on_file = walk(world, pods, neighbours, tables).await;
            self.room.learn(&before, &on_file, &Room::live(tables));
            self.live = on_file.get(&NODE).copied().unwrap_or_default();
            self.rounds = 0;
        }
        self.walk_again = has_changed;
        self.link(pods, tables, has_changed, neighbours.decides.is_some());
        let may_go = |pod: &Neighbour<'_>| neighbours.decides.is_some() && pod.is_enrolled == Some(true);
        let enrolled = pods.iter().filter(|(_, pod)| may_go(pod)).map(|(cookie, _)| *cookie);
        self.room.give(enrolled, neighbours.of_one_pod, tables);
        self.act(&new, tables);
        self.give_word(neighbours, tables);
        self.seen = Some(seen);
    }

    /// What an earlier agent left. It is this one's word that holds from now on.
    fn adopt(&mut self, tables: &Tables) {
        let keys = tables.paths.keys(MAX_PATHS).into_iter();
        self.published = keys.filter_map(|key| Some((key, tables.paths.get(&key)?))).collect();
        self.linked = tables.linked.keys(MAX_KEYS).into_iter().collect();
    }

    fn acts(&mut self, world: &MeshState, pods: &BTreeMap<u64, Neighbour<'_>>, neighbours: &Neighbours) -> Vec<Act> {
        let Some(decides) = &neighbours.decides else { return steps(&self.published, &HashMap::new()) };
        let held = by_uid(pods);
        let paths = decides.paths(world, &|uid| held.contains_key(uid));
        if let Some((known, places)) = &self.decided
            && Arc::ptr_eq(known, &paths)
            && *places == held
        {
            return Vec::new();
        }
        let acts = steps(&self.published, &entries(&paths, &held));
        self.decided = Some((paths, held));
        acts
    }

    fn act(&mut self, acts: &[Act], tables: &Tables) {
        for act in acts {
            match act {
                Act::Remove(key) => {
                    tables.paths.remove(key);
                    self.published.remove(key);
                }
                // What could not be written is carried by the agent.
                Act::Set(key, path) => {
                    if tables.paths.set(key, path).is_ok() {
                        self.published.insert(*key, *path);
                    }
                }
            }
        }
    }

    /// The links of pods. Each time there was a change once more: the kernel takes them out by itself, and may give their
    /// number to another.
    fn link(&mut self, pods: &BTreeMap<u64, Neighbour<'_>>, tables: &Tables, has_changed: bool, may_go: bool) {
        if !has_changed {
            return;
        }
        let enrolled = pods.values().filter(|pod| may_go && pod.is_enrolled == Some(true));
        let wanted: BTreeSet<u32> = enrolled.filter_map(|pod| pod.interface).collect();
        for index in self.linked.difference(&wanted) {
            tables.linked.remove(index);
        }
        for index in &wanted {
            if let Err(error) = tables.linked.set(index, &[*index, 0]) {
                tracing::warn!(index, %error, "a pod's link could not be filed: what is for it does not go straight");
            }
        }
        self.linked = wanted;
    }

    fn give_word(&self, neighbours: &Neighbours, tables: &Tables) {
        if neighbours.decides.is_none() {
            return tables.lease.remove(&0);
        }
        let until = sys::monotonic_time().saturating_add(LEASE.as_nanos() as u64);
        if let Err(error) = tables.lease.set(&0, &until) {
            tracing::warn!(%error, "the kernel was not given this agent's word");
        }
    }
}

/// The enrolled pods by uid, with cookie and link; none of which there are two.
fn by_uid(pods: &BTreeMap<u64, Neighbour<'_>>) -> Places {
    let mut held = HashMap::new();
    let mut twice = Vec::new();
    for (cookie, pod) in pods.iter().filter(|(_, pod)| pod.is_enrolled == Some(true)) {
        if let Some(interface) = pod.interface
            && held.insert(pod.workload.uid.clone(), (*cookie, interface)).is_some()
        {
            twice.push(pod.workload.uid.clone());
        }
    }
    held.retain(|uid, _| !twice.contains(uid));
    held
}

/// The table's content. An address of which an endpoint's pod is not known has none.
fn entries(paths: &[StraightPath], held: &Places) -> HashMap<PathKey, Path> {
    let mut entries = HashMap::new();
    for StraightPath { client, dialled, endpoints } in paths {
        let Some((netns, _)) = held.get(client) else { continue };
        let places = endpoints.iter().map(|(address, uid)| Some((*address, *held.get(uid)?)));
        let Some(places) = places.collect::<Option<Vec<_>>>() else { continue };
        let fits = !places.is_empty() && places.len() <= MAX_SLOTS && entries.len() + places.len() <= MAX_PATHS;
        if !fits {
            continue;
        }
        let slots = places.len() as u32;
        for (slot, (address, (server, interface))) in (0..).zip(places) {
            let key = PathKey::new(*netns, Endpoint::from(*dialled), slot);
            entries.insert(key, Path::new(Endpoint::from(address), server, interface, slots));
        }
    }
    entries
}

/// What brings the table from the one to the other: whatever goes or changes goes first. The entry that is looked for first
/// comes last.
fn steps(published: &HashMap<PathKey, Path>, wanted: &HashMap<PathKey, Path>) -> Vec<Act> {
    let gone = published.iter().filter(|(key, path)| wanted.get(key) != Some(path));
    let mut acts: Vec<Act> = gone.map(|(key, _)| Act::Remove(*key)).collect();
    let mut new: Vec<_> = wanted.iter().filter(|(key, path)| published.get(key) != Some(path)).collect();
    new.sort_unstable_by_key(|(key, _)| std::cmp::Reverse(key.slot()));
    acts.extend(new.into_iter().map(|(key, path)| Act::Set(*key, *path)));
    acts
}

/// What becomes of a connection that is on file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    GoesOn,
    /// It is ended wherever this agent can.
    Ends,
}

/// Whether caller and server are enrolled: `None` where this agent has nothing of the pod yet. `is_filed`: one before it
/// had.
fn fate(
    record: &StraightRecord,
    client: Option<bool>,
    server: Option<bool>,
    is_filed: impl Fn(u64) -> bool,
    may_go_on: impl Fn() -> bool,
) -> Fate {
    if !record.is_good() {
        return Fate::Ends;
    }
    match (client, server) {
        (Some(true), Some(true)) if may_go_on() => Fate::GoesOn,
        (Some(_), Some(_)) => Fate::Ends,
        (Some(false), None) | (None, Some(false)) => Fate::Ends,
        // Just started: it is not enrolled yet, or it is gone for good.
        (None, Some(true)) if is_filed(record.client()) => Fate::GoesOn,
        (Some(true), None) if is_filed(record.server()) => Fate::GoesOn,
        (None, None) if is_filed(record.client()) && is_filed(record.server()) => Fate::GoesOn,
        (None | Some(_), None | Some(_)) => Fate::Ends,
    }
}

/// Tells which connections live. Cheap to clone.
#[derive(Clone)]
pub struct StraightReader {
    tables: Arc<Tables>,
    neighbours: Arc<Neighbours>,
}

impl StraightReader {
    pub(super) fn new(tables: Arc<Tables>, neighbours: Arc<Neighbours>) -> Self {
        Self { tables, neighbours }
    }

    /// How many there are.
    pub fn open(&self) -> u64 {
        room::open(&self.tables)
    }

    /// Those between pods that this agent knows, in no order and not all of very many. What they carried is known when they
    /// end.
    pub fn connections(&self) -> Vec<StraightConnection> {
        let now = sys::monotonic_time();
        let tuples = self.tables.straight.keys(MAX_LISTED).into_iter();
        let connections = tuples.filter_map(|tuple| {
            let record = self.tables.straight.get(&tuple).filter(StraightRecord::is_good)?;
            self.neighbours.connection(&tuple, &record, now)
        });
        connections.collect()
    }
}

/// Ends every connection that may not go on. How many there were, and whose.
async fn walk(
    world: &MeshState,
    pods: &BTreeMap<u64, Neighbour<'_>>,
    neighbours: &Neighbours,
    tables: &Tables,
) -> Counts {
    let mut jobs: BTreeMap<u64, Vec<(Endpoint, Endpoint, Option<u64>)>> = BTreeMap::new();
    let mut ended = Vec::new();
    let mut on_file = Counts::new();
    for tuple in tables.straight.keys(MAX_KEYS) {
        let Some(record) = tables.straight.get(&tuple) else { continue };
        for whose in [NODE, record.client(), record.server()] {
            *on_file.entry(whose).or_default() += 1;
        }
        let (client, server) = (pods.get(&record.client()), pods.get(&record.server()));
        let may_go_on = || match (client, server) {
            (Some(from), Some(to)) => may_go_on(world, neighbours, from, to, &tuple),
            _ => false,
        };
        let is_enrolled = |pod: Option<&Neighbour<'_>>| pod.and_then(|pod| pod.is_enrolled);
        let is_filed = |cookie| tables.pods.get(&cookie).is_some();
        if fate(&record, is_enrolled(client), is_enrolled(server), is_filed, may_go_on) == Fate::GoesOn {
            continue;
        }
        // No SYN of it from now on, whatever else fails.
        let _ = tables.straight.set(&tuple, &record.refused());
        let both = [client, server].map(is_enrolled) == [Some(true); 2];
        neighbours.note_cut(record.cookie(), if both { "policy-revoked" } else { "pod-left" });
        let (source, destination) = (tuple.source(), tuple.destination());
        jobs.entry(record.client()).or_default().push((source, destination, Some(record.cookie())));
        jobs.entry(record.server()).or_default().push((destination, source, None));
        ended.push((tuple, record.client()));
    }
    if ended.is_empty() {
        return on_file;
    }
    tracing::info!(connections = ended.len(), "connections between pods of this node may not go on: they are ended");
    let mut done = HashSet::new();
    for (cookie, sockets) in jobs {
        let Some(pod) = pods.get(&cookie) else { continue };
        match pod.thread.run(move || destroy_all(&sockets)).await {
            Ok(()) => drop(done.insert(cookie)),
            Err(error) => {
                let Workload { uid, name, .. } = &*pod.workload;
                tracing::warn!(%uid, pod = named(name), %error, "connections that may not go on could not be ended");
            }
        }
    }
    // A socket that ended has taken its record with it. What is left had none, or its pod is gone.
    for (tuple, client) in ended {
        if done.contains(&client) || !pods.contains_key(&client) {
            tables.straight.remove(&tuple);
        }
    }
    on_file
}

/// Each of them, also after one that failed.
fn destroy_all(sockets: &[(Endpoint, Endpoint, Option<u64>)]) -> std::io::Result<()> {
    let mut outcome = Ok(());
    for (own, other, cookie) in sockets {
        outcome = netlink::destroy_socket(*own, *other, *cookie).map(drop).and(outcome);
    }
    outcome
}

fn may_go_on(
    world: &MeshState,
    neighbours: &Neighbours,
    from: &Neighbour<'_>,
    to: &Neighbour<'_>,
    tuple: &FourTuple,
) -> bool {
    let server = SocketAddr::from(tuple.destination());
    match &neighbours.decides {
        Some(decides) => decides.may_go_on(world, &from.workload, &to.workload, server),
        // Connections are not to go straight any more; nobody is asked about those that do.
        None => false,
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use mesh_common::addr::Ip;
    use mesh_common::record::PodConfig;
    use mesh_common::same_node::{Published, Standing, StraightSocket, choose};
    use proptest::prelude::*;

    use super::*;

    const CLIENT: u64 = 1;

    fn at(last: u8, port: u16) -> Endpoint {
        Endpoint::new(Ip::from(IpAddr::from([10, 0, 0, last])), port)
    }

    struct Maps(HashMap<PathKey, Path>);

    impl Published for Maps {
        fn path(&self, key: &PathKey) -> Option<Path> {
            self.0.get(key).copied()
        }

        fn lease(&self) -> u64 {
            u64::MAX
        }

        fn has_interface(&self, _: u32) -> bool {
            true
        }

        fn pod(&self, _: u64) -> Option<PodConfig> {
            None
        }

        fn live(&self, _: u64) -> Option<i64> {
            Some(0)
        }

        fn room(&self, _: u64) -> Option<i64> {
            Some(1)
        }
    }

    /// A table: per destination, its endpoints.
    fn a_table() -> impl Strategy<Value = HashMap<PathKey, Path>> {
        let endpoints = prop::collection::vec(1u8..5, 0..4);
        prop::collection::vec(endpoints, 3).prop_map(|destinations| {
            let mut table = HashMap::new();
            for (number, endpoints) in (0..).zip(destinations) {
                let slots = endpoints.len() as u32;
                for (slot, last) in (0..).zip(endpoints) {
                    let key = PathKey::new(CLIENT, at(100 + number, 80), slot);
                    table.insert(key, Path::new(at(last, 80), u64::from(last), 1, slots));
                }
            }
            table
        })
    }

    fn chosen(table: &HashMap<PathKey, Path>) -> HashSet<(u8, Endpoint)> {
        let maps = Maps(table.clone());
        let all = (0..3).flat_map(|number| (0..12).map(move |chance| (number, chance)));
        let chosen = all.filter_map(|(number, chance)| {
            let socket = choose(&maps, CLIENT, at(100 + number, 80), 1, chance).ok()?;
            Some((number, socket.endpoint()))
        });
        chosen.collect()
    }

    proptest! {
        /// An agent may be killed after any step. Whatever is chosen then was so before or is so after; once the removals are
        /// done, nothing is chosen that is not to be.
        #[test]
        fn every_prefix_of_a_change_is_safe(before in a_table(), after in a_table()) {
            let (was, will_be) = (chosen(&before), chosen(&after));
            let mut table = before.clone();
            for act in steps(&before, &after) {
                match act {
                    Act::Remove(key) => drop(table.remove(&key)),
                    Act::Set(key, path) => {
                        let now = chosen(&table);
                        prop_assert!(now.is_subset(&will_be), "{now:?} of {will_be:?}");
                        table.insert(key, path);
                    }
                }
                let now = chosen(&table);
                prop_assert!(now.iter().all(|path| was.contains(path) || will_be.contains(path)));
            }
            prop_assert_eq!(table, after);
        }
    }

    #[test]
    fn addresses_whose_pods_are_not_all_known_have_no_path() {
        let held: Places = [("a".into(), (1, 11)), ("b".into(), (2, 12))].into();
        let path = |client: &str, servers: &[&str]| StraightPath {
            client: client.into(),
            dialled: "10.96.0.1:80".parse().unwrap(),
            endpoints: servers.iter().map(|uid| ("10.0.0.2:80".parse().unwrap(), Arc::from(*uid))).collect(),
        };
        let many = vec!["b"; MAX_SLOTS + 1];
        for (path, expected) in [
            (path("a", &["b"]), 1),
            (path("a", &["b", "b"]), 2),
            (path("a", &["b", "gone"]), 0),
            (path("gone", &["b"]), 0),
            (path("a", &[]), 0),
            (path("a", &many), 0),
        ] {
            assert_eq!(entries(std::slice::from_ref(&path), &held).len(), expected, "{path:?}");
        }
    }

    #[test]
    fn what_becomes_of_a_connection() {
        let key = PathKey::new(CLIENT, at(100, 80), 0);
        let socket = StraightSocket::new(key, Path::new(at(2, 80), 2, 1, 1));
        let record = StraightRecord::new(socket, 5, 1, Standing::Good);
        use Fate::{Ends, GoesOn};
        // (the caller's pod, the other, whether they are filed as pods, whether policy lets it, the fate)
        let table = [
            (Some(true), Some(true), true, true, GoesOn),
            (Some(true), Some(true), true, false, Ends),
            (Some(true), Some(false), true, true, Ends),
            (Some(false), Some(true), true, true, Ends),
            (Some(false), None, true, true, Ends),
            (None, Some(false), true, true, Ends),
            // The agent has just started.
            (None, None, true, false, GoesOn),
            (Some(true), None, true, false, GoesOn),
            (None, Some(true), true, false, GoesOn),
            // A pod is gone for good.
            (None, None, false, true, Ends),
            (Some(true), None, false, true, Ends),
            (None, Some(true), false, true, Ends),
        ];
        for (client, server, is_filed, may, expected) in table {
            let seen = fate(&record, client, server, |_| is_filed, || may);
            assert_eq!(seen, expected, "{client:?} {server:?} {is_filed} {may}");
            assert_eq!(fate(&record.refused(), client, server, |_| is_filed, || may), Ends);
        }
    }
}
