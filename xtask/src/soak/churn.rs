//! What comes and goes while others talk: pods, members of the mesh, endpoints, policies, certificates.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::stage::{BULK, ECHO, NAMESPACE, Stage};
use crate::testbed::{Family, PodSpec, eventually};

const PATIENCE: Duration = Duration::from_secs(30);

/// The label that puts a pod into the mesh or, as "disabled", keeps it out.
const MESH_LABEL: &str = "nodemesh.dev/mesh";

/// At most so many pods are made: a node has 253 addresses, and none is used twice.
const PODS: u32 = 200;

/// One change after another, round and round.
pub struct Churn {
    steps: Vec<Step>,
    next: usize,
    done: BTreeMap<&'static str, u64>,
    /// The least time between two.
    pause: Duration,
    last: Option<Instant>,
}

#[derive(Clone, Copy)]
struct Step {
    name: &'static str,
    run: fn(&mut Stage, u64) -> Result<()>,
}

const STEPS: [Step; 6] = [
    Step { name: "pod re-created", run: pod },
    Step { name: "pod left and joined", run: membership },
    Step { name: "endpoints changed", run: endpoints },
    Step { name: "policy changed", run: policy },
    Step { name: "certificates rotated", run: rotation },
    Step { name: "gigabyte moved", run: gigabyte },
];

impl Churn {
    /// For so much time.
    pub fn new(time: Duration) -> Self {
        let pause = (time / PODS / STEPS.len() as u32).max(Duration::from_secs(2));
        Self { steps: STEPS.to_vec(), next: 0, done: BTreeMap::new(), pause, last: None }
    }

    /// Makes the next change and sees it work.
    pub fn step(&mut self, stage: &mut Stage) -> Result<()> {
        if let Some(last) = self.last {
            std::thread::sleep(self.pause.saturating_sub(last.elapsed()));
        }
        let Step { name, run } = self.steps[self.next % self.steps.len()];
        self.next += 1;
        let number = self.done.entry(name).or_default();
        let result = run(stage, *number).map_err(|error| stage.bed.explain(error));
        *number += 1;
        self.last = Some(Instant::now());
        result
    }

    /// What the last one was, for a failure.
    pub fn last_step(&self) -> String {
        let name = self.steps[(self.next + self.steps.len() - 1) % self.steps.len()].name;
        format!("change number {}, \"{name}\"", self.next)
    }

    /// How many there were.
    pub fn summary(&self) -> String {
        format!("{} changes", self.done.values().sum::<u64>())
    }

    /// How many there were of each.
    pub fn json(&self) -> Value {
        json!(self.done)
    }
}

/// A pod comes, calls and is called, and goes.
fn pod(stage: &mut Stage, number: u64) -> Result<()> {
    let node = if number.is_multiple_of(2) { "n1" } else { "n2" };
    stage.passers += 1;
    let name = format!("passer-{}", stage.passers);
    stage.bed.add_pod(PodSpec::new(NAMESPACE, &name, node))?;
    stage.serve_echo(&name)?;
    for family in Family::BOTH {
        let servers = stage.bed.service("servers").socket(family, ECHO);
        let own = stage.bed.pod(&name).ips.socket(family, ECHO);
        eventually(PATIENCE, "the new pod to call", || stage.exchange(&name, servers).map(Some))?;
        eventually(PATIENCE, "the new pod to be called", || stage.exchange("returner", own).map(Some))?;
    }
    stage.bed.remove_pod(&name)
}

/// A running pod leaves the mesh and joins it again, with a connection that is older than its joining.
fn membership(stage: &mut Stage, _: u64) -> Result<()> {
    let said = |stage: &Stage, what: &str| stage.bed.agent("n1").log().matches(what).count();
    let left = said(stage, "\"left the mesh\"");
    stage.bed.label_pod("guest", MESH_LABEL, Some("disabled"))?;
    eventually(PATIENCE, "the guest to leave", || Ok((said(stage, "\"left the mesh\"") > left).then_some(())))?;
    let server = stage.bed.pod("servers").ips.socket(Family::V4, ECHO).to_string();
    let mut old = stage.bed.pod("guest").spawn_probe("old", &["session", &server])?;
    eventually(PATIENCE, "the old connection", || {
        old.check_running()?;
        Ok(old.log().contains("rounds").then_some(()))
    })?;
    let joined = said(stage, "\"enrolled\"");
    stage.bed.label_pod("guest", MESH_LABEL, None)?;
    eventually(PATIENCE, "the guest to join", || Ok((said(stage, "\"enrolled\"") > joined).then_some(())))?;
    let service = stage.bed.service("servers").socket(Family::V6, ECHO);
    eventually(PATIENCE, "the guest to be served", || stage.exchange("guest", service).map(Some))?;
    old.check_running().context("a connection older than enrolment")?;
    old.kill()
}

/// A Service's cluster IPs beyond those that the testbed gives.
const SHIFTING: [&str; 2] = ["10.96.0.250", "fd00:10:96::fa"];

/// A Service changes its endpoint while it is called; every connection is served by the old or the new one.
fn endpoints(stage: &mut Stage, number: u64) -> Result<()> {
    let behind = stage.bed.pod(if number.is_multiple_of(2) { "servers" } else { "second" });
    let mut yaml = format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: shifting, namespace: {NAMESPACE}}}\n\
         spec: {{type: ClusterIP, clusterIP: '{}', clusterIPs: ['{}', '{}'], ipFamilies: [IPv4, IPv6],\n  \
         ipFamilyPolicy: RequireDualStack, ports: [{{port: {ECHO}, targetPort: {ECHO}, protocol: TCP}}]}}\n",
        SHIFTING[0], SHIFTING[0], SHIFTING[1]
    );
    for family in Family::BOTH {
        yaml.push_str(&format!(
            "---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\naddressType: {family}\n\
             metadata: {{name: shifting-{}, namespace: {NAMESPACE}, labels: {{kubernetes.io/service-name: shifting}}}}\n\
             ports: [{{port: {ECHO}, protocol: TCP}}]\nendpoints:\n  - addresses: ['{}']\n    \
             conditions: {{ready: true, serving: true, terminating: false}}\n    nodeName: n2\n    \
             targetRef: {{kind: Pod, name: {}, namespace: {NAMESPACE}, uid: {}}}\n",
            family.to_string().to_lowercase(),
            behind.ips.ip(family),
            behind.spec.name,
            behind.uid
        ));
    }
    stage.bed.world.apply("shifting", &yaml)?;
    for ip in SHIFTING {
        let address = SocketAddr::new(ip.parse()?, ECHO);
        eventually(PATIENCE, "the Service to be known", || stage.exchange("caller", address).map(Some))?;
        let arguments = ["short", &address.to_string(), "--connections=100", "--at-once=4"];
        stage.bed.pod("caller").probe(&arguments)?.expect_ok("connections to endpoints that change")?;
    }
    Ok(())
}

/// A policy cuts the guest off and lets it in again; everyone else is judged anew and goes on.
fn policy(stage: &mut Stage, _: u64) -> Result<()> {
    let deny = format!(
        "apiVersion: nodemesh.dev/v1alpha1\nkind: AuthorizationPolicy\nmetadata: {{name: no-guest, namespace: {NAMESPACE}}}\n\
         spec:\n  targetRefs: [{{kind: Pod, selector: {{matchLabels: {{app: servers}}}}}}]\n  action: DENY\n  \
         rules: [{{sources: [{{type: ServiceAccount, serviceAccount: {{name: guest}}}}]}}]\n"
    );
    let address = stage.bed.service("servers").socket(Family::V4, ECHO);
    stage.bed.world.apply("no-guest", &deny)?;
    eventually(PATIENCE, "the guest to be refused", || {
        let script = ["connect", &address.to_string(), "send:word", "read:4"];
        Ok((!stage.bed.pod("guest").probe(&script)?.ok()).then_some(()))
    })?;
    stage.bed.world.delete("no-guest")?;
    eventually(PATIENCE, "the guest to be served again", || stage.exchange("guest", address).map(Some))
}

fn rotation(stage: &mut Stage, _: u64) -> Result<()> {
    for agent in stage.bed.agents() {
        agent.post("/rotate")?;
    }
    Ok(())
}

/// Half a gigabyte each way as fast as can be.
fn gigabyte(stage: &mut Stage, number: u64) -> Result<()> {
    let family = Family::BOTH[number as usize % 2];
    let address = stage.bed.service("servers").socket(family, BULK).to_string();
    let arguments = ["bulk", &address, "--streams=4", "--up=134217728", "--down=134217728"];
    let said = stage.bed.pod("caller").probe_for(&arguments, Duration::from_secs(240))?.expect_ok("a gigabyte")?;
    ensure!(said.contains("\"failed\":0"), "{said}");
    Ok(())
}
