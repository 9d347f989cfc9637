//! What a pod with CAP_NET_ADMIN makes of its own network, before it is enrolled or later: nothing of it goes past the guard.

use std::io;
use std::net::{SocketAddr, TcpStream};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::json;
use xtask::demo::stage::{MESH_LABEL, marker};
use xtask::testbed::{Family, Netns, Pod, PodSpec, Process, Recording, address, eventually, map_entries};

use crate::kernel::{built, options, start, started_with};
use crate::pair::{PORT, Pair};
use crate::reach::{outcome, say_names};

const PATIENCE: Duration = Duration::from_secs(30);
/// Longer than the agent takes to look at the interfaces of enrolled pods.
const A_LOOK: Duration = Duration::from_secs(7);

/// A pod that forwards for a network of its own, by its own address: that network reaches others without a mesh, and with
/// one neither this way nor any other.
#[test]
fn a_network_within_a_pod_has_no_way_past_the_guard() -> Result<()> {
    let Some(mut pair) = built("a network within a pod")? else { return Ok(()) };
    let _listener = pair.listen(&["echo"])?;
    let inner = Inner::make(pair.bed.pod("client"), Way::Bridge)?;
    for family in Family::BOTH {
        inner.reaches(&pair, family)?;
    }
    start(&mut pair, &[])?;
    let marker = marker("inner")?;
    let node = pair.bed.node("n1");
    let recording = Recording::start(&node.tool_place(), &node.link_to("n2"), &pair.bed.dir().join("inner.pcap"))?;
    for family in Family::BOTH {
        inner.is_dropped(&pair, family)?;
        let answer = pair.connect(family, &[&format!("send:{marker}"), &format!("read:{}", marker.len())])?;
        answer.expect_ok("the pod itself")?;
    }
    let packets = recording.stop()?;
    ensure!(packets.containing(&marker) == 0 && !packets.tcp().is_empty(), "the recording is no witness");
    Ok(())
}

/// What keeps a pod from being enrolled, though it has a link to its node.
struct Bar {
    what: &'static str,
    /// How the network in the pod hangs on it.
    way: Way,
    make: fn(&Pair, &Pod) -> Result<()>,
    undo: fn(&Pod) -> Result<()>,
    /// In which the pod has a way out all the same.
    families: &'static [Family],
    /// Part of what the agent says of it.
    said: &'static str,
}

const BARS: [Bar; 4] = [
    Bar {
        what: "a veth on no bridge",
        way: Way::Alone,
        make: |_, _| Ok(()),
        undo: |pod| pod.netns.batch("link delete inner"),
        families: &Family::BOTH,
        said: "its interface inner has no host-side peer",
    },
    // As a second network is given to a pod.
    Bar {
        what: "a macvlan of the node's",
        way: Way::Bridge,
        make: |pair, pod| {
            let node = pair.bed.node("n1");
            let (uplink, pod) = (node.link_to("n2"), &pod.netns);
            node.netns.batch(&format!("link add link {uplink} name net1 netns {} type macvlan", pod.name))?;
            pod.batch("link set net1 up")
        },
        undo: |pod| pod.netns.batch("link delete net1"),
        families: &Family::BOTH,
        said: "its interface net1 has no host-side peer",
    },
    Bar {
        what: "lo that is down",
        way: Way::Bridge,
        make: |_, pod| pod.netns.batch("link set lo down"),
        undo: |pod| pod.netns.batch("link set lo up"),
        families: &Family::BOTH,
        said: "adding its capture routes",
    },
    Bar {
        what: "an address that is gone",
        way: Way::Bridge,
        make: |_, pod| pod.netns.batch(&format!("address delete {}/32 dev eth0", pod.ips.v4)),
        undo: |pod| {
            let (ip, gateway) = (pod.ips.v4, address::gateway(1).v4);
            pod.netns.batch(&format!(
                "address add {ip}/32 dev eth0\nroute add {gateway}/32 dev eth0 scope link src {ip}\n\
                 route add default via {gateway} dev eth0 src {ip}"
            ))
        },
        families: &[Family::V6],
        said: "holds its IP",
    },
];

#[test]
fn a_pod_that_cannot_be_enrolled_is_refused() -> Result<()> {
    for (bar, tc) in BARS.iter().map(|bar| (bar, "auto")).chain([(&BARS[0], "clsact")]) {
        let Some(mut barred) = Barred::build(bar)? else { return Ok(()) };
        let run = barred.plays(bar, &format!("--tc={tc}"));
        run.with_context(|| format!("{}, {tc}", bar.what)).map_err(|error| barred.pair.bed.explain(error))?;
    }
    Ok(())
}

/// A pod with such a bar, beside the pair.
struct Barred {
    pair: Pair,
    inner: Inner,
    _processes: Vec<Process>,
}

impl Barred {
    fn build(bar: &Bar) -> Result<Option<Self>> {
        let Some(mut pair) = built("a pod that cannot be enrolled")? else { return Ok(None) };
        let spec = PodSpec::new("pair", "barred", "n1");
        pair.bed.add_pod(spec.container("livenessProbe", json!({"tcpSocket": {"port": PORT}})))?;
        let mut processes = say_names(&pair.bed, &["barred"], PORT)?;
        processes.push(pair.listen(&["echo"])?);
        processes.push(pair.bed.start_kubelet("n1", "kubelet")?);
        let inner = Inner::make(pair.bed.pod("barred"), bar.way)?;
        (bar.make)(&pair, pair.bed.pod("barred"))?;
        for family in bar.families {
            inner.reaches(&pair, *family)?;
        }
        Ok(Some(Self { pair, inner, _processes: processes }))
    }

    fn pod(&self) -> &Pod {
        self.pair.bed.pod("barred")
    }

    fn plays(&mut self, bar: &Bar, tc: &str) -> Result<()> {
        start(&mut self.pair, &[tc])?;
        self.is_refused(bar).context("at first")?;
        self.pair.bed.agent_mut("n1").kill()?;
        self.drops(bar).context("with no agent")?;
        self.pair.bed.start_agent("n1", &options(&[tc]))?;
        self.is_refused(bar).context("by the next agent")?;
        self.pair.bed.label_pod("barred", MESH_LABEL, Some("disabled"))?;
        let pins = self.pair.bed.agent("n1").pins().join("v1/pods").join(&self.pod().uid);
        eventually(PATIENCE, "its pins to go", || Ok((!pins.exists()).then_some(())))?;
        for family in bar.families {
            self.inner.reaches(&self.pair, *family).context("without the label")?;
        }
        self.pair.bed.label_pod("barred", MESH_LABEL, None)?;
        eventually(PATIENCE, "it to be refused again", || Ok(pins.join("lookup").exists().then_some(())))?;
        self.is_refused(bar).context("with the label again")?;
        (bar.undo)(self.pod())?;
        eventually(PATIENCE, "it to be enrolled", || Ok(self.echoes(Family::V4)?.then_some(())))?;
        eventually(PATIENCE, "the agent to say so", || Ok((!self.trouble()?.contains("barred")).then_some(())))
    }

    fn drops(&self, bar: &Bar) -> Result<()> {
        bar.families.iter().try_for_each(|family| self.inner.is_dropped(&self.pair, *family))
    }

    /// In both directions, but for kubelet.
    fn is_refused(&self, bar: &Bar) -> Result<()> {
        eventually(PATIENCE, "the agent to say so", || {
            let trouble = self.trouble()?;
            Ok((trouble.contains(bar.said) && trouble.contains("pod/pair/barred")).then_some(()))
        })?;
        self.drops(bar)?;
        for family in bar.families {
            ensure!(!self.echoes(*family)?, "{family}: it reached somebody");
            let own = self.pod().ips.socket(*family, PORT);
            let stranger = self.pair.bed.dialler("n1", "tools")?.probe("tcp", own)?;
            ensure!(stranger.is_err(), "{family}: a stranger reached it: {stranger:?}");
            eventually(PATIENCE, "kubelet's probe to pass", || {
                Ok(self.pair.bed.dialler("n1", "kubelet")?.probe("tcp", own)?.is_ok().then_some(()))
            })?;
        }
        Ok(())
    }

    /// Whether a connection of its own is answered.
    fn echoes(&self, family: Family) -> Result<bool> {
        let server = self.pair.bed.pod("server").ips.socket(family, PORT).to_string();
        Ok(self.pod().probe(&["connect", &server, "send:a", "read:1"])?.ok())
    }

    /// What the agent says while it is ready.
    fn trouble(&self) -> Result<String> {
        let (status, body) = self.pair.bed.agent("n1").get("/readyz")?;
        ensure!(status == 200, "{body}");
        Ok(body)
    }
}

#[test]
fn an_enrolled_pod_that_makes_an_odd_interface_stays_guarded() -> Result<()> {
    for tc in ["--tc=auto", "--tc=clsact"] {
        let Some(pair) = started_with("an odd interface of an enrolled pod", &[tc])? else { return Ok(()) };
        an_odd_interface_comes(pair, tc).with_context(|| tc)?;
    }
    Ok(())
}

fn an_odd_interface_comes(mut pair: Pair, tc: &str) -> Result<()> {
    let _listener = pair.listen(&["echo"])?;
    let connects = |pair: &Pair| pair.connect(Family::V4, &["send:a", "read:1"]).map(|answer| answer.ok());
    eventually(PATIENCE, "the pair to talk", || Ok(connects(&pair)?.then_some(())))?;
    let inner = Inner::make(pair.bed.pod("client"), Way::Alone)?;
    eventually(PATIENCE, "the agent to say so", || says(&pair, "its interface inner has no host-side peer"))?;
    // What else comes is guarded.
    second_link(&pair)?;
    inner.is_dropped(&pair, Family::V4)?;
    inner.is_dropped(&pair, Family::V6)?;
    ensure!(connects(&pair)?, "the pod itself is cut off");
    pair.bed.agent_mut("n1").kill()?;
    inner.is_dropped(&pair, Family::V4)?;
    // The next agent finds it enrolled, by links that it still has.
    pair.bed.start_agent("n1", &options(&[tc]))?;
    ensure!(connects(&pair)?, "the next agent cut it off");
    eventually(PATIENCE, "the next agent to say so", || says(&pair, "its interface inner has no host-side peer"))?;
    for family in Family::BOTH {
        inner.is_dropped(&pair, family).context("by the next agent")?;
    }
    // Who joins the mesh with such a thing is refused.
    pair.bed.label_pod("client", MESH_LABEL, Some("disabled"))?;
    let pins = pair.bed.agent("n1").pins().join("v1/pods").join(&pair.bed.pod("client").uid);
    eventually(PATIENCE, "its pins to go", || Ok((!pins.exists()).then_some(())))?;
    pair.bed.label_pod("client", MESH_LABEL, None)?;
    eventually(PATIENCE, "it to be refused", || says(&pair, "it is refused until that is gone"))?;
    ensure!(!connects(&pair)?, "an agent that cannot enrol it lets it pass");
    inner.is_dropped(&pair, Family::V4).context("with the label again")?;
    pair.bed.pod("client").netns.batch("link delete inner")?;
    eventually(PATIENCE, "it to be enrolled again", || Ok(connects(&pair)?.then_some(())))?;
    eventually(PATIENCE, "the agent to find nothing", || Ok(says(&pair, "no host-side peer")?.is_none().then_some(())))
}

/// A pod of two links moves one into a namespace of its own.
#[test]
fn a_link_that_a_pod_moves_stays_guarded() -> Result<()> {
    for tc in ["--tc=auto", "--tc=clsact"] {
        let Some(pair) = started_with("a link that is moved", &[tc])? else { return Ok(()) };
        a_link_is_moved(pair, tc).with_context(|| tc)?;
    }
    Ok(())
}

fn a_link_is_moved(mut pair: Pair, tc: &str) -> Result<()> {
    let _listener = pair.listen(&["echo"])?;
    second_link(&pair)?;
    let client = pair.bed.pod("client");
    let (ip, gateway) = (client.ips.v4, address::gateway(1).v4);
    let inner = Inner::empty(client)?;
    client.netns.batch(&format!(
        "link set eth0 netns {}\naddress add {ip}/32 dev eth1\naddress add {}/128 dev eth1 nodad",
        inner.netns.name, client.ips.v6
    ))?;
    inner.netns.batch(&format!(
        "link set eth0 up\naddress add {ip}/32 dev eth0\nroute add {gateway}/32 dev eth0 scope link src {ip}\n\
         route add default via {gateway} dev eth0 src {ip}"
    ))?;
    std::thread::sleep(A_LOOK);
    inner.is_dropped(&pair, Family::V4)?;
    pair.bed.agent_mut("n1").kill()?;
    pair.bed.start_agent("n1", &options(&[tc]))?;
    std::thread::sleep(A_LOOK);
    inner.is_dropped(&pair, Family::V4).context("by the next agent")
}

/// Whether the agent, which is ready, says something.
fn says(pair: &Pair, what: &str) -> Result<Option<()>> {
    let (status, body) = pair.bed.agent("n1").get("/readyz")?;
    Ok((status == 200 && body.contains(what)).then_some(()))
}

/// Gives the client a second link to its node, and waits for its guard.
fn second_link(pair: &Pair) -> Result<()> {
    let (node, client) = (&pair.bed.node("n1").netns, pair.bed.pod("client"));
    node.batch(&format!("link add second type veth peer name eth1 netns {}\nlink set second up", client.netns.name))?;
    client.netns.batch("link set eth1 up\naddress add 10.99.0.2/24 dev eth1")?;
    // On clsact nothing is pinned for it.
    let guarded = pair.bed.agent("n1").pins().join("v1/maps/GUARDED");
    eventually(PATIENCE, "both links to be guarded", || Ok((map_entries(&guarded)? == 2).then_some(())))
}

/// How a network hangs on the pod that it is in.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    /// As docker in docker has it.
    Bridge,
    /// By a veth alone.
    Alone,
}

/// A network in a pod, which forwards for it and lends it its address.
struct Inner {
    netns: Netns,
}

impl Inner {
    fn empty(pod: &Pod) -> Result<Self> {
        Ok(Self { netns: Netns::create_noted(format!("{}-inner", pod.netns.name))? })
    }

    fn make(pod: &Pod, way: Way) -> Result<Self> {
        const LEND: &str = "table inet nodemesh {
            chain out {
                type nat hook postrouting priority 100
                oifname \"eth0\" masquerade
            }
        }
";
        let inner = Self::empty(pod)?;
        let name = &inner.netns.name;
        pod.netns.batch(&match way {
            Way::Bridge => format!(
                "link add inner type bridge\nlink add port type veth peer name eth0 netns {name}\n\
                 link set port master inner up"
            ),
            Way::Alone => format!("link add inner type veth peer name eth0 netns {name}"),
        })?;
        pod.netns
            .batch("link set inner up\naddress add 10.98.0.1/24 dev inner\naddress add fd98::1/64 dev inner nodad")?;
        inner.netns.batch(
            "link set eth0 up\naddress add 10.98.0.2/24 dev eth0\naddress add fd98::2/64 dev eth0 nodad\n\
             route add default via 10.98.0.1\nroute add default via fd98::1",
        )?;
        let rules = pod.dir.join("lend.nft");
        std::fs::write(&rules, LEND)?;
        let forward = || -> Result<()> {
            std::fs::write("/proc/sys/net/ipv4/ip_forward", "1")?;
            std::fs::write("/proc/sys/net/ipv6/conf/all/forwarding", "1")?;
            let output = Command::new("nft").arg("-f").arg(&rules).output().context("starting nft")?;
            ensure!(output.status.success(), "nft: {}", String::from_utf8_lossy(&output.stderr));
            Ok(())
        };
        pod.netns.within(forward)??;
        Ok(inner)
    }

    fn dial(&self, pair: &Pair, family: Family) -> Result<io::Result<TcpStream>> {
        let server: SocketAddr = pair.bed.pod("server").ips.socket(family, PORT);
        self.netns.within(|| TcpStream::connect_timeout(&server, Duration::from_millis(500)))
    }

    /// Waits until it reaches the server.
    fn reaches(&self, pair: &Pair, family: Family) -> Result<()> {
        eventually(PATIENCE, "the inner network to have a way", || Ok(self.dial(pair, family)?.is_ok().then_some(())))
    }

    /// What it dials must be dropped by the guard.
    fn is_dropped(&self, pair: &Pair, family: Family) -> Result<()> {
        let count = || outcome(&pair.bed, "n1", "guard_syn_unfiled");
        // An agent that was killed counts nothing, but its guard stands.
        let before = count().ok();
        let error = self.dial(pair, family)?.err().with_context(|| format!("{family}: it got past the guard"))?;
        let Some(before) = before else { return Ok(()) };
        // The SYN waits for the address of its neighbour before it comes to the guard.
        eventually(PATIENCE, "the guard to count it", || Ok((count()? > before).then_some(())))
            .with_context(|| format!("{family}: it was not the guard that dropped it: {error}"))
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "delete", &self.netns.name]).status();
    }
}
