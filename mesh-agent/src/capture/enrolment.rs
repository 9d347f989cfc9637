//! Keeps what is captured in step with what the state says and with what is really there.
//!
//! A pod is enrolled in an order that refuses nothing on the way: listeners and routes, then the lookup, then the gate
//! of the connect hooks, then the guard. A step that fails closes the gate, which leaves the pod refused; enrolment is
//! tried again until it succeeds or the pod goes. A pod leaves in the opposite order.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsFd, AsRawFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use mesh_common::addr::{CAPTURE_V6, Ip, SOURCE_V6};
use mesh_common::names::programs;
use mesh_common::record::{Gate, PodAddresses, PodConfig};
use tokio::sync::mpsc::Sender;

use super::TcMode;
use super::exclusions::Exclusions;
use super::links::{self, Target};
use super::loader::Loaded;
use super::namespace::{self, Found};
use super::netlink::{self, Interface, LocalRoute};
use super::pod::{Live, PodNamespace};
use super::refused::Refused;
use super::tables::Tables;
use super::{guard, sweep};
use crate::drain;
use crate::podnet::{EnrolledPod, Family, PodEvent, PodNet};
use crate::readiness::Readiness;
use crate::state::{MeshState, StateReader, Workload};
use crate::sys;

const SK_LOOKUP: u32 = 36;
/// How often what failed is tried again.
pub(super) const RETRY: Duration = Duration::from_millis(500);
/// How many retries pass between two looks at whether enrolled pods still are as they were left.
pub(super) const VERIFY_EVERY: u32 = 10;
/// How many of those pass between two sweeps of stale records.
pub(super) const SWEEP_EVERY: u32 = 12;
/// How long captured connections of a pod that left have to meet their end before their routes go.
pub(super) const ROUTES_OUTLIVE: Duration = Duration::from_secs(1);

/// The one task that enrols.
pub(super) struct Enroller {
    pub loaded: Loaded,
    pub tables: Arc<Tables>,
    pub live: Arc<Live>,
    pub tc: TcMode,
    pub events: Sender<PodEvent>,
    pub readiness: Readiness,
    pub enrolled: HashMap<Arc<str>, Enrolled>,
    /// Pods whose enrolment has not succeeded yet, with their readiness gate.
    pub waiting: HashMap<Arc<str>, String>,
    pub refused: Refused,
    pub exclusions: Exclusions,
    pub departed: Vec<Departed>,
}

/// A pod that left, whose capture routes still are to go.
pub(super) struct Departed {
    net: Arc<PodNamespace>,
    cookie: u64,
    routes: Vec<LocalRoute>,
    due: Instant,
}

/// A pod that is enrolled.
pub(super) struct Enrolled {
    workload: Arc<Workload>,
    net: Arc<PodNamespace>,
    /// The inode of its network namespace.
    inode: u64,
    cookie: u64,
    /// Indexes of its host-side interfaces.
    guarded: Vec<u32>,
    routes: Vec<LocalRoute>,
}

/// Whether a pod of the same uid must be enrolled anew. Kubernetes changes none of this in a pod's life; a directory of
/// YAML can.
fn is_another(wanted: &Workload, enrolled: &Workload) -> bool {
    wanted.ips != enrolled.ips || wanted.identity != enrolled.identity
}

/// The readiness gate of a pod.
fn gate(workload: &Workload) -> String {
    format!("pod/{}/{}", workload.namespace, workload.name)
}

impl Enroller {
    /// Runs until `shutdown`; everything stays in place then.
    pub async fn run(mut self, mut state: StateReader, mut shutdown: drain::Token) {
        self.readiness.waiting("capture", "waiting for the first state of the cluster");
        let mut ticks = 0u32;
        let mut retry = tokio::time::interval(RETRY);
        retry.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut state_ended = false;
        loop {
            tokio::select! {
                () = shutdown.started() => return,
                changed = state.changed(), if !state_ended => state_ended = !changed,
                _ = retry.tick() => ticks = ticks.wrapping_add(1),
            }
            let current = state.current();
            // Before the first state nothing is known, least of all who left.
            if current.version == 0 {
                continue;
            }
            if ticks.is_multiple_of(VERIFY_EVERY) {
                self.verify().await;
            }
            if ticks % (VERIFY_EVERY * SWEEP_EVERY) == 1 {
                sweep::sweep(&self.tables, &self.live);
            }
            self.reconcile(&current).await;
            self.remove_routes_of_departed().await;
            self.readiness.ready("capture");
        }
    }

    async fn reconcile(&mut self, state: &MeshState) {
        self.refused.publish(state, &self.tables);
        self.exclusions.publish(state, &self.tables);
        let wanted: HashMap<Arc<str>, Arc<Workload>> =
            state.local_workloads().filter(|w| w.enrolled).map(|w| (w.uid.clone(), w.clone())).collect();
        let leaving: Vec<Arc<str>> = self
            .enrolled
            .iter()
            .filter(|(uid, pod)| wanted.get(*uid).is_none_or(|wanted| is_another(wanted, &pod.workload)))
            .map(|(uid, _)| uid.clone())
            .collect();
        for uid in leaving {
            self.leave(&uid).await;
        }
        let readiness = &self.readiness;
        self.waiting.retain(|uid, gate| {
            let stays = wanted.contains_key(uid);
            if !stays {
                readiness.remove(gate);
            }
            stays
        });
        self.forget_strangers(&wanted).await;
        for (uid, workload) in wanted {
            if self.enrolled.contains_key(&uid) {
                continue;
            }
            match self.enrol(&workload).await {
                Ok(()) => {
                    self.waiting.remove(&uid);
                    self.readiness.ready(&gate(&workload));
                }
                Err(reason) => {
                    self.waiting.insert(uid, gate(&workload));
                    tracing::debug!(pod = %workload.name, namespace = %workload.namespace, reason, "not enrolled yet");
                    self.readiness.waiting(&gate(&workload), reason);
                }
            }
        }
    }

    /// What fails on the way leaves the pod refused: its gate is closed until enrolment has succeeded.
    async fn enrol(&mut self, workload: &Arc<Workload>) -> Result<(), String> {
        let first = *workload.ips.first().ok_or("it has no IP yet")?;
        let found = namespace::find(&self.loaded.kubepods, &workload.uid, Some(first)).await?;
        let cookie = found.thread.run(|| {
            let socket = std::net::UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
            sys::netns_cookie(socket.as_fd())
        });
        let cookie = cookie.await.map_err(step("reading its namespace's cookie"))?;
        match self.take(workload, found, cookie).await {
            Ok(enrolled) => {
                self.enrolled.insert(workload.uid.clone(), enrolled);
                tracing::info!(pod = %workload.name, namespace = %workload.namespace, "enrolled");
                Ok(())
            }
            Err(reason) => {
                let closed = PodConfig::new(addresses(&workload.ips), Gate::Closed);
                self.tables.pods.set(&cookie, &closed).map_err(step("closing its gate"))?;
                Err(reason)
            }
        }
    }

    /// Slow and harmless steps first: nothing leads to the listeners until the hooks are on.
    async fn take(&mut self, workload: &Arc<Workload>, found: Found, cookie: u64) -> Result<Enrolled, String> {
        let Found { namespace, inode, thread, interfaces } = found;
        let routes = routes(&workload.ips);
        let wanted = routes.clone();
        // It may have left a moment ago: its routes stay now.
        self.departed.retain(|departed| departed.cookie != cookie);
        let added = thread.run(move || wanted.iter().try_for_each(add_route));
        added.await.map_err(step("adding its capture routes"))?;
        let net = Arc::new(PodNamespace::new(cookie, self.tables.clone(), self.live.clone(), thread));
        let listeners = net.listen(&workload.ips).await.map_err(step("listening inside it"))?;
        for family in [Family::V4, Family::V6] {
            if workload.ips.iter().any(|ip| Family::of(*ip) == family) {
                net.refill(family);
            }
        }
        let pod = EnrolledPod { workload: workload.clone(), net: net.clone() as Arc<dyn PodNet>, listeners };
        self.events.send(PodEvent::Enrolled(pod)).await.map_err(|_| "the proxy is gone")?;
        if let Err(reason) = self.hook(workload, &namespace, inode, cookie, &interfaces) {
            let _ = self.events.send(PodEvent::Left(workload.uid.clone())).await;
            return Err(reason);
        }
        let guarded = interfaces.iter().map(|interface| interface.index).collect();
        Ok(Enrolled { workload: workload.clone(), net, inode, cookie, guarded, routes })
    }

    /// Turns the pod's traffic to the listeners that wait for it: what arrives, what it dials, and last the guard, which
    /// would drop what it still dialled by itself.
    fn hook(
        &mut self,
        workload: &Workload,
        namespace: &fs::File,
        inode: u64,
        cookie: u64,
        interfaces: &[Interface],
    ) -> Result<(), String> {
        let addresses = addresses(&workload.ips);
        let pins = self.loaded.pins.pod(&workload.uid);
        fs::create_dir_all(&pins).map_err(step("making its pin directory"))?;
        let lookup = self.loaded.program(programs::SK_LOOKUP).map_err(|error| error.to_string())?;
        let target = Target::Namespace { descriptor: namespace.as_raw_fd(), inode };
        links::ensure(&pins.join("lookup"), &lookup, target, SK_LOOKUP).map_err(step("attaching its lookup"))?;
        let open = PodConfig::new(addresses, Gate::Open);
        self.tables.pods.set(&cookie, &open).map_err(step("opening its gate"))?;
        for interface in interfaces {
            guard::attach(&mut self.loaded, &self.tables, self.tc, &pins, interface, &addresses)
                .map_err(step("guarding its interface"))?;
        }
        Ok(())
    }

    /// Takes a pod out: its traffic is its own again, or it is gone.
    async fn leave(&mut self, uid: &Arc<str>) {
        let Some(pod) = self.enrolled.remove(uid) else { return };
        let pins = self.loaded.pins.pod(uid);
        for index in &pod.guarded {
            guard::detach(&self.tables, &pins, *index);
        }
        self.tables.pods.remove(&pod.cookie);
        remove_pin(&pins.join("lookup"));
        remove_pins(&pins);
        let _ = self.events.send(PodEvent::Left(uid.clone())).await;
        self.readiness.remove(&gate(&pod.workload));
        pod.net.empty_stock();
        let due = Instant::now() + ROUTES_OUTLIVE;
        self.departed.push(Departed { net: pod.net, cookie: pod.cookie, routes: pod.routes, due });
        tracing::info!(pod = %pod.workload.name, namespace = %pod.workload.namespace, "left the mesh");
    }

    /// Here and not on a timer of its own: a pod that comes back meanwhile keeps its routes.
    async fn remove_routes_of_departed(&mut self) {
        let now = Instant::now();
        for Departed { net, routes, .. } in self.departed.extract_if(.., |departed| departed.due <= now) {
            let _ = net.thread().run(move || routes.iter().try_for_each(netlink::remove_route)).await;
            net.close();
        }
    }

    /// Collects what earlier agents left for pods that are no longer to be enrolled.
    async fn forget_strangers(&mut self, wanted: &HashMap<Arc<str>, Arc<Workload>>) {
        let pinned = fs::read_dir(self.loaded.pins.pods()).into_iter().flatten().flatten();
        let strangers: Vec<String> = pinned
            .filter_map(|entry| entry.file_name().into_string().ok())
            .filter(|uid| !wanted.contains_key(uid.as_str()) && !self.enrolled.contains_key(uid.as_str()))
            .collect();
        if strangers.is_empty() {
            return;
        }
        // A pod that is still to be enrolled keeps its entry: it is closed, or left by an earlier agent.
        let kept: HashSet<IpAddr> = wanted.values().flat_map(|workload| workload.ips.iter().copied()).collect();
        for cookie in self.tables.pods.keys(65_536) {
            let config = self.tables.pods.get(&cookie);
            if config.is_some_and(|config| !kept.iter().any(|ip| config.addresses().contain(&Ip::from(*ip)))) {
                self.tables.pods.remove(&cookie);
            }
        }
        // clsact filters have no pins: the map tells whom they guard.
        for index in self.tables.guarded.keys(65_536) {
            let is_ours = self.enrolled.values().any(|pod| pod.guarded.contains(&index));
            let addresses = self.tables.guarded.get(&index).filter(|_| !is_ours);
            if addresses.is_some_and(|addresses| !kept.iter().any(|ip| addresses.contain(&Ip::from(*ip)))) {
                guard::detach(&self.tables, &self.loaded.pins.pods(), index);
            }
        }
        for uid in strangers {
            let pins = self.loaded.pins.pod(&uid);
            for index in guarded_in(&pins) {
                guard::detach(&self.tables, &pins, index);
            }
            remove_pins(&pins);
            // The pod may still run, without the mesh now.
            if let Ok(found) = namespace::find(&self.loaded.kubepods, &uid, None).await {
                let _ = found.thread.run(remove_routes).await;
            }
            tracing::info!(uid, "collected what an earlier agent left of a pod that is not in the mesh");
        }
    }

    /// Puts back what a pod lost, such as routes when IPv6 was switched off and on, guards interfaces that it was given
    /// since, and lets go of a pod whose sandbox was made anew.
    async fn verify(&mut self) {
        let mut renewed = Vec::new();
        for (uid, pod) in &mut self.enrolled {
            if namespace::is_current(&self.loaded.kubepods, uid, pod.inode) == Some(false) {
                renewed.push(uid.clone());
                continue;
            }
            let routes = pod.routes.clone();
            let restored = pod.net.thread().run(move || routes.iter().try_for_each(add_route)).await;
            let whole = match restored.map_err(step("its capture routes")) {
                Ok(()) => guard_new(&mut self.loaded, &self.tables, self.tc, uid, pod).await,
                Err(reason) => Err(reason),
            };
            match whole {
                Ok(()) => self.readiness.ready(&gate(&pod.workload)),
                Err(reason) => self.readiness.waiting(&gate(&pod.workload), reason),
            }
        }
        for uid in renewed {
            self.leave(&uid).await;
        }
    }
}

/// Guards interfaces that a pod was given after its enrolment, and forgets those that went.
async fn guard_new(
    loaded: &mut Loaded,
    tables: &Tables,
    tc: TcMode,
    uid: &str,
    pod: &mut Enrolled,
) -> Result<(), String> {
    let interfaces = guard::host_side(pod.net.thread()).await?;
    let pins = loaded.pins.pod(uid);
    pod.guarded.retain(|index| {
        let stays = interfaces.iter().any(|interface| interface.index == *index);
        if !stays {
            guard::detach(tables, &pins, *index);
        }
        stays
    });
    for interface in interfaces {
        if !pod.guarded.contains(&interface.index) {
            guard::attach(loaded, tables, tc, &pins, &interface, &addresses(&pod.workload.ips))
                .map_err(step("guarding its new interface"))?;
            pod.guarded.push(interface.index);
        }
    }
    Ok(())
}

/// A pod in which IPv6 was switched off is served over IPv4; what it dials over IPv6 finds no way, as without a mesh.
fn add_route(route: &LocalRoute) -> std::io::Result<()> {
    match netlink::add_route(route) {
        Err(error) if route.prefix.is_ipv6() && error.raw_os_error() == Some(libc::EACCES) => Ok(()),
        other => other,
    }
}

fn step(what: &'static str) -> impl FnOnce(std::io::Error) -> String {
    move |error| format!("{what}: {error}")
}

fn addresses(ips: &[IpAddr]) -> PodAddresses {
    let of = |family| ips.iter().find(|ip| Family::of(**ip) == family).map_or(Ip::UNSPECIFIED, |ip| Ip::from(*ip));
    PodAddresses::new(of(Family::V4), of(Family::V6))
}

/// The capture range and the source range, per family that the pod has. With `source`, getsockname of a captured
/// socket stays the pod's address with no bind in the hook.
fn routes(ips: &[IpAddr]) -> Vec<LocalRoute> {
    let mut routes = Vec::new();
    for ip in ips {
        let prefixes: [(IpAddr, u8); 2] = match ip {
            IpAddr::V4(_) => [(Ipv4Addr::new(127, 128, 0, 0).into(), 9), (Ipv4Addr::new(127, 64, 0, 0).into(), 10)],
            IpAddr::V6(_) => [(v6_prefix(CAPTURE_V6), 64), (v6_prefix(SOURCE_V6), 64)],
        };
        routes.extend(prefixes.map(|(prefix, length)| LocalRoute { prefix, length, source: *ip }));
    }
    routes
}

/// Removes every capture route of the calling thread's namespace, whatever source it has.
fn remove_routes() -> std::io::Result<()> {
    let any = [Ipv4Addr::UNSPECIFIED.into(), Ipv6Addr::UNSPECIFIED.into()];
    routes(&any).iter().try_for_each(netlink::remove_route)
}

fn v6_prefix(prefix: [u8; 8]) -> IpAddr {
    Ipv6Addr::from(u128::from(u64::from_be_bytes(prefix)) << 64).into()
}

fn remove_pin(pin: &std::path::Path) {
    if let Err(error) = fs::remove_file(pin)
        && error.kind() != std::io::ErrorKind::NotFound
    {
        tracing::warn!(%error, pin = %pin.display(), "a pin could not be removed");
    }
}

/// Removes a pod's pin directory with whatever is in it.
fn remove_pins(directory: &std::path::Path) {
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        remove_pin(&entry.path());
    }
    let _ = fs::remove_dir(directory);
}

/// The interfaces that a pod's pins guard: `guard-from-INDEX`.
fn guarded_in(directory: &std::path::Path) -> Vec<u32> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
    names.filter_map(|name| name.strip_prefix("guard-from-")?.parse().ok()).collect()
}
