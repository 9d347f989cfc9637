//! Two pods of one node, by the kernel alone (`--same-node-kernel`): where nobody has to read, no agent is in between, and
//! policy holds as with one.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use xtask::rings::can_use_kernel;
use xtask::testbed::{AgentOptions, Family, PodSpec, ServiceSpec, Testbed, eventually, start_nginx};

use crate::pair::{PORT, Pair, lines};

const PATIENCE: Duration = Duration::from_secs(30);
/// What the agent is given to publish what it was told.
const TO_BE_KNOWN: Duration = Duration::from_secs(30);

const DENY: &str = "apiVersion: nodemesh.dev/v1alpha1
kind: AuthorizationPolicy
metadata: {name: p, namespace: pair}
spec:
  targetRefs: [{kind: Pod, selector: {matchLabels: {app: server}}}]
  action: DENY
  rules: [{sources: [{type: ServiceAccount, serviceAccount: {name: client}}]}]
";

/// In how many connections a pod may have a part.
const MOST: usize = 100;

fn options() -> AgentOptions {
    AgentOptions::with(["--same-node-kernel", &format!("--pod-connections={MOST}")])
}

/// Client and server on n1; of the Service's ports one speaks HTTP. A stranger outside the mesh.
fn build(test: &str) -> Result<Option<Pair>> {
    if !can_use_kernel(test) {
        return Ok(None);
    }
    let mut bed = Testbed::new()?;
    bed.add_node()?;
    bed.add_namespace("pair", &[("nodemesh.dev/mesh", "enabled")])?;
    bed.add_namespace("outside", &[])?;
    for name in ["client", "server"] {
        bed.add_pod(PodSpec::new("pair", name, "n1"))?;
    }
    for name in ["neighbour", "near-neighbour"] {
        bed.add_pod(PodSpec::new("pair", name, "n1"))?;
    }
    bed.add_pod(PodSpec::new("outside", "stranger", "n1"))?;
    bed.add_service(ServiceSpec::new("pair", "near-neighbour").port("bytes", PORT, PORT))?;
    let service = ServiceSpec::new("pair", "server");
    bed.add_service(service.port("probe", PORT, PORT).port("http", 80, 80).port("bytes", 90, 80))?;
    bed.start_agents(&options())?;
    let pair = Pair { bed, with_mesh: true };
    start_nginx(pair.bed.pod("server"))?;
    Ok(Some(pair))
}

/// What a request that `from` sends to the server's port gets, and whether it went straight.
fn asked(pair: &Pair, from: &str, family: Family, port: u16) -> Result<(String, bool)> {
    let url = format!("http://{}/", pair.server(family, port));
    let before = straight(pair)?;
    let curl = ["curl", "-s", "-o", "/dev/null", "-w", "%{http_code}", "--max-time", "10", &url];
    let answer = pair.bed.pod(from).run(&curl, PATIENCE)?.stdout;
    Ok((answer, straight(pair)? > before))
}

/// How many connections went straight, as the kernel counts.
fn straight(pair: &Pair) -> Result<u64> {
    let agent = pair.bed.agent("n1");
    Ok(agent.kernel_outcome("connect_straight_v4")? + agent.kernel_outcome("connect_straight_v6")?)
}

fn becomes(pair: &Pair, family: Family, port: u16, expected: (&str, bool)) -> Result<()> {
    eventually(TO_BE_KNOWN, "connections to be as they should", || {
        let (answer, went_straight) = asked(pair, "client", family, port)?;
        Ok(((&*answer, went_straight) == expected).then_some(()))
    })
    .with_context(|| format!("{family}, port {port}, not {expected:?} but {:?}", asked(pair, "client", family, port)))
    .map_err(|error| pair.bed.explain(error))
}

/// A connection that stays open, from the client's to the server's own program.
fn stays(pair: &Pair) -> Result<xtask::testbed::Process> {
    let listener = pair.listen(&["read:2", "send:ok", "read-reset"])?;
    let server = pair.server(Family::BOTH[0], PORT).to_string();
    pair.bed.pod("client").start_probe("stays", &["connect", &server, "send:hi", "read:2", "read-reset"])?;
    eventually(PATIENCE, "the connection to be open", || Ok(listener.log().contains("send").then_some(())))?;
    Ok(listener)
}

fn ensure_cut(pair: &Pair, listener: &xtask::testbed::Process) -> Result<()> {
    let cut = eventually(PATIENCE, "it to be cut", || {
        Ok(lines(&listener.log()).iter().any(|line| line["step"] == "read-reset").then_some(()))
    });
    cut.with_context(|| listener.log()).map_err(|error| pair.bed.explain(error))
}

fn told(pair: &Pair, wanted: impl Fn(&Value) -> bool) -> bool {
    pair.bed.agent("n1").access_log().iter().any(|line| line["transport"] == "same-node-kernel" && wanted(line))
}

/// Both ends see each other as they are, the agent tells of it, and whoever has to be read is carried by the agent.
#[test]
fn neighbours_go_straight_where_nobody_reads() -> Result<()> {
    let Some(pair) = build("same node in the kernel")? else { return Ok(()) };
    for family in Family::BOTH {
        becomes(&pair, family, 90, ("200", true))?;
        becomes(&pair, family, 80, ("200", false))?;
        let [server, client] = pair.play(family, &["echo"], &["send:x", "read:1", "fin", "read-end"])?;
        let dialled = pair.server(family, PORT).to_string();
        ensure!(client[0]["peer"] == dialled, "the client dialled {dialled} and sees {}", client[0]["peer"]);
        ensure!(client[0]["local"] == server[0]["peer"], "client: {client:?}, server: {server:?}");
    }
    for direction in ["outbound", "inbound"] {
        let is_whole = |line: &Value| {
            let ends = line["source_pod"] == "pair/client" && line["destination_pod"] == "pair/server";
            line["direction"] == direction && ends && line["bytes_sent"] == 1 && line["bytes_received"] == 1
        };
        eventually(PATIENCE, "the access log to tell", || Ok(told(&pair, is_whole).then_some(())))
            .with_context(|| format!("{direction}: {:?}", pair.bed.agent("n1").access_log()))?;
    }
    // Whoever is not of the mesh never comes by that way.
    let (answer, went_straight) = asked(&pair, "stranger", Family::BOTH[0], 90)?;
    ensure!(!went_straight, "the stranger: {answer}");
    let traffic = "apiVersion: nodemesh.dev/v1alpha1
kind: TrafficPolicy
metadata: {name: t, namespace: pair}
spec:
  targetRefs: [{kind: Service, name: server}]
  retry: {attempts: 2}
";
    let peers = "apiVersion: nodemesh.dev/v1alpha1
kind: PeerAuthentication
metadata: {name: default, namespace: pair}
spec: {targetRefs: [{kind: Namespace}], mode: STRICT, sameNode: Encrypt}
";
    let requests = DENY.replace("{name: client}}]", "{name: client}}], requests: [{methods: [POST]}]");
    for (name, yaml) in [("traffic", traffic), ("peers", peers), ("policy", requests.as_str())] {
        pair.bed.world.apply(name, yaml)?;
        becomes(&pair, Family::BOTH[0], 90, ("200", false)).context(name)?;
        pair.bed.world.delete(name)?;
        becomes(&pair, Family::BOTH[0], 90, ("200", true)).context(name)?;
    }
    Ok(())
}

/// Policy that changes ends what is open, also what an agent before this one let go; and nothing new comes.
#[test]
fn neighbours_that_went_straight_are_cut_when_policy_changes() -> Result<()> {
    let Some(mut pair) = build("same node in the kernel, policy")? else { return Ok(()) };
    for is_killed in [false, true] {
        becomes(&pair, Family::BOTH[0], 90, ("200", true))?;
        let before = straight(&pair)?;
        let listener = stays(&pair)?;
        ensure!(straight(&pair)? == before + 1, "not by the way that is meant");
        if is_killed {
            pair.bed.agent_mut("n1").kill()?;
            pair.bed.start_agent("n1", &options())?;
            becomes(&pair, Family::BOTH[0], 90, ("200", true))?;
            ensure!(!listener.log().contains("read-reset"), "an agent that came cut what may go on");
        }
        pair.bed.world.apply("policy", DENY)?;
        ensure_cut(&pair, &listener)?;
        let is_cut = |line: &Value| line["result"] == "cut" && line["reason"] == "policy-revoked";
        eventually(PATIENCE, "the access log to tell", || Ok(told(&pair, is_cut).then_some(())))
            .with_context(|| format!("{:?}", pair.bed.agent("n1").access_log()))?;
        for family in Family::BOTH {
            becomes(&pair, family, 90, ("000", false))?;
        }
        pair.bed.world.delete("policy")?;
    }
    Ok(())
}

/// With no agent what was allowed goes on for a while, and never to another pod that has the address now.
#[test]
fn without_an_agent_no_other_pod_is_reached() -> Result<()> {
    let Some(mut pair) = build("same node in the kernel, no agent")? else { return Ok(()) };
    for family in Family::BOTH {
        becomes(&pair, family, 90, ("200", true))?;
    }
    pair.bed.agent_mut("n1").kill()?;
    let ask = |pair: &Pair, family| -> Result<String> {
        let url = format!("http://{}/", pair.server(family, 90));
        let curl = ["curl", "-s", "-o", "/dev/null", "-w", "%{http_code}", "--max-time", "10", &url];
        Ok(pair.bed.pod("client").run(&curl, PATIENCE)?.stdout)
    };
    for family in Family::BOTH {
        ensure!(ask(&pair, family)? == "200", "{family}: not without an agent");
    }
    let place = pair.bed.pod("server").place;
    pair.bed.remove_pod("server")?;
    pair.bed.add_pod(PodSpec::new("outside", "thief", "n1").at(place))?;
    start_nginx(pair.bed.pod("thief"))?;
    for family in Family::BOTH {
        let answer = ask(&pair, family)?;
        ensure!(answer == "000", "{family}: the pod that has the address now answered {answer}");
    }
    Ok(())
}

/// What is open is shown at both ends. A pod that opens more than it may have goes by the agent with the rest, a neighbour's
/// connections to that server too, and nobody's SYN is lost; to other pods they go straight as ever.
#[test]
fn a_pod_that_wants_all_leaves_its_neighbours_theirs() -> Result<()> {
    let Some(pair) = build("same node in the kernel, many")? else { return Ok(()) };
    becomes(&pair, Family::BOTH[0], 90, ("200", true))?;
    let agent = pair.bed.agent("n1");
    for pod in ["server", "near-neighbour"] {
        pair.bed.pod(pod).start_probe("echo", &["echo", &PORT.to_string()])?;
        pair.bed.pod(pod).wait_listening(PORT)?;
    }
    let open = || agent.metric_sum("nodemesh_same_node_kernel_connections_open");
    eventually(PATIENCE, "none to be open", || Ok((open()? == 0.0).then_some(())))?;
    let before = straight(&pair)?;
    let crowd = MOST + MOST / 2;
    let hold = [&pair.server(Family::BOTH[0], PORT).to_string(), &format!("--connections={crowd}"), "--idle=20"];
    let mut crowd = pair.bed.pod("client").spawn_probe("hold", &[&["hold"][..], &hold].concat())?;
    eventually(PATIENCE, "the crowd to be open", || Ok(crowd.log().contains("opened").then_some(())))?;
    ensure!(straight(&pair)? - before == MOST as u64, "not as many as may: {}", agent.kernel_outcomes());
    // The agent hears of them from the kernel.
    eventually(PATIENCE, "all of them to be counted as open", || Ok((open()? == MOST as f64).then_some(())))
        .with_context(|| format!("open: {:?}", open()))?;
    let listed = agent.get_json("/connections")?;
    let is_shown = |line: &Value, direction: &str| {
        let ends = line["source"]["pod"] == "pair/client" && line["destination"]["pod"] == "pair/server";
        line["transport"] == "same-node-kernel" && line["direction"] == direction && ends
    };
    for direction in ["outbound", "inbound"] {
        let shown = listed.as_array().into_iter().flatten().filter(|line| is_shown(line, direction)).count();
        ensure!(shown == MOST, "{direction}: {shown} are listed");
    }
    let (answer, went_straight) = asked(&pair, "neighbour", Family::BOTH[0], 90)?;
    ensure!((&*answer, went_straight) == ("200", false), "to a server that has all it may: {answer}, {went_straight}");
    let elsewhere = pair.bed.service("near-neighbour").socket(Family::BOTH[0], PORT).to_string();
    let before = straight(&pair)?;
    pair.bed.pod("neighbour").probe(&["connect", &elsewhere, "send:x", "read:1"])?.expect_ok("a neighbour")?;
    ensure!(straight(&pair)? == before + 1, "a neighbour has no room: {}", agent.kernel_outcomes());
    ensure!(crowd.wait(2 * PATIENCE)?.success(), "{}", crowd.log());
    becomes(&pair, Family::BOTH[0], 90, ("200", true))?;
    for lost in ["straight_not_filed", "straight_refused"] {
        ensure!(agent.kernel_outcome(lost)? == 0, "{}", agent.kernel_outcomes());
    }
    Ok(())
}
