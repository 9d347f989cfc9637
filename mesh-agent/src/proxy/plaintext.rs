//! The journey of a connection that arrives outside the tunnel: authorise with no identity → dial the application.

use std::future::Future;
use std::rc::Rc;
use std::sync::Arc;

use tokio::net::TcpStream;

use super::budget::Taken;
use super::judged::{self, Ends};
use super::worker::{Pod, Worker};
use super::{Boxed, copy, inbound, make_then_carry, record};
use crate::http::{Claims, Io};
use crate::podnet::Role;
use crate::policy::Admission;

/// Serves one connection accepted on the pod's plaintext listener.
pub fn serve(worker: Rc<Worker>, pod: Arc<Pod>, taken: Taken, tcp: TcpStream) -> impl Future<Output = ()> {
    make_then_carry(Box::pin(make(worker, pod, taken, tcp)))
}

/// Reaches the application; none if it was refused.
async fn make(worker: Rc<Worker>, pod: Arc<Pod>, taken: Taken, tcp: TcpStream) -> Option<Boxed<()>> {
    let Some((client, server)) = worker.ends(&pod, Role::Plaintext, &tcp) else {
        copy::reset(tcp);
        return None;
    };
    let live = worker.register(&pod, taken, record::inbound(&pod, client, None, server, None));
    let judged = inbound::judged(&pod, None, client.ip(), server);
    let facts = judged.facts.clone();
    let reached = match inbound::admit(&worker, &live, judged) {
        Ok(admission) => {
            let app = inbound::reach_admitted(&pod, &admission, &live, client, server).await;
            app.map(|app| (admission, app))
        }
        Err(failure) => Err(failure),
    };
    match reached {
        Ok((Admission::Requests(_), app)) => {
            worker.opened(&live);
            let meter = Rc::new(judged::OfSocket(live.live()));
            let ends = Ends { facts, client, server, claims: Claims::Dropped };
            Some(Box::pin(judged::serve(worker, pod, Io::socket(tcp, meter), live, ends, app)))
        }
        Ok((Admission::Bytes(_), app)) => {
            worker.opened(&live);
            Some(Box::pin(async move {
                let cancelled = async { drop(live.cancel.cancelled().await) };
                let end = copy::plain(tcp, app.tcp, copy::Outer::First, &live.counters, cancelled).await;
                drop(app.record);
                worker.finish(live, end);
            }))
        }
        Err(failure) => {
            worker.finish_failed(live, &failure);
            copy::reset(tcp);
            None
        }
    }
}
