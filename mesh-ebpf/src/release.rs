//! cgroup/sock_release: records go with the socket that they were for.

use mesh_common::outcome::Outcome;
use mesh_common::record::SourceKey;

use crate::ctx::ReleaseContext;
use crate::dials;
use crate::maps::CLIENTS;

const SYN_SENT: u32 = 2;
const CLOSE: u32 = 7;
const CLOSE_WAIT: u32 = 8;

#[inline(always)]
pub fn release(socket: &ReleaseContext<'_>) -> Outcome {
    let remote = socket.remote();
    if remote.is_agent_source() {
        let key = SourceKey::new(socket.netns_cookie(), remote);
        return if CLIENTS.remove(key).is_ok() { Outcome::ReleaseClient } else { Outcome::ReleaseOther };
    }
    let state = socket.state();
    // An established connection's record stays for the agent: connect, write, close still resolves. After the agent's
    // FIN it is of no use to it, whether it closed its end or died.
    if state != SYN_SENT && state != CLOSE && state != CLOSE_WAIT {
        return Outcome::ReleaseOther;
    }
    let Some(key) = socket.dialled().and_then(|dialled| dialled.key()) else {
        return Outcome::ReleaseOther;
    };
    if dials::remove(key) { Outcome::ReleaseDial } else { Outcome::ReleaseOther }
}
