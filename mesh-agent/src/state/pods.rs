//! The pods of a world, indexed while a snapshot is built.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use super::Workload;

/// The pods with the ways to find them.
pub(super) struct Pods<'a> {
    pub(super) all: Vec<Arc<Workload>>,
    pub(super) by_ip: HashMap<IpAddr, Arc<Workload>>,
    /// By namespace, label and its value: indexes into `all`.
    by_label: HashMap<(&'a str, &'a str, &'a str), Vec<usize>>,
}

impl<'a> Pods<'a> {
    pub(super) fn index(workloads: &'a [Workload]) -> Self {
        let all: Vec<Arc<Workload>> = workloads.iter().cloned().map(Arc::new).collect();
        let mut by_ip: HashMap<IpAddr, Arc<Workload>> = HashMap::with_capacity(all.len());
        let mut by_label: HashMap<_, Vec<usize>> = HashMap::new();
        for (index, workload) in workloads.iter().enumerate() {
            for (label, value) in &workload.labels {
                by_label.entry((&*workload.namespace, &**label, &**value)).or_default().push(index);
            }
        }
        for workload in &all {
            if workload.host_network {
                continue;
            }
            for ip in &workload.ips {
                let holder = by_ip.entry(*ip).or_insert_with(|| workload.clone());
                if workload.beats(holder) {
                    *holder = workload.clone();
                }
            }
        }
        Self { all, by_ip, by_label }
    }

    /// The pods of a namespace that have all these labels; none for an empty selector, as Kubernetes has it.
    pub(super) fn selected<'s>(
        &'s self,
        namespace: &'s str,
        selector: &'s BTreeMap<String, String>,
    ) -> impl Iterator<Item = &'s Arc<Workload>> {
        let lists = selector.iter().map(|(label, value)| self.having(namespace, label, value));
        let fewest = lists.min_by_key(|indexes| indexes.len()).unwrap_or_default();
        let candidates = fewest.iter().filter_map(|index| self.all.get(*index));
        candidates.filter(|pod| selector.iter().all(|(label, value)| pod.labels.get(label) == Some(value)))
    }

    fn having<'s>(&'s self, namespace: &'s str, label: &'s str, value: &'s str) -> &'s [usize] {
        self.by_label.get(&(namespace, label, value)).map(Vec::as_slice).unwrap_or_default()
    }

    /// The pods that hold at least one of the IPs they claim, and those of the host network.
    pub(super) fn holding_ips(&self) -> Vec<Arc<Workload>> {
        let holds =
            |workload: &Arc<Workload>| workload.host_network || workload.ips.iter().any(|ip| self.holds(workload, *ip));
        self.all.iter().filter(|workload| holds(workload)).cloned().collect()
    }

    /// Whether a pod holds an IP that it claims.
    pub(super) fn holds(&self, workload: &Workload, ip: IpAddr) -> bool {
        self.by_ip.get(&ip).is_some_and(|holder| holder.uid == workload.uid)
    }
}
