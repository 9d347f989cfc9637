use anyhow::{Context, Result};

use crate::demo::stage::Stage;
use crate::demo::steps::{PATIENCE, Tell};
use crate::testbed::eventually;

const POLICY: &str = "policy-peer-authentication";

pub fn run(stage: &mut Stage, tell: Tell) -> Result<String> {
    tell("STRICT");
    stage.bed.world.apply(POLICY, include_str!("../policies/strict.yaml"))?;
    let refused = eventually(PATIENCE, "the outsider to be refused", || {
        let answer = request(stage, "outsider")?;
        Ok((!answer.ok()).then(|| answer.to_string()))
    });
    let shop = request(stage, "shop")?;

    tell("PERMISSIVE");
    stage.bed.world.apply(POLICY, include_str!("../policies/permissive.yaml"))?;
    let accepted =
        eventually(PATIENCE, "the outsider to be served", || Ok(request(stage, "outsider")?.ok().then_some(())));
    let shop_still = request(stage, "shop")?;
    stage.bed.world.delete(POLICY)?;

    let refused = refused.context("under STRICT")?;
    shop.expect_ok("the shop under STRICT")?;
    accepted.context("under PERMISSIVE")?;
    shop_still.expect_ok("the shop under PERMISSIVE")?;
    Ok(format!("STRICT: outsider refused ({refused}), shop served\nPERMISSIVE: both served"))
}

fn request(stage: &Stage, from: &str) -> Result<crate::testbed::Finished> {
    stage.curl(from, &[&format!("http://{}/", stage.pod_socket("web", 80))])
}
