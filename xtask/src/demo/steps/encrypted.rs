use anyhow::{Context, Result, ensure};

use crate::demo::stage::{Stage, TUNNEL_PORT, marker};
use crate::demo::steps::Tell;

pub fn run(stage: &mut Stage, _tell: Tell) -> Result<String> {
    let plain_hits = stage.plain_hits.context("nothing was recorded while there was no mesh")?;
    ensure!(plain_hits > 0, "the search found nothing while there was no mesh, so it proves nothing");

    let marker = marker("encrypted")?;
    let (answer, packets) = stage.record(|stage| stage.marked_request("shop", &marker))?;
    answer?.expect_ok("the request")?;
    stage.logged_by_web(&marker).context("the request did not carry the marker")?;
    let hits = packets.containing(&marker);
    ensure!(hits == 0, "{hits} packets on the wire carry the marker");
    let (shop, web) = (stage.bed.pod("shop").ips.ip(stage.family), stage.bed.pod("web").ips.ip(stage.family));
    let between = packets.tcp_between(shop, web);
    ensure!(!between.is_empty(), "no packet between the two pods was recorded, so the recording proves nothing");
    let others = between.iter().filter(|packet| !packet.has_port(TUNNEL_PORT)).count();
    ensure!(others == 0, "{others} packets between the two pods use another port than {TUNNEL_PORT}");
    Ok(format!(
        "no mesh: {plain_hits} packets carry the marker\nmesh: none of {} packets between the pods does; all use port \
         {TUNNEL_PORT}",
        between.len()
    ))
}
