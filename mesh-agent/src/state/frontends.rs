//! Which address leads where: every address and port that a Service or a pod is dialled at.
//!
//! ```text
//! cluster IP ─► pod IP ─► external and load balancer IP ─► node port ─► host port ─► headless Service's endpoint
//! ```
//! The first that knows the address has it, so nobody takes a pod's address by writing it into a Service. A claim that
//! two objects make stays with the first Service, and with the pod that also would hold a common IP. Every look-up is
//! one of a hash map: none grows with the number of Services or nodes.

use std::collections::HashSet;
use std::hash::Hash;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use super::claims::Claims;
use super::cow::CowMap;
use super::endpoints::Behind;
use super::nodes::Nodes;
use super::object::Name;
use super::pods::Pods;
use super::{Frontend, HostPort, MeshState, Service, ServicePort, Workload};

/// Where an address and port lead.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Destination<'a> {
    /// A port of a Service.
    Service {
        /// The Service.
        service: &'a Arc<Service>,
        /// Its port.
        port: &'a ServicePort,
        /// By which address.
        frontend: Frontend,
    },
    /// The cluster IP of a Service that has no such port.
    NoSuchPort,
    /// The load balancer's IP of a Service, which is not for this client.
    NotAdmitted,
    /// A pod, by its own address or by a port of its node.
    Pod {
        /// The pod.
        workload: &'a Arc<Workload>,
        /// Its own address and port.
        address: SocketAddr,
    },
    /// An endpoint of a headless Service that is not a pod of its own IP.
    Endpoint(&'a Arc<Service>),
    /// Nothing that the cluster knows.
    Unknown,
}

/// The addresses besides cluster IPs and pod IPs.
#[derive(Clone, Default)]
pub(super) struct Frontends {
    /// External IPs, and load balancer IPs.
    external: CowMap<SocketAddr, External>,
    /// Every node port leads on from every address of every node.
    node_ips: CowMap<IpAddr, ()>,
    node_ports: CowMap<u16, Place>,
    host_ports: CowMap<SocketAddr, HostPlace>,
    /// Endpoints of headless Services outside the pods' own addresses.
    endpoints: CowMap<SocketAddr, Arc<Service>>,
    unserved: Unserved,
}

/// What leads to no endpoint.
#[derive(Clone, Default)]
struct Unserved {
    cluster_ips: CowMap<SocketAddr, ()>,
    external: CowMap<SocketAddr, ()>,
    /// With whether it is so for IPv4; else for IPv6.
    node_ports: CowMap<(u16, bool), ()>,
}

/// A Service's port.
#[derive(Clone, Debug)]
struct Place {
    service: Arc<Service>,
    port: u16,
}

#[derive(Clone, Debug)]
struct External {
    place: Place,
    kind: ExternalKind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ExternalKind {
    ExternalIp,
    LoadBalancer,
}

/// A pod behind a port of its node, with the port of its own.
#[derive(Clone, Debug)]
struct HostPlace {
    workload: Arc<Workload>,
    address: SocketAddr,
}

/// Which Services and pods claim which addresses.
#[derive(Default)]
pub(super) struct AddressClaims {
    cluster_ips: Claims<IpAddr, Name, ()>,
    /// With the Service's port.
    external: Claims<SocketAddr, Name, (u16, ExternalKind)>,
    external_ips: Claims<IpAddr, Name, ()>,
    node_ports: Claims<u16, Name, u16>,
    endpoints: Claims<SocketAddr, Name, ()>,
    /// With the pod's own address.
    host_ports: Claims<SocketAddr, Name, SocketAddr>,
}

/// What a Service's change changed besides.
#[derive(Default)]
pub(super) struct Moved {
    /// Cluster IPs that are a Service's now and were none's before, or the reverse.
    pub(super) cluster_ips: Vec<IpAddr>,
    /// Whether something is unserved now that was served before, or the reverse.
    pub(super) unserved: bool,
}

impl AddressClaims {
    /// Brings every address up to date that a Service has or had. `behind` is None for a Service that is gone; its
    /// present form is in `state.services` already.
    pub(super) fn settle_service(&mut self, name: &Name, behind: Option<&Behind<'_>>, state: &mut MeshState) -> Moved {
        let service = state.services.get(name).cloned();
        let service = service.as_deref();
        let mut moved = Moved::default();
        let cluster_ips = service.into_iter().flat_map(|service| service.cluster_ips.iter().map(|ip| (*ip, ())));
        for ip in touched(&mut self.cluster_ips, name, cluster_ips) {
            self.settle_cluster_ip(&ip, state, &mut moved);
        }
        let external = service.map(external_addresses).unwrap_or_default();
        self.external_ips.replace(name, external.iter().map(|(address, _)| (address.ip(), ())));
        for address in touched(&mut self.external, name, external) {
            moved.unserved |= self.settle_external(&address, state);
        }
        let ports = service.into_iter().flat_map(|service| &service.ports);
        let node_ports = ports.filter_map(|port| Some((port.node_port?, port.port)));
        for node_port in touched(&mut self.node_ports, name, node_ports) {
            moved.unserved |= self.settle_node_port(node_port, state);
        }
        let endpoints = behind.map(outside_endpoints).unwrap_or_default();
        for address in touched(&mut self.endpoints, name, endpoints) {
            let first = self.endpoints.first(&address).and_then(|(name, ())| state.services.get(name)).cloned();
            state.frontends.endpoints.set(&address, first);
        }
        moved
    }

    fn settle_cluster_ip(&self, ip: &IpAddr, state: &mut MeshState, moved: &mut Moved) {
        let first = self.cluster_ips.first(ip).and_then(|(name, ())| state.services.get(name)).cloned();
        let before = state.services_by_ip.get(ip).cloned();
        if before.is_some() != first.is_some() {
            moved.cluster_ips.push(*ip);
        }
        let unserved = |service: &Arc<Service>| -> Vec<SocketAddr> {
            let refuses = |port: &&ServicePort| {
                port.behind(Frontend::ClusterIp, *ip).next().is_none() && !state.answers_at(service, port)
            };
            service.ports.iter().filter(refuses).map(|port| SocketAddr::new(*ip, port.port)).collect()
        };
        let now: HashSet<SocketAddr> = first.iter().flat_map(unserved).collect();
        let ports = before.iter().chain(&first).flat_map(|service| &service.ports);
        for address in ports.map(|port| SocketAddr::new(*ip, port.port)) {
            let flags = &mut state.frontends.unserved.cluster_ips;
            moved.unserved |= set_flag(flags, &address, now.contains(&address));
        }
        state.services_by_ip.set(ip, first);
    }

    fn settle_external(&self, address: &SocketAddr, state: &mut MeshState) -> bool {
        let first = self.external.first(address).and_then(|(name, (port, kind))| {
            let place = Place { service: state.services.get(name)?.clone(), port: *port };
            Some(External { place, kind: *kind })
        });
        let unserved = first.as_ref().is_some_and(|external| external.place.is_unserved(address.ip(), state));
        let frontends = &mut state.frontends;
        let changed = set_flag(&mut frontends.unserved.external, address, unserved);
        // An address that a Service takes from a node's port, or leaves to it.
        let uncovers = first.is_some() != frontends.external.contains(address) && frontends.is_node_port(*address);
        frontends.external.set(address, first);
        changed || uncovers
    }

    fn settle_node_port(&self, node_port: u16, state: &mut MeshState) -> bool {
        let first = self.node_ports.first(&node_port).and_then(|(name, port)| {
            let service = state.services.get(name)?.clone();
            Some(Place { service, port: *port })
        });
        let families: [(bool, IpAddr); 2] =
            [(true, Ipv4Addr::UNSPECIFIED.into()), (false, Ipv6Addr::UNSPECIFIED.into())];
        let mut changed = false;
        for (is_ipv4, any) in families {
            let unserved = first.as_ref().is_some_and(|place| place.is_unserved(any, state));
            changed |= set_flag(&mut state.frontends.unserved.node_ports, &(node_port, is_ipv4), unserved);
        }
        state.frontends.node_ports.set(&node_port, first);
        changed
    }

    /// Brings the ports of the node up to date that lead, or led, to a pod.
    pub(super) fn settle_host_ports(&mut self, name: &Name, pods: &Pods, nodes: &Nodes, state: &mut MeshState) {
        let claims = pods.get(name).map(|workload| host_ports(workload, pods, nodes)).unwrap_or_default();
        for address in touched(&mut self.host_ports, name, claims) {
            let mut places = self.host_ports.claimants(&address).filter_map(|(name, own)| {
                let workload = pods.get(name)?.clone();
                Some(HostPlace { workload, address: *own })
            });
            let first = places.next();
            let holder = first.map(|first| {
                places.fold(first, |best, other| if other.workload.beats(&best.workload) { other } else { best })
            });
            state.frontends.host_ports.set(&address, holder);
        }
    }

    /// Whether some Service is reached at this IP besides its cluster IPs.
    pub(super) fn is_external(&self, ip: &IpAddr) -> bool {
        self.external_ips.is_claimed(ip)
    }
}

/// Replaces an owner's claims. Returns every key that it has or had: with the owner changes what they lead to.
fn touched<K: Hash + Eq + Clone, V: PartialEq>(
    claims: &mut Claims<K, Name, V>,
    owner: &Name,
    now: impl IntoIterator<Item = (K, V)>,
) -> HashSet<K> {
    let mut touched: HashSet<K> = claims.replace(owner, now).into_iter().collect();
    touched.extend(claims.of(owner).iter().cloned());
    touched
}

/// Sets or clears; true when that changed something.
fn set_flag<K: Hash + Eq + Clone>(flags: &mut CowMap<K, ()>, key: &K, flag: bool) -> bool {
    let changed = flags.contains(key) != flag;
    if changed {
        flags.set(key, flag.then_some(()));
    }
    changed
}

fn external_addresses(service: &Service) -> Vec<(SocketAddr, (u16, ExternalKind))> {
    let external_ips = service.external.ips.iter().map(|ip| (*ip, ExternalKind::ExternalIp));
    let balanced = service.external.load_balancer_ips.iter().map(|ip| (*ip, ExternalKind::LoadBalancer));
    let ips: Vec<(IpAddr, ExternalKind)> = external_ips.chain(balanced).collect();
    let at = |port: u16| ips.iter().map(move |(ip, kind)| (SocketAddr::new(*ip, port), (port, *kind)));
    service.ports.iter().flat_map(|port| at(port.port)).collect()
}

/// The endpoints of a headless Service that are no pods of their own IP.
fn outside_endpoints(behind: &Behind<'_>) -> Vec<(SocketAddr, ())> {
    if !behind.spec.cluster_ips.is_empty() {
        return Vec::new();
    }
    let backends = behind.spec.ports.iter().flat_map(|port| behind.candidates(port));
    let outside = backends.filter(|backend| behind.pods.by_ip(&backend.ip).is_none());
    outside.map(|backend| (SocketAddr::new(backend.ip, backend.port), ())).collect()
}

/// The ports of its node that a pod claims, with its own address behind each.
fn host_ports(workload: &Workload, pods: &Pods, nodes: &Nodes) -> Vec<(SocketAddr, SocketAddr)> {
    if workload.host_ports.is_empty() {
        return Vec::new();
    }
    let node_ips = nodes.ips_under(workload);
    let mut claims = Vec::new();
    for host_port in &workload.host_ports {
        for ip in node_ips.iter().filter(|ip| holds_at(host_port, **ip)) {
            let mut own = workload.ips.iter().filter(|own| own.is_ipv4() == ip.is_ipv4());
            let Some(own) = own.find(|own| pods.holds(workload, own)) else { continue };
            claims.push((SocketAddr::new(*ip, host_port.port), SocketAddr::new(*own, host_port.target)));
        }
    }
    claims
}

impl Frontends {
    /// Takes that an address is a node's, or is none's any more. True when that changes what is unserved.
    pub(super) fn set_node_ip(&mut self, ip: &IpAddr, is_node: bool) -> bool {
        set_flag(&mut self.node_ips, ip, is_node) && !self.unserved.node_ports.is_empty()
    }

    pub(super) fn has_node_ip(&self, ip: &IpAddr) -> bool {
        self.node_ips.contains(ip)
    }

    fn is_node_port(&self, address: SocketAddr) -> bool {
        self.node_ips.contains(&address.ip()) && self.node_ports.contains(&address.port())
    }

    fn external(&self, dialled: SocketAddr, client: IpAddr) -> Option<Destination<'_>> {
        let External { place, kind } = self.external.get(&dialled)?;
        if *kind == ExternalKind::LoadBalancer && !place.service.admits(client) {
            return Some(Destination::NotAdmitted);
        }
        place.destination()
    }

    fn node_port(&self, dialled: SocketAddr) -> Option<Destination<'_>> {
        let place = self.node_ports.get(&dialled.port())?;
        if self.has_node_ip(&dialled.ip()) { place.destination() } else { None }
    }

    fn host_port(&self, dialled: SocketAddr) -> Option<Destination<'_>> {
        let HostPlace { workload, address } = self.host_ports.get(&dialled)?;
        Some(Destination::Pod { workload, address: *address })
    }

    /// The addresses besides cluster IPs that lead to a Service's port with no endpoint of their family.
    fn unserved(&self) -> impl Iterator<Item = SocketAddr> + '_ {
        let external = self.unserved.external.iter().map(|(address, ())| *address);
        let node_ports = self.unserved.node_ports.iter().flat_map(|((port, is_ipv4), ())| {
            let ips = self.node_ips.iter().map(|(ip, ())| *ip).filter(|ip| ip.is_ipv4() == *is_ipv4);
            let addresses = ips.map(|ip| SocketAddr::new(ip, *port));
            addresses.filter(|address| !self.external.contains(address))
        });
        external.chain(node_ports)
    }
}

#[cfg(test)]
impl Frontends {
    /// All of it, for tests to compare.
    pub(super) fn content(&self) -> std::collections::BTreeMap<String, String> {
        let external =
            self.external.iter().map(|(address, external)| (format!("external {address}"), format!("{external:?}")));
        let node_ips = self.node_ips.iter().map(|(ip, ())| (format!("node {ip}"), String::new()));
        let node_ports =
            self.node_ports.iter().map(|(port, place)| (format!("node port {port}"), format!("{place:?}")));
        let host_ports =
            self.host_ports.iter().map(|(address, place)| (format!("host {address}"), format!("{place:?}")));
        let endpoints =
            self.endpoints.iter().map(|(address, place)| (format!("endpoint {address}"), format!("{place:?}")));
        external.chain(node_ips).chain(node_ports).chain(host_ports).chain(endpoints).collect()
    }
}

/// A pod's word for an address is taken only where its node has that address.
fn holds_at(host_port: &HostPort, node_ip: IpAddr) -> bool {
    host_port.ip.is_none_or(|ip| ip == node_ip || (ip.is_unspecified() && ip.is_ipv4() == node_ip.is_ipv4()))
}

impl Place {
    fn destination(&self) -> Option<Destination<'_>> {
        let port = self.service.port(self.port)?;
        Some(Destination::Service { service: &self.service, port, frontend: Frontend::External })
    }

    fn is_unserved(&self, dialled: IpAddr, state: &MeshState) -> bool {
        self.service.port(self.port).is_some_and(|port| {
            port.behind(Frontend::External, dialled).next().is_none() && !state.answers_at(&self.service, port)
        })
    }
}

impl MeshState {
    /// Where `dialled` leads a client with this IP. Constant in the number of Services, pods and nodes.
    pub fn destination(&self, dialled: SocketAddr, client: IpAddr) -> Destination<'_> {
        if let Some(service) = self.service_by_ip(dialled.ip()) {
            return match service.port(dialled.port()) {
                Some(port) => Destination::Service { service, port, frontend: Frontend::ClusterIp },
                None => Destination::NoSuchPort,
            };
        }
        if let Some(workload) = self.workload_by_ip(dialled.ip()) {
            return Destination::Pod { workload, address: dialled };
        }
        let frontends = &self.frontends;
        let found = frontends.external(dialled, client).or_else(|| frontends.node_port(dialled));
        let found = found.or_else(|| frontends.host_port(dialled));
        let endpoint = || frontends.endpoints.get(&dialled).map(Destination::Endpoint);
        found.or_else(endpoint).unwrap_or(Destination::Unknown)
    }

    /// Every address and port of a Service that has no endpoint of the address's family, or none that clients of this
    /// node may use: connect() answers ECONNREFUSED there. Not where the agent answers requests, nor where a route may lead
    /// elsewhere. Cluster IPs come first, node ports last: there is one for
    /// every address of every node.
    pub fn vips_without_endpoint(&self) -> impl Iterator<Item = SocketAddr> + '_ {
        let cluster_ips = self.frontends.unserved.cluster_ips.iter().map(|(address, ())| *address);
        let hidden = |address: &SocketAddr| {
            self.services_by_ip.contains(&address.ip()) || self.workloads_by_ip.contains(&address.ip())
        };
        let external = self.frontends.unserved().filter(move |address| !hidden(address));
        cluster_ips.chain(external)
    }
}
