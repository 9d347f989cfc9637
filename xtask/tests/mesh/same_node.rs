//! Two pods of one node: what is between them stays there, and policy holds as between nodes.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use xtask::rings::can_use_kernel;
use xtask::testbed::{
    AgentOptions, Family, Packets, PodSpec, Recording, ServiceSpec, Testbed, eventually, start_nginx,
};

use crate::pair::{Pair, lines, text_of};

const PATIENCE: Duration = Duration::from_secs(30);
const TUNNEL_PORT: u16 = 15008;
const PORT: u16 = crate::pair::PORT;
/// How the first message of TLS begins: a record of a handshake, of the version that such records name.
const CLIENT_HELLO: &str = "\u{16}\u{3}\u{1}";

/// Client and server on n1; the port `http` of the server's Service speaks that.
fn build(test: &str) -> Result<Option<Pair>> {
    if !can_use_kernel(test) {
        return Ok(None);
    }
    let mut bed = Testbed::new()?;
    bed.add_node()?;
    bed.add_node()?;
    bed.add_namespace("pair", &[("nodemesh.dev/mesh", "enabled")])?;
    bed.add_namespace("outside", &[])?;
    for name in ["client", "server"] {
        bed.add_pod(PodSpec::new("pair", name, "n1"))?;
    }
    bed.add_pod(PodSpec::new("outside", "stranger", "n1"))?;
    let service = ServiceSpec::new("pair", "server");
    bed.add_service(service.port("probe", PORT, PORT).port("http", 80, 80).port("bytes", 90, 80))?;
    bed.start_agents(&AgentOptions::default())?;
    Ok(Some(Pair { bed, with_mesh: true }))
}

fn peer(spec: &str) -> String {
    format!(
        "apiVersion: nodemesh.dev/v1alpha1
kind: PeerAuthentication
metadata: {{name: default, namespace: pair}}
spec: {{targetRefs: [{{kind: Namespace}}], {spec}}}
"
    )
}

/// What passes the host's end of the server's link meanwhile.
fn on_the_link(pair: &Pair, name: &str, work: impl FnOnce() -> Result<()>) -> Result<Packets> {
    let (node, pod) = (pair.bed.node("n1"), pair.bed.pod("server"));
    let file = pair.bed.dir().join(format!("{name}.pcap"));
    let recording = Recording::start(&node.tool_place(), &pod.host_end, &file)?;
    work()?;
    recording.stop()
}

fn status(pair: &Pair, from: &str, address: SocketAddr, path: &str) -> Result<String> {
    let url = format!("http://{address}{path}");
    let curl = ["curl", "-s", "-o", "/dev/null", "-w", "%{http_code}", "--max-time", "10", &url];
    Ok(pair.bed.pod(from).run(&curl, PATIENCE)?.stdout)
}

/// Nothing but the question whether the network would let a tunnel through: a word, and no TLS.
fn ensure_spared(packets: &Packets) -> Result<()> {
    ensure!(packets.containing(CLIENT_HELLO) == 0, "TLS is on the server's link");
    ensure!(packets.containing("HTTP/1.") == 0, "a request is on the server's link");
    let stray: Vec<_> = packets.tcp().into_iter().filter(|packet| !packet.has_port(TUNNEL_PORT)).collect();
    ensure!(stray.is_empty(), "on the server's link: {stray:?}");
    Ok(())
}

/// STRICT is satisfied by what the kernel knows, strangers are refused, and nothing of it is on the pod's link. Where TLS is asked for, the tunnel is there again, and what was open without it is cut.
#[test]
fn neighbours_speak_without_a_tunnel_unless_tls_is_asked_for() -> Result<()> {
    let Some(pair) = build("same node")? else { return Ok(()) };
    start_nginx(pair.bed.pod("server"))?;
    pair.served()?;
    pair.bed.world.apply("peers", &peer("mode: STRICT"))?;
    let direct = pair.bed.pod("server").ips.socket(Family::V4, 80);
    eventually(PATIENCE, "a stranger to be refused", || {
        Ok((status(&pair, "stranger", direct, "/")? == "000").then_some(()))
    })
    .map_err(|error| pair.bed.explain(error))?;
    let ask_all = || -> Result<()> {
        for family in Family::BOTH {
            let by_pod = pair.bed.pod("server").ips.socket(family, 80);
            for address in [pair.server(family, 80), pair.server(family, 90), by_pod] {
                let seen = status(&pair, "client", address, "/")?;
                ensure!(seen == "200", "{address}: {seen}");
            }
        }
        Ok(())
    };
    let packets = on_the_link(&pair, "near", ask_all).map_err(|error| pair.bed.explain(error))?;
    ensure_spared(&packets)?;
    let told = |direction: &str, transport: &str| {
        let lines = pair.bed.agent("n1").access_log();
        lines.iter().any(|line| line["direction"] == direction && line["transport"] == transport)
    };
    for direction in ["inbound", "outbound"] {
        eventually(PATIENCE, "the access log to say so", || Ok(told(direction, "same-node").then_some(())))?;
        ensure!(!told(direction, "tunnel"), "{direction}: by tunnel");
    }

    // A connection that stays, and TLS that is owed from then on.
    let listener = pair.listen(&["read:2", "send:ok", "read-reset"])?;
    pair.bed.pod("client").start_probe(
        "stays",
        &["connect", &pair.server(Family::V4, PORT).to_string(), "send:hi", "read:2", "read-reset"],
    )?;
    eventually(PATIENCE, "the connection to be open", || Ok(listener.log().contains("send").then_some(())))?;
    pair.bed.world.apply("peers", &peer("mode: STRICT, sameNode: Encrypt"))?;
    let cut = eventually(PATIENCE, "it to be cut", || {
        Ok(lines(&listener.log()).iter().any(|line| line["step"] == "read-reset").then_some(()))
    });
    cut.with_context(|| listener.log()).map_err(|error| pair.bed.explain(error))?;
    let packets = on_the_link(&pair, "encrypted", ask_all).map_err(|error| pair.bed.explain(error))?;
    ensure!(packets.containing(CLIENT_HELLO) > 0, "no tunnel is on the server's link");
    let stray: Vec<_> = packets.tcp().into_iter().filter(|packet| !packet.has_port(TUNNEL_PORT)).collect();
    ensure!(stray.is_empty(), "outside of the tunnel: {stray:?}");
    eventually(PATIENCE, "the access log to say so", || Ok(told("inbound", "tunnel").then_some(())))?;

    // And back.
    pair.bed.world.apply("peers", &peer("mode: STRICT"))?;
    eventually(PATIENCE, "the tunnel to be spared again", || {
        Ok(ensure_spared(&on_the_link(&pair, "again", ask_all)?).is_ok().then_some(()))
    })
    .map_err(|error| pair.bed.explain(error))
}

/// The application sees its client's address and port; what ends, ends as it does without a mesh.
#[test]
fn neighbours_see_each_other_as_they_are() -> Result<()> {
    let Some(pair) = build("same node addresses")? else { return Ok(()) };
    for family in Family::BOTH {
        let seen = || -> Result<()> {
            let [server, client] = pair.play(family, &["echo"], &["send:x", "read:1", "fin", "read-end"])?;
            let dialled = pair.server(family, PORT).to_string();
            ensure!(client[0]["peer"] == dialled, "the client dialled {dialled} and sees {}", client[0]["peer"]);
            ensure!(client[0]["local"] == server[0]["peer"], "client: {client:?}, server: {server:?}");
            let own = pair.bed.pod("client").ips.ip(family).to_string();
            let local = client[0]["local"].as_str().unwrap_or_default();
            ensure!(local.contains(&own), "the client's own address is {local}, the pod's is {own}");
            let [_, client] = pair.play(family, &["send:220 ready", "read:4"], &["read:9", "send:QUIT"])?;
            ensure!(text_of(&client, "read") == "220 ready", "{client:?}");
            pair.play(family, &["read:2", "send:ok", "read-reset"], &["send:hi", "read:2", "reset"])?;
            pair.play(family, &["read:2", "send:ok", "sleep:200", "reset"], &["send:hi", "read:2", "read-reset"])?;
            Ok(())
        };
        seen().with_context(|| format!("over {family}")).map_err(|error| pair.bed.explain(error))?;
    }
    let lines = pair.bed.agent("n1").access_log();
    ensure!(lines.iter().any(|line| line["transport"] == "same-node"), "not by the way that is meant: {lines:?}");
    Ok(())
}

/// Policies on connections and on requests, of the receiving pod, by Service and by address.
#[test]
fn neighbours_meet_the_receiving_pods_policy() -> Result<()> {
    let Some(pair) = build("same node policy")? else { return Ok(()) };
    let log = start_nginx(pair.bed.pod("server"))?;
    pair.served()?;
    let policy = |action: &str, rule: &str| {
        format!(
            "apiVersion: nodemesh.dev/v1alpha1
kind: AuthorizationPolicy
metadata: {{name: p, namespace: pair}}
spec:
  targetRefs: [{{kind: Pod, selector: {{matchLabels: {{app: server}}}}}}]
  action: {action}
  rules: [{rule}]
"
        )
    };
    let account = |name: &str| format!("{{type: ServiceAccount, serviceAccount: {{name: {name}}}}}");
    // (the policy, a path, what is seen by the port of requests, by that of bytes and by address)
    let reading =
        |path: &str| format!("{{sources: [{}], requests: [{{methods: [GET], paths: ['{path}']}}]}}", account("client"));
    for (yaml, path, by_requests, by_bytes) in [
        (policy("ALLOW", &format!("{{sources: [{}]}}", account("client"))), "/", "200", "200"),
        (policy("ALLOW", &format!("{{sources: [{}]}}", account("somebody"))), "/", "403", "000"),
        (policy("DENY", &format!("{{sources: [{}]}}", account("client"))), "/", "403", "000"),
        (policy("ALLOW", &reading("/")), "/", "200", "200"),
        (policy("ALLOW", &reading("/")), "/big", "403", "403"),
    ] {
        pair.bed.world.apply("policy", &yaml)?;
        for family in Family::BOTH {
            let by_pod = pair.bed.pod("server").ips.socket(family, 80);
            for (address, expected) in
                [(pair.server(family, 80), by_requests), (pair.server(family, 90), by_bytes), (by_pod, by_bytes)]
            {
                eventually(PATIENCE, "the policy to hold", || {
                    Ok((status(&pair, "client", address, path)? == expected).then_some(()))
                })
                .with_context(|| format!("{address}{path}, not {expected}, by\n{yaml}"))
                .map_err(|error| pair.bed.explain(error))?;
            }
        }
    }
    ensure!(!std::fs::read_to_string(&log)?.contains("/big"), "nginx heard of what was refused");
    let lines = pair.bed.agent("n1").access_log();
    ensure!(!lines.iter().any(|line| line["transport"] == "tunnel"), "by tunnel");
    Ok(())
}

/// What the network refuses between two pods stays refused where no tunnel is needed; rules of the node stand for a network
/// policy here.
#[test]
fn neighbours_are_apart_where_the_network_keeps_them_apart() -> Result<()> {
    let Some(pair) = build("same node, network policy")? else { return Ok(()) };
    let log = start_nginx(pair.bed.pod("server"))?;
    let [client, server] = ["client", "server"].map(|pod| pair.bed.pod(pod).ips.ip(Family::V4));
    let netns = &pair.bed.node("n1").netns;
    netns.batch(&format!("rule add from {client} to {server} prohibit"))?;
    let direct = pair.bed.pod("server").ips.socket(Family::V4, 80);
    for (address, refused) in
        [(pair.server(Family::V4, 80), "503"), (pair.server(Family::V4, 90), "000"), (direct, "000")]
    {
        let seen = status(&pair, "client", address, "/")?;
        ensure!(seen == refused, "{address}: {seen}, not {refused}");
    }
    ensure!(std::fs::read_to_string(&log)?.is_empty(), "nginx heard of what was refused");
    netns.batch(&format!("rule delete from {client} to {server} prohibit"))?;
    eventually(PATIENCE, "the neighbour to be reached", || {
        Ok((status(&pair, "client", direct, "/")? == "200").then_some(()))
    })
    .map_err(|error| pair.bed.explain(error))?;
    let is_spared = || pair.bed.agent("n1").access_log().iter().any(|line| line["transport"] == "same-node");
    eventually(PATIENCE, "the tunnel to be spared", || {
        status(&pair, "client", direct, "/")?;
        Ok(is_spared().then_some(()))
    })
}
