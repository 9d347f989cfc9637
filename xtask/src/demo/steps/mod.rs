//! The nine steps. Each looks for itself: `Ok` says what was seen, `Err` says how that differs from the promise.
//!
//! A step leaves the stage as it found it, so that any of them can be run alone.

mod capture;
pub mod cost;
mod crash;
mod deny;
mod encrypted;
mod rotate;
mod source_address;
mod strict;
mod unenrol;

use std::time::Duration;

use anyhow::{Context, Result};

use super::stage::Stage;

/// For what nobody is promised a time of, on a machine with much else to do.
const PATIENCE: Duration = Duration::from_secs(30);
/// An answer that took no longer is late, and not lost: wrk's own word for that is two seconds.
const WRK_TIMEOUT: &str = "20s";

/// One step.
pub struct Step {
    /// Its id in the JSON and on the command line.
    pub id: &'static str,
    /// Its headline.
    pub title: &'static str,
    /// What shall be seen.
    pub promised: &'static str,
    /// Looks.
    pub run: Look,
}

/// What a step does.
pub type Look = fn(&mut Stage, Tell) -> Result<String>;

/// Takes what there is to tell while a step lasts.
pub type Tell<'a> = &'a dyn Fn(&str);

/// In the order of the demo.
pub const STEPS: [Step; 9] = [
    Step {
        id: "capture",
        title: "traffic is carried under identities",
        promised: "curl, Redis and gRPC reach their servers by Service name or cluster IP, and both agents know both \
                   ends by SPIFFE id",
        run: capture::run,
    },
    Step {
        id: "encrypted",
        title: "what crosses between the nodes is encrypted",
        promised: "the marker that a request carries is not found on the wire, and the same search found it while \
                   there was no mesh",
        run: encrypted::run,
    },
    Step {
        id: "source-address",
        title: "the application sees its real client",
        promised: "nginx logs the client pod's own IP",
        run: source_address::run,
    },
    Step {
        id: "deny",
        title: "a policy applied live cuts one caller off",
        promised: "within a second the ledger's open Redis session breaks and new ones fail; the shop's goes on",
        run: deny::run,
    },
    Step {
        id: "strict",
        title: "plaintext is refused where the policy says so",
        promised: "under STRICT the outsider is refused and the shop is served; under PERMISSIVE both are served",
        run: strict::run,
    },
    Step {
        id: "rotate",
        title: "certificates rotate under traffic",
        promised: "every certificate is replaced while requests run, and no request fails",
        run: rotate::run,
    },
    Step {
        id: "crash",
        title: "an agent that is killed lets nothing past",
        promised: "without its agent a pod's new connections are refused at once, nothing crosses in plaintext and \
                   nothing reaches the application; with the agent back, requests are served",
        run: crash::run,
    },
    Step {
        id: "unenrol",
        title: "taking the label away gives plain networking back",
        promised: "with the label gone requests cross in plain; with the label back they are encrypted again",
        run: unenrol::run,
    },
    Step {
        id: "cost",
        title: "what it costs",
        promised: "a table of latency and throughput with and without the mesh",
        run: cost::run,
    },
];

/// A step by its id.
pub fn by_id(id: &str) -> Result<&'static Step> {
    let ids: Vec<&str> = STEPS.iter().map(|step| step.id).collect();
    STEPS.iter().find(|step| step.id == id).with_context(|| format!("no step {id}; there are {}", ids.join(", ")))
}
