//! What applications do with connections, through the mesh.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use xtask::testbed::{Family, eventually, start_nginx};

use crate::pair::{PORT, Pair, in_both_families, lines, meshed, text_of};

const SHORT: Duration = Duration::from_secs(60);
/// What waits for nobody, on a busy machine, in milliseconds. Whatever waited for the other end would wait for as long as the
/// probe has patience.
const AT_ONCE_MS: u64 = 5000;

#[test]
fn curl_keeps_one_connection_for_many_requests() -> Result<()> {
    let Some(pair) = meshed("keep-alive")? else { return Ok(()) };
    let log = start_nginx(pair.bed.pod("server"))?;
    for family in Family::BOTH {
        let url = format!("http://{}/", pair.server(family, 80));
        let count = ["-sS", "--fail", "--max-time", "20", "-o", "/dev/null", "-w", "%{num_connects} "];
        let urls = [&*url, "-o", "/dev/null", &url, "-o", "/dev/null", &url];
        let argv = [&["curl"][..], &count, &urls].concat();
        let connects = pair.bed.pod("client").run(&argv, SHORT)?.expect_ok("curl")?;
        ensure!(connects == "1 0 0 ", "{family}: curl opened {connects:?} connections for three requests");
        let ip = pair.bed.pod("client").ips.ip(family).to_string();
        // It logs what it has answered, so curl may have ended before.
        eventually(SHORT, "three lines of nginx", || {
            let text = std::fs::read_to_string(&log)?;
            let mut ends: Vec<&str> =
                text.lines().filter(|line| line.starts_with(&ip)).filter_map(|line| line.split(" \"").next()).collect();
            ensure!(ends.len() == 3, "{family}: nginx logged {text}");
            ends.dedup();
            ensure!(ends.len() == 1, "{family}: nginx saw more than one connection: {text}");
            Ok(Some(()))
        })?;
    }
    Ok(())
}

#[test]
fn a_megabyte_arrives_whole() -> Result<()> {
    let Some(pair) = meshed("a megabyte")? else { return Ok(()) };
    start_nginx(pair.bed.pod("server"))?;
    for family in Family::BOTH {
        let url = format!("http://{}/big", pair.server(family, 80));
        let argv = ["curl", "-sS", "--fail", "--max-time", "30", "-o", "/dev/null", "-w", "%{size_download}", &url];
        let size = pair.bed.pod("client").run(&argv, SHORT)?.expect_ok("curl")?;
        ensure!(size == (1 << 20).to_string(), "{family}: {size} bytes arrived");
    }
    Ok(())
}

#[test]
fn iperf3_runs_both_ways() -> Result<()> {
    in_both_families("iperf3", |pair, family| {
        for direction in [&[][..], &["--reverse"], &["--bidir"]] {
            let server_pod = pair.bed.pod("server");
            let mut server =
                server_pod.spawn("iperf3", &["iperf3", "--server", "--one-off", "--port", &PORT.to_string()])?;
            server_pod.wait_listening(PORT)?;
            let address = pair.server(family, PORT);
            let (ip, port) = (address.ip().to_string(), address.port().to_string());
            let fixed = ["iperf3", "--client", &ip, "--port", &port, "--time", "1", "--json"];
            let said = pair.bed.pod("client").run(&[&fixed[..], direction].concat(), SHORT)?.expect_ok("iperf3")?;
            let report: Value = serde_json::from_str(&said).context("reading iperf3's report")?;
            let rate = report["end"]["sum_received"]["bits_per_second"].as_f64().unwrap_or_default();
            ensure!(rate > 1e6, "{direction:?}: {rate} bit/s");
            server.wait(SHORT)?;
        }
        Ok(())
    })
}

#[test]
fn client_closes_its_half_first() -> Result<()> {
    in_both_families("half-close by the client", |pair, family| {
        let server = ["read-end", "send:answer", "fin"];
        let client = ["send:question", "fin", "read-end"];
        let [server, client] = pair.play(family, &server, &client)?;
        ensure!(text_of(&server, "read-end") == "question", "{server:?}");
        ensure!(text_of(&client, "read-end") == "answer", "{client:?}");
        Ok(())
    })
}

#[test]
fn server_closes_its_half_first() -> Result<()> {
    in_both_families("half-close by the server", |pair, family| {
        let server = ["send:all I have", "fin", "read-end"];
        let client = ["read-end", "send:late words", "fin"];
        let [server, client] = pair.play(family, &server, &client)?;
        ensure!(text_of(&client, "read-end") == "all I have", "{client:?}");
        ensure!(text_of(&server, "read-end") == "late words", "{server:?}");
        Ok(())
    })
}

#[test]
fn the_server_may_speak_first() -> Result<()> {
    in_both_families("server speaks first", |pair, family| {
        let [_, client] = pair.play(family, &["send:220 ready", "read:4"], &["read:9", "send:QUIT"])?;
        ensure!(text_of(&client, "read") == "220 ready", "{client:?}");
        let waited = client.iter().find(|line| line["step"] == "read").and_then(|line| line["ms"].as_u64());
        ensure!(waited.is_some_and(|ms| ms < AT_ONCE_MS), "the greeting waited for the client: {client:?}");
        Ok(())
    })
}

#[test]
fn a_reset_by_the_client_reaches_the_server() -> Result<()> {
    in_both_families("RST by the client", |pair, family| {
        pair.play(family, &["read:2", "send:ok", "read-reset"], &["send:hi", "read:2", "reset"]).map(drop)
    })
}

#[test]
fn a_reset_by_the_server_reaches_the_client() -> Result<()> {
    in_both_families("RST by the server", |pair, family| {
        pair.play(family, &["read:2", "send:ok", "sleep:200", "reset"], &["send:hi", "read:2", "read-reset"]).map(drop)
    })
}

#[test]
fn the_server_sees_the_client_and_the_client_what_it_dialled() -> Result<()> {
    in_both_families("addresses", |pair, family| {
        let [server, client] = pair.play(family, &["echo"], &["send:x", "read:1", "fin", "read-end"])?;
        let dialled = pair.server(family, PORT).to_string();
        ensure!(client[0]["peer"] == dialled, "the client dialled {dialled} and sees {}", client[0]["peer"]);
        ensure!(client[0]["local"] == server[0]["peer"], "client: {client:?}, server: {server:?}");
        let own = pair.bed.pod("client").ips.ip(family).to_string();
        let local = client[0]["local"].as_str().unwrap_or_default();
        ensure!(local.contains(&own), "the client's own address is {local}, the pod's is {own}");
        Ok(())
    })
}

#[test]
fn a_service_without_endpoint_refuses_at_once() -> Result<()> {
    let Some(pair) = meshed("no endpoint")? else { return Ok(()) };
    if !pair.with_mesh {
        return Ok(());
    }
    for family in Family::BOTH {
        let answer = pair.connect_to(pair.bed.service("nobody").socket(family, 80), &[])?;
        let said = lines(&answer.stdout);
        ensure!(said[0]["error"] == "ECONNREFUSED", "{family}: {answer}");
        ensure!(said[0]["ms"].as_u64().is_some_and(|ms| ms < AT_ONCE_MS), "{family}: {answer}");
    }
    Ok(())
}

#[test]
fn two_ports_of_one_service_lead_to_two_places() -> Result<()> {
    let Some(pair) = meshed("two ports")? else { return Ok(()) };
    start_nginx(pair.bed.pod("server"))?;
    for family in Family::BOTH {
        for (port, expected) in [(80, "hello from server\n"), (81, "the other port\n")] {
            let url = format!("http://{}/", pair.server(family, port));
            let answer = pair.bed.pod("client").run(&["curl", "-sS", "--max-time", "20", &url], SHORT)?;
            let answer = answer.expect_ok("curl")?;
            ensure!(answer == expected, "{family}, port {port}: {answer:?}");
        }
    }
    Ok(())
}

#[test]
fn udp_is_left_alone() -> Result<()> {
    in_both_families("UDP", |pair, family| {
        let server = pair.bed.pod("server").spawn_probe("udp", &["udp-echo", "7001"])?;
        let to = pair.bed.pod("server").ips.socket(family, 7001).to_string();
        let answer = eventually(SHORT, "a datagram's echo", || {
            Ok(Some(pair.bed.pod("client").probe(&["udp-send", &to, "datagram"])?.expect_ok("UDP")?))
        })?;
        ensure!(answer.contains("datagram"), "{answer}");
        let client = pair.bed.pod("client").ips.ip(family).to_string();
        ensure!(server.log().contains(&client), "the server did not see {client}: {}", server.log());
        Ok(())
    })
}

#[test]
fn a_port_that_nobody_listens_on_ends_the_connection_at_once() -> Result<()> {
    in_both_families("no listener", |pair: &Pair, family| {
        // The agent has accepted before it knows: the refusal may show at connect() or at the first read.
        let answer = pair.connect_to(pair.bed.pod("server").ips.socket(family, 9), &["read-end"])?;
        let said = lines(&answer.stdout);
        let last = said.last().context("the probe said nothing")?;
        ensure!(["ECONNREFUSED", "ECONNRESET"].iter().any(|name| last["error"] == *name), "{answer}");
        ensure!(last["ms"].as_u64().is_some_and(|ms| ms < AT_ONCE_MS), "{answer}");
        Ok(())
    })
}
