//! The container runtime's part: starts the mesh's plugin with environment and configuration, as the specification says.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::node::Node;
use super::pod::Pod;
use crate::build;

/// What a plugin said.
#[derive(Debug)]
pub struct Said {
    /// Whether it says that it is done.
    pub ok: bool,
    /// What it wrote, as JSON; null if nothing.
    pub result: Value,
    /// How long it took.
    pub took: Duration,
}

pub(super) fn call(node: &Node, pod: &Pod, command: &str, socket: &Path, dir: &Path) -> Result<Said> {
    let ips = pod.spec.families.iter().map(|family| {
        let length = if pod.ips.ip(*family).is_ipv4() { 32 } else { 128 };
        json!({"address": format!("{}/{length}", pod.ips.ip(*family)), "interface": 1})
    });
    let netns = pod.netns.path();
    let config = json!({
        "cniVersion": "1.0.0",
        "name": "testbed",
        "type": "nodemesh-cni",
        "socket": socket,
        "prevResult": {
            "cniVersion": "1.0.0",
            "interfaces": [{"name": pod.host_end}, {"name": "eth0", "sandbox": netns}],
            "ips": ips.collect::<Vec<_>>(),
        },
    });
    let input = dir.join(format!("cni-{}.json", pod.spec.name));
    fs::write(&input, serde_json::to_vec(&config)?)?;
    let (agent, uid) = (build::agent_binary()?, &pod.uid);
    let (namespace, name) = (&pod.spec.namespace, &pod.spec.name);
    let script = format!(
        "export CNI_COMMAND={command} CNI_CONTAINERID={uid}-1 CNI_NETNS={} CNI_IFNAME=eth0 CNI_PATH=/opt/cni/bin
         export 'CNI_ARGS=IgnoreUnknown=1;K8S_POD_NAMESPACE={namespace};K8S_POD_NAME={name};K8S_POD_UID={uid}'
         exec {} < {}",
        netns.display(),
        agent.display(),
        input.display(),
    );
    let started = Instant::now();
    let said = node.place_in("runtime")?.run(&["sh", "-c", &script], Duration::from_secs(60))?;
    let took = started.elapsed();
    let result = if said.stdout.trim().is_empty() {
        Value::Null
    } else {
        serde_json::from_str(&said.stdout).with_context(|| format!("the plugin: {said}"))?
    };
    Ok(Said { ok: said.ok(), result, took })
}
