//! Large transfers, every byte of them compared at both ends, and readers and writers that are slow.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use xtask::testbed::{Family, Process};

use crate::many::resident_bytes;
use crate::pair::{PORT, Pair, in_both_families, lines, meshed};

const LONG: Duration = Duration::from_secs(300);
const MIB: u64 = 1 << 20;

#[test]
fn a_gigabyte_arrives_whole_both_ways_at_once() -> Result<()> {
    in_both_families("1 GiB", |pair, family| {
        let _server = server(pair)?;
        // One connection in one family, four beside each other in the other: a gigabyte each way in both.
        let (streams, each) = if family == Family::V4 { (1, 1024 * MIB) } else { (4, 256 * MIB) };
        let arguments = [format!("--streams={streams}"), format!("--up={each}"), format!("--down={each}")];
        let said = transfer(pair, family, &arguments)?;
        println!("{family}, {streams} at once: {said}");
        Ok(())
    })
}

/// Applications that do not read, and such that hardly write: what waits for them is bounded, and others go on.
#[test]
fn slow_applications_cost_bounded_memory_and_nobody_else_waits() -> Result<()> {
    const SLOW: u64 = 32;
    let Some(pair) = meshed("slow readers and writers")? else { return Ok(()) };
    let _server = server(&pair)?;
    let agents = || pair.bed.agents().map(|agent| resident_bytes(agent.pid())).collect::<Result<Vec<u64>>>();
    for family in Family::BOTH {
        transfer(&pair, family, &["--up=8388608".to_string(), "--down=8388608".to_string()])?;
        let before = agents()?;
        let address = pair.server(family, PORT).to_string();
        let streams = format!("--streams={SLOW}");
        // Far more than any buffer on the way holds, at a rate that would take an hour.
        let reader = ["bulk", &address, &streams, "--down=268435456", "--read-rate=65536"];
        let writer = ["bulk", &address, "--streams=8", "--up=524288", "--write-rate=65536"];
        let client = pair.bed.pod("client");
        let mut readers = client.spawn_probe("slow-readers", &reader)?;
        let mut writers = client.spawn_probe("slow-writers", &writer)?;
        std::thread::sleep(Duration::from_secs(3));
        let fast = transfer(&pair, family, &["--up=67108864".to_string(), "--down=67108864".to_string()])?;
        println!("{family}, beside {SLOW} that hardly read: {fast}");
        let after = agents()?;
        readers.check_running()?;
        println!("{family}: agents' resident memory {before:?} → {after:?} bytes");
        for (before, after) in before.iter().zip(&after) {
            // Per connection a stream's window at the one end and a send buffer at the other, and as much again for what
            // the allocator makes of it.
            let most = SLOW * 2 * (MIB + MIB / 4) + 64 * MIB;
            ensure!(after.saturating_sub(*before) < most, "an agent grew from {before} to {after} bytes");
        }
        let status = writers.wait(LONG)?;
        ensure!(status.success(), "{}", writers.log());
    }
    Ok(())
}

/// One round of transfers by the client; what it said.
pub fn transfer(pair: &Pair, family: Family, arguments: &[String]) -> Result<String> {
    let address = pair.server(family, PORT).to_string();
    let mut argv = vec!["bulk", &address];
    argv.extend(arguments.iter().map(String::as_str));
    let said = pair.bed.pod("client").probe_for(&argv, LONG)?.expect_ok("a transfer")?;
    let line = lines(&said).pop().context("the transfer said nothing")?;
    ensure!(line["failed"] == 0, "{line}");
    Ok(line.to_string())
}

/// The server's end of large transfers.
pub fn server(pair: &Pair) -> Result<Process> {
    let server = pair.bed.pod("server").spawn_probe("bulk", &["bulk-server", &PORT.to_string()])?;
    pair.bed.pod("server").wait_listening(PORT)?;
    Ok(server)
}
