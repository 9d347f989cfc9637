//! The mesh is replaced while it is used.

use anyhow::ensure;

use crate::support::in_cluster;

#[test]
fn no_connection_fails_while_the_agents_are_replaced() {
    in_cluster("no_connection_fails_while_the_agents_are_replaced", |kube| {
        let namespace = kube.shop("upgrades", &[("shop", "n2"), ("neighbour", "n1")])?;
        let before = [kube.agent("n1")?, kube.agent("n2")?];
        let loads = [namespace.load("shop", "http://web/")?, namespace.load("neighbour", "http://web/")?];
        kube.kubectl(&["-n", "nodemesh-system", "rollout", "restart", "daemonset/nodemesh-agent"])?;
        kube.kubectl(&["-n", "nodemesh-system", "rollout", "status", "daemonset/nodemesh-agent", "--timeout=300s"])?;
        // Past the moment in which the last of the old ones ends.
        std::thread::sleep(std::time::Duration::from_secs(5));
        ensure!(before != [kube.agent("n1")?, kube.agent("n2")?], "nothing was restarted");
        for load in loads {
            let counted = load.end(&namespace)?;
            eprintln!("{} connections in {:?}, {} failed", counted.good, counted.took, counted.bad);
            ensure!(counted.bad == 0 && counted.good > 50, "{counted:?}");
        }
        Ok(())
    });
}

#[test]
fn the_controller_may_go_and_come() {
    in_cluster("the_controller_may_go_and_come", |kube| {
        let namespace = kube.shop("orphans", &[("shop", "n2")])?;
        let load = namespace.load("shop", "http://web/")?;
        kube.kubectl(&["-n", "nodemesh-system", "delete", "pod", "-l", "app.kubernetes.io/name=nodemesh-controller"])?;
        kube.kubectl(&[
            "-n",
            "nodemesh-system",
            "rollout",
            "status",
            "deployment/nodemesh-controller",
            "--timeout=120s",
        ])?;
        let counted = load.end(&namespace)?;
        ensure!(counted.bad == 0 && counted.good > 0, "{counted:?}");
        // A new identity is signed by the controllers that came.
        namespace.client("late", "n2")?;
        namespace.wait_ready()?;
        namespace.eventually_answers("late", "http://web/", "web to ")
    });
}
