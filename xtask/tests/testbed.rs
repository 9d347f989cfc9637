//! The testbed itself, without a mesh: what the other tests stand on.

use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use xtask::clean;
use xtask::demo::stage::Stage;
use xtask::rings::kernel_obstacle;
use xtask::testbed::{Family, PodSpec, Testbed, eventually, greeter_client, start_greeter, start_nginx, start_redis};

const SHORT: Duration = Duration::from_secs(60);

#[test]
fn pods_of_two_nodes_reach_each_other() -> Result<()> {
    let Some(bed) = two_nodes()? else { return Ok(()) };
    let (web, shop) = (bed.pod("web"), bed.pod("shop"));
    let log = start_nginx(web)?;
    for family in Family::BOTH {
        let url = format!("http://{}/", web.ips.socket(family, 80));
        let answer = shop.run(&["curl", "-sS", "--max-time", "30", &url], SHORT)?.expect_ok("curl")?;
        ensure!(answer == "hello from web\n", "{answer}");
        // It logs what it has answered.
        eventually(SHORT, "a line of nginx", || {
            let log = std::fs::read_to_string(&log)?;
            ensure!(log.contains(&shop.ips.ip(family).to_string()), "nginx did not see {family} of the client: {log}");
            Ok(Some(()))
        })?;
    }
    Ok(())
}

#[test]
fn redis_and_grpc_serve_both_families() -> Result<()> {
    let Some(bed) = two_nodes()? else { return Ok(()) };
    let (web, shop) = (bed.pod("web"), bed.pod("shop"));
    start_redis(web)?;
    start_greeter(web)?;
    for family in Family::BOTH {
        let redis = web.ips.socket(family, 6379).to_string();
        shop.probe(&["redis", &redis, "--rounds=5"])?.expect_ok("redis session")?;
        let said = greeter_client(shop, web.ips.socket(family, 50051), "shop")?.expect_ok("gRPC client")?;
        ensure!(said.contains("hello shop") && said.contains("counted 100"), "{said}");
    }
    Ok(())
}

#[test]
fn the_witness_finds_a_marker_in_plain_traffic() -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    for family in Family::BOTH {
        let mut stage = Stage::build(family)?;
        stage.record_plain()?;
        ensure!(stage.plain_hits > Some(0), "{family}: the marker of a plain request was not found");
        let ((), packets) = stage.record(|stage| {
            stage.curl("shop", &[&format!("http://{}/", stage.pod_socket("web", 80))]).map(drop).unwrap_or_default()
        })?;
        let (shop, web) = (stage.bed.pod("shop").ips.ip(family), stage.bed.pod("web").ips.ip(family));
        let between = packets.tcp_between(shop, web);
        ensure!(!between.is_empty() && between.iter().all(|packet| packet.has_port(80)), "{family}: {between:?}");
    }
    Ok(())
}

#[test]
fn a_run_leaves_nothing_behind() -> Result<()> {
    let Some(bed) = two_nodes()? else { return Ok(()) };
    let id = bed.id().to_string();
    ensure!(is_left(&id)?, "the run is not found while it lives");
    drop(bed);
    ensure!(!is_left(&id)?, "something of the run is left");
    Ok(())
}

#[test]
fn a_kept_run_is_ended_by_clean_alone() -> Result<()> {
    let Some(bed) = two_nodes()? else { return Ok(()) };
    let id = bed.id().to_string();
    let dir = bed.keep();
    // Not even the notes are needed.
    std::fs::remove_file(dir.join("made"))?;
    let clean = |arguments: &[&str]| -> Result<String> {
        let output = Command::new(env!("CARGO_BIN_EXE_xtask")).arg("clean").args(arguments).arg(&id).output()?;
        ensure!(output.status.success(), "{output:?}");
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    };
    let listed = clean(&["--dry-run"])?;
    for part in [format!("nodemesh-{id}-n1-shop"), format!("nodemesh-{id}-n2"), "sleep infinity".to_string()] {
        ensure!(listed.contains(&part), "{part} is not in the list:\n{listed}");
    }
    ensure!(is_left(&id)?, "the dry run ended the run");
    clean(&[])?;
    ensure!(!is_left(&id)?, "something of the run is left");
    Ok(())
}

#[test]
fn a_run_whose_maker_is_killed_ends() -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let mut maker =
        Command::new(env!("CARGO_BIN_EXE_xtask")).arg("__hold").stdout(std::process::Stdio::piped()).spawn()?;
    let mut id = String::new();
    let stdout = maker.stdout.take().context("no pipe")?;
    std::io::BufRead::read_line(&mut std::io::BufReader::new(stdout), &mut id)?;
    let id = id.trim();
    ensure!(is_left(id)?, "the run {id:?} is not found while it lives");
    maker.kill()?;
    maker.wait()?;
    eventually(SHORT, "the guard to end the run", || Ok((!is_left(id)?).then_some(())))
}

#[test]
fn a_pod_that_ends_takes_its_network_and_processes_with_it() -> Result<()> {
    let Some(mut bed) = two_nodes()? else { return Ok(()) };
    start_redis(bed.pod("web"))?;
    let pids = bed.pod("web").pids();
    bed.remove_pod("web")?;
    ensure!(!pids.iter().any(|pid| std::path::Path::new(&format!("/proc/{pid}")).exists()), "processes are left");
    ensure!(!bed.world.dir().join("pod-demo-web.yaml").exists(), "the object is left");
    Ok(())
}

fn is_left(id: &str) -> Result<bool> {
    Ok(clean::find()?.iter().any(|run| run.id() == id))
}

fn can_run() -> bool {
    let obstacle = kernel_obstacle();
    if let Some(reason) = &obstacle {
        assert!(std::env::var_os("MESH_REQUIRE_KERNEL").is_none(), "the testbed cannot run: {reason}");
        eprintln!("SKIPPED: {reason}");
    }
    obstacle.is_none()
}

fn two_nodes() -> Result<Option<Testbed>> {
    if !can_run() {
        return Ok(None);
    }
    let mut bed = Testbed::new()?;
    bed.add_node()?;
    bed.add_node()?;
    bed.add_namespace("demo", &[])?;
    bed.add_pod(PodSpec::new("demo", "shop", "n1"))?;
    bed.add_pod(PodSpec::new("demo", "web", "n2"))?;
    Ok(Some(bed))
}
