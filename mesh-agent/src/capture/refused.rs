//! The addresses that connect() refuses because nothing serves them: keeps the kernel's table in step with the state.

use std::collections::HashSet;
use std::net::SocketAddr;

use mesh_common::addr::Endpoint;

use super::tables::Tables;
use crate::state::{MeshState, Stamp};

/// What the kernel's table holds (`NO_ENDPOINT` in mesh-ebpf). What is beyond it is captured, and refused by the agent:
/// a reset at the first read instead of ECONNREFUSED.
pub(super) const MAX_ADDRESSES: usize = 65_536;

/// What is in the table, as far as this agent knows.
#[derive(Default)]
pub(super) struct Refused {
    /// The snapshot that was published last; None before the first.
    version: Option<u64>,
    /// Of what the table holds whole; None when something could not be written.
    whole: Option<Stamp>,
    published: HashSet<Endpoint>,
}

/// What has to be done to the table.
#[derive(Debug, PartialEq, Eq)]
struct Change {
    gone: Vec<Endpoint>,
    new: Vec<Endpoint>,
}

impl Refused {
    /// Publishes a snapshot, once. The first time also what an earlier agent left is collected: a Service that was
    /// given endpoints meanwhile would stay refused.
    pub fn publish(&mut self, state: &MeshState, tables: &Tables) {
        if self.version == Some(state.version) || self.whole.as_ref() == Some(state.unserved_stamp()) {
            return;
        }
        if self.version.is_none() {
            self.published = tables.no_endpoint.keys(MAX_ADDRESSES).into_iter().collect();
        }
        let change = self.change(state.vips_without_endpoint());
        for gone in &change.gone {
            tables.no_endpoint.remove(gone);
            self.published.remove(gone);
        }
        let mut failed = None;
        for new in change.new {
            match tables.no_endpoint.set(&new, &0) {
                Ok(()) => drop(self.published.insert(new)),
                Err(error) => failed = Some(error),
            }
        }
        self.whole = failed.is_none().then(|| state.unserved_stamp().clone());
        if let Some(error) = failed {
            tracing::warn!(%error, "Service addresses without endpoint could not all be published: they are reset instead");
        }
        self.version = Some(state.version);
    }

    fn change(&self, unserved: impl Iterator<Item = SocketAddr>) -> Change {
        let wanted: HashSet<Endpoint> = unserved.take(MAX_ADDRESSES).map(Endpoint::from).collect();
        Change {
            gone: self.published.difference(&wanted).copied().collect(),
            new: wanted.difference(&self.published).copied().collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Ports that were published, that are unserved now, that go, that come.
    #[test]
    fn only_what_changed_is_written() {
        let address = |port| SocketAddr::from(([10, 96, 0, 1], port));
        let refused = |ports: &[u16]| Refused {
            version: Some(1),
            whole: None,
            published: ports.iter().map(|port| address(*port).into()).collect(),
        };
        let table: [[&[u16]; 4]; 4] = [
            [&[], &[1, 2], &[], &[1, 2]],
            [&[1, 2], &[1, 2], &[], &[]],
            [&[1, 2], &[2, 3], &[1], &[3]],
            [&[1], &[], &[1], &[]],
        ];
        for [before, unserved, gone, new] in table {
            let mut change = refused(before).change(unserved.iter().map(|port| address(*port)));
            change.new.sort_unstable_by_key(Endpoint::port);
            let endpoints = |ports: &[u16]| ports.iter().map(|port| address(*port).into()).collect::<Vec<Endpoint>>();
            assert_eq!(change, Change { gone: endpoints(gone), new: endpoints(new) }, "{before:?} {unserved:?}");
        }
    }

    #[test]
    fn no_more_than_the_table_holds() {
        let all = (0..=u16::MAX)
            .chain(0..9)
            .zip(0u32..)
            .map(|(port, index)| SocketAddr::from(([10, 96, (index >> 16) as u8, 1], port)));
        assert_eq!(Refused::default().change(all).new.len(), MAX_ADDRESSES);
    }
}
