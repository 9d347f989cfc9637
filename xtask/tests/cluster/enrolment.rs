//! Joining the mesh by a label, leaving it, being seen to be in it.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use xtask::cluster::{control, layout};
use xtask::testbed::{Packets, Recording};

use crate::support::{Namespace, STRICT, in_cluster};

/// What the wire between the nodes carries while a pod calls another.
fn wire(namespace: &Namespace<'_>, name: &str) -> Result<(String, Packets)> {
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
        // The cluster's own DNS and kube-proxy hear of a Service a moment after its pod is ready.
        namespace.eventually_answers("shop", "http://web/", "web to ")?;
        let (answer, packets) = wire(&namespace, "plain")?;
        ensure!(answer.starts_with("web to "), "{answer}");
        ensure!(packets.containing("web to ") > 0, "with no mesh the answer can be read on the wire");

        let begun = Instant::now();
        kube.kubectl(&["label", "namespace", "joins", "nodemesh.dev/mesh=enabled"])?;
        let labelled = begun.elapsed();
        // Nobody is restarted; both are captured when strictness no longer harms and a stranger is refused.
        namespace.apply(STRICT)?;
        namespace.eventually_answers("shop", "http://web/", "web to ")?;
        let strangers = kube.strangers("strangers")?;
        strangers.eventually_refuses("stranger", "http://web.joins/")?;
        // That answer may be from before all this, and the caller's node may hear of it later than the server's.
        namespace.eventually_answers("shop", "http://web/", "web to ")?;
        let (answer, packets) = wire(&namespace, "meshed")?;
        ensure!(answer.starts_with("web to 10.244."), "the application sees its client's address: {answer}");
        ensure!(packets.containing("web to ") == 0, "the answer can be read on the wire");
        ensure!(packets.tcp().iter().any(|packet| packet.has_port(15008)), "no tunnel was seen");
        kube.eventually_logs("n1", &["spiffe://cluster.local/ns/joins/sa/shop"])?;
        eprintln!("the label was written in {labelled:?}");

        kube.kubectl(&["label", "namespace", "joins", "nodemesh.dev/mesh-"])?;
        strangers.eventually_answers("stranger", "http://web.joins/", "web to ")?;
        Ok(())
    });
}

#[test]
fn a_pod_that_is_labelled_is_meshed_at_once() {
    in_cluster("a_pod_that_is_labelled_is_meshed_at_once", |kube| {
        let _namespace = kube.shop("labelled", &[])?;
        let strangers = kube.strangers("labelled-later")?;
        strangers.eventually_refuses("stranger", "http://web.labelled/")?;
        // Both are under way when the label is written: starting kubectl takes longer than joining.
        let call = "timeout 90 sh -c 'until curl -fsS --max-time 2 -o /dev/null http://web.labelled/; do :; done' 2>&1";
        let captured = ["wait", "--for=condition=nodemesh.dev/Captured", "pod/stranger", "--timeout=90s"];
        let [called, said] = std::thread::scope(|scope| {
            let called = scope.spawn(|| (strangers.run("stranger", &["sh", "-c", call]), Instant::now()));
            let said = scope.spawn(|| (strangers.kubectl(&captured), Instant::now()));
            std::thread::sleep(Duration::from_secs(2));
            let begun = Instant::now();
            strangers.kubectl(&["label", "pod", "stranger", "nodemesh.dev/mesh=enabled"])?;
            let (call, called) = called.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            let (wait, said) = said.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            let (ok, answer) = call?;
            ensure!(ok && called > begun, "the pod that was labelled is not let in: {answer}");
            wait?;
            Ok([called - begun, said - begun])
        })?;
        eprintln!("from the label to a connection with an identity {called:.2?}, to the pod's condition {said:.2?}");
        Ok(())
    });
}
