//! Every kind of Service and of address, dialled from a meshed pod: who answers, and that a tunnel led there.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};

use anyhow::{Context, Result, ensure};
use xtask::rings::can_use_kernel;
use xtask::testbed::{AgentOptions, Family, PodSpec, ServiceSpec, Testbed};

use crate::reach::{ask_by_mesh, ask_in_plaintext, failure, say_names};

/// The port of every server, and of every Service.
const PORT: u16 = 7000;
/// How often a caller dials to see who answers. Of two endpoints by chance, the same one so often: 1 in 500 000.
const DIALS: usize = 20;

/// `web` on three nodes, of which the first and the third are in one zone; each Service in front of it has its own idea
/// of whom a caller gets.
#[test]
fn endpoints_are_chosen_as_by_kube_proxy() -> Result<()> {
    if !can_use_kernel("choice of endpoints") {
        return Ok(());
    }
    let mut bed = Testbed::new()?;
    for zone in ["a", "b", "a"] {
        bed.add_node_in(zone)?;
    }
    bed.add_namespace("shop", &[("nodemesh.dev/mesh", "enabled")])?;
    let pod = |name, node| PodSpec::new("shop", name, node);
    for (caller, node) in [("caller", "n1"), ("stranger", "n2")] {
        bed.add_pod(pod(caller, node))?;
    }
    for (server, node) in [("near", "n1"), ("far", "n2"), ("beside", "n3")] {
        bed.add_pod(pod(server, node).label("app", "web"))?;
    }
    bed.add_pod(pod("starting", "n2").not_ready())?;
    bed.add_pod(pod("leaving", "n2").terminating())?;
    let service = |name| ServiceSpec::new("shop", name).port("", PORT, PORT);
    bed.add_service(service("web"))?;
    bed.add_service(service("pods").of("web").headless())?;
    bed.add_service(service("local").of("web").with("internalTrafficPolicy", "Local"))?;
    bed.add_service(service("elsewhere").of("leaving").with("internalTrafficPolicy", "Local"))?;
    bed.add_service(service("zone").of("web").with("trafficDistribution", "PreferSameZone"))?;
    bed.add_service(service("node").of("web").with("trafficDistribution", "PreferSameNode"))?;
    bed.add_service(service("sticky").of("web").with("sessionAffinity", "ClientIP"))?;
    bed.add_service(service("starting"))?;
    bed.add_service(service("early").of("starting").with("publishNotReadyAddresses", true))?;
    bed.add_service(service("leaving"))?;
    let _servers = say_names(&bed, &["near", "far", "beside", "starting", "leaving"], PORT)?;
    bed.start_agents(&AgentOptions::default())?;

    // (Service, caller) → who may answer
    let table: [(&str, &str, &[&str]); 10] = [
        ("web", "caller", &["near", "far", "beside"]),
        ("local", "caller", &["near"]),
        ("local", "stranger", &["far"]),
        ("elsewhere", "stranger", &["leaving"]),
        ("zone", "caller", &["near", "beside"]),
        ("zone", "stranger", &["far"]),
        ("node", "caller", &["near"]),
        ("node", "stranger", &["far"]),
        ("early", "caller", &["starting"]),
        ("leaving", "caller", &["leaving"]),
    ];
    let chosen = |family| -> Result<()> {
        for (service, caller, expected) in table {
            let seen = answers(&bed, caller, bed.service(service).socket(family, PORT))?;
            let within = seen.iter().all(|name| expected.contains(&name.as_str()));
            // One of several each time would be a choice that was not made.
            ensure!(within && (seen.len() > 1) == (expected.len() > 1), "{caller} to {service}: {seen:?}");
        }
        for caller in ["caller", "stranger"] {
            let seen = answers(&bed, caller, bed.service("sticky").socket(family, PORT))?;
            ensure!(seen.len() == 1, "{caller} does not come to the same endpoint: {seen:?}");
        }
        for pod in ["near", "far", "beside"] {
            let seen = ask_by_mesh(&bed, "caller", bed.pod(pod).ips.socket(family, PORT))?;
            ensure!(seen == pod, "an endpoint of a headless Service: {seen} for {pod}");
        }
        for service in ["elsewhere", "starting"] {
            let seen = failure(&bed, "caller", bed.service(service).socket(family, PORT))?;
            ensure!(seen == "ECONNREFUSED at connect", "{service}: {seen}");
        }
        Ok(())
    };
    in_both_families(&bed, chosen)
}

/// Addresses that are nobody's own: they lead to pods, by tunnel, with no kube-proxy and no load balancer anywhere.
#[test]
fn every_address_of_a_service_leads_to_its_pods() -> Result<()> {
    if !can_use_kernel("addresses of Services") {
        return Ok(());
    }
    let external = ips("203.0.113.7", "2001:db8:7::7");
    let balancer = ips("203.0.113.8", "2001:db8:7::8");
    let mut bed = Testbed::of_two_nodes("shop")?;
    bed.add_namespace("outside", &[])?;
    let pod = |name, node| PodSpec::new("shop", name, node);
    bed.add_pod(pod("caller", "n1"))?;
    bed.add_pod(pod("caller-v4", "n1").only(Family::V4))?;
    bed.add_pod(pod("caller-v6", "n1").only(Family::V6))?;
    bed.add_pod(pod("web", "n2").host_port(8090, PORT))?;
    bed.add_pod(pod("old", "n2").only(Family::V4).label("app", "mixed"))?;
    bed.add_pod(pod("new", "n2").only(Family::V6).label("app", "mixed"))?;
    bed.add_pod(PodSpec::new("outside", "outsider", "n2"))?;
    let of_pod = |bed: &Testbed, name: &str| Family::BOTH.map(|family| bed.pod(name).ips.ip(family));
    let service = |name| ServiceSpec::new("shop", name).port("", PORT, PORT);
    bed.add_service(service("ports").of("web").node_port(30080))?;
    bed.add_service(service("external").of("web").external_ips(&external))?;
    bed.add_service(service("balanced").of("web").load_balancer(&balancer))?;
    bed.add_service(service("by-hand").listing(&of_pod(&bed, "web")))?;
    bed.add_service(service("by-hand-outside").listing(&of_pod(&bed, "outsider")))?;
    bed.add_service(service("alias").external_name("outsider"))?;
    bed.add_service(service("mixed"))?;
    bed.add_service(service("single-v4").of("web").only(Family::V4))?;
    bed.add_service(service("single-v6").of("web").only(Family::V6))?;
    let _servers = say_names(&bed, &["web", "old", "new", "outsider"], PORT)?;
    bed.start_agents(&AgentOptions::default())?;

    let leads = |family| -> Result<()> {
        let pick = |ips: [IpAddr; 2]| if family == Family::V4 { ips[0] } else { ips[1] };
        let of_node = |node: &str, port| bed.node(node).ips.socket(family, port);
        let of_service = |name: &str| bed.service(name).socket(family, PORT);
        let (mixed, single, single_stack) = match family {
            Family::V4 => ("old", "single-v4", "caller-v4"),
            Family::V6 => ("new", "single-v6", "caller-v6"),
        };
        let table = [
            ("node port, own node", "caller", of_node("n1", 30080), "web"),
            ("node port, another node", "caller", of_node("n2", 30080), "web"),
            ("external IP", "caller", SocketAddr::new(pick(external), PORT), "web"),
            ("load balancer IP", "caller", SocketAddr::new(pick(balancer), PORT), "web"),
            ("its cluster IP", "caller", of_service("balanced"), "web"),
            ("hostPort", "caller", of_node("n2", 8090), "web"),
            ("manual slice, meshed pod", "caller", of_service("by-hand"), "web"),
            ("dual-stack Service, single-stack pods", "caller", of_service("mixed"), mixed),
            ("single-stack Service", "caller", of_service(single), "web"),
            ("single-stack caller", single_stack, of_service("balanced"), "web"),
            ("single-stack on both sides", single_stack, of_service("mixed"), mixed),
        ];
        for (what, caller, address, expected) in table {
            let seen = ask_by_mesh(&bed, caller, address).context(what)?;
            ensure!(seen == expected, "{what}: {seen}");
        }
        for (what, address) in [("manual slice", "by-hand-outside"), ("ExternalName", "alias")] {
            let seen = ask_in_plaintext(&bed, "caller", of_service(address)).context(what)?;
            ensure!(seen == "outsider", "{what}: {seen}");
        }
        // The node's own port, which no Service and no pod has.
        let seen = failure(&bed, "caller", of_node("n2", 30081))?;
        ensure!(seen.starts_with("ECONNRE"), "a port of the node that nobody has: {seen}");
        Ok(())
    };
    in_both_families(&bed, leads)
}

/// Who answers when a pod dials again and again.
fn answers(bed: &Testbed, from: &str, address: SocketAddr) -> Result<BTreeSet<String>> {
    (0..DIALS).map(|_| ask_by_mesh(bed, from, address)).collect()
}

fn ips(v4: &str, v6: &str) -> [IpAddr; 2] {
    [v4, v6].map(|text| text.parse().expect("an address"))
}

fn in_both_families(bed: &Testbed, run: impl Fn(Family) -> Result<()>) -> Result<()> {
    for family in Family::BOTH {
        run(family).with_context(|| format!("over {family}")).map_err(|error| bed.explain(error))?;
    }
    Ok(())
}
