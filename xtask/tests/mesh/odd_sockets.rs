//! Sockets as few programs use them: byte for byte and address for address as with no mesh, but for what [`KINDS`] names.
//! docs/limits.md has the same with its reasons.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use xtask::demo::stage::TUNNEL_PORT;
use xtask::rings::can_use_kernel;
use xtask::testbed::{
    AgentOptions, Family, Packets, PodSpec, Recording, dial_odd_sockets, eventually, start_odd_sockets,
};

use crate::pair::Pair;
use crate::reach::outcome;

const PATIENCE: Duration = Duration::from_secs(30);

/// IPv4, IPv6, and IPv4 addresses in IPv6 sockets, at both ends.
const FORMS: [&str; 3] = ["v4", "v6", "mapped"];

/// What the server says in the clear, so what nobody must find on the wire.
const CLEAR: &str = "\"accepted\": ";

/// Something that an application sees otherwise.
struct Differs {
    /// Where in what it saw.
    at: &'static str,
    without: &'static str,
    with: &'static str,
    /// Why it cannot be the same.
    because: &'static str,
}

const SAME: &[Differs] = &[];

/// What `odd_sockets.py` does, in its order.
const KINDS: &[(&str, &[Differs])] = &[
    ("accept4", SAME),
    ("io_uring", SAME),
    ("mptcp_client", SAME),
    ("mptcp_server", SAME),
    (
        "mptcp_both",
        &[
            Differs { at: "/protocol", without: "mptcp", with: "tcp", because: "the agent listens by TCP" },
            Differs { at: "/server's protocol", without: "mptcp", with: "tcp", because: "the agent dials by TCP" },
        ],
    ),
    (
        "fastopen",
        &[Differs { at: "/data in the SYN", without: "yes", with: "no", because: "each connection has a new peer" }],
    ),
    ("fastopen_connect", SAME),
    ("bound", FROM_ONE_PORT),
    ("bound_to_any_address", FROM_ONE_PORT),
    ("bound_to_loopback", SAME),
    ("device", &[Differs { at: "/device", without: "eth0", with: "", because: "it must reach the loopback device" }]),
    (
        "device_of_the_server",
        &[Differs {
            at: "/bytes",
            without: "whole",
            with: "ECONNRESET",
            because: "the agent dials by the loopback device",
        }],
    ),
    ("unspec", SAME),
    ("epoll_edges", SAME),
    ("forked", SAME),
    ("passed", SAME),
    ("passed_unconnected", SAME),
    ("marked", SAME),
    ("urgent", &[Differs { at: "/out", without: "!", with: "", because: "HTTP/2 has nothing urgent" }]),
    ("nodelay_and_tiny_segments", SAME),
    ("window_of_64_kib", SAME),
    ("connected_datagrams", SAME),
];

/// Two destinations are the same, one destination twice is not.
const FROM_ONE_PORT: &[Differs] = &[Differs {
    at: "/again",
    without: "EADDRNOTAVAIL",
    with: "whole",
    because: "each connection has a destination of its own",
}];

#[test]
fn odd_sockets_see_what_they_see_without_a_mesh() -> Result<()> {
    if !can_use_kernel("odd sockets") {
        return Ok(());
    }
    let mut pair = Pair::build()?;
    // Takes sockets of the client's, and has no part in the mesh.
    pair.bed.add_namespace("outside", &[])?;
    pair.bed.add_pod(PodSpec::new("outside", "holder", "n1"))?;
    let holder = pair.bed.dir().join("odd.sock");
    start_odd_sockets(pair.bed.pod("holder"), &["hold", &holder.to_string_lossy()])?;
    start_odd_sockets(pair.bed.pod("server"), &["serve"])?;
    let dial =
        |pair: &Pair, form: &str| dial_odd_sockets(pair.bed.pod("client"), form, pair.bed.pod("server"), &holder);
    let dial_all = |pair: &Pair| FORMS.iter().map(|form| dial(pair, form)).collect::<Result<Vec<_>>>();

    let (without, packets) = on_the_wire(&pair, "without", || dial_all(&pair))?;
    ensure!(packets.containing(CLEAR) > 0, "the recording shows nothing, so it is no witness");
    pair.bed.start_agents(&AgentOptions::default())?;
    pair.with_mesh = true;
    let (with, packets) = on_the_wire(&pair, "with", || dial_all(&pair)).map_err(|error| pair.bed.explain(error))?;

    let forms = FORMS.iter().zip(without.iter().zip(&with));
    let differences: Vec<String> = forms.flat_map(|(form, (without, with))| compare(form, without, with)).collect();
    ensure!(differences.is_empty(), "{}", differences.join("\n"));
    ensure_tunnelled(&pair, &with)?;
    ensure_hidden(&pair, &packets)?;
    ensure!(outcome(&pair.bed, "n1", "connect_not_tcp")? >= FORMS.len() as u64, "nothing told of the datagrams");
    Ok(())
}

/// What passes between the nodes meanwhile.
fn on_the_wire<T>(pair: &Pair, name: &str, work: impl FnOnce() -> Result<T>) -> Result<(T, Packets)> {
    let node = pair.bed.node("n1");
    let file = pair.bed.dir().join(format!("{name}.pcap"));
    let recording = Recording::start(&node.tool_place(), &node.link_to("n2"), &file)?;
    let done = work()?;
    Ok((done, recording.stop()?))
}

/// What is not as the table says, for people.
fn compare(form: &str, without: &[Value], with: &[Value]) -> Vec<String> {
    if [without, with].iter().any(|lines| lines.len() != KINDS.len()) {
        return vec![format!("{form}: {} and {} of {} kinds", without.len(), with.len(), KINDS.len())];
    }
    let lines = KINDS.iter().zip(without.iter().zip(with));
    lines
        .filter_map(|((kind, differs), (without, with))| {
            let (mut without, mut with) = (without.clone(), with.clone());
            for Differs { at, without: first, with: second, because } in *differs {
                for (line, expected) in [(&mut without, first), (&mut with, second)] {
                    let Some(seen) = line["seen"].pointer_mut(at) else {
                        return Some(format!("{form}, {kind}: nothing at {at} ({because}): {line}"));
                    };
                    if seen != *expected {
                        return Some(format!("{form}, {kind}: {at} is {seen}, not {expected} ({because})"));
                    }
                    *seen = Value::Null;
                }
            }
            let failed = [&without, &with].iter().any(|line| line["seen"]["error"].is_string());
            let is_same =
                !failed && without["kind"] == **kind && with["kind"] == **kind && without["seen"] == with["seen"];
            (!is_same).then(|| format!("{form}, {kind}:\n  without {}\n  with    {}", without["seen"], with["seen"]))
        })
        .collect()
}

/// Every connection of TCP that was made is told as a tunnel's, with the address that the application has.
fn ensure_tunnelled(pair: &Pair, forms: &[Vec<Value>]) -> Result<()> {
    let mut clients: BTreeSet<String> = BTreeSet::new();
    for line in forms.iter().flatten() {
        let addresses = line["clients"].as_array().context("no clients")?;
        clients.extend(addresses.iter().filter_map(Value::as_str).map(unmapped));
    }
    eventually(PATIENCE, "every connection to be told", || {
        let records = pair.bed.agent("n1").access_log();
        let outbound: Vec<&Value> = records.iter().filter(|record| record["direction"] == "outbound").collect();
        let stray = outbound.iter().find(|record| record["transport"] != "tunnel");
        ensure!(stray.is_none(), "not by tunnel: {stray:?}");
        let told: BTreeSet<&str> = outbound.iter().filter_map(|record| record["client"].as_str()).collect();
        let missing: Vec<&String> = clients.iter().filter(|client| !told.contains(client.as_str())).collect();
        ensure!(missing.is_empty(), "of {} connections these are not told: {missing:?}", clients.len());
        Ok(Some(()))
    })
}

/// An IPv4 address as logs have it.
fn unmapped(address: &str) -> String {
    address.strip_prefix("[::ffff:").map_or_else(|| address.to_string(), |rest| rest.replacen(']', "", 1))
}

/// Between the pods there are tunnels alone, also for who only holds a socket of theirs.
fn ensure_hidden(pair: &Pair, packets: &Packets) -> Result<()> {
    ensure!(packets.containing(CLEAR) == 0, "what the server said can be read on the wire");
    for family in Family::BOTH {
        let [client, holder, server] = ["client", "holder", "server"].map(|pod| pair.bed.pod(pod).ips.ip(family));
        let between = packets.tcp_between(client, server);
        ensure!(!between.is_empty(), "{family}: no tunnel was recorded");
        let stray: Vec<_> = between.iter().filter(|packet| !packet.has_port(TUNNEL_PORT)).take(5).collect();
        ensure!(stray.is_empty(), "{family}: outside the tunnel: {stray:?}");
        ensure!(packets.tcp_between(holder, server).is_empty(), "{family}: the holder spoke for itself");
    }
    Ok(())
}
