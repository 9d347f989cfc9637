//! The maps that the agent reads and writes.

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

use mesh_common::addr::{Endpoint, FourTuple};
use mesh_common::exclude::{NetworkKey, PortKey};
use mesh_common::names::maps;
use mesh_common::record::{ClientRecord, Filed, ListenerKey, PodAddresses, PodConfig, ProbeRecord, SourceKey};
use mesh_common::same_node::{Path as StraightPath, PathKey, StraightRecord};

use super::dials::Dials;
use super::table::Table;
use crate::sys;

/// Every map, opened from its pin.
pub(super) struct Tables {
    pub pods: Table<u64, PodConfig>,
    pub dials: Dials,
    pub clients: Table<SourceKey, ClientRecord>,
    pub filed: Table<FourTuple, Filed>,
    /// The value is a socket's descriptor when written, and cannot be read.
    pub listeners: Table<ListenerKey, u32>,
    pub no_endpoint: Table<Endpoint, u8>,
    pub guarded: Table<u32, PodAddresses>,
    pub excluded_ports: Table<PortKey, u8>,
    pub excluded_networks: Table<NetworkKey, u8>,
    pub probes: Table<FourTuple, ProbeRecord>,
    pub probe_ports: Table<Endpoint, u8>,
    pub kubelets: Table<u64, u8>,
    pub agents: Table<u64, u8>,
    pub paths: Table<PathKey, StraightPath>,
    pub straight: Table<FourTuple, StraightRecord>,
    pub straight_live: Table<u64, i64>,
    pub straight_room: Table<u64, i64>,
    pub lease: Table<u32, u64>,
    /// The value is the index once more, and no program.
    pub linked: Table<u32, [u32; 2]>,
    pub outcomes: OwnedFd,
}

impl Tables {
    pub fn open(directory: &Path) -> io::Result<Self> {
        Ok(Self {
            pods: Table::open(directory, maps::PODS)?,
            dials: Dials::open(directory)?,
            clients: Table::open(directory, maps::CLIENTS)?,
            filed: Table::open(directory, maps::FILED)?,
            listeners: Table::open(directory, maps::LISTENERS)?,
            no_endpoint: Table::open(directory, maps::NO_ENDPOINT)?,
            guarded: Table::open(directory, maps::GUARDED)?,
            excluded_ports: Table::open(directory, maps::EXCLUDED_PORTS)?,
            excluded_networks: Table::open(directory, maps::EXCLUDED_NETS)?,
            probes: Table::open(directory, maps::PROBES)?,
            probe_ports: Table::open(directory, maps::PROBE_PORTS)?,
            kubelets: Table::open(directory, maps::KUBELETS)?,
            agents: Table::open(directory, maps::AGENTS)?,
            paths: Table::open(directory, maps::PATHS)?,
            straight: Table::open(directory, maps::STRAIGHT)?,
            straight_live: Table::open(directory, maps::STRAIGHT_LIVE)?,
            straight_room: Table::open(directory, maps::STRAIGHT_ROOM)?,
            lease: Table::open(directory, maps::LEASE)?,
            linked: Table::open(directory, maps::LINKED)?,
            outcomes: sys::bpf_open(&directory.join(maps::OUTCOMES))?,
        })
    }
}
