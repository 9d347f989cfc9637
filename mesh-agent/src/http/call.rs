//! A question of the agent's own, asked on behalf of a pod, in the way that the pod's requests go: the Service's balancer,
//! its limits, connections that are kept.

use std::rc::Rc;

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, request, response};
use http_body_util::BodyExt as _;
use tokio::time::Instant;

use super::answer::Local;
use super::body::{Load, UpBody};
use super::hygiene::Asked;
use super::session::{Session, head_of};
use super::traffic::Admitted;
use super::tries::Journey;
use super::upstream::Wire;
use super::{Mesh, Place};
use crate::telemetry::RequestResult;

/// What was answered.
pub struct Called {
    /// Its head.
    pub head: response::Parts,
    /// Its body; None: it was longer than was asked for.
    pub body: Option<Bytes>,
    /// What came behind it.
    pub trailers: HeaderMap,
}

impl<M: Mesh> Session<M> {
    /// Asks a Service, and reads at most so many bytes of the answer. The question is one that may be asked twice: it is,
    /// where a connection that was kept breaks. It is told as a request of the pod.
    pub async fn call(
        self: &Rc<Self>,
        place: &Place,
        wire: Wire,
        mut head: request::Parts,
        body: Bytes,
        most: usize,
        deadline: Instant,
    ) -> Result<Called, Local> {
        let exchange = self.conversation.begin(&mut head);
        exchange.note(|record| record.host = head.headers.get(http::header::HOST).cloned());
        let asked = Asked { upgrade: None, trailers: wire == Wire::Http2 };
        wire.prepare(&mut head, &asked).map_err(Local::Fault)?;
        let (treatment, admitted) = (self.mesh.treatment(place, None), Admitted::default());
        let journey = Journey {
            place,
            treatment: &treatment,
            admitted: &admitted,
            wire,
            asked,
            deadline: Some(deadline),
            exchange: &exchange,
            may_retry: false,
        };
        let again = head_of(&head);
        let mut answered = self.send(&journey, head, Load::Once(UpBody::whole(body.clone()))).await;
        if matches!(answered, Err(Local::Broken)) {
            answered = self.send(&journey, again, Load::Once(UpBody::whole(body))).await;
        }
        let response = answered.inspect_err(|local| {
            exchange.note(|record| record.result = RequestResult::Local { reason: local.label() });
        })?;
        let (head, mut body) = response.into_parts();
        let (mut bytes, mut trailers, mut is_too_long) = (BytesMut::new(), HeaderMap::new(), false);
        while let Some(frame) = body.frame().await {
            match frame.map_err(|_| Local::Broken)?.into_data() {
                Ok(data) if bytes.len().saturating_add(data.len()) > most => {
                    is_too_long = true;
                    break;
                }
                Ok(data) => bytes.extend_from_slice(&data),
                Err(frame) => trailers.extend(frame.into_trailers().unwrap_or_default()),
            }
        }
        Ok(Called { head, body: (!is_too_long).then(|| bytes.freeze()), trailers })
    }
}
