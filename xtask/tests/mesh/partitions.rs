//! Policies, and the cable between the nodes, change at random while all pods talk to each other.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};
use xtask::demo::stage::marker;
use xtask::rings::can_use_kernel;
use xtask::testbed::{AgentOptions, Family, Impairment, Links, PodSpec, Process, Recording, Testbed, eventually};

use crate::pair::PORT;

/// Another run of the same changes: its number, as the test prints it.
const SEED: &str = "MESH_TEST_SEED";
/// How long things change.
const RUN: Duration = Duration::from_secs(45);
/// A change of policy may take this long, in seconds, under all of it; the seconds in which the machine stood still aside.
const GRACE: f64 = 2.0;
const PATIENCE: Duration = Duration::from_secs(60);
const PYTHON: &str = "/usr/bin/python3";

/// Everybody talks to everybody else.
const PODS: [(&str, &str); 4] = [("one", "n1"), ("two", "n1"), ("three", "n2"), ("four", "n2")];
const PAIRS: usize = PODS.len() * (PODS.len() - 1);

/// What holds between pods as such.
const PEERS: [&str; 4] = ["mode: STRICT", "mode: PERMISSIVE", "sameNode: Encrypt", "mode: STRICT, sameNode: Encrypt"];

#[test]
fn whatever_changes_who_is_denied_is_not_answered_and_nothing_is_in_plaintext() -> Result<()> {
    if !can_use_kernel("changes at random") {
        return Ok(());
    }
    let seed = match std::env::var(SEED) {
        Ok(seed) => seed.parse().context(SEED)?,
        Err(_) => SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs(),
    };
    println!("{SEED}={seed}");
    let mut changes = Changes::build(seed)?;
    let run = changes.run();
    run.with_context(|| format!("{SEED}={seed}")).map_err(|error| changes.bed.explain(error))
}

/// What goes on, and what was changed when.
struct Changes {
    bed: Testbed,
    chance: Chance,
    is_pulled: bool,
    /// When a caller was denied by a server, in seconds of the clock: from, and until.
    denied: BTreeMap<(usize, usize), Vec<(f64, f64)>>,
    stalls: Stalls,
}

impl Changes {
    fn build(seed: u64) -> Result<Self> {
        let impairment = Impairment { lost_per_mille: 10, late_per_mille: 10 };
        let mut bed = Testbed::with_links(Links { impairment: Some(impairment), ..Links::default() })?;
        bed.add_node()?;
        bed.add_node()?;
        bed.add_namespace("talk", &[("nodemesh.dev/mesh", "enabled")])?;
        for (pod, node) in PODS {
            bed.add_pod(PodSpec::new("talk", pod, node))?;
        }
        bed.start_agents(&AgentOptions::default())?;
        Ok(Self { bed, chance: Chance::new(seed), is_pulled: false, denied: BTreeMap::new(), stalls: Stalls::watch() })
    }

    fn run(&mut self) -> Result<()> {
        let marker = marker("talk")?;
        let node = self.bed.node("n1");
        let wire = Recording::start(&node.tool_place(), &node.link_to("n2"), &self.bed.dir().join("talk.pcap"))?;
        let (_servers, mut talkers) = (self.servers()?, self.talkers(&marker)?);
        self.all_are_answered(&talkers).context("before anything changes")?;
        let end = Instant::now() + RUN;
        let mut count = 0;
        // Chance may want some more time until enough has happened.
        while Instant::now() < end || (self.denials() < PAIRS && Instant::now() < end + RUN) {
            std::thread::sleep(Duration::from_millis(200 + self.chance.below(1200)));
            self.change()?;
            count += 1;
        }
        self.calm()?;
        self.all_are_answered(&talkers).context("when all is well again")?;
        let said = heard(&talkers);
        for talker in &mut talkers {
            talker.kill()?;
        }
        let packets = wire.stop()?;
        let denials = self.denials();
        println!("{count} changes, {denials} denials, {} answers", said.len());
        let wrong: Vec<_> = said.iter().filter(|answer| self.is_wrong(answer)).take(10).collect();
        ensure!(wrong.is_empty(), "answered while denied for more than {GRACE} s: {wrong:#?}");
        // That it could have been seen.
        let while_denied = said.iter().filter(|answer| self.was_denied(answer, 0.0)).count();
        ensure!(denials >= PAIRS && said.len() > 1000, "too little happened; {while_denied} answers at a change");
        ensure!(packets.containing(&marker) == 0, "{} packets carried the marker", packets.containing(&marker));
        ensure!(!packets.tcp().is_empty(), "the recording has nothing, so it is no witness");
        Ok(())
    }

    fn servers(&self) -> Result<Vec<Process>> {
        let start = |(pod, _): &(&str, &str)| {
            let server = self.bed.pod(pod).spawn_probe("echo", &["echo", &PORT.to_string()])?;
            self.bed.pod(pod).wait_listening(PORT)?;
            Ok(server)
        };
        PODS.iter().map(start).collect()
    }

    /// In each pod one that talks to all others: on a new connection each time, and on one that stays open as long as it may.
    fn talkers(&self, marker: &str) -> Result<Vec<Process>> {
        let start = |(own, (pod, _)): (usize, &(&str, &str))| {
            let mut argv = vec![PYTHON.to_string(), "-c".into(), TALK.into(), marker.into(), PORT.to_string()];
            for (other, (server, _)) in PODS.iter().enumerate().filter(|(other, _)| *other != own) {
                let ips = self.bed.pod(server).ips;
                argv.extend([other.to_string(), ips.ip(Family::V4).to_string(), ips.ip(Family::V6).to_string()]);
            }
            let argv: Vec<&str> = argv.iter().map(String::as_str).collect();
            self.bed.pod(pod).spawn("talker", &argv)
        };
        PODS.iter().enumerate().map(start).collect()
    }

    /// Waits until each pair has talked, in both ways, from now on.
    fn all_are_answered(&self, talkers: &[Process]) -> Result<()> {
        let now = now()?;
        eventually(PATIENCE, "all pairs to talk", || {
            let mut seen: Vec<_> =
                heard(talkers).into_iter().filter(|answer| answer.said > now).map(Answer::of).collect();
            seen.sort_unstable();
            seen.dedup();
            ensure!(seen.len() == 2 * PAIRS, "{seen:?}");
            Ok(Some(()))
        })
    }

    /// One change.
    fn change(&mut self) -> Result<()> {
        match self.chance.below(10) {
            0 | 1 if !self.is_pulled => {
                self.bed.pull_cable("n1", "n2")?;
                self.is_pulled = true;
                Ok(())
            }
            // It is out for two seconds in the mean, and now and then for as long as connections stand it.
            0..=3 if self.is_pulled => self.plug(),
            4 => {
                let spec = PEERS[self.chance.below(PEERS.len() as u64) as usize];
                self.bed.world.apply("peers", &peers(spec))
            }
            _ => {
                let server = self.chance.below(PODS.len() as u64) as usize;
                let denied = self.chance.below(1 << PODS.len());
                let by_name = self.chance.below(2) == 0;
                self.deny(server, |caller| denied & (1 << caller) != 0, by_name)
            }
        }
    }

    /// Nothing is denied any more, and everything arrives.
    fn calm(&mut self) -> Result<()> {
        self.bed.world.apply("peers", &peers("mode: STRICT"))?;
        (0..PODS.len()).try_for_each(|server| self.deny(server, |_| false, true))?;
        if self.is_pulled { self.plug() } else { Ok(()) }
    }

    fn plug(&mut self) -> Result<()> {
        self.is_pulled = false;
        self.bed.plug_cable("n1", "n2")
    }

    /// From now on a server denies these callers and no others. `by_name`: a DENY that names them, else an ALLOW that names
    /// the rest.
    fn deny(&mut self, server: usize, is_denied: impl Fn(usize) -> bool, by_name: bool) -> Result<()> {
        let callers = || (0..PODS.len()).filter(|caller| *caller != server);
        let before = now()?;
        let name = format!("of-{}", PODS[server].0);
        let some = |named: &[usize]| named.iter().map(|pod| account(PODS[*pod].0)).collect::<Vec<_>>().join(", ");
        let (denied, allowed): (Vec<_>, Vec<_>) = callers().partition(|caller| is_denied(*caller));
        match (by_name || allowed.is_empty(), denied.is_empty()) {
            (true, true) => self.bed.world.apply(&name, &policy(PODS[server].0, "ALLOW", "{type: Any}"))?,
            (true, false) => self.bed.world.apply(&name, &policy(PODS[server].0, "DENY", &some(&denied)))?,
            (false, _) => self.bed.world.apply(&name, &policy(PODS[server].0, "ALLOW", &some(&allowed)))?,
        }
        let after = now()?;
        for caller in callers() {
            let spans = self.denied.entry((caller, server)).or_default();
            match spans.last_mut().filter(|(_, until)| *until == f64::INFINITY) {
                Some((_, until)) if !denied.contains(&caller) => *until = before,
                None if denied.contains(&caller) => spans.push((after, f64::INFINITY)),
                _ => {}
            }
        }
        Ok(())
    }

    fn denials(&self) -> usize {
        self.denied.values().map(Vec::len).sum()
    }

    /// Whether a word was said when its caller had been denied for so long, and answered before it was allowed again.
    fn was_denied(&self, answer: &Answer, grace: f64) -> bool {
        let spans = self.denied.get(&(answer.caller, answer.server)).into_iter().flatten();
        spans.into_iter().any(|(from, until)| {
            let grace = grace + self.stalls.within(*from, answer.said);
            answer.said > from + grace && answer.heard < *until
        })
    }

    fn is_wrong(&self, answer: &Answer) -> bool {
        self.was_denied(answer, GRACE)
    }
}

/// When the machine stood still: whoever sleeps for a moment wakes up late then. In seconds of the clock, from and until.
struct Stalls {
    seen: Arc<Mutex<Vec<(f64, f64)>>>,
}

impl Stalls {
    /// Watches until this is dropped.
    fn watch() -> Self {
        const TICK: Duration = Duration::from_millis(20);
        /// Less is what threads wait for each other.
        const LATE: f64 = 0.2;
        let seen = Arc::new(Mutex::new(Vec::new()));
        let watched = Arc::downgrade(&seen);
        std::thread::spawn(move || {
            while let (Some(seen), Ok(from)) = (watched.upgrade(), now()) {
                std::thread::sleep(TICK);
                if let Some(until) = now().ok().filter(|until| until - from > LATE) {
                    seen.lock().unwrap_or_else(PoisonError::into_inner).push((from, until));
                }
            }
        });
        Self { seen }
    }

    /// How long between two moments.
    fn within(&self, from: f64, until: f64) -> f64 {
        let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        seen.iter().map(|stall| (stall.1.min(until) - stall.0.max(from)).max(0.0)).sum()
    }
}

/// A word that came back.
#[derive(Debug)]
struct Answer {
    caller: usize,
    server: usize,
    /// On a connection that stays open.
    is_long: bool,
    said: f64,
    heard: f64,
}

impl Answer {
    fn read(caller: usize, line: &str) -> Option<Self> {
        let mut words = line.split(' ');
        let (kind, server) = (words.next()?, words.next()?.parse().ok()?);
        let (said, heard) = (words.next()?.parse().ok()?, words.next()?.parse().ok()?);
        Some(Self { caller, server, is_long: kind == "long", said, heard })
    }

    fn of(self) -> (usize, usize, bool) {
        (self.caller, self.server, self.is_long)
    }
}

fn heard(talkers: &[Process]) -> Vec<Answer> {
    let of = |(caller, talker): (usize, &Process)| -> Vec<Answer> {
        talker.log().lines().filter_map(|line| Answer::read(caller, line)).collect()
    };
    talkers.iter().enumerate().flat_map(of).collect()
}

/// The clock that talkers read too.
fn now() -> Result<f64> {
    Ok(SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs_f64())
}

fn account(name: &str) -> String {
    format!("{{type: ServiceAccount, serviceAccount: {{name: {name}}}}}")
}

fn policy(server: &str, action: &str, sources: &str) -> String {
    let mut yaml = format!(
        "apiVersion: nodemesh.dev/v1alpha1\nkind: AuthorizationPolicy\nmetadata: {{name: of-{server}, namespace: talk}}\n"
    );
    // Writing into a String does not fail.
    let _ = write!(
        yaml,
        "spec:\n  targetRefs: [{{kind: Pod, selector: {{matchLabels: {{app: {server}}}}}}}]\n  action: {action}\n  rules: [{{sources: [{sources}]}}]\n"
    );
    yaml
}

fn peers(spec: &str) -> String {
    format!(
        "apiVersion: nodemesh.dev/v1alpha1\nkind: PeerAuthentication\nmetadata: {{name: default, namespace: talk}}\nspec: {{targetRefs: [{{kind: Namespace}}], {spec}}}\n"
    )
}

/// Says the word to each server again and again, and prints when it said what was answered, and when that was heard.
const TALK: &str = "
import socket, sys, threading, time
word, port, others = sys.argv[1].encode(), int(sys.argv[2]), sys.argv[3:]
lock = threading.Lock()
def dial(host, patience):
    s = socket.create_connection((host, port), patience); s.settimeout(patience); return s
def exchange(s, kind, server):
    said, heard = time.time(), b''
    s.sendall(word)
    while len(heard) < len(word):
        part = s.recv(len(word) - len(heard))
        if not part: raise OSError('ended')
        heard += part
    with lock: print(kind, server, repr(said), repr(time.time()), flush=True)
def short(server, host):
    while True:
        try:
            with dial(host, 1) as s: exchange(s, 'short', server)
        except OSError: pass
        time.sleep(.1)
def long(server, host):
    while True:
        try:
            with dial(host, 20) as s:
                while True: exchange(s, 'long', server); time.sleep(.1)
        except OSError: time.sleep(.1)
for server, v4, v6 in zip(others[::3], others[1::3], others[2::3]):
    for talk, host in (short, v4), (short, v6), (long, v4), (long, v6):
        threading.Thread(target=talk, args=(server, host)).start()
";

/// xorshift64.
struct Chance(u64);

impl Chance {
    /// Numbers beside each other begin far from each other.
    fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    /// A number below `end`.
    fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % end
    }
}
