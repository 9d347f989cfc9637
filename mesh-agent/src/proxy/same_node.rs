//! From one pod of this node to another without a tunnel: who calls is known by the capture of the caller's pod, and the
//! receiving pod's side is asked as it is about a tunnel's connection ([`inbound::take_in`]), by the same agent.
//!
//! Never where this agent does not hold the receiving pod itself (it is not enrolled yet, it left, a newer agent takes
//! over), never where the network would refuse the tunnel ([`super::witness`]), and never where the pod wants TLS on its
//! node too: then the way is the tunnel, as between nodes.

use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;

use tokio::net::TcpStream;

use super::connection::{Live, Registration};
use super::copy::{self, End};
use super::error::Failure;
use super::inbound::{self, Arrived, Coming};
use super::judged::{self, OfSockets};
use super::record;
use super::worker::{Pod, Worker};
use crate::addr::ClientAddr;
use crate::hbone;
use crate::http::Io;
use crate::routing::{self, Upstream};
use crate::spiffe::SpiffeId;

/// The pod behind an endpoint, if what comes for it may come this way.
pub async fn way(worker: &Worker, pod: &Pod, upstream: &Upstream, identity: &SpiffeId) -> Option<Arc<Pod>> {
    let (to, ip) = (worker.pod(&upstream.workload.as_ref()?.uid)?, upstream.address.ip());
    let is_its_own = to.workload.identity == *identity && to.workload.ips.contains(&ip);
    // The tunnel port has its own word for who asks for itself.
    let is_possible = is_its_own && upstream.address.port() != hbone::PORT;
    (is_possible && worker.ways.is_open(&worker.pods.witnesses, pod, &to, ip).await).then_some(to)
}

/// Asks the receiving pod's side, and reaches its application.
pub async fn reach(
    worker: &Rc<Worker>,
    pod: &Arc<Pod>,
    to: &Arc<Pod>,
    live: &Live,
    client: ClientAddr,
    upstream: &Upstream,
) -> Result<Box<Arrived>, Failure> {
    let server = upstream.address;
    // As the tunnel's own connection would come.
    let ip = routing::own_ip(&pod.workload, server.ip());
    let client = if client.ip() == ip { client } else { ClientAddr::new(SocketAddr::new(ip, client.port())) };
    let trace_id = live.record.borrow().trace_id.clone();
    let coming = Coming {
        record: record::from_this_node(to, pod, client, server, trace_id),
        peer: pod.workload.identity.clone(),
        ip,
        client,
        server,
        reached: server,
    };
    let abandoned = async { drop(live.cancel.cancelled().await) };
    let arrived = inbound::take_in(worker, to, coming, abandoned).await;
    arrived.map(Box::new).map_err(|failure| Failure::NotTakenIn { address: server.socket(), status: failure.status() })
}

/// Carries a connection until it ends on either side.
pub async fn carry(worker: Rc<Worker>, tcp: TcpStream, live: Registration, arrived: Arrived) {
    worker.opened(&arrived.live);
    let cut = either_cut(live.live(), arrived.live.live());
    let ends = arrived.is_judged().then(|| arrived.ends(&worker));
    let Arrived { pod, live: inner, app, .. } = arrived;
    let end = match ends {
        Some(ends) => {
            let meter = Rc::new(OfSockets([live.live(), inner.live()]));
            judged::carry(&worker, pod, Io::socket(tcp, meter), inner.live(), ends, app, cut).await
        }
        None => {
            let end = copy::between_pods(tcp, app.tcp, &live.counters, &inner.counters, cut).await;
            drop(app.record);
            end
        }
    };
    finish(&worker, live, inner, end);
}

/// Ready when one of the two is to be cut.
pub async fn either_cut(live: Rc<Live>, inner: Rc<Live>) {
    tokio::select! {
        biased;
        _ = live.cancel.cancelled() => {}
        _ = inner.cancel.cancelled() => {}
    }
}

/// Tells of a connection's end on both sides. What is cut on the one comes from there to the other as a reset.
pub fn finish(worker: &Worker, live: Registration, inner: Registration, end: End) {
    let reset = std::io::ErrorKind::ConnectionReset;
    let (of_live, of_inner) = match end {
        End::Cut => (End::SecondReset(reset), End::FirstReset(reset)),
        end => (end.clone(), end),
    };
    worker.finish(live, of_live);
    worker.finish(inner, of_inner);
}
