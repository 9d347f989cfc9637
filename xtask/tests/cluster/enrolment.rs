//! Joining the mesh by a label, leaving it, being seen to be in it.

use std::time::Instant;

use anyhow::{Result, ensure};
use xtask::cluster::{control, layout};
use xtask::testbed::{Packets, Recording};

use crate::support::{Kube, Namespace, in_cluster};

/// What the wire between the nodes carries while a pod calls another.
fn wire(kube: &Kube, namespace: &Namespace<'_>, name: &str) -> Result<(String, Packets)> {
    let _ = kube;
    let file = layout::run_dir().join(format!("{name}.pcap"));
    let recording = Recording::start(&control::place()?, "n1", &file)?;
    let answer = namespace.curl("shop", "http://web/")?;
    Ok((answer, recording.stop()?))
}

#[test]
fn a_label_is_all_it_takes() {
    in_cluster("a_label_is_all_it_takes", |kube| {
        let namespace = kube.namespace("joins", "")?;
        namespace.web("web", "n1")?;
        namespace.client("shop", "n2")?;
        namespace.wait_ready()?;
        let (answer, packets) = wire(kube, &namespace, "plain")?;
        ensure!(answer.starts_with("web to "), "{answer}");
        ensure!(packets.containing("web to ") > 0, "with no mesh the answer can be read on the wire");

        let begun = Instant::now();
        kube.kubectl(&["label", "namespace", "joins", "nodemesh.dev/mesh=enabled"])?;
        let labelled = begun.elapsed();
        // Nobody is restarted; both are captured when strictness no longer harms and a stranger is refused.
        namespace.apply(STRICT)?;
        namespace.eventually_answers("shop", "http://web/", "web to ")?;
        let strangers = kube.namespace("strangers", "")?;
        strangers.client("stranger", "n2")?;
        strangers.wait_ready()?;
        strangers.eventually_refuses("stranger", "http://web.joins/")?;
        let (answer, packets) = wire(kube, &namespace, "meshed")?;
        ensure!(answer.starts_with("web to 10.244."), "the application sees its client's address: {answer}");
        ensure!(packets.containing("web to ") == 0, "the answer can be read on the wire");
        ensure!(packets.tcp().iter().any(|packet| packet.has_port(15008)), "no tunnel was seen");
        let log = kube.agent_log("n1")?;
        ensure!(
            log.contains("spiffe://cluster.local/ns/joins/sa/shop"),
            "the callers's identity is in no line:\n{log}"
        );
        eprintln!("the label was written in {labelled:?}");

        kube.kubectl(&["label", "namespace", "joins", "nodemesh.dev/mesh-"])?;
        strangers.eventually_answers("stranger", "http://web.joins/", "web to ")?;
        Ok(())
    });
}

/// Nobody without an identity is let in.
pub const STRICT: &str = "{apiVersion: nodemesh.dev/v1alpha1, kind: PeerAuthentication, metadata: {name: strict}, \
                          spec: {mode: STRICT}}";
