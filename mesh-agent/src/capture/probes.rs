//! Kubelet's probes go to the application and to nobody's policy: keeps in the kernel which ports pods declare for them,
//! and the program that files them on kubelet's cgroup.

use std::collections::{BTreeSet, HashSet};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use aya::util::KernelVersion;
use mesh_common::addr::{Endpoint, Ip};
use mesh_common::names::programs;

use super::exclusions::bring;
use super::kubelet::{self, Kubelet};
use super::loader::Loaded;
use super::tables::Tables;
use crate::readiness::Readiness;
use crate::state::{MeshState, Stamp};

/// What the kernel's table of ports holds (`PROBE_PORTS` in mesh-ebpf).
pub(super) const MAX_PROBE_PORTS: usize = 16_384;
/// How often is looked whether kubelet is who it was. A kubelet that starts in another cgroup is refused so long.
pub(super) const KUBELET_LOOK: Duration = Duration::from_millis(500);
/// How often kubelet is looked for anew where nothing that was looked at has changed: all processes are looked at.
pub(super) const KUBELET_RETRY: Duration = Duration::from_secs(5);
/// As many as the tables of kubelets and of open probes hold.
const MAP_KEYS: usize = 8_192;
/// The kernel from which sockops tells the cgroup of who dials: before it, all that is below kubelet's cgroup counts.
const TELLS_CGROUP: KernelVersion = KernelVersion::new(6, 16, 0);

/// What of it is in the kernel, as far as this agent knows.
#[derive(Default)]
pub(super) struct Probes {
    /// Of the pods whose ports are published; None before the first.
    pods: Option<Stamp>,
    published: HashSet<Endpoint>,
    looked: Option<Instant>,
    searched: Option<Instant>,
    /// The sockets that kubelet was looked for by.
    sockets: BTreeSet<u64>,
    /// Whose cgroup the program is on, or why it is on none that this agent knows.
    kubelet: Option<Result<Kubelet, String>>,
}

impl Probes {
    /// Brings the kernel in step with the state and with who is kubelet now.
    pub fn follow(&mut self, state: &MeshState, loaded: &Loaded, tables: &Tables, readiness: &Readiness) {
        self.publish(state, tables);
        let is_due = self.looked.is_none_or(|looked| looked.elapsed() >= KUBELET_LOOK);
        // Without a port there is no kubelet to look for: a directory of YAML that no cluster wrote.
        if let (Some(port), true) = (state.kubelet_port, is_due) {
            self.looked = Some(Instant::now());
            self.look(port, loaded, tables, readiness);
        }
    }

    /// What an earlier agent left is collected at first: an address may have another holder since.
    fn publish(&mut self, state: &MeshState, tables: &Tables) {
        if self.pods.as_ref() == Some(state.local_workloads_stamp()) {
            return;
        }
        if self.pods.is_none() {
            self.published = tables.probe_ports.keys(MAX_PROBE_PORTS).into_iter().collect();
        }
        if bring(&tables.probe_ports, &mut self.published, &declared(state), MAX_PROBE_PORTS) {
            self.pods = Some(state.local_workloads_stamp().clone());
        } else {
            tracing::warn!("what pods declare in probes could not all be published: policy decides on the rest");
        }
    }

    fn look(&mut self, port: u16, loaded: &Loaded, tables: &Tables, readiness: &Readiness) {
        const GATE: &str = "kubelet";
        let sockets = kubelet::listeners(port);
        let is_settled = match &self.kubelet {
            Some(Ok(kubelet)) => kubelet.is_there(),
            Some(Err(_)) => self.searched.is_some_and(|searched| searched.elapsed() < KUBELET_RETRY),
            None => false,
        };
        if is_settled && sockets == self.sockets {
            return;
        }
        self.searched = Some(Instant::now());
        let found = kubelet::find(port, &sockets, &loaded.kubepods).and_then(|kubelet| {
            attach(&kubelet, loaded, tables)?;
            Ok(kubelet)
        });
        self.sockets = sockets;
        match &found {
            Ok(Kubelet { pid, name, cgroup, .. }) => {
                tracing::info!(pid, name, cgroup = %cgroup.display(), "kubelet was found: its probes pass by record");
                readiness.ready(GATE);
            }
            Err(reason) => {
                if self.kubelet.as_ref().and_then(|known| known.as_ref().err()) != Some(reason) {
                    tracing::warn!(reason, "kubelet was not found: policy decides on its probes");
                }
                readiness.noted(GATE, reason.as_str());
            }
        }
        self.kubelet = Some(found);
    }
}

/// Why a kubelet in this cgroup cannot be told from others.
pub(super) fn obstacle(kubelet: &Kubelet, kubepods: &std::path::Path) -> Option<String> {
    let tells = KernelVersion::current().is_ok_and(|version| version >= TELLS_CGROUP);
    let holds_pods = kubepods.starts_with(&kubelet.cgroup);
    (holds_pods && !tells).then(|| {
        format!(
            "kubelet's cgroup {} has the pods below it, and this kernel cannot tell them apart (6.16 can): start kubelet \
             in a cgroup of its own",
            kubelet.cgroup.display()
        )
    })
}

/// Puts the program on kubelet's cgroup. What another cgroup has filed goes with its standing.
fn attach(kubelet: &Kubelet, loaded: &Loaded, tables: &Tables) -> Result<(), String> {
    if let Some(reason) = obstacle(kubelet, &loaded.kubepods) {
        return Err(reason);
    }
    tables.kubelets.set(&kubelet.id, &0).map_err(|error| format!("filing kubelet's cgroup: {error}"))?;
    loaded.attach_probes(&kubelet.cgroup).map_err(|error| error.to_string())?;
    let others: Vec<u64> = tables.kubelets.keys(MAP_KEYS).into_iter().filter(|id| *id != kubelet.id).collect();
    if !others.is_empty() {
        others.iter().for_each(|id| tables.kubelets.remove(id));
        tables.probes.keys(MAP_KEYS).iter().for_each(|tuple| tables.probes.remove(tuple));
    }
    tracing::debug!(program = programs::PROBE_OPS, cgroup = %kubelet.cgroup.display(), "attached");
    Ok(())
}

/// The ports of enrolled pods of this node, under the addresses that they hold: of two that claim one, its holder's alone.
fn declared(state: &MeshState) -> HashSet<Endpoint> {
    let mut ports = HashSet::new();
    for workload in state.local_workloads().filter(|workload| workload.enrolled) {
        let holds = |ip: &&IpAddr| state.workload_by_ip(**ip).is_some_and(|holder| holder.uid == workload.uid);
        for ip in workload.ips.iter().filter(holds) {
            ports.extend(workload.probe_ports.iter().map(|port| Endpoint::new(Ip::from(*ip), *port)));
        }
    }
    ports
}
