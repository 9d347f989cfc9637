//! The Services as they were read, with their EndpointSlices and the ways to find them.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use super::claims::Claims;
use super::endpoints::Behind;
use super::nodes::Nodes;
use super::object::Name;
use super::pods::{LabelHash, Labels, Pods, remove, selects};
use super::{Backend, ServiceSpec, Workload};

#[derive(Default)]
pub(super) struct Specs {
    all: BTreeMap<Name, Arc<ServiceSpec>>,
    /// By Service, also such as are not there.
    slices: HashMap<Name, BTreeMap<Arc<str>, Arc<[Backend]>>>,
    service_of: HashMap<Name, Name>,
    /// By the first label that the selector asks for.
    by_selector: HashMap<LabelHash, BTreeSet<Name>>,
    /// The addresses whose holder matters to a Service.
    uses: Claims<IpAddr, Name, ()>,
}

impl Specs {
    /// Takes a Service as it is now.
    pub(super) fn take(&mut self, name: &Name, spec: Option<Arc<ServiceSpec>>, labels: &Labels) {
        if let Some(before) = self.all.remove(name)
            && let Some(label) = first_label(&before, labels)
        {
            remove(&mut self.by_selector, &label, name);
        }
        let Some(spec) = spec else { return };
        if let Some(label) = first_label(&spec, labels) {
            self.by_selector.entry(label).or_default().insert(name.clone());
        }
        self.all.insert(name.clone(), spec);
    }

    /// Takes an EndpointSlice as it is now: its Service and endpoints. Returns the Services that this is about.
    pub(super) fn take_slice(&mut self, slice: &Name, now: Option<(Arc<str>, Arc<[Backend]>)>) -> Vec<Name> {
        let before = self.service_of.remove(slice);
        if let Some(service) = &before
            && let Some(slices) = self.slices.get_mut(service)
        {
            slices.remove(&slice.name);
            if slices.is_empty() {
                self.slices.remove(service);
            }
        }
        let after = now.map(|(service, backends)| {
            let service = Name { namespace: slice.namespace.clone(), name: service };
            self.slices.entry(service.clone()).or_default().insert(slice.name.clone(), backends);
            self.service_of.insert(slice.clone(), service.clone());
            service
        });
        before.into_iter().chain(after).collect()
    }

    /// A Service with all that says where it leads.
    pub(super) fn behind<'a>(&'a self, name: &Name, pods: &'a Pods, nodes: &'a Nodes) -> Option<Behind<'a>> {
        let slices = self.slices.get(name).map(BTreeMap::values);
        Some(Behind::new(self.all.get(name)?, slices, pods, nodes))
    }

    /// Notes the addresses whose holder matters to a Service.
    pub(super) fn note_use(&mut self, name: &Name, ips: Vec<IpAddr>) {
        self.uses.replace(name, ips.into_iter().map(|ip| (ip, ())));
    }

    /// The Services to which it matters who holds an IP.
    pub(super) fn using(&self, ip: &IpAddr) -> impl Iterator<Item = &Name> {
        self.uses.claimants(ip).map(|(name, ())| name)
    }

    /// The Services that select a pod.
    pub(super) fn selecting<'a>(
        &'a self,
        workload: &'a Workload,
        labels: &Labels,
    ) -> impl Iterator<Item = (&'a Name, &'a ServiceSpec)> {
        let candidates = labels.of(workload).into_iter().filter_map(|label| self.by_selector.get(&label)).flatten();
        let specs = candidates.filter_map(|name| Some((name, &**self.all.get(name)?)));
        specs.filter(|(name, spec)| {
            name.namespace == workload.namespace
                && spec.selector.as_ref().is_some_and(|selector| selects(selector, workload))
        })
    }

    pub(super) fn names(&self) -> impl Iterator<Item = &Name> {
        self.all.keys()
    }
}

fn first_label(spec: &ServiceSpec, labels: &Labels) -> Option<LabelHash> {
    let (label, value) = spec.selector.as_ref()?.first_key_value()?;
    Some(labels.hash(&spec.namespace, label, value))
}
