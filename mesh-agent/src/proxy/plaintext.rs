//! The journey of a connection that arrives outside the tunnel: authorise with no identity → dial the application.

use std::rc::Rc;
use std::sync::Arc;

use tokio::net::TcpStream;

use super::connection::{Judged, Registration};
use super::error::Failure;
use super::worker::{Pod, Worker};
use super::{copy, dial, inbound, record};
use crate::addr::{ClientAddr, ServerAddr};

/// Serves one connection accepted on the pod's plaintext listener.
pub async fn serve(worker: Rc<Worker>, pod: Arc<Pod>, tcp: TcpStream) {
    let (Ok(local), Ok(peer)) = (tcp.local_addr(), tcp.peer_addr()) else { return copy::reset(tcp) };
    let (server, client) = (ServerAddr::new(local), ClientAddr::new(peer));
    let judged = inbound::judged(&pod, None, client.ip(), server);
    let record = record::inbound(&pod, client, None, server, None);
    let live = worker.live.register(pod.uid().clone(), Some(judged.clone()), record);
    match reach(&worker, &pod, &live, &judged, client).await {
        Ok(app) => {
            worker.opened(&live);
            let cancelled = async { drop(live.cancel.cancelled().await) };
            let end = copy::plain(tcp, app.tcp, &live.counters, cancelled).await;
            drop(app.record);
            worker.finish(live, end);
        }
        Err(failure) => {
            worker.finish_failed(live, &failure);
            copy::reset(tcp);
        }
    }
}

async fn reach(
    worker: &Worker,
    pod: &Pod,
    live: &Registration,
    judged: &Judged,
    client: ClientAddr,
) -> Result<dial::AppConnection, Failure> {
    inbound::authorize(worker, judged)?;
    let server = ServerAddr::new((judged.facts.destination_ip, judged.facts.destination_port).into());
    tokio::select! {
        biased;
        cut = live.cancel.cancelled() => Err(Failure::Cut(cut)),
        dialled = dial::application(&pod.net, client, server) => {
            dialled.map_err(|error| Failure::Connect { address: server.socket(), error })
        }
    }
}
