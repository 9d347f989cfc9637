//! The journey of a connection that arrives outside the tunnel: authorise with no identity → dial the application.

use std::rc::Rc;
use std::sync::Arc;

use tokio::net::TcpStream;

use super::budget::Taken;
use super::worker::{Pod, Worker};
use super::{copy, inbound, record};
use crate::podnet::Role;

/// Serves one connection accepted on the pod's plaintext listener.
pub async fn serve(worker: Rc<Worker>, pod: Arc<Pod>, taken: Taken, tcp: TcpStream) {
    let Some((client, server)) = worker.ends(&pod, Role::Plaintext, &tcp) else { return copy::reset(tcp) };
    let live = worker.register(&pod, taken, record::inbound(&pod, client, None, server, None));
    let judged = inbound::judged(&pod, None, client.ip(), server);
    let reached = match inbound::authorize(&worker, &live, judged) {
        Ok(permit) => inbound::reach_application(&pod, &permit, &live, client, server).await,
        Err(failure) => Err(failure),
    };
    match reached {
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
