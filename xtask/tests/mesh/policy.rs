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

/// Everybody may read the front page, and nothing else.
fn readers(path: &str) -> String {
    format!(
        "apiVersion: nodemesh.dev/v1alpha1
kind: AuthorizationPolicy
metadata: {{name: readers, namespace: pair}}
spec:
  targetRefs: [{{kind: Service, name: server}}]
  action: ALLOW
  rules: [{{sources: [{{type: Any}}], requests: [{{methods: [GET], paths: ['{path}']}}]}}]
"
    )
}

/// By the Service, where the caller's agent reads requests too, and by the pod's address, where it does not; from the
/// other node, from the same one, and from outside of the mesh.
#[test]
fn requests_are_judged_wherever_they_come_from() -> Result<()> {
    let Some(mut pair) = meshed("requests meet policy")? else { return Ok(()) };
    if !pair.with_mesh {
        return Ok(());
    }
    pair.bed.add_namespace("outside", &[])?;
    pair.bed.add_pod(PodSpec::new("pair", "neighbour", "n2"))?;
    pair.bed.add_pod(PodSpec::new("outside", "stranger", "n1"))?;
    let log = start_nginx(pair.bed.pod("server"))?;
    pair.served()?;
    pair.bed.world.apply("readers", &readers("/"))?;
    let url = format!("http://{}/big", pair.server(Family::V4, 80));
    let mut served = 0;
    eventually(PATIENCE, "the policy to hold", || {
        let seen = status(&pair, "client", &[&url])?;
        served += usize::from(seen == "200");
        Ok((seen == "403").then_some(()))
    })
    .map_err(|error| pair.bed.explain(error))?;
    // nginx logs what it has answered: the last before the policy may not have its line yet.
    let before = eventually(PATIENCE, "nginx to have logged what it served", || {
        let text = std::fs::read_to_string(&log)?;
        Ok((text.matches("GET /big ").count() >= served).then_some(text.len()))
    })?;
    for family in Family::BOTH {
        let (by_service, by_pod) = (pair.server(family, 80), pair.bed.pod("server").ips.socket(family, 80));
        for (caller, address) in [
            ("client", by_service),
            ("client", by_pod),
            ("neighbour", by_service),
            ("neighbour", by_pod),
            ("stranger", by_pod),
        ] {
            for (arguments, expected) in [
                (vec!["/"], "200"),
                (vec!["/big"], "403"),
                (vec!["-X", "POST", "/"], "403"),
                (vec!["--path-as-is", "//big"], "403"),
                (vec!["--path-as-is", "/x/../big"], "403"),
                (vec!["--path-as-is", "/%62ig"], "403"),
                (vec!["--path-as-is", "/x/..%2fbig"], "400"),
                (vec!["--path-as-is", "/..;/big"], "400"),
                (vec!["-H", "X-HTTP-Method-Override: DELETE", "/"], "403"),
            ] {
                let (path, options) = arguments.split_last().context("a path")?;
                let url = format!("http://{address}{path}");
                let seen = status(&pair, caller, &[options, &[&url]].concat())?;
                ensure!(seen == expected, "{caller} to {url} {options:?}: {seen:?}, not {expected}");
            }
        }
    }
    let served = std::fs::read_to_string(&log)?.split_off(before);
    ensure!(!served.contains("big") && !served.contains("POST"), "nginx heard of what was refused:\n{served}");
    let told = |line: &serde_json::Value| line["policy"] == "pair/readers" && line["result"] == "denied";
    eventually(PATIENCE, "a refusal in the access log", || {
        Ok(pair.bed.agent("n2").access_log().iter().any(told).then_some(()))
    })
    .map_err(|error| pair.bed.explain(error))?;
    pair.bed.world.apply("readers", &readers("/b*"))?;
    eventually(PATIENCE, "the change to hold", || Ok((status(&pair, "client", &[&url])? == "200").then_some(())))
        .map_err(|error| pair.bed.explain(error))
}

/// The status that curl sees, or what it says.
fn status(pair: &Pair, caller: &str, arguments: &[&str]) -> Result<String> {
    let curl = ["curl", "-s", "-o", "/dev/null", "-w", "%{http_code}", "--max-time", "30"];
    Ok(pair.bed.pod(caller).run(&[&curl[..], arguments].concat(), Duration::from_secs(40))?.stdout)
}
