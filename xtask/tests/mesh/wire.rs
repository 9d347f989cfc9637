//! What may be seen between the nodes.

use anyhow::{Result, ensure};
use xtask::demo::stage::{Stage, TUNNEL_PORT, marker};
use xtask::rings::can_use_kernel;
use xtask::testbed::{Family, greeter_client};

/// Between two enrolled pods' IPs every TCP packet has port 15008 and no marker is readable, whatever they speak and
/// however they address each other. ARP, ND, UDP and pods that are not enrolled are no part of this.
#[test]
fn enrolled_pods_exchange_nothing_but_tunnels() -> Result<()> {
    if !can_use_kernel("the wire") {
        return Ok(());
    }
    let mut stage = Stage::build(Family::V4)?;
    stage.start_mesh()?;
    for family in Family::BOTH {
        stage.family = family;
        let marker = marker("wire")?;
        let (talked, packets) = stage.record(|stage| talk(stage, &marker))?;
        talked?;
        ensure!(packets.containing(&marker) == 0, "{family}: the marker is on the wire");
        for caller in ["shop", "ledger"] {
            for server in ["web", "cache", "greeter"] {
                let [a, b] = [caller, server].map(|pod| stage.bed.pod(pod).ips.ip(family));
                let between = packets.tcp_between(a, b);
                ensure!(!between.is_empty(), "{family}: nothing between {caller} and {server} was recorded");
                let stray: Vec<_> = between.iter().filter(|packet| !packet.has_port(TUNNEL_PORT)).take(5).collect();
                ensure!(stray.is_empty(), "{family}: outside the tunnel between {caller} and {server}: {stray:?}");
            }
        }
    }
    Ok(())
}

/// Every caller to every server, by Service and by pod IP.
fn talk(stage: &Stage, marker: &str) -> Result<()> {
    for caller in ["shop", "ledger"] {
        for address in [stage.service("web", 80), stage.pod_socket("web", 80)] {
            let url = format!("http://{address}/?{marker}");
            stage.curl(caller, &["-H", &format!("x-marker: {marker}"), &url])?.expect_ok("curl")?;
        }
        for address in [stage.service("cache", 6379), stage.pod_socket("cache", 6379)] {
            let send = format!("send:PING {marker}\r\n");
            // Redis answers PING with its argument: "$<length>\r\n<argument>\r\n".
            let read = format!("read:{}", marker.len() + 7);
            let probe = ["connect", &address.to_string(), &send, &read];
            stage.probe(caller, &probe)?.expect_ok("Redis")?;
        }
        for address in [stage.service("greeter", 50051), stage.pod_socket("greeter", 50051)] {
            greeter_client(stage.bed.pod(caller), address, marker)?.expect_ok("gRPC")?;
        }
    }
    Ok(())
}
