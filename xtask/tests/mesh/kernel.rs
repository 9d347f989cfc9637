//! The kernel side under strain: programs and maps over restarts, maps that are full, pods that lie or come and go.

use std::collections::BTreeSet;
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use xtask::demo::stage::{MESH_LABEL, marker};
use xtask::testbed::{
    AgentOptions, Family, Finished, Netns, PodSpec, Recording, Testbed, eventually, map_entries, start_nginx,
};

use crate::pair::{PORT, Pair, lines, meshed};
use crate::reach::outcome;

const PATIENCE: Duration = Duration::from_secs(30);

/// Debian's interpreter: raw sockets and many sockets at once are its part.
const PYTHON: &str = "/usr/bin/python3";

#[test]
fn agents_that_are_killed_leave_one_set_of_programs() -> Result<()> {
    let Some(mut pair) = meshed("kill -9 again and again")? else { return Ok(()) };
    if !pair.with_mesh {
        return Ok(());
    }
    start_nginx(pair.bed.pod("server"))?;
    let before = attached(&pair.bed)?;
    for _ in 0..5 {
        pair.bed.agent_mut("n1").kill()?;
        pair.bed.start_agent("n1", &AgentOptions::default())?;
    }
    is_attached_again(&pair.bed, &before)?;
    pair.served()
}

#[test]
fn a_pod_that_has_its_share_is_refused_and_counted() -> Result<()> {
    let Some(mut pair) = started_with("a pod's share of a map", &[SMALLEST])? else { return Ok(()) };
    let _listener = pair.listen(&["echo"])?;
    for family in Family::BOTH {
        let before = outcome(&pair.bed, "n1", "connect_pod_full")?;
        let address = pair.server(family, PORT);
        let (ip, port) = (address.ip().to_string(), address.port().to_string());
        let said = pair.bed.pod("client").run(&[PYTHON, "-c", MANY, &ip, &port, "1100"], 4 * PATIENCE)?;
        let said = said.expect_ok("many connections at once")?;
        let refused = outcome(&pair.bed, "n1", "connect_pod_full")? - before;
        // The pod is alone: it has half of the map.
        ensure!(
            refused == 1100 - 512 && said.trim() == format!("512 echoed, {refused} ConnectionRefusedError"),
            "{family}: {said}, {refused} counted"
        );
        // They are gone, and so are their records.
        eventually(PATIENCE, "room for a connection", || {
            let answer = pair.connect_to(address, &["send:a", "read:1"])?;
            answer.expect_ok("a connection").map(Some)
        })?;
        nothing_is_counted(&pair)?;
    }
    pair.bed.agent_mut("n1").stop()?;
    pair.bed.start_agent("n1", &AgentOptions::default())?;
    let log = pair.bed.agent("n1").log();
    ensure!(log.contains("another size"), "the agent does not say that a pinned map keeps its size: {log}");
    Ok(())
}

/// Opens connections, exchanges a word on each, and says how many did.
const MANY: &str = "
import resource, socket, sys
resource.setrlimit(resource.RLIMIT_NOFILE, (4096, 4096))
host, port, wanted = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
held, echoed, refused = [], 0, {}
for _ in range(wanted):
    try: held.append(socket.create_connection((host, port), 30))
    except Exception as e: refused[type(e).__name__] = refused.get(type(e).__name__, 0) + 1
for s in held:
    s.sendall(b'word'); echoed += s.recv(4) == b'word'
print('%d echoed,' % echoed, ', '.join('%d %s' % (n, e) for e, n in refused.items()))
";

/// A pod whose own rules drop what leads to its agent: what it dials stays under way until its kernel gives up. Its neighbours
/// connect all the same.
#[test]
fn a_pod_that_dials_without_end_leaves_its_neighbours_room() -> Result<()> {
    const DROPPED: &str = "table inet nodemesh {
        chain in {
            type filter hook input priority 0
            ip daddr 127.128.0.0/9 drop
            ip6 daddr fd6e:6f64:656d:6573::/64 drop
        }
    }
";
    let Some(mut pair) = built("a pod that dials without end")? else { return Ok(()) };
    pair.bed.add_pod(PodSpec::new("pair", "neighbour", "n1"))?;
    start(&mut pair, &[SMALLEST])?;
    let _listener = pair.listen(&["echo"])?;
    let client = pair.bed.pod("client");
    let rules = client.dir.join("dropped.nft");
    std::fs::write(&rules, DROPPED)?;
    let dropped =
        client.netns.within(|| Command::new("nft").arg("-f").arg(&rules).output())?.context("starting nft")?;
    ensure!(dropped.status.success(), "nft: {}", String::from_utf8_lossy(&dropped.stderr));
    let mut counted = 0;
    for family in Family::BOTH {
        let address = pair.server(family, PORT);
        let (ip, port) = (address.ip().to_string(), address.port().to_string());
        let mut dials = client.spawn("dials", &[PYTHON, "-u", "-c", UNDER_WAY, &ip, &port, "1100"])?;
        let said =
            eventually(PATIENCE, "the pod to have dialled", || Ok(dials.log().lines().last().map(str::to_string)));
        let answer = pair.bed.pod("neighbour").probe(&["connect", &address.to_string(), "send:a", "read:1"])?;
        answer.expect_ok("the neighbour").with_context(|| format!("{family}: {said:?}"))?;
        let refused = outcome(&pair.bed, "n1", "connect_pod_full")? - counted;
        counted += refused;
        let said = said?;
        ensure!(said == format!("512 under way, {refused} refused"), "{family}: {said}, {refused} counted");
        dials.kill()?;
        nothing_is_counted(&pair).with_context(|| format!("{family}"))?;
    }
    Ok(())
}

/// Begins connections, waits for none of them, and says how many are under way.
const UNDER_WAY: &str = "
import errno, resource, socket, sys, time
resource.setrlimit(resource.RLIMIT_NOFILE, (4096, 4096))
host, port, wanted = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
held, said = [], []
for _ in range(wanted):
    s = socket.socket(socket.AF_INET6 if ':' in host else socket.AF_INET); s.setblocking(False)
    held.append(s); said.append(s.connect_ex((host, port)))
print('%d under way, %d refused' % (said.count(errno.EINPROGRESS), said.count(errno.ECONNREFUSED)))
time.sleep(600)
";

/// The smallest size that the agent takes.
const SMALLEST: &str = "--map-connections=1024";

/// Waits until no dial of the first node is on record, nor counted for all or any pod.
fn nothing_is_counted(pair: &Pair) -> Result<()> {
    let maps = pair.bed.agent("n1").pins().join("v1/maps");
    let pin = maps.join("DIAL_COUNTS");
    eventually(PATIENCE, "the last record to go, and its count", || {
        let dump = bpftool(&["map", "dump", "pinned", &pin.to_string_lossy()])?;
        let counts: Vec<Value> = serde_json::from_str(&dump).context(dump)?;
        let is_zero =
            |count: &&Value| count["value"].as_array().is_some_and(|all| all.iter().all(|byte| byte == "0x00"));
        let left: Vec<_> = counts.iter().filter(|count| !is_zero(count)).collect();
        let records = map_entries(&maps.join("DIALS"))?;
        ensure!(!counts.is_empty() && left.is_empty() && records == 0, "{records} records, counted: {left:?}");
        Ok(Some(()))
    })
}

#[test]
fn records_go_with_connections_that_outlive_their_agent() -> Result<()> {
    let Some(mut pair) = meshed("records of a killed agent")? else { return Ok(()) };
    if !pair.with_mesh {
        return Ok(());
    }
    let _listener = pair.listen(&["echo"])?;
    let mut held = Vec::new();
    for family in Family::BOTH {
        let address = pair.server(family, PORT).to_string();
        let steps = ["connect", &address, "send:word", "read:4", "sleep:600000"];
        held.push(pair.bed.pod("client").spawn_probe(&format!("held-{family}"), &steps)?);
    }
    let records = |pair: &Pair, node: &str, map: &str| -> Result<usize> {
        map_entries(&pair.bed.agent(node).pins().join("v1/maps").join(map))
    };
    eventually(PATIENCE, "both to be on record", || {
        let on_record = [records(&pair, "n1", "DIALS")?, records(&pair, "n2", "CLIENTS")?];
        Ok((on_record == [2, 2]).then_some(()))
    })?;
    for node in ["n1", "n2"] {
        pair.bed.agent_mut(node).kill()?;
        pair.bed.start_agent(node, &AgentOptions::default())?;
    }
    for probe in &mut held {
        probe.kill()?;
    }
    // The sweep comes ten minutes later at the earliest.
    eventually(PATIENCE, "their records to go", || {
        let left = [records(&pair, "n1", "DIALS")?, records(&pair, "n2", "CLIENTS")?, records(&pair, "n2", "FILED")?];
        ensure!(left == [0, 0, 0], "{left:?}");
        Ok(Some(()))
    })?;
    nothing_is_counted(&pair)
}

#[test]
fn raw_packets_do_not_leave_a_pod() -> Result<()> {
    let Some(pair) = meshed("raw packets")? else { return Ok(()) };
    if !pair.with_mesh {
        return Ok(());
    }
    let marker = marker("raw")?;
    let node = pair.bed.node("n1");
    let recording = Recording::start(&node.tool_place(), &node.link_to("n2"), &pair.bed.dir().join("raw.pcap"))?;
    let refused = || -> Result<u64> {
        let names = ["guard_syn_unfiled", "guard_fragment", "guard_malformed", "guard_to_itself"];
        names.iter().map(|name| outcome(&pair.bed, "n1", name)).sum()
    };
    let before = refused()?;
    let sent = send_raw(&pair, SYNS, &marker, &[])?;
    let packets = recording.stop()?;
    ensure!(packets.containing(&marker) == 0, "{} raw packets left the node", packets.containing(&marker));
    ensure!(refused()? == before + sent, "{} of {sent} were counted", refused()? - before);
    Ok(())
}

/// What needs no connection to be sent: no connection begins by it, and nothing answers as if one had.
#[test]
fn segments_without_a_syn_begin_no_connection() -> Result<()> {
    let Some(mut pair) = built("segments without a SYN")? else { return Ok(()) };
    pair.bed.add_pod(PodSpec::new("pair", "other", "n1"))?;
    start(&mut pair, &[])?;
    let listener = pair.listen(&["echo"])?;
    let marker = marker("no-syn")?;
    let node = pair.bed.node("n1");
    let recording = Recording::start(&node.tool_place(), &node.link_to("n2"), &pair.bed.dir().join("no-syn.pcap"))?;
    let before = outcome(&pair.bed, "n1", "guard_tcp")?;
    let others = pair.bed.pod("other").ips;
    let more = [others.v4.to_string(), others.v6.to_string(), PORT.to_string()];
    let sent = send_raw(&pair, WITHOUT_SYN, &marker, &more.each_ref().map(String::as_str))?;
    let packets = recording.stop()?;
    // That they pass is a limit that security.md states.
    ensure!(packets.containing(&marker) == sent as usize, "{} of {sent} passed", packets.containing(&marker));
    ensure!(outcome(&pair.bed, "n1", "guard_tcp")? >= before + sent, "{sent} were not counted");
    ensure!(heard_of(&pair, "client").is_none() && heard_of(&pair, "other").is_none(), "a connection is logged");
    ensure!(lines(&listener.log()).is_empty(), "the application was reached: {}", listener.log());
    // Had there been one, it would have been seen.
    pair.connect(Family::V4, &["send:a", "read:1"])?.expect_ok("a connection with a SYN")?;
    ensure!(!lines(&listener.log()).is_empty());
    eventually(PATIENCE, "a connection to be logged", || Ok(heard_of(&pair, "client"))).map(drop)
}

/// A limit that security.md states: it passes as it is, and is counted.
#[test]
fn sctp_passes_and_is_counted() -> Result<()> {
    let Some(pair) = meshed("SCTP")? else { return Ok(()) };
    if !pair.with_mesh {
        return Ok(());
    }
    let marker = marker("sctp")?;
    let node = pair.bed.node("n1");
    let recording = Recording::start(&node.tool_place(), &node.link_to("n2"), &pair.bed.dir().join("sctp.pcap"))?;
    let refused = |pair: &Pair| outcome(&pair.bed, "n1", "guard_syn_unfiled");
    let before = [outcome(&pair.bed, "n1", "guard_other")?, refused(&pair)?];
    let sent = send_raw(&pair, SCTP, &marker, &[])?;
    let packets = recording.stop()?;
    // The server has no SCTP, and says so, with what it was sent.
    ensure!(packets.containing(&marker) >= sent as usize, "{} of {sent} passed", packets.containing(&marker));
    ensure!(outcome(&pair.bed, "n1", "guard_other")? >= before[0] + sent, "{sent} were not counted");
    ensure!(refused(&pair)? == before[1], "they were taken for TCP");
    Ok(())
}

/// What the server's agent told of connections from a pod.
fn heard_of(pair: &Pair, pod: &str) -> Option<Value> {
    let ips = Family::BOTH.map(|family| pair.bed.pod(pod).ips.ip(family).to_string());
    let is_its =
        |record: &Value| record["client"].as_str().is_some_and(|client| ips.iter().any(|ip| client.contains(ip)));
    pair.bed.agent("n2").access_log().into_iter().find(is_its)
}

/// Runs a script after [`RAW`] in the client's pod, to the server's; how many packets it sent.
fn send_raw(pair: &Pair, script: &str, marker: &str, more: &[&str]) -> Result<u64> {
    let (client, server) = (pair.bed.pod("client"), pair.bed.pod("server"));
    let gateway = hardware_address(&pair.bed.node("n1").netns, &client.host_end)?;
    let own = hardware_address(&client.netns, "eth0")?;
    let ips =
        [client.ips.v4.to_string(), client.ips.v6.to_string(), server.ips.v4.to_string(), server.ips.v6.to_string()];
    let [own4, own6, other4, other6] = &ips;
    let script = format!("{RAW}{script}print(frame.sent)\n");
    let argv = [PYTHON, "-c", &script, own4, own6, other4, other6, &gateway, &own, marker];
    let sent = client.run(&[&argv[..], more].concat(), PATIENCE)?;
    Ok(sent.expect_ok("sending raw packets")?.trim().parse()?)
}

/// Past the pod's own stack and past any tc program inside it.
const RAW: &str = r"
import socket, struct, sys
own4, own6, dst4, dst6, gateway, own, marker = sys.argv[1:8]
A, M = lambda a: socket.inet_pton(socket.AF_INET6 if ':' in a else socket.AF_INET, a), lambda m: bytes.fromhex(m.replace(':', ''))
wire = socket.socket(socket.AF_PACKET, socket.SOCK_RAW); wire.bind(('eth0', 0)); wire.setsockopt(263, 20, 1)
def tcp(port, flags=2, to=80): return struct.pack('!HHIIBBHHH', port, to, 1, 0, 5 << 4, flags, 65535, 0, 0)
def frame(kind, packet): wire.send(M(gateway) + M(own) + struct.pack('!H', kind) + packet); frame.sent += 1
frame.sent = 0
def check(h):
    s = sum(struct.unpack('!%dH' % (len(h) // 2), h)); s = (s >> 16) + (s & 0xffff); return ~(s + (s >> 16)) & 0xffff
def v4(payload, source=own4, to=dst4, fragment=0, options=b'', next=6):
    h = struct.pack('!BBHHHBBH', 0x45 + len(options) // 4, 0, 20 + len(options) + len(payload), 7, fragment, 64, next, 0) + A(source) + A(to) + options
    frame(0x0800, h[:10] + struct.pack('!H', check(h)) + h[12:] + payload)
def v6(next, payload, source=own6, to=dst6): frame(0x86dd, struct.pack('!IHBB', 6 << 28, len(payload), next, 64) + A(source) + A(to) + payload)
m = marker.encode()
";

/// SYNs, with options, with other flags, behind extension headers, in fragments, cut short, from another's address, to the
/// pod itself.
const SYNS: &str = r"
pad = lambda next: bytes([next, 0, 1, 4, 0, 0, 0, 0])
v4(tcp(1001) + m); v4(tcp(1002) + m, options=b'\x01' * 8); v4(tcp(1003, 0xc3) + m); v4(tcp(1004) + m, source='10.77.7.7')
v4(tcp(1005)[:8] + m, fragment=0x2000); v4(tcp(1005)[8:] + m, fragment=1); v4(tcp(1006)[:12]); v4(tcp(1007) + m, to=own4)
v4(tcp(1008, 0x06) + m); v4(tcp(1009, 0x2a) + m)
v6(6, tcp(1011) + m); v6(0, pad(6) + tcp(1012) + m); v6(60, pad(60) * 2 + pad(6) + tcp(1013) + m)
v6(60, pad(60) * 11 + pad(6) + tcp(1014) + m); v6(44, bytes([6, 0, 0, 0, 0, 0, 0, 9]) + tcp(1015) + m)
v6(44, bytes([6, 0, 0, 1, 0, 0, 0, 8]) + tcp(1016) + m); v6(44, bytes([60, 0, 0, 8, 0, 0, 0, 7]) + tcp(1017) + m)
v6(51, bytes([6, 4, 0, 0]) + bytes(20) + tcp(1018) + m); v6(6, tcp(1019) + m, source='fd6e:6f64:656d:6572::1', to=own6)
";

/// The chunk that begins an association, past the pod's stack and through it, in both families.
const SCTP: &str = r"
init = struct.pack('!HHII', 2001, 80, 0, 0) + struct.pack('!BBHIIHHI', 1, 0, 20, 7, 65536, 1, 1, 1) + m
v4(init, next=132); v6(132, init); v6(60, bytes([132, 0, 1, 4, 0, 0, 0, 0]) + init)
for family, to in [(socket.AF_INET, dst4), (socket.AF_INET6, dst6)]:
    socket.socket(family, socket.SOCK_RAW, 132).sendto(init, (to, 0)); frame.sent += 1
";

/// ACK, data, RST, SYN and ACK, FIN, nothing: to a port that is listened on, whole, of the pod's own address and of a
/// neighbour's.
const WITHOUT_SYN: &str = r"
from4, from6, port = sys.argv[8:11]
def whole(number, flags, source, to):
    s = tcp(number, flags, int(port)) + m + bytes(len(m) % 2)
    sum = check(A(source) + A(to) + struct.pack('!IHBB', len(s), 0, 0, 6) + s)
    return s[:16] + struct.pack('!H', sum) + s[18:]
for number, flags in enumerate([0x10, 0x18, 0x04, 0x14, 0x12, 0x52, 0x01, 0x11, 0x00], 1101):
    for source in [own4, from4]: v4(whole(number, flags, source, dst4), source=source)
    for source in [own6, from6]: v6(6, whole(number, flags, source, dst6), source=source)
";

#[test]
fn clsact_guards_as_well_and_leaves_with_the_pod() -> Result<()> {
    let Some(mut pair) = started_with("clsact", &["--tc=clsact"])? else { return Ok(()) };
    start_nginx(pair.bed.pod("server"))?;
    pair.served()?;
    for way in ["ingress", "egress"] {
        let shown = filters(&pair.bed, way)?;
        ensure!(shown.contains("nm_guard_") && shown.contains("direct-action"), "{way}: {shown}");
    }
    // A process that no hook on the pods' cgroup sees.
    let (client, server) = (pair.bed.pod("client"), pair.bed.pod("server"));
    for family in Family::BOTH {
        let address = server.ips.socket(family, 80);
        let past = client.netns.within(|| TcpStream::connect_timeout(&address, Duration::from_millis(500)))?;
        ensure!(past.is_err(), "{family}: a connection went past the guard");
    }
    ensure!(outcome(&pair.bed, "n1", "guard_syn_unfiled")? > 0);
    // It leaves while no agent is there to take the filters off; they have no pins to be found by, but what is filed.
    pair.bed.agent_mut("n1").kill()?;
    pair.bed.label_pod("client", MESH_LABEL, Some("disabled"))?;
    pair.bed.start_agent("n1", &options(&["--tc=clsact"]))?;
    eventually(PATIENCE, "the filters to go", || {
        let left = ["ingress", "egress"].map(|way| filters(&pair.bed, way));
        let [ingress, egress] = left;
        Ok((!ingress?.contains("nm_guard_") && !egress?.contains("nm_guard_")).then_some(()))
    })?;
    let server = pair.bed.pod("server").ips.socket(Family::V4, 80);
    eventually(PATIENCE, "plain networking", || request(&pair, server).map(Some))
}

#[test]
fn a_pod_that_returns_at_once_stays_reachable() -> Result<()> {
    let Some(mut pair) = meshed("a pod that leaves and returns")? else { return Ok(()) };
    if !pair.with_mesh {
        return Ok(());
    }
    start_nginx(pair.bed.pod("server"))?;
    pair.served()?;
    pair.bed.label_pod("client", MESH_LABEL, Some("disabled"))?;
    let left = |pair: &Pair| Ok(pair.bed.agent("n1").log().contains("left the mesh").then_some(()));
    eventually(PATIENCE, "the pod to leave", || left(&pair))?;
    pair.bed.label_pod("client", MESH_LABEL, None)?;
    eventually(PATIENCE, "the pod to return", || pair.served().map(Some))?;
    // What its leaving had put off must not happen any more.
    for _ in 0..10 {
        std::thread::sleep(Duration::from_millis(150));
        pair.served()?;
    }
    Ok(())
}

#[test]
fn a_namespace_with_the_pods_address_is_not_taken_for_the_pods() -> Result<()> {
    let Some(mut pair) = meshed("an impostor namespace")? else { return Ok(()) };
    if !pair.with_mesh {
        return Ok(());
    }
    start_nginx(pair.bed.pod("server"))?;
    let server = pair.bed.pod("server");
    // Any process can make one in a user namespace of its own. Several, because the order of the search is not ours.
    let script = format!("ip link set lo up && ip address add {}/32 dev lo && exec sleep infinity", server.ips.v4);
    for number in 0..6 {
        server.start(&format!("impostor-{number}"), &["unshare", "--net", "sh", "-c", &script])?;
    }
    std::thread::sleep(Duration::from_millis(300));
    pair.bed.agent_mut("n2").kill()?;
    pair.bed.start_agent("n2", &AgentOptions::default())?;
    // Past an agent that took the wrong namespace this would reach nginx as well, and nobody would have judged it.
    let address = pair.bed.pod("server").ips.socket(Family::V4, 80);
    curl(|argv| pair.bed.node("n1").tool_place().run(argv, PATIENCE), address)?;
    ensure!(outcome(&pair.bed, "n2", "lookup_plaintext")? > 0, "the request did not come through the agent");
    pair.served()
}

#[test]
fn an_interface_that_comes_later_is_guarded() -> Result<()> {
    let Some(pair) = meshed("a second interface")? else { return Ok(()) };
    if !pair.with_mesh {
        return Ok(());
    }
    let (node, client) = (&pair.bed.node("n1").netns, pair.bed.pod("client"));
    node.batch(&format!("link add second type veth peer name eth1 netns {}\nlink set second up", client.netns.name))?;
    client.netns.batch("link set eth1 up\naddress add 10.99.0.2/24 dev eth1")?;
    let pins = pair.bed.agent("n1").pins().join("v1/pods").join(&client.uid);
    eventually(PATIENCE, "both interfaces to be guarded", || {
        let guards = std::fs::read_dir(&pins)?.flatten().filter(|pin| is_guard(&pin.path())).count();
        Ok((guards == 4).then_some(()))
    })?;
    let past = client
        .netns
        .within(|| TcpStream::connect_timeout(&SocketAddr::from(([10, 99, 0, 1], 80)), Duration::from_millis(300)))?;
    ensure!(past.is_err());
    let (status, body) = pair.bed.agent("n1").get("/readyz")?;
    ensure!(status == 200, "{body}");
    Ok(())
}

#[test]
fn a_pod_without_ipv6_is_served_over_ipv4() -> Result<()> {
    let Some(mut pair) = built("a pod without IPv6")? else { return Ok(()) };
    start_nginx(pair.bed.pod("server"))?;
    let off = || std::fs::write("/proc/sys/net/ipv6/conf/all/disable_ipv6", "1");
    pair.bed.pod("client").netns.within(off)??;
    start(&mut pair, &[])?;
    request(&pair, pair.server(Family::V4, 80))
}

#[test]
fn connections_older_than_enrolment_pass_until_they_close() -> Result<()> {
    let Some(mut pair) = built("an old connection")? else { return Ok(()) };
    let _listener = pair.listen(&["echo"])?;
    let mut old = Vec::new();
    for family in Family::BOTH {
        let address = pair.server(family, PORT).to_string();
        let steps =
            ["connect", &address, "send:old", "read:3", "sleep:5000", "send:still", "read:5", "fin", "read-end"];
        old.push(pair.bed.pod("client").spawn_probe(&format!("old-{family}"), &steps)?);
    }
    eventually(PATIENCE, "both to be connected", || {
        Ok(old.iter().all(|probe| probe.log().contains("\"read\"")).then_some(()))
    })?;
    start(&mut pair, &[])?;
    for probe in &mut old {
        let status = probe.wait(PATIENCE)?;
        ensure!(status.success(), "{}", probe.log());
    }
    Ok(())
}

/// A pair whose agents are started with more arguments.
pub fn started_with(test: &str, arguments: &[&str]) -> Result<Option<Pair>> {
    let Some(mut pair) = built(test)? else { return Ok(None) };
    start(&mut pair, arguments)?;
    Ok(Some(pair))
}

/// A pair without agents yet; None if this machine cannot run them.
pub fn built(test: &str) -> Result<Option<Pair>> {
    if !xtask::rings::can_use_kernel(test) {
        return Ok(None);
    }
    Pair::build().map(Some)
}

/// The first node's agent gets the arguments.
pub fn start(pair: &mut Pair, arguments: &[&str]) -> Result<()> {
    pair.bed.start_agent("n1", &options(arguments))?;
    pair.bed.start_agent("n2", &AgentOptions::default())?;
    pair.with_mesh = true;
    Ok(())
}

pub fn options(arguments: &[&str]) -> AgentOptions {
    AgentOptions::with(arguments.iter().copied())
}

/// A request from a place.
fn curl(run: impl Fn(&[&str]) -> Result<Finished>, address: SocketAddr) -> Result<()> {
    let url = format!("http://{address}/");
    run(&["curl", "-sS", "--fail", "--max-time", "20", &url])?.expect_ok(&url).map(drop)
}

/// A request from the client pod.
fn request(pair: &Pair, address: SocketAddr) -> Result<()> {
    curl(|argv| pair.bed.pod("client").run(argv, PATIENCE), address)
}

/// The client's clsact filters, as tc shows them.
fn filters(bed: &Testbed, way: &str) -> Result<String> {
    let argv = ["tc", "filter", "show", "dev", &bed.pod("client").host_end, way];
    bed.node("n1").tool_place().run(&argv, PATIENCE)?.expect_ok("tc")
}

fn is_guard(pin: &Path) -> bool {
    pin.file_name().is_some_and(|name| name.to_string_lossy().starts_with("guard-"))
}

/// What the first node has attached and pinned: names without ids.
pub fn attached(bed: &Testbed) -> Result<BTreeSet<String>> {
    let mut seen = BTreeSet::new();
    let pins = bed.agent("n1").pins();
    let mut directories = vec![pins.to_path_buf()];
    while let Some(directory) = directories.pop() {
        for entry in std::fs::read_dir(directory)?.flatten() {
            seen.insert(format!("pin {}", entry.path().display()));
            if entry.file_type()?.is_dir() {
                directories.push(entry.path());
            }
        }
    }
    let node = bed.node("n1");
    for cgroup in ["kubepods", "agent"].map(|part| node.cgroup.join(part)) {
        let shown = bpftool(&["cgroup", "show", &cgroup.to_string_lossy()])?;
        seen.insert(format!("{}: {} programs", cgroup.display(), count(&shown, "\"id\"")));
    }
    let shown = node.tool_place().run(&["bpftool", "-j", "net", "show"], PATIENCE)?.expect_ok("bpftool")?;
    seen.insert(format!("{} programs on interfaces", count(&shown, "nm_guard_")));
    let inode = std::os::unix::fs::MetadataExt::ino(&std::fs::metadata(bed.pod("client").netns.path())?);
    let shown = bpftool(&["link", "show"])?;
    seen.insert(format!("{} programs in the client's namespace", count(&shown, &format!("\"netns_ino\":{inode},"))));
    Ok(seen)
}

/// Waits until that is attached and pinned which was: the kernel lets go of a killed agent's links in its own time.
pub fn is_attached_again(bed: &Testbed, before: &BTreeSet<String>) -> Result<()> {
    eventually(PATIENCE, "what was attached to be so again", || {
        let after = attached(bed)?;
        ensure!(*before == after, "before: {before:#?}\nafter: {after:#?}");
        Ok(Some(()))
    })
}

/// What bpftool says, as JSON.
pub fn bpftool(arguments: &[&str]) -> Result<String> {
    let output = Command::new("bpftool").arg("-j").args(arguments).output().context("starting bpftool")?;
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn count(text: &str, part: &str) -> usize {
    text.matches(part).count()
}

/// An interface's hardware address.
fn hardware_address(netns: &Netns, interface: &str) -> Result<String> {
    let shown = Command::new("ip").args(["-n", &netns.name, "-oneline", "link", "show", "dev", interface]).output()?;
    let shown = String::from_utf8_lossy(&shown.stdout).into_owned();
    let address = shown.split("link/ether ").nth(1).and_then(|rest| rest.split(' ').next());
    address.map(str::to_string).with_context(|| format!("{interface} has no hardware address: {shown}"))
}
