//! What a flood of another pod costs a victim that asks for little.
//!
//! The victim asks 500 times a second, from one node to the other; the flood goes between two other pods of the same
//! nodes. Everybody shares the processors of one machine, so a flood takes from the victim whether there is a mesh or
//! not: the same flood with neither of them in the mesh tells what the machine lacks, and only what is beyond that is
//! the mesh's.

use std::collections::BTreeMap;
use std::fs;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::load::{Load, iperf_client, iperf_result};
use super::meter::Meter;
use super::report::{self, Figure, Row};
use super::seen;
use super::stage::{ECHO, HTTP, IPERF, NAMESPACE, OUTSIDE, Stage, Way, reuse_ports, serve, service};
use crate::probe::load::Protocol;
use crate::testbed::{
    Family, Pod, PodSpec, Process, Testbed, eventually, handshake_storm, hostile_client, make_certificate,
    start_endless,
};

/// What the victim asks for, a second.
const RATE: u64 = 500;
/// By how much its p99 may rise.
const AIM: f64 = 1.2;

/// Who floods, on the victim's client's node.
const FLOODER: &str = "flooder";
/// Who is flooded, on its server's node.
const FLOODED: &str = "flooded";

/// Of iperf3.
const STREAMS: u32 = 8;
/// Bits a second of all of them, where the machine is to have room besides.
const PACED_BITS: u64 = 1_000_000_000;
/// How long iperf3 goes before the victim comes and, about, after it has gone.
const LEAD: Duration = Duration::from_secs(1);

/// Connections of a crowd.
const CROWD: usize = 10_000;
/// Who asks for much and reads nothing: as many as still wait within the budget of a pod.
const READERS: usize = 200;
/// Strangers that say nothing: fewer than a pod lets shake hands, so that the others are not merely turned away.
const SILENT: usize = 256;
/// Handshakes of strangers a second.
const HANDSHAKES: u64 = 500;

/// Answers without end.
const ENDLESS: u16 = 8090;
/// Where the mesh's tunnels end. With no mesh a web server speaks TLS there.
const TUNNEL: u16 = 15008;

/// How long everything of a flood may take to be gone.
const GONE: Duration = Duration::from_secs(60);
/// Sockets that may stay of it: tunnels, and connections to applications that are kept for later.
const STAY: usize = 32;
/// Nothing happens for so long then, so that one does not pay for another: buffers are given back, counters moved.
const PAUSE: Duration = Duration::from_secs(1);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Flood {
    /// As many bytes as eight streams carry.
    Iperf,
    /// A gigabit a second of them.
    Paced,
    /// A crowd of connections, opened while the victim is measured, and held.
    Connections,
    /// Handshakes of somebody outside the mesh, and connections that say nothing, at a tunnel port.
    Handshakes,
    /// Clients of answers without end that do not read.
    Readers,
}

const FLOODS: [Flood; 5] = [Flood::Iperf, Flood::Paced, Flood::Connections, Flood::Handshakes, Flood::Readers];

/// Names and units of what is measured beside each, in the order of the table.
const FIGURES: [(&str, &str); 6] = [
    ("p50_us", "µs"),
    ("p99_us", "µs"),
    ("p999_us", "µs"),
    ("agents_cpus", "CPUs"),
    ("machine_cpus", "CPUs"),
    // Of what the flood came to; its unit is the flood's.
    ("flood", ""),
];

/// The pods that flood and are flooded, with and without mesh; before the agents are started.
pub fn join(bed: &mut Testbed) -> Result<()> {
    for (way, namespace) in [(Way::Direct, OUTSIDE), (Way::Mesh, NAMESPACE)] {
        for (pod, node) in [(FLOODER, "n1"), (FLOODED, "n2")] {
            bed.add_pod(PodSpec::new(namespace, &way.pod(pod), node))?;
        }
        let flooded = bed.pod(&way.pod(FLOODED));
        serve(flooded)?;
        start_endless(flooded, ENDLESS)?;
        if way == Way::Direct {
            start_tls(flooded)?;
        }
        reuse_ports(bed.pod(&way.pod(FLOODER)))?;
    }
    bed.add_service(service(FLOODED).port("http-endless", ENDLESS, ENDLESS))?;
    Ok(())
}

/// A web server that does for a stranger what an agent does at a tunnel port, by a key of the same kind.
fn start_tls(pod: &Pod) -> Result<()> {
    let (key, _) = make_certificate(pod, "tls")?;
    let dir = pod.dir.join("tls");
    fs::create_dir_all(&dir)?;
    let (at, file) = (dir.to_string_lossy(), dir.join("nginx.conf"));
    fs::write(&file, include_str!("tls.conf").replace("DIR", &at).replace("KEY", &key.to_string_lossy()))?;
    pod.start("tls", &["nginx", "-e", "stderr", "-p", &at, "-c", &file.to_string_lossy()])?;
    pod.wait_listening(TUNNEL)
}

/// Every flood whose rows are wanted. Prints a row when all its samples are there.
pub fn measure(stage: &Stage, meter: &Meter, samples: u64, seconds: u64, only: &str) -> Result<Vec<Row>> {
    println!("{}", report::head_beside());
    let mut rows = Vec::new();
    for flood in FLOODS {
        let is_wanted = |row: &Row| row.id.contains(only);
        if !FIGURES.iter().any(|(figure, _)| flood.row_id(figure).contains(only)) {
            continue;
        }
        let measured = flood.measure(stage, meter, samples, seconds).with_context(|| format!("{flood:?}"))?;
        for row in measured.into_iter().filter(is_wanted) {
            println!("{}{}", report::line(&row), verdict(&row));
            rows.push(row);
        }
    }
    println!("aim: p99 with the mesh rises by less than {:.0} % beside a flood", (AIM - 1.0) * 100.0);
    Ok(rows)
}

/// Whether the aim is met; where it is not, whether it would be with no mesh.
fn verdict(row: &Row) -> &'static str {
    let ratios = row.alone.as_ref().map(|alone| (alone.direct_ratio, alone.mesh_ratio));
    match ratios {
        Some((direct, Some(mesh))) if row.id.ends_with(".p99_us") => match direct {
            _ if mesh < AIM => "  within the aim",
            Some(direct) if direct >= AIM => "  beyond the aim, and so with no mesh",
            _ => "  beyond the aim",
        },
        _ => "",
    }
}

/// Of one flood, by name; without it and beside it.
#[derive(Default)]
struct Figures {
    alone: BTreeMap<&'static str, Figure>,
    beside: BTreeMap<&'static str, Figure>,
}

impl Figures {
    fn row(&self, flood: Flood, name: &'static str, unit: &'static str) -> Row {
        let of = |figures: &BTreeMap<&'static str, Figure>| {
            figures.get(name).cloned().unwrap_or_default().row(flood.row_id(name), unit)
        };
        of(&self.beside).against(&of(&self.alone))
    }
}

impl Flood {
    fn row_id(self, figure: &str) -> String {
        let name = match self {
            Self::Iperf => "iperf",
            Self::Paced => "iperf_1g",
            Self::Connections => "connections",
            Self::Handshakes => "handshakes",
            Self::Readers => "readers",
        };
        format!("neighbour.{name}.{figure}")
    }

    /// Of what it comes to.
    fn unit(self) -> &'static str {
        match self {
            Self::Iperf | Self::Paced => "Gbit/s",
            Self::Connections | Self::Readers => "open",
            Self::Handshakes => "1/s",
        }
    }

    /// All samples: the ways in turns, and within each no flood, then the flood.
    fn measure(self, stage: &Stage, meter: &Meter, samples: u64, seconds: u64) -> Result<Vec<Row>> {
        let mut figures = Figures::default();
        for sample in 0..samples {
            let ways = if sample % 2 == 0 { [Way::Direct, Way::Mesh] } else { [Way::Mesh, Way::Direct] };
            for way in ways {
                let said = victim(stage, meter, way, seconds).with_context(|| format!("{way:?}"))?;
                said.add_to(&mut figures.alone, way);
                let beside = || -> Result<Said> {
                    let mut running = Running::start(self, stage, way, seconds)?;
                    let mut said = victim(stage, meter, way, seconds)?;
                    let amount = running.amount(seconds)?;
                    ensure!(amount > 0.0, "there was no flood: {}", running.process.log());
                    said.values.push(("flood", Some(amount)));
                    running.end()?;
                    Ok(said)
                };
                let said = beside().with_context(|| format!("{way:?}, beside the flood"))?;
                said.add_to(&mut figures.beside, way);
            }
        }
        let unit = |unit: &'static str| if unit.is_empty() { self.unit() } else { unit };
        Ok(FIGURES.iter().map(|(name, of)| figures.row(self, name, unit(of))).collect())
    }
}

/// What a sample of the victim came to.
struct Said {
    values: Vec<(&'static str, Option<f64>)>,
    others: f64,
}

fn victim(stage: &Stage, meter: &Meter, way: Way, seconds: u64) -> Result<Said> {
    let before = seen(stage, false)?;
    let (caller, to) = (stage.caller(way), stage.address(way, "cross", HTTP));
    let (done, used) = meter.during(|| Load::Rate(RATE, Protocol::H1).run(caller, to, "/", seconds))?;
    // The other path than the one that is meant would be a figure of nothing.
    let looked_at = seen(stage, false)? - before;
    ensure!((looked_at > 0.0) == (way == Way::Mesh), "the agents counted {looked_at} requests");
    let agents = (way == Way::Mesh).then_some(used.agents / used.seconds);
    let values = vec![
        ("p50_us", done.p50),
        ("p99_us", done.p99),
        ("p999_us", done.p999),
        ("agents_cpus", agents),
        ("machine_cpus", Some(used.busy)),
    ];
    Ok(Said { values, others: used.others })
}

impl Said {
    fn add_to(self, figures: &mut BTreeMap<&'static str, Figure>, way: Way) {
        for (name, value) in self.values {
            if let Some(value) = value {
                figures.entry(name).or_default().add(way, value, self.others);
            }
        }
    }
}

/// A flood under way.
struct Running<'a> {
    flood: Flood,
    process: Process,
    /// Whose sockets are to go again.
    ends: [&'a Pod; 2],
    /// How many each had.
    before: [usize; 2],
    /// When the storm was looked at for the first time, and its handshakes until then.
    first: (f64, f64),
}

impl<'a> Running<'a> {
    fn start(flood: Flood, stage: &'a Stage, way: Way, seconds: u64) -> Result<Self> {
        // A stranger floods from outside, also where what it floods is in the mesh.
        let from = if flood == Flood::Handshakes { Way::Direct } else { way };
        let (flooder, flooded) = (stage.bed.pod(&from.pod(FLOODER)), stage.bed.pod(&way.pod(FLOODED)));
        let ends = [flooder, flooded];
        let before = [sockets(flooder)?, sockets(flooded)?];
        let at = |port: u16| match way {
            Way::Mesh => stage.bed.service(FLOODED).socket(Family::V4, port),
            _ => flooded.ips.socket(Family::V4, port),
        };
        let process = match flood {
            Flood::Iperf => iperf(flooder, at(IPERF), seconds, None)?,
            Flood::Paced => iperf(flooder, at(IPERF), seconds, Some(PACED_BITS))?,
            Flood::Connections => {
                let (to, count) = (at(ECHO).to_string(), format!("--connections={CROWD}"));
                flooder.spawn_probe("crowd", &["hold", &to, &count, "--idle=600"])?
            }
            Flood::Handshakes => {
                let tunnels = flooded.ips.socket(Family::V4, TUNNEL);
                handshake_storm(flooder, tunnels, SILENT, HANDSHAKES)?
            }
            Flood::Readers => hostile_client(flooder, at(ENDLESS), "readers", READERS)?,
        };
        let mut running = Self { flood, process, ends, before, first: (0.0, 0.0) };
        match flood {
            Flood::Iperf | Flood::Paced => std::thread::sleep(LEAD),
            Flood::Handshakes => running.first = running.wait_for_storm()?,
            // Opened while the victim is measured.
            Flood::Connections | Flood::Readers => {}
        }
        Ok(running)
    }

    /// What it came to while the victim was measured, in its unit.
    fn amount(&mut self, seconds: u64) -> Result<f64> {
        match self.flood {
            Flood::Iperf | Flood::Paced => {
                let ended = self.process.wait(LEAD * 2 + Duration::from_secs(seconds + 20))?;
                let said = self.process.log();
                ensure!(ended.success(), "iperf3: {said}");
                let done = iperf_result(&said)?;
                Ok(done.units * 8.0 / done.seconds / 1e9)
            }
            Flood::Connections | Flood::Readers => {
                self.process.check_running()?;
                held_by(&self.process)
            }
            Flood::Handshakes => {
                self.process.check_running()?;
                let (at, done) = told(&self.process).context("the storm said nothing")?;
                let (since, before) = self.first;
                ensure!(at > since, "the storm has said nothing since");
                Ok((done - before) / (at - since))
            }
        }
    }

    /// Ends it, and waits until nothing is left of it.
    fn end(mut self) -> Result<()> {
        if self.process.is_running() {
            self.process.kill()?;
        }
        eventually(GONE, "everything of the flood to be gone", || {
            for (pod, before) in std::iter::zip(self.ends, self.before) {
                let now = sockets(pod)?;
                ensure!(now <= before + STAY, "{} has {now} sockets, and had {before}", pod.spec.name);
            }
            Ok(Some(()))
        })?;
        std::thread::sleep(PAUSE);
        Ok(())
    }

    fn wait_for_storm(&mut self) -> Result<(f64, f64)> {
        eventually(Duration::from_secs(20), "handshakes", || {
            self.process.check_running()?;
            Ok(told(&self.process).filter(|(_, done)| *done > 0.0))
        })
    }
}

/// Bytes from one pod to the other, at most so many bits a second; for longer than the victim is measured.
fn iperf(pod: &Pod, to: SocketAddr, seconds: u64, bits: Option<u64>) -> Result<Process> {
    let mut argv = iperf_client(to, STREAMS, seconds + 2 * LEAD.as_secs());
    if let Some(bits) = bits {
        argv.extend(["-b".to_string(), (bits / u64::from(STREAMS)).to_string()]);
    }
    pod.spawn("iperf-flood", &argv.iter().map(String::as_str).collect::<Vec<_>>())
}

/// When the storm last said how far it is, and how many handshakes there were.
fn told(storm: &Process) -> Option<(f64, f64)> {
    let log = storm.recent_log();
    // The last line may not be there as a whole yet, the first one not any more.
    let line = log.lines().rev().find_map(|line| serde_json::from_str::<Value>(line).ok())?;
    Some((line["at"].as_f64()?, line["done"].as_f64()?))
}

/// Sockets that a process holds.
fn held_by(process: &Process) -> Result<f64> {
    let descriptors = fs::read_dir(format!("/proc/{}/fd", process.pid())).context("reading a flood's descriptors")?;
    let targets = descriptors.flatten().filter_map(|descriptor| fs::read_link(descriptor.path()).ok());
    Ok(targets.filter(|target| target.to_string_lossy().starts_with("socket:")).count() as f64)
}

/// TCP sockets of a pod that are not closed, whoever holds them: its applications or an agent.
fn sockets(pod: &Pod) -> Result<usize> {
    pod.netns.within(|| {
        let mut count = 0;
        for (file, head) in [("sockstat", "TCP: inuse "), ("sockstat6", "TCP6: inuse ")] {
            let text = fs::read_to_string(format!("/proc/thread-self/net/{file}")).context("counting sockets")?;
            let line = text.lines().find_map(|line| line.strip_prefix(head)).context("no count of sockets")?;
            count += line.split(' ').next().unwrap_or_default().parse::<usize>().context("no number")?;
        }
        anyhow::Ok(count)
    })?
}
