//! The end of the agent, in steps that lose no connection where a newer agent takes over.
//!
//! ```text
//! told to end ──► serving on ──a newer agent is ready──► handed over ──SYN_ACK_WINDOW──► closed ──► end
//!                  │    ▲                                    │
//!                  │    └────────the newer agent died────────┘
//!                  └──no connection is left, and no newer agent is there──► end
//! ```
//! With no newer agent it serves new connections as well, until the window is over: available for as long as it may be.
//! The window and a second signal end it from every state; what is left then is cut and counted.

use std::time::Duration;

use super::{Agent, Signals};
use crate::capture::Standing;

/// How often the drain looks whether the last connection has ended.
pub(super) const POLL: Duration = Duration::from_millis(100);

/// How long this agent accepts on its listeners after those of a newer agent were put in their place. What began a
/// handshake with them belongs to them: Linux repeats a SYN-ACK five times (tcp_synack_retries), at 1, 3, 7, 15 and 31
/// seconds, and gives the connection up after 63.
pub(super) const SYN_ACK_WINDOW: Duration = Duration::from_secs(64);

/// After the drain window: time for resets and access log lines to leave.
pub(super) const FAREWELL: Duration = Duration::from_millis(300);

/// How long pods have to be let go where the mesh leaves the node: routes go a second after the listeners, for
/// connections that were on their way.
pub(super) const RELEASE: Duration = Duration::from_secs(4);

/// Returns when the agent is told to end by POST /drain.
pub(super) async fn asked(agent: &Agent) {
    agent.drain.token().started().await;
}

/// Lets live connections end until the window is over, then cuts the rest. Where the mesh leaves the node with this agent,
/// no pod is captured any more.
pub(super) async fn drain(agent: &Agent, leaves: bool, signals: &mut Signals) {
    let window = agent.config.proxy.drain_window;
    agent.drain.start();
    agent.readiness.waiting("drain", "the agent is draining");
    tracing::info!(?window, live = agent.proxy.live(), "draining; a second signal ends at once");
    let ended = async {
        if leaves {
            tokio::time::sleep(RELEASE).await;
        }
        finish(agent, window).await;
    };
    tokio::select! {
        () = ended => tracing::info!("drained: every connection has ended"),
        () = tokio::time::sleep(window) => tracing::warn!(live = agent.proxy.live(), "the drain window is over"),
        () = signals.any() => tracing::warn!(live = agent.proxy.live(), "a second signal: not waiting any longer"),
    }
    close(agent);
    agent.proxy.cut_all();
    agent.end.start();
    tokio::time::sleep(FAREWELL).await;
}

/// Returns when every connection has ended and no new one can come.
async fn finish(agent: &Agent, window: Duration) {
    // A short window leaves its second half to the connections that come last.
    let accept_on = SYN_ACK_WINDOW.min(window / 2);
    let mut standing = agent.standing.clone();
    loop {
        tokio::select! {
            _ = standing.wait_for(|standing| standing.is_handed_over()) => {}
            () = all_ended_alone(agent) => return,
        }
        tracing::info!(accept_on = ?accept_on, "a newer agent is ready: peers are told, and listeners close later");
        agent.handed_over.start();
        tokio::select! {
            () = tokio::time::sleep(accept_on) => break,
            _ = standing.wait_for(|standing| !standing.is_handed_over()) => agent.handed_over.withdraw(),
        }
    }
    close(agent);
    all_ended(agent).await;
}

/// Accepts nothing more; this agent's listeners leave the kernel's map where they still are in it.
fn close(agent: &Agent) {
    agent.closing.start();
    agent.proxy.stop_listening();
}

async fn all_ended(agent: &Agent) {
    while agent.proxy.live() > 0 {
        tokio::time::sleep(POLL).await;
    }
}

/// As [`all_ended`], at a moment when no newer agent is there that may still be starting.
async fn all_ended_alone(agent: &Agent) {
    loop {
        all_ended(agent).await;
        if *agent.standing.borrow() == Standing::Owner {
            return;
        }
        tokio::time::sleep(POLL).await;
    }
}
