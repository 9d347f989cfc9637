//! Requests: what is between a connection of bytes and an application that speaks HTTP.
//!
//! ```text
//!  client ─► server ─► screen ─► hyper ─► session ─────────────────────────► upstream ─► hyper ─► io ─► tunnel, socket
//!            h1 or h2  two       parses   hygiene ─► plan ─► tries             lends       writes
//!            by its    readings  heads      │ no       │ 404,   │ endpoint,    connections   │
//!            preface   ─► 400                ─► 400     │ 429,   │ again: 503   kept between  │
//!                                                       │ 500    │ 504          requests      │
//!                                                                              requests      │
//!  client ◄─ hyper ◄───────────── DownBody (counted, trailers cleaned, one frame at a time) ◄─┘
//!            101: both connections become bytes (upgrade)
//! ```
//!
//! What a connection of a client is in the course of its life:
//!
//! ```text
//!  undecided ─► HTTP/1.1 ─► idle ⇄ request ─► closing (bad bytes, drain, idle too long) ─► lingering ─► closed
//!      │            └─ 101 ─► bytes both ways ─► closed
//!      └──────► HTTP/2 ───► idle ⇄ requests ─► GOAWAY (drain, idle too long) ─► last answer ─► closed
//!  any ─► cut (policy, pod left, drain window) ─► reset
//! ```
//!
//! The room does not know pods, sockets in namespaces or policy: whoever serves a connection with it hands in a
//! [`Mesh`], which says where a request goes and makes connections. Everything here lives on one worker: no locks, and
//! nothing is shared between workers but counters.

mod answer;
mod body;
mod call;
mod claims;
mod conversation;
mod exchange;
mod framing;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzzing;
mod gather;
mod hygiene;
mod io;
mod judged;
pub mod limits;
mod load;
mod plan;
mod screen;
mod server;
mod session;
mod traffic;
mod tries;
mod untaken;
mod upgrade;
mod upstream;

use std::future::Future;
use std::rc::Rc;
use std::sync::Arc;

pub use answer::{Local, Said};
pub use call::Called;
pub use claims::{Caller, Claims};
pub use conversation::Teller;
pub use io::{Io, Meter};
pub use judged::{Ahead, Bench, Guard, Judge, Judged, Noted, host};
pub use load::MemoryGauge;
pub use server::{Ended, Serves, serve};
pub use session::{Client, Session};
pub use traffic::{NodeLimits, Services, Treatment};
pub use untaken::Untaken;
pub use upstream::{Cut, Reached, Tally, Unreached, Upstreams, Wire};

use crate::routes::{BackendRef, CompiledRule, Table};
use crate::routing::Upstream;
use crate::state::{Endpoint, Frontend, Service};

/// What is around a client's connection.
pub trait Mesh: Teller {
    /// What this worker knows of the Services that are asked, and how busy it is.
    fn services(&self) -> &Services;

    /// The Service's port that was dialled, as the world has it now.
    fn dialled(&self) -> Result<Place, Local>;

    /// The routes that hold there for this client. None: requests go to the Service itself.
    fn routes(&self, dialled: &Place) -> Option<Arc<Table>>;

    /// Where a route's backend is.
    fn backend(&self, target: &BackendRef) -> Result<Place, Local>;

    /// How requests to a place are treated that met this rule, as of now.
    fn treatment(&self, place: &Place, rule: Option<&Arc<CompiledRule>>) -> Rc<Treatment>;

    /// How an endpoint is reached.
    fn upstream(&self, endpoint: &Endpoint) -> Upstream;

    /// Makes a connection to an endpoint, on behalf of the pod.
    fn reach(&self, place: &Place, upstream: &Upstream) -> impl Future<Output = Result<Reached, Unreached>>;

    /// Room for what of a request's body is kept for a while, of the pod's budget.
    fn room(&self) -> Box<dyn Room>;

    /// A random number; not for secrets.
    fn random(&self) -> u64;
}

/// Room for bytes that are kept, given back when it is dropped.
pub trait Room {
    /// So many are kept now. False: there is no room for them, and they must go.
    fn hold(&mut self, bytes: usize) -> bool;
}

/// A Service's port.
#[derive(Clone, Debug)]
pub struct Place {
    /// The Service.
    pub service: Arc<Service>,
    /// Its port.
    pub port: u16,
    /// By which of its addresses it is meant.
    pub frontend: Frontend,
    /// What is spoken there.
    pub wire: Wire,
}

/// Runs the HTTP library's tasks on the worker that serves the connection.
#[derive(Clone, Copy)]
struct LocalExecutor;

impl<F: Future + 'static> hyper::rt::Executor<F> for LocalExecutor {
    fn execute(&self, future: F) {
        tokio::task::spawn_local(future);
    }
}
