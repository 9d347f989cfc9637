//! Beside kube-proxy in its other mode.

use anyhow::{Result, ensure};
use xtask::cluster::layout::NODES;
use xtask::cluster::{ProxyMode, node};
use xtask::testbed::eventually;

use crate::support::{Kube, PATIENCE, in_cluster};

#[test]
fn services_work_with_kube_proxy_in_iptables_mode() {
    in_cluster("services_work_with_kube_proxy_in_iptables_mode", |kube| {
        let set = |mode| NODES.iter().try_for_each(|node| node::set_proxy_mode(node, &kube.parts, mode));
        set(ProxyMode::Iptables)?;
        let done = all_ways(kube);
        set(ProxyMode::Nftables)?;
        done
    });
}

/// Of the mesh or not to of the mesh or not, by the Services' addresses.
fn all_ways(kube: &Kube) -> Result<()> {
    let namespace = kube.shop("iptables", &[("shop", "n2")])?;
    let strangers = kube.strangers("iptables-strangers")?;
    strangers.web("plain", "n1")?;
    strangers.wait_ready()?;
    for node in NODES {
        eventually(PATIENCE, &format!("the Service to be in the rules of {node}"), || {
            let rules = kube.on_node(node, "iptables-save -t nat; nft list tables")?;
            ensure!(rules.contains("iptables-strangers/plain"), "{rules}");
            ensure!(!rules.contains("table ip kube-proxy"), "the rules of the other mode are there still: {rules}");
            Ok(Some(()))
        })?;
    }
    strangers.eventually_answers("stranger", "http://plain/", "plain to ")?;
    namespace.eventually_answers("shop", "http://plain.iptables-strangers/", "plain to ")?;
    namespace.eventually_answers("shop", "http://web/", "web to ")?;
    strangers.eventually_refuses("stranger", "http://web.iptables/")
}
