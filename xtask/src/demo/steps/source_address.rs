use anyhow::{Result, ensure};

use crate::demo::stage::{Stage, marker};
use crate::demo::steps::Tell;

pub fn run(stage: &mut Stage, _tell: Tell) -> Result<String> {
    let marker = marker("source")?;
    let url = format!("http://web.demo/?{marker}");
    let local = stage.curl("shop", &["-o", "/dev/null", "-w", "%{local_ip} %{local_port}", &url])?;
    let local = local.expect_ok("curl")?;
    let line = stage.logged_by_web(&marker)?;
    let shop = stage.bed.pod("shop").ips.ip(stage.family).to_string();
    let mut words = line.split(' ');
    let (ip, port) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    ensure!(ip == shop, "nginx logged {line:?}, the client pod is {shop}");
    Ok(format!("the client pod is {shop}, curl's own end was {local}; nginx logged {ip} {port}"))
}
