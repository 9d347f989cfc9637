//! What keeps a Service up when parts of it are not: endpoint choice, outlier detection, retries, limits, faults, load
//! shedding. `http` asks; nothing here acts.
//!
//! Every decision is a function of a policy, what was seen, an injected clock (`Instant`) and an injected source of chance
//! (`fastrand::Rng`): no timers, no async work, no I/O. What is remembered belongs to one worker and needs no lock
//! ([`Balancer`], [`Budget`], [`Shedder`]), or is a few atomics that workers share because a limit would otherwise hold
//! for each worker alone ([`pool`], [`rate`]).
//!
//! ```text
//! request ─► rate::check ─► fault ─► shed ─► Balancer::pick ─► pool ─► send ─► Lease::answered ─► response
//!               429                  503        503              503              │ retry::decide: again, or give it up
//!                                    ▲                                            ▼
//!                                    └──────────────── Budget: over it, 503 ◄─────┘
//! ```

mod answer;
pub mod balance;
pub mod budget;
pub mod fault;
pub mod limits;
pub mod outcome;
pub mod outlier;
pub mod policy;
pub mod pool;
pub mod rate;
mod request;
pub mod retry;
pub mod shed;

pub use answer::{Answer, Mark, Refusal};
pub use balance::Balancer;
pub use budget::Budget;
pub use limits::all as limits;
pub use outcome::Outcome;
pub use rate::Rates;
pub use request::Request;
pub use shed::Shedder;
