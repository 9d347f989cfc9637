//! What the mesh rests on goes away.

use std::time::Duration;

use anyhow::ensure;
use xtask::cluster::{self, control};

use crate::support::{PATIENCE, in_cluster};

#[test]
fn traffic_does_not_need_the_api_server() {
    in_cluster("traffic_does_not_need_the_api_server", |kube| {
        let namespace = kube.shop("islands", &[("shop", "n2")])?;
        // A load that needs no one: kubectl's stream ends with the API server.
        let script = "(good=0; bad=0; end=$(($(date +%s)+75)); while [ $(date +%s) -lt $end ]; do \
                      if curl -sS --max-time 10 -o /dev/null http://web/ 2>>/tmp/said; then good=$((good+1)); \
                      else bad=$((bad+1)); fi; done; echo good $good bad $bad > /tmp/counted) > /dev/null 2>&1 &";
        let (ok, said) = namespace.run("shop", &["sh", "-c", script])?;
        ensure!(ok, "{said}");
        control::kill("kube-apiserver")?;
        std::thread::sleep(Duration::from_secs(60));
        control::start_api_server(&kube.parts)?;
        control::wait_ready(&kube.parts)?;
        let counted = xtask::testbed::eventually(PATIENCE, "the load to end", || {
            let (ok, said) = namespace.run("shop", &["cat", "/tmp/counted"])?;
            // The file is there a moment before the line is in it.
            Ok((ok && said.contains("bad")).then_some(said))
        })?;
        eprintln!("without the API server for a minute: {}", counted.trim());
        let (_, said) = namespace.run("shop", &["cat", "/tmp/said"])?;
        ensure!(counted.contains(" bad 0"), "{counted}: {said}");
        // What changes afterwards is seen again.
        namespace.client("late", "n2")?;
        namespace.wait_ready()?;
        namespace.eventually_answers("late", "http://web/", "web to ")
    });
}

#[test]
fn a_node_that_lost_its_power_comes_back_enrolled() {
    in_cluster("a_node_that_lost_its_power_comes_back_enrolled", |kube| {
        let namespace = kube.shop("reboots", &[("shop", "n2")])?;
        let strangers = kube.strangers("reboots-strangers")?;
        strangers.eventually_refuses("stranger", "http://web.reboots/")?;
        cluster::reboot("n1", &kube.parts, &cluster::Options::default(), Duration::from_secs(2))?;
        // From the first moment that it answers anybody it refuses a stranger.
        let mut refused = 0;
        let answered = loop {
            ensure!(refused < 600, "{} was not reached again", "http://web.reboots/");
            let (_, said) = strangers.run("stranger", &["curl", "-sS", "--max-time", "2", "http://web.reboots/"])?;
            ensure!(!said.contains("web to "), "a stranger was let in: {said}");
            refused += 1;
            let (ok, _) = namespace.run("shop", &["curl", "-sS", "--max-time", "2", "http://web/"])?;
            if ok {
                break refused;
            }
        };
        eprintln!("a stranger was refused {answered} times until the node was back");
        strangers.eventually_refuses("stranger", "http://web.reboots/")
    });
}
