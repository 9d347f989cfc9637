//! Which Service a request goes to, and what becomes of it on the way: routes, their filters, the choice of a backend.

use std::net::IpAddr;
use std::rc::Rc;
use std::sync::Arc;

use http::{HeaderValue, header, request, response};

use super::answer::Local;
use super::hygiene;
use super::traffic::{Admitted, Treatment};
use super::{Mesh, Place};
use crate::path::{self, NormalPath};
use crate::resilience::{self, Refusal};
use crate::routes::filters::{self, Answer, Around, Origin, Step};
use crate::routes::{CompiledRule, Filter, Head, Seed};
use crate::spiffe::SpiffeId;

/// What was decided about a request.
pub struct Plan {
    /// Where it goes.
    pub place: Place,
    /// How it is treated there.
    pub treatment: Rc<Treatment>,
    /// What was decided about it before it is sent.
    pub admitted: Admitted,
}

/// What comes of a request's plan.
pub enum Planned {
    /// It goes on.
    Forward(Plan),
    /// A filter answers it.
    Answer(Box<response::Parts>),
}

/// The rule that a request met, which has a say about its answer too.
pub struct Ruled {
    /// The rule.
    pub rule: Arc<CompiledRule>,
    origin: Origin,
    seed: Seed,
    /// A preflight's answer is complete as it is.
    is_complete: bool,
}

impl Ruled {
    /// Applies the rule's filters, and the chosen backend's, to an answer, whoever made it.
    pub fn response(&self, head: &mut response::Parts) {
        if self.is_complete {
            return;
        }
        filters::response(&self.rule.filters, &self.origin, head);
        if let Some(backend) = self.rule.backend(self.seed) {
            filters::response(&backend.filters, &self.origin, head);
        }
    }

    /// Where copies of the request go.
    pub fn mirrors<M: Mesh>(&self, mesh: &M) -> Vec<Place> {
        let mirrors = filters::mirrors(&self.rule.filters, self.seed);
        mirrors.filter_map(|mirror| mesh.backend(&mirror.backend).ok()).collect()
    }
}

/// Decides about a request of the one form, and applies the filters to it. `ruled` tells of the rule that it met, also
/// where there is an error. `source` is who asks, by the connection: identity and address.
pub fn plan<M: Mesh>(
    mesh: &M,
    parts: &mut request::Parts,
    source: (Option<&SpiffeId>, IpAddr),
    ruled: &mut Option<Ruled>,
) -> Result<Planned, Local> {
    let dialled = mesh.dialled()?;
    let Some(table) = mesh.routes(&dialled) else {
        return Ok(Planned::Forward(admit(mesh, dialled, None, parts, source)?));
    };
    // Routes and whoever judges and serves the request must read one path.
    hygiene::normalise_path(parts).map_err(Local::Ambiguous)?;
    let host = parts.headers.get(header::HOST).cloned();
    let host = host.as_ref().and_then(|host: &HeaderValue| host.to_str().ok()).unwrap_or_default();
    let head =
        Head { method: &parts.method, host, path: parts.uri.path(), query: parts.uri.query(), headers: &parts.headers };
    let found = table.find(&head).ok_or(Local::NoRoute)?;
    let (rule, seed) = (found.rule, Seed::new(mesh.random()));
    let ruled = ruled.insert(Ruled { rule: rule.clone(), origin: Origin::of(parts), seed, is_complete: false });
    // Limits and faults look at what the client sent, so they come before the filters; and before these there must be a
    // place to send it to, unless a filter answers.
    let backend = rule.backend(seed).map(|backend| (backend, mesh.backend(&backend.target)));
    let admitted = match &backend {
        Some((_, Ok(place))) => Some(admit(mesh, place.clone(), Some(rule), parts, source)?),
        Some((_, Err(_))) | None => None,
    };
    let around = Around { scheme: "http", host, port: dialled.port, matched_prefix: found.matched_prefix };
    if let Some(answer) = filter(&rule.filters, &around, parts, ruled)? {
        return Ok(Planned::Answer(answer));
    }
    let (backend, place) = backend.ok_or(Local::BadBackend)?;
    place?;
    if let Some(answer) = filter(&backend.filters, &around, parts, ruled)? {
        return Ok(Planned::Answer(answer));
    }
    admitted.map(Planned::Forward).ok_or(Local::BadBackend)
}

/// Asks the policies of a place about a request as the client sent it.
fn admit<M: Mesh>(
    mesh: &M,
    place: Place,
    rule: Option<&Arc<CompiledRule>>,
    parts: &request::Parts,
    (source, source_ip): (Option<&SpiffeId>, IpAddr),
) -> Result<Plan, Local> {
    let treatment = mesh.treatment(&place, rule);
    let path = match treatment.looks_at_requests() {
        true => path::normalise(parts.uri.path()).map_err(Local::Ambiguous)?,
        false => NormalPath::root(),
    };
    let request =
        resilience::Request { method: &parts.method, path: path.as_str(), headers: &parts.headers, source, source_ip };
    let admitted = treatment.admit(&request).map_err(|limited| Local::Refused(Refusal::Limited(limited)))?;
    Ok(Plan { place, treatment, admitted })
}

fn filter(
    filters: &[Filter],
    around: &Around<'_>,
    parts: &mut request::Parts,
    ruled: &mut Ruled,
) -> Result<Option<Box<response::Parts>>, Local> {
    match filters::request(filters, around, parts) {
        Step::Forward => Ok(None),
        Step::Answer(_, Answer::Impossible) => Err(Local::Impossible),
        Step::Answer(head, Answer::Redirect) => Ok(Some(head)),
        Step::Answer(head, Answer::Preflight) => {
            ruled.is_complete = true;
            Ok(Some(head))
        }
    }
}
