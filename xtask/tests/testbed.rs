//! The testbed itself, without a mesh.

use std::time::Duration;

use anyhow::{Result, ensure};
use xtask::clean;
use xtask::testbed::{Family, PodSpec, Testbed, greeter_client, start_greeter, start_nginx, start_redis};

const SHORT: Duration = Duration::from_secs(10);

#[test]
fn pods_of_two_nodes_reach_each_other() -> Result<()> {
    let bed = two_nodes()?;
    let (web, shop) = (bed.pod("web"), bed.pod("shop"));
    let log = start_nginx(web)?;
    for family in Family::BOTH {
        let url = format!("http://{}/", web.ips.socket(family, 80));
        let answer = shop.run(&["curl", "-sS", "--max-time", "5", &url], SHORT)?.expect_ok("curl")?;
        ensure!(answer == "hello from web\n", "{answer}");
        let log = std::fs::read_to_string(&log)?;
        ensure!(log.contains(&shop.ips.ip(family).to_string()), "nginx did not see {family} of the client: {log}");
    }
    Ok(())
}

#[test]
fn redis_and_grpc_serve_both_families() -> Result<()> {
    let bed = two_nodes()?;
    let (web, shop) = (bed.pod("web"), bed.pod("shop"));
    start_redis(web)?;
    start_greeter(web)?;
    let xtask = env!("CARGO_BIN_EXE_xtask");
    for family in Family::BOTH {
        let redis = web.ips.socket(family, 6379).to_string();
        shop.run(&[xtask, "__probe", "redis", &redis, "--rounds=5"], SHORT)?.expect_ok("redis session")?;
        let said = greeter_client(shop, web.ips.socket(family, 50051), "shop")?.expect_ok("gRPC client")?;
        ensure!(said.contains("hello shop") && said.contains("counted 100"), "{said}");
    }
    Ok(())
}

#[test]
fn a_run_leaves_nothing_behind() -> Result<()> {
    let bed = two_nodes()?;
    let id = bed.id().to_string();
    ensure!(is_left(&id)?, "the run is not found while it lives");
    drop(bed);
    ensure!(!is_left(&id)?, "something of the run is left");
    Ok(())
}

fn is_left(id: &str) -> Result<bool> {
    Ok(clean::find()?.iter().any(|run| run.id() == id))
}

fn two_nodes() -> Result<Testbed> {
    let mut bed = Testbed::new()?;
    bed.add_node()?;
    bed.add_node()?;
    bed.add_namespace("demo", &[])?;
    bed.add_pod(PodSpec::new("demo", "shop", "n1"))?;
    bed.add_pod(PodSpec::new("demo", "web", "n2"))?;
    Ok(bed)
}
