//! A node by itself: no controller, the agent is its own authority.

use anyhow::{Result, ensure};

use crate::support::{ENABLED, Kube, in_cluster};

/// Identities are proved by certificates on one node too.
const ENCRYPTED: &str = "{apiVersion: nodemesh.dev/v1alpha1, kind: PeerAuthentication, metadata: {name: strict}, \
                         spec: {targetRefs: [{kind: Namespace}], mode: STRICT, sameNode: Encrypt}}";

#[test]
fn a_node_needs_no_controller() {
    in_cluster("a_node_needs_no_controller", |kube| {
        kube.spoil();
        kube.kubectl(&["-n", "nodemesh-system", "delete", "deployment", "nodemesh-controller"])?;
        kube.install("overlays/standalone")?;
        kube.spoil();
        let tested = run(kube);
        for node in ["n1", "n2"] {
            kube.on_node(node, "rm -rf /var/lib/nodemesh")?;
        }
        tested
    });
}

fn run(kube: &Kube) -> Result<()> {
    let namespace = kube.namespace("alone", ENABLED)?;
    namespace.web("web", "n1")?;
    namespace.client("near", "n1")?;
    namespace.client("far", "n2")?;
    namespace.wait_ready()?;
    namespace.apply(ENCRYPTED)?;
    let strangers = kube.strangers("alone-strangers")?;
    strangers.eventually_refuses("stranger", "http://web.alone/")?;
    namespace.eventually_answers("near", "http://web/", "web to ")?;
    kube.eventually_logs("n1", &["spiffe://cluster.local/ns/alone/sa/near", "tunnel"])?;
    // Another node has another authority.
    namespace.eventually_refuses("far", "http://web/")?;
    let controllers = kube.kubectl(&["-n", "nodemesh-system", "get", "deployments", "-o", "name"])?;
    ensure!(controllers.is_empty(), "{controllers} is there");
    let mode = kube.on_node("n1", "stat -c %a /var/lib/nodemesh/ca/root.pem")?;
    ensure!(mode == "600", "the root's key is there for others: {mode:?}");
    Ok(())
}
