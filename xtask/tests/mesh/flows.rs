//! What is told of the network: how long the way is, what was sent again, and whom the kernel refused.

use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use xtask::rings::can_use_kernel;
use xtask::testbed::{AgentOptions, Family, Impairment, Links, eventually};

use crate::bulk::{self, transfer};
use crate::pair::{Pair, meshed};

const PATIENCE: Duration = Duration::from_secs(30);

/// Over a cable that loses packets the tunnel's ends say what they sent again; over a good one that it was little.
#[test]
fn what_a_bad_cable_costs_is_told() -> Result<()> {
    for lost_per_mille in [0, 30] {
        if !can_use_kernel("the network, told") {
            return Ok(());
        }
        let impairment = Impairment { lost_per_mille, late_per_mille: 0 };
        let mut pair = Pair::build_over(Links { impairment: Some(impairment), ..Links::default() })?;
        pair.bed.start_agents(&AgentOptions::default())?;
        pair.with_mesh = true;
        let _server = bulk::server(&pair)?;
        let size = 8u64 << 20;
        transfer(&pair, Family::V4, &[format!("--up={size}"), format!("--down={size}")])
            .map_err(|error| pair.bed.explain(error))?;
        // The caller's end sends what goes up, the other what comes down.
        for node in ["n1", "n2"] {
            let told = eventually(PATIENCE, "the access log to tell", || {
                let lines = pair.bed.agent(node).access_log();
                let carried = |line: &Value| line["transport"] == "tunnel" && line["bytes_sent"].as_u64() >= Some(size);
                Ok(lines.into_iter().find(carried))
            })?;
            let (rtt, again) = (told["rtt_us"].as_u64(), told["retransmits"].as_u64());
            println!("{node}, {lost_per_mille} of 1000 lost: rtt {rtt:?} µs, {again:?} sent again");
            ensure!(rtt > Some(0), "{node}: no round trip time: {told}");
            match lost_per_mille {
                0 => ensure!(again.is_some(), "{node}: nothing is said of what was sent again: {told}"),
                _ => ensure!(again > Some(0), "{node}: nothing was sent again over a bad cable: {told}"),
            }
        }
    }
    Ok(())
}

/// What the kernel refuses is heard as it happens and kept with the last refusals: the program's word, the pod, the Service.
#[test]
fn whom_the_kernel_refuses_is_told() -> Result<()> {
    let Some(pair) = meshed("refusals by the kernel, told")? else { return Ok(()) };
    if !pair.with_mesh {
        return Ok(());
    }
    let agent = pair.bed.agent("n1");
    let mut listener = UnixStream::connect(agent.admin())?;
    listener.write_all(b"GET /flows?filter=result%3Drefused HTTP/1.1\r\nHost: localhost\r\n\r\n")?;
    listener.set_read_timeout(Some(PATIENCE))?;
    let mut heard = BufReader::new(listener).lines();
    let began = heard.next().context("no answer")??;
    ensure!(began.contains("200"), "{began}");

    for family in Family::BOTH {
        // A Service without endpoints: connect() itself is refused.
        let nobody = pair.bed.service("nobody").socket(family, 80);
        let refused = pair.connect_to(nobody, &["send:a", "read:1"])?;
        ensure!(refused.expect_ok("a connection").is_err(), "{family}: somebody answered for nobody");
        let told = heard_of(&mut heard, "connect_no_endpoint")?;
        let is_whole = told["direction"] == "outbound" && told["service"] == "pair/nobody";
        ensure!(is_whole && is_the_client(&told), "{family}: {told}");
        ensure!(told["dialled"] == nobody.to_string(), "{family}: {told}");

        // A process that no hook sees: the guard drops its SYN, and knows by the link whose it is.
        let address = pair.bed.pod("server").ips.socket(family, 80);
        let past =
            pair.bed.pod("client").netns.within(|| TcpStream::connect_timeout(&address, Duration::from_millis(500)))?;
        ensure!(past.is_err(), "{family}: a connection went past the guard");
        let told = heard_of(&mut heard, "guard_syn_unfiled")?;
        ensure!(is_the_client(&told) && told["destination"]["pod"] == "pair/server", "{family}: {told}");
        let identity = told["destination"]["identity"].as_str().unwrap_or_default();
        ensure!(identity.ends_with("/ns/pair/sa/server") && told["server"] == address.to_string(), "{family}: {told}");
    }
    eventually(PATIENCE, "both to be kept", || {
        let kept = agent.get_json("/denials")?;
        for reason in ["connect_no_endpoint", "guard_syn_unfiled"] {
            let is_kept = kept.as_array().is_some_and(|all| all.iter().any(|one| one["reason"] == reason));
            ensure!(is_kept, "{reason}: {kept}");
        }
        Ok(Some(()))
    })
}

fn is_the_client(told: &Value) -> bool {
    let identity = told["source"]["identity"].as_str().unwrap_or_default();
    told["source"]["pod"] == "pair/client" && identity.ends_with("/ns/pair/sa/client")
}

/// The next that is told for this reason.
fn heard_of(heard: &mut impl Iterator<Item = std::io::Result<String>>, reason: &str) -> Result<Value> {
    loop {
        let line = heard.next().with_context(|| format!("{reason}: the stream ended"))?;
        let line = line.with_context(|| format!("{reason} was not told"))?;
        // Sizes of chunks and the head are no objects.
        if let Ok(told @ Value::Object(_)) = serde_json::from_str::<Value>(&line)
            && told["reason"] == reason
        {
            return Ok(told);
        }
    }
}
