//! Drains the kernel's ring buffer: refusals and drops into the log and to whoever tells them, ends of connections from pod to
//! pod to the same.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use aya::maps::{Map, MapData, RingBuf};
use mesh_common::names::maps;
use mesh_common::outcome::Outcome;
use mesh_common::record::Event;
use mesh_common::same_node::StraightEnd;
use tokio::io::unix::AsyncFd;

use super::error::Error;
use super::straight::Neighbours;
use crate::state::StateReader;
use crate::sys;

/// How many events are read before the reader rests: a pod that provokes drops must not keep a core busy.
pub(super) const BATCH: usize = 256;
pub(super) const REST: Duration = Duration::from_millis(10);

/// The ring buffer's reader.
pub(super) struct Events {
    ring: AsyncFd<RingBuf<MapData>>,
    neighbours: Arc<Neighbours>,
    world: StateReader,
}

impl Events {
    pub fn open(directory: &Path, neighbours: Arc<Neighbours>, world: StateReader) -> Result<Self, Error> {
        let step = || Error::io("opening the ring buffer of kernel events");
        let map = MapData::from_pin(directory.join(maps::EVENTS)).map_err(std::io::Error::other).map_err(step())?;
        let ring = RingBuf::try_from(Map::RingBuf(map)).map_err(std::io::Error::other).map_err(step())?;
        Ok(Self { ring: sys::watch_ring(ring).map_err(step())?, neighbours, world })
    }

    /// Never ends.
    pub async fn run(mut self) {
        loop {
            let Ok(mut ready) = self.ring.readable_mut().await else { return std::future::pending().await };
            let ring = ready.get_inner_mut();
            let mut read = 0;
            while read < BATCH
                && let Some(item) = ring.next()
            {
                if let Some(event) = Event::from_bytes(&item) {
                    log(&event);
                    self.neighbours.tell_refusal(&event, &self.world.current());
                } else if let Some(end) = sys::read_plain::<StraightEnd>(&item) {
                    self.neighbours.tell(&end);
                }
                read += 1;
            }
            if read < BATCH {
                ready.clear_ready();
            } else {
                tokio::time::sleep(REST).await;
            }
        }
    }
}

fn log(event: &Event) {
    let outcome = Outcome::from_number(event.outcome()).map_or("unknown", Outcome::name);
    let (source, destination) = (SocketAddr::from(event.source()), SocketAddr::from(event.destination()));
    let (netns, interface) = (event.netns(), event.interface());
    tracing::debug!(target: "kernel", outcome, %source, %destination, netns, interface, "refused");
}
