//! h2spec, which asks a server of HTTP/2 what the RFC says of it, at both of ours: a port of requests, which hyper serves,
//! and a pod's tunnel port, which is our own codec.
//!
//! It is of RFC 7540. What RFC 9113 sees otherwise, and what a server of CONNECT alone has no answer to, is listed here.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::convert::Infallible;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use mesh_agent::drain::Drain;
use mesh_agent::identity::local_ca::LocalCa;
use mesh_agent::identity::{Config, Identities, Svid};
use mesh_agent::spiffe::SpiffeId;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use xtask::rings::can_use_tool;
use xtask::testbed::{AgentOptions, Family, Finished, Netns, PodSpec, ServiceSpec, Testbed, start_nginx};
use xtask::tools::H2SPEC;

/// How long it waits for an answer before it says that there is none, in seconds: its own default.
const ANSWER: &str = "2";
/// How often it is asked at most.
const RUNS: u32 = 3;
/// For all of it.
const PATIENCE: Duration = Duration::from_secs(120);
/// How many cases it has.
const CASES: usize = 146;

const WEB_HTTP2: u16 = 8081;
const TUNNEL_PORT: u16 = 15008;

/// What does not pass at a port of requests, by section and place in it, and why that may be.
const AT_REQUESTS: &[(&str, &str)] = &[
    ("http2/3.5/2", "RFC 9113, 3.4: what begins otherwise is no HTTP/2; here it is HTTP/1.1, and answered 400 as such"),
    (
        "http2/4.2/3",
        "RFC 9113, 4.2: frames have the size that our SETTINGS say, and it takes that for the least of all",
    ),
];

/// The same at a tunnel port.
const AT_A_TUNNEL: &[(&str, &str)] = &[
    ("generic/2/2", NO_DATA),
    ("generic/2/3", NO_DATA),
    (
        "http2/5.3.1/2",
        "RFC 9113, 5.3.2: what is said of priorities means nothing; and 6.4: a stream that is idle cannot be reset",
    ),
    // These four it leaves out where it sees that.
    ("http2/6.5.3/1", NO_DATA),
    ("http2/6.9.1/1", NO_DATA),
    ("http2/6.9.2/1", NO_DATA),
    ("http2/6.9.2/2", NO_DATA),
];

const NO_DATA: &str = "RFC 9113, 8.5: a tunnel is asked for by CONNECT; the GET of the case is refused by a head alone";

#[test]
fn a_port_of_requests_keeps_to_the_rfc() -> Result<()> {
    if !can_use_tool("h2spec at a port of requests", &H2SPEC) {
        return Ok(());
    }
    let bed = shop()?;
    let asks = |report: &Path| -> Result<Finished> {
        let asked = h2spec(bed.service("web").socket(Family::V4, 80), report)?;
        let asked: Vec<&str> = asked.iter().map(String::as_str).collect();
        bed.pod("client").run(&asked, PATIENCE)
    };
    passes_but_for(AT_REQUESTS, &bed.dir().join("h2spec.xml"), asks).map_err(|error| bed.explain(error))
}

#[test]
fn a_tunnel_port_keeps_to_the_rfc() -> Result<()> {
    if !can_use_tool("h2spec at a tunnel port", &H2SPEC) {
        return Ok(());
    }
    let bed = shop()?;
    let asks = |report: &Path| behind_a_forwarder(&bed, report);
    passes_but_for(AT_A_TUNNEL, &bed.dir().join("h2spec.xml"), asks).map_err(|error| bed.explain(error))
}

fn shop() -> Result<Testbed> {
    let mut bed = Testbed::of_two_nodes("shop")?;
    bed.add_pod(PodSpec::new("shop", "client", "n1"))?;
    bed.add_pod(PodSpec::new("shop", "web", "n2"))?;
    bed.add_service(ServiceSpec::new("shop", "web").port("http2", 80, WEB_HTTP2))?;
    start_nginx(bed.pod("web"))?;
    bed.start_agents(&AgentOptions::default())?;
    Ok(bed)
}

/// All that it has, what the RFC only recommends too.
fn h2spec(server: SocketAddr, report: &Path) -> Result<Vec<String>> {
    let program = H2SPEC.program()?.to_string_lossy().into_owned();
    let (host, port) = (server.ip().to_string(), server.port().to_string());
    let report = report.to_string_lossy();
    let all = [&program, "--strict", "-h", &host, "-p", &port, "-o", ANSWER, "-j", &report];
    Ok(all.map(str::to_string).to_vec())
}

/// Runs it on the client's node against a port of loopback, from which all goes on to the tunnel port of the web server's
/// pod, under the client's identity. From the node: a process of the pod could not even send the SYN past the guard.
fn behind_a_forwarder(bed: &Testbed, report: &Path) -> Result<Finished> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    tokio::task::LocalSet::new().block_on(&runtime, async {
        let svid = svid(bed).await?;
        let node = bed.node("n1");
        let listener = node.netns.within(|| std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)))??;
        listener.set_nonblocking(true)?;
        let listener = TcpListener::from_std(listener)?;
        let (asked, place) = (h2spec(listener.local_addr()?, report)?, node.tool_place());
        let asks = tokio::task::spawn_blocking(move || {
            let asked: Vec<&str> = asked.iter().map(String::as_str).collect();
            place.run(&asked, PATIENCE)
        });
        let tunnels = SocketAddr::new(bed.pod("web").ips.ip(Family::V4), TUNNEL_PORT);
        tokio::select! {
            said = asks => said?,
            Err(error) = forward_all(&listener, &node.netns, tunnels, &svid) => Err(error),
        }
    })
}

async fn svid(bed: &Testbed) -> Result<Arc<Svid>> {
    let own = SpiffeId::parse(&bed.pod("client").identity())?;
    let ca = LocalCa::directory(&bed.dir().join("ca"), "cluster.local").context("opening the run's CA")?;
    let config = Config { trust_domain: "cluster.local".into(), lifetime: Duration::from_secs(600) };
    let identities = Identities::new(Arc::new(ca), config);
    let drain = Drain::new();
    tokio::task::spawn_local(identities.clone().run(drain.token()));
    identities.want(&HashSet::from([own.clone()]));
    Ok(identities.ready(&own).await)
}

async fn forward_all(from: &TcpListener, netns: &Netns, to: SocketAddr, svid: &Svid) -> Result<Infallible> {
    loop {
        let (client, _) = from.accept().await?;
        let tunnel = netns.within(|| std::net::TcpStream::connect_timeout(&to, Duration::from_secs(20)))??;
        tunnel.set_nonblocking(true)?;
        let connector = TlsConnector::from(svid.client.clone());
        let tunnel = connector.connect(to.ip().into(), TcpStream::from_std(tunnel)?).await?;
        tokio::task::spawn_local(forward(client, tunnel));
    }
}

/// What is said within this goes on as one, so that the server has read all of it before it answers the first: the cases
/// are of streams that are still open, and a request that is refused is over at once.
const IN_ONE: Duration = Duration::from_millis(20);

/// To the end of both. Whoever ends, the other has heard all that was said before.
async fn forward(mut client: TcpStream, tunnel: TlsStream<TcpStream>) {
    let (mut from_client, mut to_client) = client.split();
    let (mut from_tunnel, mut to_tunnel) = tokio::io::split(tunnel);
    let there = async {
        let mut said = Vec::new();
        while let Ok(1..) = from_client.read_buf(&mut said).await {
            while let Ok(Ok(1..)) = tokio::time::timeout(IN_ONE, from_client.read_buf(&mut said)).await {}
            // One that is closed takes no more, and may still have been heard to say why.
            let _ = to_tunnel.write_all(&said).await;
            let _ = to_tunnel.flush().await;
            said.clear();
        }
        let _ = to_tunnel.shutdown().await;
    };
    let back = async {
        let _ = tokio::io::copy(&mut from_tunnel, &mut to_client).await;
        let _ = to_client.shutdown().await;
    };
    tokio::join!(there, back);
}

/// Whether what does not pass is what is listed, no more and no less. A machine that has much else to do answers some case
/// too late: what passes once can, and is asked again.
fn passes_but_for(listed: &[(&str, &str)], report: &Path, asks: impl Fn(&Path) -> Result<Finished>) -> Result<()> {
    let listed: BTreeSet<String> = listed.iter().map(|(case, _)| case.to_string()).collect();
    let mut never: Option<BTreeSet<String>> = None;
    for _ in 0..RUNS {
        let said = asks(report)?;
        let told = std::fs::read_to_string(report).with_context(|| format!("h2spec left no report: {said}"))?;
        let cases = cases(&told);
        ensure!(cases.len() == CASES, "{} cases, not {CASES}: {said}", cases.len());
        let not: BTreeSet<String> = cases.into_iter().filter(|(_, passed)| !passed).map(|(case, _)| case).collect();
        let not = match never.take() {
            Some(before) => &before & &not,
            None => not,
        };
        if not.is_subset(&listed) {
            let fewer = &listed - &not;
            ensure!(fewer.is_empty(), "{fewer:?} are listed, and pass");
            return Ok(());
        }
        println!("{:?} did not pass: {said}", &not - &listed);
        never = Some(not);
    }
    anyhow::bail!("{:?} never passed", never.as_ref().map(|not| not - &listed))
}

/// The cases of a report, by section and place in it, and whether each passed: a line each, and one more where not.
fn cases(report: &str) -> BTreeMap<String, bool> {
    let mut cases = BTreeMap::new();
    let (mut section, mut place) = ("", 0);
    for line in report.lines().map(str::trim_start) {
        if line.starts_with("<testcase ") {
            let found = line.split('"').nth(1).unwrap_or_default();
            place = if found == section { place + 1 } else { 1 };
            section = found;
            cases.insert(format!("{section}/{place}"), true);
        } else if ["<skipped>", "<error>", "<failure>"].iter().any(|word| line.starts_with(word)) {
            cases.insert(format!("{section}/{place}"), false);
        }
    }
    cases
}
