use anyhow::{Context, Result, ensure};

use crate::demo::stage::{Stage, TUNNEL_PORT, marker};
use crate::demo::steps::{PATIENCE, Tell};
use crate::testbed::eventually;

pub fn run(stage: &mut Stage, tell: Tell) -> Result<String> {
    let mut seen = Vec::new();
    for (node, side) in [("n1", "the caller's agent"), ("n2", "the server's agent")] {
        tell(&format!("kill -9 of {side}"));
        stage.bed.agent_mut(node).kill()?;
        let outcome = without_agent(stage);
        tell(&format!("starting {side} again"));
        stage.bed.start_agent(node, &stage.agents)?;
        let refused = outcome.with_context(|| format!("without {side}"))?;
        eventually(PATIENCE, "requests to be served again", || {
            Ok(stage.curl("shop", &["http://web.demo/"])?.ok().then_some(()))
        })
        .with_context(|| format!("with {side} back"))?;
        seen.push(format!("without {side}: {refused}; with it back: served"));
    }
    Ok(seen.join("\n"))
}

/// Two callers try while an agent is dead; none may get through, and nothing may cross in plaintext.
fn without_agent(stage: &mut Stage) -> Result<String> {
    let marker = marker("crash")?;
    let (answers, packets) = stage.record(|stage| {
        let by_service = stage.curl("shop", &[&format!("http://web.demo/?{marker}")]);
        let by_ip = stage.marked_request("shop", &marker);
        [by_service, by_ip]
    })?;
    let mut said = String::new();
    for answer in answers {
        let answer = answer?;
        ensure!(!answer.ok(), "a request was served: {answer}");
        ensure!(answer.status.and_then(|status| status.code()) != Some(28), "curl hung instead of being refused");
        said = answer.stderr.trim().to_string();
    }
    ensure!(packets.containing(&marker) == 0, "the marker crossed in plaintext");
    let (shop, web) = (stage.bed.pod("shop").ips.ip(stage.family), stage.bed.pod("web").ips.ip(stage.family));
    let plain = packets.tcp_between(shop, web).iter().filter(|packet| !packet.has_port(TUNNEL_PORT)).count();
    ensure!(plain == 0, "{plain} packets crossed outside the tunnel");
    let reached = stage.web_requests()?.iter().filter(|line| line.contains(&marker)).count();
    ensure!(reached == 0, "{reached} requests reached nginx");
    Ok(format!("refused ({said}), nothing in plaintext, nothing reached nginx"))
}
