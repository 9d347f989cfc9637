//! What clients that mean no good cost the agents: memory, measured, and whether the others are still served.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use xtask::rings::can_use_kernel;
use xtask::testbed::{AgentOptions, Family, PodSpec, ServiceSpec, Testbed, eventually, hostile_client, start_endless};

const PORT: u16 = 8080;
const PATIENCE: Duration = Duration::from_secs(60);

/// Connections, or streams, of one hostile client.
const COUNT: usize = 200;

/// What one of them may cost the two agents together where bytes wait: a window of its tunnel (1 MiB), what the parsers
/// hold of both directions on both nodes, and what is in between (540 were seen). In KiB.
const OF_A_READER: u64 = 1024 + 768;
/// What one may cost of which nothing waits but a head that never ends. In KiB.
const OF_A_HEAD: u64 = 256;
/// What agents take for other reasons: pages of the allocator, tables. In KiB.
const SLACK: u64 = 32 << 10;

/// The way whose connections outlive their clients.
const UNREAD: &str = "bodies";

/// The way, and what it may cost in all.
const WAYS: [(&str, u64); 6] = [
    ("senders", COUNT as u64 * OF_A_HEAD + SLACK),
    ("headers", COUNT as u64 * OF_A_HEAD + SLACK),
    ("resets", SLACK),
    ("readers", COUNT as u64 * OF_A_READER + SLACK),
    ("streams", COUNT as u64 * OF_A_READER + SLACK),
    // Last: its server never reads, and the end of its clients is behind what it does not read, as it would be with no
    // mesh. These connections stay until one of the two applications is gone for good.
    (UNREAD, COUNT as u64 * OF_A_READER + SLACK),
];

/// The resident memory of both agents, in KiB.
fn resident(bed: &Testbed) -> Result<u64> {
    bed.agents().map(|agent| Ok(agent.resident()? >> 10)).sum()
}

/// A bystander's request, and how long it took.
fn ask(bed: &Testbed) -> Result<Duration> {
    let url = format!("http://{}/", bed.service("web").socket(Family::V4, 80));
    let started = Instant::now();
    let said = bed.pod("bystander").run(&["curl", "-sS", "--fail", "--max-time", "30", &url], PATIENCE)?;
    ensure!(said.ok() && said.stdout == "well\n", "{said}");
    Ok(started.elapsed())
}

#[test]
fn a_hostile_peer_costs_no_more_than_its_windows() -> Result<()> {
    if !can_use_kernel("hostile clients") {
        return Ok(());
    }
    let mut bed = Testbed::of_two_nodes("shop")?;
    for (pod, node) in [("hostile", "n1"), ("bystander", "n1"), ("web", "n2")] {
        bed.add_pod(PodSpec::new("shop", pod, node))?;
    }
    bed.add_service(ServiceSpec::new("shop", "web").port("http", 80, PORT))?;
    start_endless(bed.pod("web"), PORT)?;
    bed.start_agents(&AgentOptions::default())?;
    let run = || -> Result<()> {
        ask(&bed)?;
        let mut figures = BTreeMap::new();
        for (way, most) in WAYS {
            let before = resident(&bed)?;
            let server = bed.service("web").socket(Family::V4, 80);
            let mut client = hostile_client(bed.pod("hostile"), server, way, COUNT)?;
            let mut peak = before;
            eventually(PATIENCE, "the hostile client to do what it came for", || {
                peak = peak.max(resident(&bed)?);
                client.check_running()?;
                Ok(client.log().contains("ready").then_some(()))
            })
            .with_context(|| way.to_string())?;
            let took = ask(&bed).with_context(|| format!("beside {way}"))?;
            peak = peak.max(resident(&bed)?);
            let said = client.log().trim().to_string();
            client.kill()?;
            let live = || -> Result<usize> {
                let live = bed.agent("n2").get_json("/connections")?;
                Ok(live.as_array().map_or(0, Vec::len))
            };
            if way != UNREAD {
                eventually(PATIENCE, "its connections to go", || Ok((live()? <= 2).then_some(())))
                    .with_context(|| way.to_string())?;
            }
            let (grew, after) = (peak.saturating_sub(before), resident(&bed)?);
            println!(
                "{way}: both agents {} MiB, at most {} MiB more beside {COUNT} of them ({} MiB may), {} MiB after; \
                 a bystander's request {took:.0?}; {said}",
                before >> 10,
                grew >> 10,
                most >> 10,
                after >> 10,
            );
            figures.insert(way, (grew, most));
        }
        let over: Vec<_> = figures.iter().filter(|(_, (grew, most))| grew > most).collect();
        ensure!(over.is_empty(), "grew by more KiB than may be: {over:?}");
        Ok(())
    };
    run().map_err(|error| bed.explain(error))
}

/// A stranger's connections to a pod's tunnel port that say nothing: twice as many as the pod may have of them.
const STRANGERS: usize = 2048;
const TUNNEL_PORT: u16 = 15008;

#[test]
fn strangers_at_a_tunnel_port_keep_nobody_away() -> Result<()> {
    if !can_use_kernel("strangers at a tunnel port") {
        return Ok(());
    }
    let mut bed = Testbed::of_two_nodes("shop")?;
    bed.add_namespace("outside", &[])?;
    for (namespace, pod, node) in [("outside", "stranger", "n1"), ("shop", "bystander", "n1"), ("shop", "web", "n2")] {
        bed.add_pod(PodSpec::new(namespace, pod, node))?;
    }
    bed.add_service(ServiceSpec::new("shop", "web").port("http", 80, PORT))?;
    start_endless(bed.pod("web"), PORT)?;
    bed.start_agents(&AgentOptions::default())?;
    let run = || -> Result<()> {
        let tunnels = SocketAddr::new(bed.pod("web").ips.ip(Family::V4), TUNNEL_PORT);
        let mut flood = hostile_client(bed.pod("stranger"), tunnels, "silent", STRANGERS)?;
        eventually(PATIENCE, "the strangers to be there", || {
            flood.check_running()?;
            Ok(flood.log().contains("ready").then_some(()))
        })?;
        // It has no tunnel there yet.
        let first = ask(&bed)?;
        let mut later = (0..20).map(|_| ask(&bed)).collect::<Result<Vec<_>>>()?;
        later.sort_unstable();
        let usage = bed.agent("n2").get_json("/config_dump")?["workloads"][0].clone();
        println!(
            "beside strangers ({}): the first request {first:.0?}, later ones {:.0?}, at most {:.0?}; the pod has {usage}",
            flood.log().trim(),
            later[10],
            later[19]
        );
        ensure!(flood.is_running(), "the strangers went: {}", flood.log());
        Ok(())
    };
    run().map_err(|error| bed.explain(error))
}
