//! Which address leads where: every address and port that a Service or a pod is dialled at.
//!
//! ```text
//! cluster IP ─► pod IP ─► external and load balancer IP ─► node port ─► host port ─► headless Service's endpoint
//! ```
//! The first that knows the address has it, so nobody takes a pod's address by writing it into a Service. A claim that
//! two objects make stays with the first Service, and with the pod that also would hold a common IP. Every look-up is
//! one of a hash map: none grows with the number of Services or nodes.

use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use super::endpoints::candidates;
use super::nodes::Nodes;
use super::pods::Pods;
use super::{Frontend, HostPort, MeshState, Service, ServicePort, ServiceSpec, Workload, World};

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
#[derive(Default)]
pub(super) struct Frontends {
    /// External IPs, and load balancer IPs.
    external: HashMap<SocketAddr, External>,
    /// Every node port leads on from every address of every node.
    node_ips: HashSet<IpAddr>,
    node_ports: HashMap<u16, Place>,
    host_ports: HashMap<SocketAddr, HostPlace>,
    /// Endpoints of headless Services outside the pods' own addresses.
    endpoints: HashMap<SocketAddr, Arc<Service>>,
}

/// A Service's port.
struct Place {
    service: Arc<Service>,
    port: u16,
}

struct External {
    place: Place,
    kind: ExternalKind,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum ExternalKind {
    ExternalIp,
    LoadBalancer,
}

/// A pod behind a port of its node, with the port of its own.
struct HostPlace {
    workload: Arc<Workload>,
    address: SocketAddr,
}

impl Frontends {
    pub(super) fn index(world: &World, services: &[Arc<Service>], pods: &Pods<'_>, nodes: &Nodes<'_>) -> Self {
        let mut frontends = Self { node_ips: nodes.all_ips(world), ..Self::default() };
        for (spec, service) in world.services.iter().zip(services) {
            frontends.add_service(service);
            frontends.add_endpoints(spec, service, pods, nodes);
        }
        for workload in &pods.all {
            frontends.add_host_ports(workload, pods, nodes);
        }
        frontends
    }

    fn add_service(&mut self, service: &Arc<Service>) {
        let external_ips = service.external.ips.iter().map(|ip| (*ip, ExternalKind::ExternalIp));
        let balanced = service.external.load_balancer_ips.iter().map(|ip| (*ip, ExternalKind::LoadBalancer));
        let ips: Vec<(IpAddr, ExternalKind)> = external_ips.chain(balanced).collect();
        for port in &service.ports {
            let place = || Place { service: service.clone(), port: port.port };
            for (ip, kind) in &ips {
                let external = || External { place: place(), kind: *kind };
                self.external.entry(SocketAddr::new(*ip, port.port)).or_insert_with(external);
            }
            if let Some(node_port) = port.node_port {
                self.node_ports.entry(node_port).or_insert_with(place);
            }
        }
    }

    fn add_endpoints(&mut self, spec: &ServiceSpec, service: &Arc<Service>, pods: &Pods<'_>, nodes: &Nodes<'_>) {
        if !service.cluster_ips.is_empty() {
            return;
        }
        for port in &spec.ports {
            let backends = candidates(spec, port, pods, nodes);
            for backend in backends.iter().filter(|backend| !pods.by_ip.contains_key(&backend.ip)) {
                let address = SocketAddr::new(backend.ip, backend.port);
                self.endpoints.entry(address).or_insert_with(|| service.clone());
            }
        }
    }

    fn add_host_ports(&mut self, workload: &Arc<Workload>, pods: &Pods<'_>, nodes: &Nodes<'_>) {
        if workload.host_ports.is_empty() {
            return;
        }
        let node_ips = nodes.ips_under(workload);
        for host_port in &workload.host_ports {
            for ip in node_ips.iter().filter(|ip| holds_at(host_port, **ip)) {
                let mut own = workload.ips.iter().filter(|own| own.is_ipv4() == ip.is_ipv4());
                let Some(own) = own.find(|own| pods.holds(workload, **own)) else { continue };
                let address = SocketAddr::new(*own, host_port.target);
                let place = || HostPlace { workload: workload.clone(), address };
                let holder = self.host_ports.entry(SocketAddr::new(*ip, host_port.port)).or_insert_with(place);
                if workload.beats(&holder.workload) {
                    *holder = place();
                }
            }
        }
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
        if self.node_ips.contains(&dialled.ip()) { place.destination() } else { None }
    }

    fn host_port(&self, dialled: SocketAddr) -> Option<Destination<'_>> {
        let HostPlace { workload, address } = self.host_ports.get(&dialled)?;
        Some(Destination::Pod { workload, address: *address })
    }

    /// The addresses that lead to a Service's port with no endpoint of their family.
    fn unserved(&self) -> impl Iterator<Item = SocketAddr> + '_ {
        let external = self.external.iter().filter(|(address, external)| external.place.is_unserved(address.ip()));
        let node_ports = self.node_ports.iter().flat_map(|(port, place)| {
            let ips = self.node_ips.iter().filter(|ip| place.is_unserved(**ip));
            let addresses = ips.map(|ip| SocketAddr::new(*ip, *port));
            addresses.filter(|address| !self.external.contains_key(address))
        });
        external.map(|(address, _)| *address).chain(node_ports)
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

    fn is_unserved(&self, dialled: IpAddr) -> bool {
        self.service.port(self.port).is_some_and(|port| port.behind(Frontend::External, dialled).next().is_none())
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
    /// node may use: connect() answers ECONNREFUSED there. Cluster IPs come first, node ports last: there is one for
    /// every address of every node.
    pub fn vips_without_endpoint(&self) -> impl Iterator<Item = SocketAddr> + '_ {
        let cluster_ips = self.services_by_ip.iter().flat_map(|(ip, service)| {
            let unserved = service.ports.iter().filter(|port| port.behind(Frontend::ClusterIp, *ip).next().is_none());
            unserved.map(move |port| SocketAddr::new(*ip, port.port))
        });
        let hidden = |address: &SocketAddr| {
            self.services_by_ip.contains_key(&address.ip()) || self.workloads_by_ip.contains_key(&address.ip())
        };
        let external = self.frontends.unserved().filter(move |address| !hidden(address));
        cluster_ips.chain(external)
    }
}
