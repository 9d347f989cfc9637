//! What plays: each role is a process in a pod that says how far it is and ends only when it broke.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};

use super::stage::{BULK, ECHO, POSTGRES, Stage, ip_and_port, pgbench};
use crate::testbed::{Family, Process, greeter_session};

/// How a role is started.
type Start = Box<dyn Fn(&Stage) -> Result<Process>>;

struct Role {
    name: String,
    start: Start,
    process: Process,
    /// How far it was at [`Cast::all_move`]'s last look.
    seen: u64,
    /// How far those before it came that broke.
    earlier: u64,
    /// How often it broke.
    broke: u64,
    /// Whether it shows that it gets somewhere; holders of silent connections do not.
    moves: bool,
}

/// All that play at once.
pub struct Cast {
    roles: Vec<Role>,
}

/// No role ends by itself within any soak.
const FOREVER: &str = "--seconds=1000000";

impl Cast {
    /// What plays while agents are restarted.
    pub fn restarts(stage: &Stage) -> Result<Self> {
        let mut cast = Self { roles: Vec::new() };
        cast.sessions(stage)?;
        cast.movers(stage)?;
        Ok(cast)
    }

    /// What plays while nothing may break.
    pub fn steady(stage: &Stage, time: Duration) -> Result<Self> {
        let mut cast = Self::restarts(stage)?;
        // Ten minutes of silence and then a word, if there is time for it.
        let idle = format!("--idle={}", time.as_secs().saturating_sub(60).clamp(20, 600));
        for (family, connections) in [(Family::V4, 7000), (Family::V6, 5000)] {
            let address = stage.bed.service("servers").socket(family, ECHO).to_string();
            let connections = format!("--connections={connections}");
            let held = vec!["hold".into(), address, connections, idle.clone(), "--rounds=1000000".into()];
            cast.probe(stage, &format!("hold {family}"), "caller", held, false)?;
        }
        for family in Family::BOTH {
            let address = stage.bed.service("servers").socket(family, BULK).to_string();
            let slow = |more: [&str; 3]| {
                ["bulk", &address, FOREVER, "--patience=300"].into_iter().chain(more).map(String::from).collect()
            };
            let reader = slow(["--streams=16", "--down=1073741824", "--read-rate=32768"]);
            let writer = slow(["--streams=8", "--up=1073741824", "--write-rate=32768"]);
            cast.probe(stage, &format!("slow readers {family}"), "caller", reader, false)?;
            cast.probe(stage, &format!("slow writers {family}"), "caller", writer, false)?;
        }
        Ok(cast)
    }

    fn sessions(&mut self, stage: &Stage) -> Result<()> {
        for family in Family::BOTH {
            let redis = stage.bed.service("servers").socket(family, 6379).to_string();
            self.probe(stage, &format!("redis {family}"), "caller", vec!["redis".into(), redis], true)?;
            for (from, to) in [("caller", "servers"), ("returner", "back")] {
                let echo = stage.bed.service(to).socket(family, ECHO).to_string();
                self.probe(stage, &format!("session {from} {family}"), from, vec!["session".into(), echo], true)?;
            }
        }
        self.add(stage, "grpc", true, |stage| {
            let server = stage.bed.service("servers").socket(Family::V4, 50051);
            greeter_session(stage.bed.pod("caller"), server, 1_000_000)
        })?;
        for (name, family, more) in [
            ("pgbench", Family::V6, &["-c", "4", "-R", "100"][..]),
            ("pgbench, connection each", Family::V4, &["-C", "-c", "1", "-R", "10"]),
        ] {
            self.add(stage, name, true, move |stage| {
                let [ip, port] = ip_and_port(stage.bed.service("database").socket(family, POSTGRES));
                let pgbench = pgbench()?;
                let fixed = [&pgbench, "-h", &ip, "-p", &port, "-U", "postgres", "-n", "-T", "1000000", "-P", "1"];
                stage
                    .bed
                    .pod("caller")
                    .spawn(&name.replace([' ', ','], "-"), &[&fixed[..], more, &["postgres"]].concat())
            })?;
        }
        Ok(())
    }

    fn movers(&mut self, stage: &Stage) -> Result<()> {
        for family in Family::BOTH {
            let bulk = stage.bed.service("servers").socket(family, BULK).to_string();
            let rates = ["--write-rate=8000000", "--read-rate=8000000", FOREVER];
            let sizes = ["--streams=2", "--up=16777216", "--down=16777216"];
            let bulk = ["bulk", &bulk].into_iter().chain(sizes).chain(rates).map(String::from).collect();
            self.probe(stage, &format!("bulk {family}"), "caller", bulk, true)?;
            for (from, to, rate) in [("caller", "servers", 150), ("returner", "back", 50)] {
                let echo = stage.bed.service(to).socket(family, ECHO).to_string();
                let short = vec!["short".into(), echo, FOREVER.into(), "--at-once=8".into(), format!("--rate={rate}")];
                self.probe(stage, &format!("short {from} {family}"), from, short, true)?;
            }
        }
        Ok(())
    }

    fn probe(&mut self, stage: &Stage, name: &str, pod: &'static str, argv: Vec<String>, moves: bool) -> Result<()> {
        let file = name.replace(' ', "-");
        self.add(stage, name, moves, move |stage| {
            let argv: Vec<&str> = argv.iter().map(String::as_str).collect();
            stage.bed.pod(pod).spawn_probe(&file, &argv)
        })
    }

    fn add(
        &mut self,
        stage: &Stage,
        name: &str,
        moves: bool,
        start: impl Fn(&Stage) -> Result<Process> + 'static,
    ) -> Result<()> {
        let process = start(stage).with_context(|| format!("starting {name}"))?;
        let (name, start) = (name.to_string(), Box::new(start));
        self.roles.push(Role { name, start, process, seen: 0, earlier: 0, broke: 0, moves });
        Ok(())
    }

    /// Fails if a role ended or counted an error.
    pub fn none_broke(&mut self) -> Result<()> {
        for role in &mut self.roles {
            role.process.check_running().with_context(|| format!("{} broke", role.name))?;
            let failed = role.failed();
            ensure!(failed.is_none(), "{}: {}", role.name, failed.unwrap_or_default());
        }
        Ok(())
    }

    /// Waits until every role is further than it was; one that ended is started again.
    pub fn all_move(&mut self, stage: &Stage, patience: Duration) -> Result<()> {
        for role in &mut self.roles {
            role.seen = role.progress();
        }
        let end = Instant::now() + patience;
        loop {
            let mut standing = Vec::new();
            for role in self.roles.iter_mut().filter(|role| role.moves) {
                if !role.process.is_running() {
                    role.begin_again(stage)?;
                }
                if role.progress() <= role.seen {
                    standing.push(role.name.clone());
                }
            }
            if standing.is_empty() {
                return Ok(());
            }
            if Instant::now() > end {
                let said = self.roles.iter().filter(|role| standing.contains(&role.name));
                let said: Vec<String> = said.map(|role| format!("{}: {}", role.name, role.last_line())).collect();
                return Err(stage.bed.explain(anyhow::anyhow!("these get nowhere: {}", said.join("; "))));
            }
            std::thread::sleep(Duration::from_millis(200));
        }
    }

    /// Fails if silent connections were not used again.
    pub fn silent_were_used(&self) -> Result<()> {
        for role in self.roles.iter().filter(|role| role.name.starts_with("hold")) {
            ensure!(role.progress() > 0, "{} was never used: {}", role.name, role.last_line());
        }
        Ok(())
    }

    /// How far they are, in a line.
    pub fn summary(&self) -> String {
        let mut kinds = BTreeMap::<&str, (u64, u64)>::new();
        for role in &self.roles {
            let kind = kinds.entry(role.name.split([' ', ',']).next().unwrap_or_default()).or_default();
            kind.0 += role.earlier + role.progress();
            kind.1 += role.broke;
        }
        let one = |(kind, (done, broke)): (&str, (u64, u64))| match broke {
            0 => format!("{kind} {done}"),
            _ => format!("{kind} {done} ({broke} broke)"),
        };
        kinds.into_iter().map(one).collect::<Vec<_>>().join(", ")
    }

    /// How far each is.
    pub fn json(&self) -> Value {
        let one = |role: &Role| {
            json!({
                "role": role.name,
                "done": role.earlier + role.progress(),
                "broke": role.broke,
                "last": role.last_line(),
            })
        };
        self.roles.iter().map(one).collect()
    }

    /// Ends all.
    pub fn leave(self) -> Result<()> {
        for mut role in self.roles {
            role.process.kill().with_context(|| format!("ending {}", role.name))?;
        }
        Ok(())
    }
}

impl Role {
    fn begin_again(&mut self, stage: &Stage) -> Result<()> {
        self.earlier += self.progress();
        self.broke += 1;
        self.seen = 0;
        self.process = match (self.start)(stage) {
            Ok(process) => process,
            Err(error) => bail!("{} cannot begin again: {error:#}", self.name),
        };
        Ok(())
    }

    /// The last lines of JSON that it said.
    fn lines(&self) -> Vec<Value> {
        self.process.recent_log().lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
    }

    /// Rounds, connections, calls, or seconds with transactions in them: what it says, grows while all is well.
    fn progress(&self) -> u64 {
        let number = |line: &Value| ["done", "rounds", "calls", "round"].iter().find_map(|name| line[*name].as_u64());
        if let Some(number) = self.lines().iter().rev().find_map(number) {
            return number;
        }
        // pgbench: "progress: 3.0 s, 99.9 tps, …".
        let said = self.process.recent_log();
        let busy = said.lines().rev().find(|line| line.starts_with("progress: ") && !line.contains(" 0.0 tps,"));
        let seconds = busy.and_then(|line| line.split(' ').nth(1)?.parse::<f64>().ok());
        seconds.unwrap_or(0.0) as u64
    }

    fn failed(&self) -> Option<String> {
        let failed = |line: &&Value| {
            [&line["failed"], &line["answered"]["failed"], &line["opened"]["failed"]]
                .iter()
                .any(|count| count.as_u64().is_some_and(|count| count > 0))
        };
        self.lines().iter().find(failed).map(ToString::to_string)
    }

    fn last_line(&self) -> String {
        self.process.recent_log().lines().last().unwrap_or_default().to_string()
    }
}
