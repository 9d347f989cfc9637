//! Policy where the wire could go round it.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use xtask::testbed::{Family, PodSpec, eventually, start_nginx};

use crate::pair::{Pair, meshed};

const PATIENCE: Duration = Duration::from_secs(30);

const PLAINTEXT_ONLY: &str = "apiVersion: nodemesh.dev/v1alpha1
kind: PeerAuthentication
metadata: {name: default, namespace: pair}
spec: {targetRefs: [{kind: Namespace}], mode: DISABLE}
";

const NOBODY: &str = "apiVersion: nodemesh.dev/v1alpha1
kind: AuthorizationPolicy
metadata: {name: nobody, namespace: pair}
spec: {targetRefs: [{kind: Namespace}], action: DENY, rules: [{sources: [{type: Any}]}]}
";

/// DISABLE makes the agents dial in plaintext. The dial of the caller's own agent is on file with the kernel when both
/// pods are on one node, and that must not carry it past the agent to the application.
#[test]
fn plaintext_from_a_meshed_pod_meets_policy() -> Result<()> {
    let Some(mut pair) = meshed("plaintext meets policy")? else { return Ok(()) };
    if !pair.with_mesh {
        return Ok(());
    }
    pair.bed.add_pod(PodSpec::new("pair", "neighbour", "n1"))?;
    start_nginx(pair.bed.pod("server"))?;
    start_nginx(pair.bed.pod("neighbour"))?;
    pair.bed.world.apply("plaintext-only", PLAINTEXT_ONLY)?;
    for name in ["neighbour", "server"] {
        eventually(PATIENCE, "plaintext to be served", || Ok(is_served(&pair, name)?.then_some(())))?;
    }
    pair.bed.world.apply("nobody", NOBODY)?;
    for name in ["server", "neighbour"] {
        let refused = eventually(PATIENCE, "plaintext to be refused", || Ok((!is_served(&pair, name)?).then_some(())));
        refused.with_context(|| format!("from client to {name}")).map_err(|error| pair.bed.explain(error))?;
        ensure!(!is_served(&pair, name)?, "{name} is served again");
    }
    Ok(())
}

fn is_served(pair: &Pair, name: &str) -> Result<bool> {
    let address = pair.bed.pod(name).ips.socket(Family::V4, 80);
    let curl = ["curl", "-sS", "--max-time", "3", &format!("http://{address}/")];
    Ok(pair.bed.pod("client").run(&curl, PATIENCE)?.ok())
}
