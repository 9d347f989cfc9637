use anyhow::{Result, ensure};

use crate::demo::stage::{Stage, marker};
use crate::demo::steps::{PATIENCE, Tell};
use crate::testbed::eventually;

pub fn run(stage: &mut Stage, tell: Tell) -> Result<String> {
    tell("taking the label off the namespace");
    stage.label_namespace(false)?;
    let plain = eventually(PATIENCE, "requests to cross in plain", || {
        let hits = marker_hits(stage)?;
        Ok((hits > 0).then_some(hits))
    });
    tell("putting it back");
    stage.label_namespace(true)?;
    let encrypted = eventually(PATIENCE, "requests to be encrypted again", || {
        let hits = marker_hits(stage)?;
        Ok((hits == 0).then_some(()))
    });
    let plain = plain?;
    encrypted?;
    stage.check_agents()?;
    Ok(format!("label gone: served, {plain} packets carry the marker\nlabel back: served, none does"))
}

/// How many packets carry the marker of one request, which must be served.
fn marker_hits(stage: &mut Stage) -> Result<usize> {
    let marker = marker("unenrol")?;
    let (answer, packets) = stage.record(|stage| stage.marked_request("shop", &marker))?;
    let answer = answer?;
    ensure!(answer.ok(), "the request failed: {answer}");
    Ok(packets.containing(&marker))
}
