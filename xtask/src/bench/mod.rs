//! `cargo xtask bench`: the mesh against no mesh, in one run, the one after the other, again and again.
//!
//! Client, servers and both agents share the processors of one machine: the most requests a second are a measure of
//! what one costs, not of what two machines would do. What carries over is the agents' processor time per unit, and the
//! time that they add at a rate that leaves the machine idle.

mod handshake;
mod load;
mod meter;
mod neighbour;
mod peer;
mod report;
mod scale;
mod stage;
mod telemetry;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, ensure};

use crate::probe::load::Protocol;
use crate::testbed::AgentOptions;
use crate::{build, packages};
use load::{Done, Load};
use meter::{Meter, Used};
use report::{Figure, Row};
use stage::{ECHO, FAR, HTTP, LARGE, More, NEAR, POLICED, POLICIES, Stage, Way, last_path, routed};

/// Measure the mesh against no mesh on two nodes of this machine; leave it alone meanwhile
#[derive(clap::Args)]
pub struct Bench {
    /// l4: connections as bytes; l7: requests; neighbour: a few requests beside the flood of another pod; scale: 10 000
    /// pods in the API server of a cluster of its own
    #[arg(value_enum)]
    what: What,
    /// Write every row to this file, as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// How many samples of each figure
    #[arg(long, default_value_t = 5)]
    samples: u64,
    /// How long each takes
    #[arg(long, default_value_t = 4)]
    seconds: u64,
    /// Only rows whose id contains this
    #[arg(long, value_name = "TEXT", default_value = "")]
    only: String,
    /// Measure a pair of HAProxy with mutual TLS between them as well
    #[arg(long)]
    peer: bool,
    /// Instead of no mesh against the mesh, agents as they come against agents that tell all they can
    #[arg(long, conflicts_with = "peer")]
    telemetry: bool,
    /// One more argument for the agents, such as --agent=--log-level=info,access=off
    #[arg(long = "agent", value_name = "ARGUMENT", allow_hyphen_values = true)]
    agent: Vec<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum What {
    L4,
    L7,
    Neighbour,
    Scale,
}

/// Requests a second where the machine is to be idle between them.
const RATE: u64 = 1000;

/// Services with so many routes each.
const ROUTES: [usize; 3] = [1, 100, 1000];

/// Connections that are held to see what one takes.
const HELD: u64 = 4000;
/// Connections that were there, for what stays of them.
const CROWD: u64 = 10_000;

/// Connections a second of one pod, more than any machine makes.
const ACCEPT_RATE: u64 = 1_000_000;

/// One kind of load between two places.
struct Case {
    id: String,
    load: Load,
    /// The server or, for routes, the Service.
    server: String,
    bytes: bool,
    path: String,
    /// The agents let the kernel carry it alone.
    is_straight: bool,
}

/// What agents are told for that.
const STRAIGHT: &str = "--same-node-kernel";

impl Bench {
    /// Prints a row when all its samples are there.
    pub fn run(self) -> Result<ExitCode> {
        ensure!(self.samples > 0 && self.seconds > 0, "--samples and --seconds are at least 1");
        packages::for_build()?;
        if self.what == What::Scale {
            return self.scale();
        }
        packages::for_bench()?;
        if self.peer {
            packages::for_peer()?;
        }
        eprintln!("building the agent as it is shipped; the first time takes ten minutes");
        let agents = AgentOptions { binary: Some(build::shipped_agent()?), ..AgentOptions::with(self.arguments()) };
        eprintln!("setting up two nodes, their pods and servers");
        let is_beside = self.what == What::Neighbour;
        ensure!(!(is_beside && self.peer), "no pair of HAProxy is measured beside a neighbour");
        ensure!(!(is_beside && self.telemetry), "what telemetry costs is measured by l4 and l7");
        let routes: &[usize] = if self.what == What::L7 { &ROUTES } else { &[] };
        let mut stage = Stage::build(&agents, &More { routes, peer: self.peer, neighbours: is_beside })?;
        let measured = self.measure(&mut stage, &agents).map_err(|error| stage.bed.explain(error))?;
        self.write(&measured)?;
        Ok(ExitCode::SUCCESS)
    }

    /// What agents are started with. One caller is measured with as many connections as it can make, and a fast machine makes
    /// more than the budget of one pod; beside a neighbour it is the budgets that are measured.
    fn arguments(&self) -> Vec<String> {
        let rate = "--pod-accept-rate=";
        let is_free = self.what != What::Neighbour && !self.agent.iter().any(|argument| argument.starts_with(rate));
        self.agent.iter().cloned().chain(is_free.then(|| format!("{rate}{ACCEPT_RATE}"))).collect()
    }

    fn scale(&self) -> Result<ExitCode> {
        ensure!(self.only.is_empty() && !self.peer && self.agent.is_empty(), "scale has --samples and --json alone");
        eprintln!("building the agent as it is shipped; the first time takes ten minutes");
        self.write(&scale::measure(self.samples, &build::shipped_agent()?)?)?;
        Ok(ExitCode::SUCCESS)
    }

    fn write(&self, rows: &[Row]) -> Result<()> {
        let Some(file) = &self.json else { return Ok(()) };
        std::fs::write(file, report::json(rows, self.seconds)?).with_context(|| format!("writing {}", file.display()))
    }

    fn measure(&self, stage: &mut Stage, agents: &AgentOptions) -> Result<Vec<Row>> {
        let cgroups = stage.bed.nodes().iter().map(|node| node.cgroup.join("agent")).collect();
        let peers =
            if self.peer { vec![stage.bed.pod(NEAR).cgroup(), stage.bed.pod(FAR).cgroup()] } else { Vec::new() };
        let peers = peers.into_iter().map(Path::to_path_buf).collect();
        let meter = Meter::new(cgroups, peers, stage.bed.cgroup().to_path_buf())?;
        if self.what == What::Neighbour {
            return neighbour::measure(stage, &meter, self.samples, self.seconds, &self.only);
        }
        if self.telemetry {
            return telemetry::measure(self, stage, &meter, agents);
        }
        println!("{}", report::head());
        let mut rows = Vec::new();
        if self.only.is_empty() || self.only.contains("mem") {
            rows.extend(self.memory(stage)?);
        }
        if self.what == What::L4 {
            rows.extend(handshake::measure(stage, &meter, self.samples, self.seconds, &self.only)?);
        }
        let (straight, carried): (Vec<Case>, Vec<Case>) = self.cases().into_iter().partition(|case| case.is_straight);
        for case in carried {
            rows.extend(self.case(stage, &meter, &case).with_context(|| case.id.clone())?);
        }
        if !straight.is_empty() {
            let arguments = [&agents.arguments[..], &[STRAIGHT.to_string()]].concat();
            stage.go_straight(&AgentOptions { arguments, ..agents.clone() })?;
        }
        for case in straight {
            rows.extend(self.case(stage, &meter, &case).with_context(|| case.id.clone())?);
        }
        ensure!(!rows.is_empty(), "no row's id contains {:?}", self.only);
        Ok(rows)
    }

    fn cases(&self) -> Vec<Case> {
        let h1 = [Load::Rate(RATE, Protocol::H1), Load::Max32(Protocol::H1), Load::NewConn16(Protocol::H1)];
        let mut cases = Vec::new();
        match self.what {
            What::L4 => {
                for server in ["cross", "same"] {
                    cases.extend(h1.map(|load| Case::new(server, load).of_bytes()));
                    cases.extend([1, 8].map(|streams| Case::new(server, Load::Bulk(streams))));
                }
                cases.extend(h1.map(|load| Case::new("same", load).of_bytes().straight()));
                cases.extend([1, 8].map(|streams| Case::new("same", Load::Bulk(streams)).straight()));
            }
            // Measured by themselves.
            What::Neighbour | What::Scale => {}
            What::L7 => {
                for protocol in [Protocol::H1, Protocol::H2, Protocol::Grpc] {
                    let loads = [Load::Rate(RATE, protocol), Load::Max32(protocol), Load::NewConn16(protocol)];
                    let name = format!("{protocol:?}").to_lowercase();
                    cases.extend(loads.map(|load| Case::of_l7(&name, "cross", load)));
                    if protocol != Protocol::Grpc {
                        cases.push(Case::of_l7(&name, "cross", Load::Large(protocol)).to(LARGE));
                    }
                }
                // The same requests with nobody looking into them.
                cases.extend(h1.map(|load| Case::of_l7("as-bytes", "cross", load).of_bytes()));
                for count in ROUTES {
                    let with =
                        |load| Case::of_l7(&format!("routes{count}"), &routed(count), load).to(&last_path(count));
                    cases.extend([h1[0], h1[1]].map(with));
                }
                let judged = |load| Case::of_l7(&format!("policies{POLICIES}"), POLICED, load).to(&last_path(POLICIES));
                cases.extend([h1[0], h1[1]].map(judged));
                cases.extend(h1.map(|load| Case::of_l7("same", "same", load)));
            }
        }
        // A row of --telemetry has another id than its case.
        let is_wanted = |case: &Case, name: &str| {
            let id = case.row_id(name);
            if self.telemetry { telemetry::id(&id).contains(&self.only) } else { id.contains(&self.only) }
        };
        cases.retain(|case| case.figures().iter().any(|(name, _)| is_wanted(case, name)));
        cases
    }

    /// All samples of one case, the ways in turns.
    fn case(&self, stage: &Stage, meter: &Meter, case: &Case) -> Result<Vec<Row>> {
        let mut figures: BTreeMap<&str, Figure> = BTreeMap::new();
        for sample in 0..self.samples {
            let mut ways = vec![Way::Direct, Way::Mesh];
            if self.peer && case.has_peer() {
                ways.push(Way::Peer);
            }
            if sample % 2 == 1 {
                ways.reverse();
            }
            for way in ways {
                let address = stage.address(way, &case.server, case.load.port(case.bytes));
                let before = case.seen(stage)?;
                let run = || case.load.run(stage.caller(way), address, &case.path, self.seconds);
                let (done, used) = meter.during(run).with_context(|| format!("{way:?}"))?;
                // The other path than the one that is meant would be a figure of nothing.
                let after = case.seen(stage)?;
                let [meant, other] = std::array::from_fn(|which| after[which] - before[which]);
                ensure!((meant > 0.0) == (way == Way::Mesh), "{way:?}: {meant} went that way");
                ensure!(other == 0.0, "{way:?}: {other} went another way");
                ensure!(done.units > 0.0, "{way:?}: nothing was done");
                for (name, value) in case.values(way, &done, &used) {
                    figures.entry(name).or_default().add(way, value, used.others);
                }
            }
        }
        let mut rows = Vec::new();
        for (name, unit) in case.figures() {
            let row = figures.remove(name).unwrap_or_default().row(case.row_id(name), unit);
            if row.mesh.is_some() && row.id.contains(&self.only) {
                println!("{}", report::line(&row));
                rows.push(row);
            }
        }
        Ok(rows)
    }

    /// What the larger of the agents takes: with nothing to do, for a connection that is held, after a crowd.
    fn memory(&self, stage: &Stage) -> Result<Vec<Row>> {
        let most = || -> Result<f64> {
            let sizes = stage.bed.agents().map(|agent| agent.resident()).collect::<Result<Vec<_>>>()?;
            Ok(sizes.into_iter().max().unwrap_or_default() as f64)
        };
        let (prefix, port, word): (_, _, &[&str]) = match self.what {
            What::L7 => ("l7.", HTTP, &["--http"]),
            What::L4 | What::Neighbour | What::Scale => ("", ECHO, &[]),
        };
        let address = stage.address(Way::Mesh, "cross", port).to_string();
        let [held, crowd] = [HELD, CROWD].map(|count| format!("--connections={count}"));
        let hold = |count| [&["hold", &address, count][..], word].concat();
        let idle = most()?;
        let mut held = stage.caller(Way::Mesh).spawn_probe("hold", &[&hold(&held)[..], &["--idle=8"]].concat())?;
        crate::testbed::eventually(std::time::Duration::from_secs(60), "the connections to be open", || {
            Ok(held.log().contains("opened").then_some(()))
        })?;
        // Buffers are given back after a moment of silence.
        std::thread::sleep(std::time::Duration::from_secs(5));
        let each = (most()? - idle) / HELD as f64;
        ensure!(held.wait(std::time::Duration::from_secs(60))?.success(), "{}", held.log());
        let crowd = stage.caller(Way::Mesh).probe_for(&hold(&crowd), std::time::Duration::from_secs(120))?;
        crowd.expect_ok("a crowd of connections")?;
        std::thread::sleep(std::time::Duration::from_secs(5));
        let after = most()?;
        let rows = [
            ("mem.idle_mb", "MB", idle / 1e6),
            ("mem.kib_per_idle_conn", "KiB", each / 1024.0),
            ("mem.mb_after_10k", "MB", after / 1e6),
        ];
        let row = |(id, unit, value): (&str, &'static str, f64)| {
            let mut figure = Figure::default();
            figure.add(Way::Mesh, value, 0.0);
            figure.row(format!("{prefix}{id}"), unit)
        };
        let rows: Vec<Row> = rows.into_iter().map(row).filter(|row| row.id.contains(&self.only)).collect();
        for row in &rows {
            println!("{}", report::line(row));
        }
        Ok(rows)
    }
}

impl Case {
    fn new(server: &str, load: Load) -> Self {
        let id = format!("{server}.{}", load.name());
        let bytes = matches!(load, Load::Bulk(_));
        Self { id, load, server: server.to_string(), bytes, path: "/".to_string(), is_straight: false }
    }

    fn of_l7(name: &str, server: &str, load: Load) -> Self {
        Self { id: format!("l7.{name}.{}", load.name()), ..Self::new(server, load) }
    }

    fn of_bytes(mut self) -> Self {
        self.bytes = true;
        self
    }

    fn straight(self) -> Self {
        Self { id: format!("{}.kernel.{}", self.server, self.load.name()), is_straight: true, ..self }
    }

    fn to(mut self, path: &str) -> Self {
        self.path = path.to_string();
        self
    }

    /// Whether the other pair of proxies does the like.
    fn has_peer(&self) -> bool {
        self.server == "cross"
    }

    fn row_id(&self, figure: &str) -> String {
        format!("{}.{figure}", self.id)
    }

    /// Names and units, in the order of the table.
    fn figures(&self) -> Vec<(&'static str, &'static str)> {
        match self.load {
            Load::Rate(..) => {
                vec![("p50_us", "µs"), ("p99_us", "µs"), ("p999_us", "µs"), ("agents_cpu_ms_per_1k", "ms")]
            }
            Load::Max32(_) => vec![("rps", "1/s"), ("agents_cpu_ms_per_1k", "ms")],
            Load::NewConn16(_) => vec![("cps", "1/s"), ("p50_us", "µs"), ("agents_cpu_us_per_conn", "µs")],
            Load::Bulk(_) | Load::Large(_) => vec![("gbps", "Gbit/s"), ("agents_cpu_s_per_gb", "s")],
        }
    }

    fn values(&self, way: Way, done: &Done, used: &Used) -> Vec<(&'static str, f64)> {
        let rate = done.units / done.seconds;
        let mut values = match self.load {
            Load::Rate(..) => Vec::new(),
            Load::Max32(_) => vec![("rps", rate)],
            Load::NewConn16(_) => vec![("cps", rate)],
            Load::Bulk(_) | Load::Large(_) => vec![("gbps", rate * 8.0 / 1e9)],
        };
        let times = [("p50_us", done.p50), ("p99_us", done.p99), ("p999_us", done.p999)];
        values.extend(times.into_iter().filter_map(|(name, value)| Some((name, value?))));
        if way != Way::Direct {
            let each = if way == Way::Peer { used.peers } else { used.agents } / done.units;
            values.push(match self.load {
                Load::Rate(..) | Load::Max32(_) => ("agents_cpu_ms_per_1k", each * 1e6),
                Load::NewConn16(_) => ("agents_cpu_us_per_conn", each * 1e6),
                Load::Bulk(_) | Load::Large(_) => ("agents_cpu_s_per_gb", each * 1e9),
            });
        }
        values
    }
}

impl Case {
    /// How much went the way that is meant, and how much another.
    fn seen(&self, stage: &Stage) -> Result<[f64; 2]> {
        if self.is_straight {
            return stage.straight_and_captured();
        }
        Ok([seen(stage, self.bytes)?, 0.0])
    }
}

/// How many connections, or requests, the agents have counted.
fn seen(stage: &Stage, bytes: bool) -> Result<f64> {
    let name =
        if bytes { "nodemesh_connections_opened_total" } else { "nodemesh_http_client_request_duration_seconds_count" };
    stage.bed.agents().map(|agent| agent.metric_sum(name)).sum()
}
