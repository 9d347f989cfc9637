//! Asking an authorizer about a request to a pod of this node, as that pod would ask: by the Service's balancer, in the
//! mesh by mutual TLS with the pod's identity, on connections that are kept.

use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;

use tokio::time::Instant;

use super::requests;
use super::worker::{Pod, Worker};
use crate::extauth::limits::MAX_ANSWER_BYTES;
use crate::extauth::{self, Failed, Question, Verdict};
use crate::http::{Called, Local, Place, Wire};
use crate::policy::{Authorizer, CheckProtocol};
use crate::state::MeshState;

/// Asks. `server` is where the request that is asked about goes.
pub async fn ask(
    worker: &Rc<Worker>,
    pod: &Arc<Pod>,
    authorizer: &Authorizer,
    question: &Question<'_>,
    server: SocketAddr,
) -> Result<Verdict, Failed> {
    let deadline = Instant::now().checked_add(authorizer.timeout).ok_or(Failed::TimedOut)?;
    let place = place(&worker.shared.state.current(), pod, authorizer, server)?;
    let asking = call(worker, pod, authorizer, question, &place, deadline);
    let called = match tokio::time::timeout_at(deadline, asking).await {
        Ok(called) => called?,
        Err(_) => return Err(Failed::TimedOut),
    };
    let Called { head, body, trailers } = called;
    match &authorizer.protocol {
        CheckProtocol::Grpc => extauth::grpc::verdict(head.status, &head.headers, body.as_deref(), &trailers),
        CheckProtocol::Http(check) => extauth::web::verdict(check, head.status, head.headers, body),
    }
}

async fn call(
    worker: &Rc<Worker>,
    pod: &Arc<Pod>,
    authorizer: &Authorizer,
    question: &Question<'_>,
    place: &Place,
    deadline: Instant,
) -> Result<Called, Failed> {
    let session = requests::on_behalf(worker, pod, place);
    let (wire, (head, body)) = match &authorizer.protocol {
        CheckProtocol::Grpc => {
            let host = format!("{}.{}.svc:{}", place.service.name, place.service.namespace, place.port);
            (Wire::Http2, extauth::grpc::question(question, &host, authorizer.timeout))
        }
        CheckProtocol::Http(check) => (place.wire, extauth::web::question(check, question).ok_or(Failed::Broken)?),
    };
    let called = session.call(place, wire, head, body, MAX_ANSWER_BYTES, deadline).await;
    called.map_err(|local| match local {
        Local::TimedOut => Failed::TimedOut,
        Local::Broken | Local::BadAnswer | Local::Fault(_) => Failed::Broken,
        _ => Failed::Unreachable,
    })
}

/// Where the authorizer is.
fn place(state: &MeshState, pod: &Pod, authorizer: &Authorizer, server: SocketAddr) -> Result<Place, Failed> {
    let (namespace, name) = &authorizer.service;
    let service = state.service(namespace, name).ok_or(Failed::Unreachable)?;
    let port = service.port(authorizer.port).ok_or(Failed::Unreachable)?;
    let is_this_pod = port.endpoints.iter().any(|endpoint| {
        let uid = endpoint.workload.as_ref().map(|workload| &workload.uid);
        uid == Some(pod.uid()) && endpoint.port == server.port()
    });
    if is_this_pod {
        return Err(Failed::Itself);
    }
    Ok(requests::place(service, port))
}
