//! Race-free enrolment: a plugin in the chain of the node's container network (CNI) that lets a pod's sandbox finish only
//! when the pod's capture is in place.
//!
//! ```text
//! kubelet ─► containerd ─► ptp, calico, … ─► nodemesh-cni ──unix socket──► agent ─► sandboxes ─► discovery, capture
//!                                                │ the agent does not answer
//!                                                └──► API server: is the pod labelled at all?
//! ```
//!
//! `plugin` is what the container runtime starts for each pod, with `spec` for its words; `desk` is where the agent answers
//! it; `install` puts the plugin into the node's configuration, `chain` says what that changes, `wanted` whether it
//! is to stay there. It does not enrol: it waits
//! for capture, which does.

pub mod chain;
pub mod desk;
pub mod install;
pub mod plugin;
pub mod wanted;

mod ask;
mod notes;
mod spec;

use crate::limit::{Limit, limits};

/// The plugin's type, which is the name of its binary.
pub const TYPE: &str = "nodemesh-cni";
/// Where the agent answers the plugin, unless told otherwise.
pub const SOCKET: &str = "/run/nodemesh/cni/cni.sock";

/// The bounds of this room.
pub fn limits() -> Vec<Limit> {
    limits![
        ask::MAX_MESSAGE, "bytes", "a question is some hundreds";
        ask::SAY, "milliseconds", "for the plugin's question, and for the answer to be taken";
        desk::PATIENCE, "milliseconds", "for a pod of the mesh to be captured; kubelet gives a sandbox two minutes";
        desk::ACQUAINTANCE, "milliseconds", "for a pod to be heard of from the API server";
        desk::AT_ONCE, "questions", "that are answered at once; more wait";
        plugin::ANSWER, "milliseconds", "that the plugin waits for the agent, a little longer than that takes";
        plugin::API, "milliseconds", "that the plugin waits for the API server where no agent answers";
        plugin::FAREWELL, "milliseconds", "that the plugin takes to tell of a sandbox's end";
        spec::MAX_CONFIG, "bytes of a network's configuration", "some kilobytes are usual";
        install::LOOK_EVERY, "milliseconds", "between two looks at whether another has rewritten the configuration";
    ]
}
