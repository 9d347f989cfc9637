//! A newer agent beside the older one, under load: no connection is lost.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use xtask::testbed::{AgentOptions, Family, Finished, Process, eventually, start_nginx};

use crate::kernel::{attached, bpftool, is_attached_again};
use crate::pair::{PORT, Pair, meshed};

const PATIENCE: Duration = Duration::from_secs(60);
/// For a load to have done much, also where the machine stalls.
const A_WHILE: Duration = Duration::from_secs(3);
const PYTHON: &str = "/usr/bin/python3";

/// How many connections the load keeps opening at once, over both families.
const CALLERS: usize = 4;

/// Opens connection after connection until a file appears, exchanges a word on each, and says what became of them.
const LOAD: &str = "
import os, socket, sys, threading, time
stop, word, targets = sys.argv[1], sys.argv[2].encode(), sys.argv[3:]
served, failed, lock = 0, [], threading.Lock()
def call(host, port):
    global served
    while not os.path.exists(stop):
        began = time.time()
        try:
            with socket.create_connection((host, port), 30) as s:
                s.settimeout(30)
                s.sendall(word)
                got = b''
                while len(got) < len(word):
                    part = s.recv(len(word))
                    if not part: raise EOFError('closed before the answer')
                    got += part
            with lock: served += 1
        except Exception as e:
            with lock: failed.append('%s after %.2f s, at %.2f: %r' % (host, time.time() - began, time.time(), e))
            time.sleep(0.02)
        time.sleep(0.005)
threads = [threading.Thread(target=call, args=(t.rsplit(':', 1)[0].strip('[]'), int(t.rsplit(':', 1)[1]))) for t in targets]
[t.start() for t in threads]
print('running', flush=True)
[t.join() for t in threads]
print('%d served, %d failed' % (served, len(failed)), *failed[:20], sep='\\n')
";

/// New connections all the while.
struct Load {
    process: Process,
    stop: std::path::PathBuf,
}

/// What became of them.
struct Calls {
    served: usize,
    failed: usize,
    said: String,
}

impl Load {
    fn start(pair: &Pair, word: &str) -> Result<Self> {
        let stop = pair.bed.dir().join(format!("stop-{word}"));
        let stop_path = stop.to_string_lossy().into_owned();
        let targets: Vec<String> =
            (0..CALLERS).map(|number| pair.server(Family::BOTH[number % 2], PORT).to_string()).collect();
        let mut argv = vec![PYTHON, "-c", LOAD, &stop_path, word];
        argv.extend(targets.iter().map(String::as_str));
        let process = pair.bed.pod("client").spawn(&format!("load-{word}"), &argv)?;
        eventually(PATIENCE, "the load to run", || Ok(process.log().contains("running").then_some(())))?;
        Ok(Self { process, stop })
    }

    fn stop(mut self) -> Result<Calls> {
        std::fs::write(&self.stop, "")?;
        self.process.wait(PATIENCE)?;
        let said = self.process.log();
        let line = said.lines().find(|line| line.contains(" served, ")).context("the load said nothing")?;
        let numbers: Vec<usize> = line.split([' ', ',']).filter_map(|word| word.parse().ok()).collect();
        let [served, failed] = numbers[..] else { anyhow::bail!("{line}") };
        Ok(Calls { served, failed, said })
    }
}

/// Connections that were there before, and must be there after.
struct Old {
    sessions: Vec<Process>,
    transfers: Vec<Process>,
}

impl Old {
    /// An echo session and a transfer in each family, the transfer slow enough to span an upgrade.
    fn start(pair: &Pair) -> Result<Self> {
        let client = pair.bed.pod("client");
        let (mut sessions, mut transfers) = (Vec::new(), Vec::new());
        for family in Family::BOTH {
            let address = pair.server(family, 6379).to_string();
            sessions.push(client.spawn_probe(&format!("session-{family}"), &["redis", &address])?);
            let script = "curl -sS --fail --limit-rate 100k \"$0\" | sha256sum";
            let url = format!("http://{}/big", pair.server(family, 80));
            transfers.push(client.spawn(&format!("transfer-{family}"), &["sh", "-c", script, &url])?);
        }
        for session in &sessions {
            eventually(PATIENCE, "the session to begin", || Ok(session.log().contains("\"rounds\"").then_some(())))?;
        }
        Ok(Self { sessions, transfers })
    }

    /// Both are whole.
    fn finish(mut self, pair: &Pair) -> Result<()> {
        let big = pair.bed.pod("server").dir.join("nginx/html/big");
        let expected = std::process::Command::new("sha256sum").arg(&big).output()?;
        let expected = String::from_utf8_lossy(&expected.stdout).split(' ').next().unwrap_or_default().to_string();
        for transfer in &mut self.transfers {
            transfer.wait(PATIENCE)?;
            ensure!(transfer.log().starts_with(&expected), "a transfer came to harm: {}", transfer.log());
        }
        for session in &mut self.sessions {
            ensure!(session.is_running() && !session.log().contains("broken"), "a session broke: {}", session.log());
        }
        Ok(())
    }
}

/// Asks for the metrics of a node ten times a second, and notes when there is no answer.
const SCRAPE: &str = r#"while [ ! -e "$0" ]; do
    curl -sS --fail --max-time 2 -o /dev/null http://127.0.0.1:15020/metrics 2> /dev/null && echo yes || echo no
    sleep 0.1
done"#;

/// A pair with what the tests dial: an echo server, nginx, Redis.
fn serving(test: &str) -> Result<Option<(Pair, Process)>> {
    serving_by(test, &patient())
}

fn serving_by(test: &str, options: &AgentOptions) -> Result<Option<(Pair, Process)>> {
    let Some(mut pair) = meshed(test)? else { return Ok(None) };
    if !pair.with_mesh {
        return Ok(None);
    }
    for node in ["n1", "n2"] {
        pair.bed.agent_mut(node).stop()?;
        pair.bed.start_agent(node, options)?;
    }
    start_nginx(pair.bed.pod("server"))?;
    xtask::testbed::start_redis(pair.bed.pod("server"))?;
    let listener = pair.listen(&["echo"])?;
    pair.served()?;
    Ok(Some((pair, listener)))
}

/// Drains for longer than a test needs, and closes its listeners within one.
fn patient() -> AgentOptions {
    AgentOptions::with(["--drain-window=40s"])
}

#[test]
fn an_upgrade_under_load_loses_no_connection() -> Result<()> {
    let Some((mut pair, _listener)) = serving("an upgrade of both nodes")? else { return Ok(()) };
    let before = attached(&pair.bed)?;
    // The caller's agent first, then the one that the caller's agent pours connections into.
    for node in ["n1", "n2"] {
        let old_connections = Old::start(&pair)?;
        let stop = pair.bed.dir().join(format!("stop-scrape-{node}"));
        let scrape =
            pair.bed.node(node).tool_place().spawn("scrape", &["sh", "-c", SCRAPE, &stop.to_string_lossy()])?;
        let load = Load::start(&pair, &format!("upgrade-{node}"))?;
        std::thread::sleep(Duration::from_secs(1));
        let mut old = pair.bed.start_agent_beside(node, &patient())?;
        pair.bed.agent_mut(node).wait_ready(PATIENCE)?;
        old.terminate()?;
        let (status, said) = eventually(PATIENCE, "the older agent to say that it drains", || {
            let answer = old.get("/readyz")?;
            Ok((answer.1.contains("draining") && answer.1.contains("owns capture")).then_some(answer))
        })?;
        ensure!(status == 503, "{status}: {said}");
        std::thread::sleep(Duration::from_secs(3));
        let calls = load.stop()?;
        ensure!(calls.failed == 0 && calls.served > 100, "{node}: {}", calls.said);
        old_connections.finish(&pair).map_err(|error| pair.bed.explain(error))?;
        std::fs::write(&stop, "")?;
        let scraped = scrape.log();
        let longest = scraped.split("yes").map(|gap| gap.matches("no").count()).max().unwrap_or(0);
        ensure!(scraped.matches("yes").count() > 10 && longest < 20, "metrics were away: {scraped}");
        // With its last connection it ends, once its listeners are closed.
        old.wait_end(2 * PATIENCE + PATIENCE)?;
        is_attached_again(&pair.bed, &before)?;
        pair.served()?;
    }
    Ok(())
}

/// Connections that are held, and how often they say a word, five seconds apart.
const HELD: usize = 1000;
const ROUNDS: usize = 5;

/// Both nodes, and both once more as a rollback does, within the drain window of the first: what is held goes on, and
/// of new connections, as many as there can be, none fails.
#[test]
fn a_thousand_held_connections_live_through_an_upgrade_and_the_way_back() -> Result<()> {
    let options = AgentOptions::with(["--drain-window=120s"]);
    let Some((mut pair, _listener)) = serving_by("an upgrade and back", &options)? else { return Ok(()) };
    let before = attached(&pair.bed)?;
    let [held, short] = Family::BOTH.map(|family| pair.server(family, PORT).to_string());
    let client = pair.bed.pod("client");
    let [count, rounds] = [format!("--connections={HELD}"), format!("--rounds={ROUNDS}")];
    let mut held = client.spawn_probe("held", &["hold", &held, &count, &rounds, "--idle=5"])?;
    eventually(PATIENCE, "the connections to be open", || Ok(held.log().contains("opened").then_some(())))?;
    let mut short = client.spawn_probe("short", &["short", &short, "--seconds=20", "--at-once=16"])?;
    let mut older = Vec::new();
    for node in ["n1", "n2", "n1", "n2"] {
        let old = pair.bed.start_agent_beside(node, &options)?;
        pair.bed.agent_mut(node).wait_ready(PATIENCE)?;
        old.terminate()?;
        older.push(old);
    }
    for process in [&mut short, &mut held] {
        let ended = process.wait(4 * PATIENCE)?;
        ensure!(ended.success(), "{}", pair.bed.explain(anyhow::anyhow!("{}", process.log())));
        println!("{}", process.log().lines().last().unwrap_or_default());
    }
    for mut old in older {
        old.wait_end(4 * PATIENCE)?;
    }
    is_attached_again(&pair.bed, &before)?;
    pair.served()
}

#[test]
fn an_older_agent_that_is_killed_takes_no_new_connection_with_it() -> Result<()> {
    let Some((mut pair, _listener)) = serving("the older agent killed")? else { return Ok(()) };
    for node in ["n1", "n2"] {
        let load = Load::start(&pair, &format!("killed-{node}"))?;
        let mut old = pair.bed.start_agent_beside(node, &patient())?;
        pair.bed.agent_mut(node).wait_ready(PATIENCE)?;
        old.terminate()?;
        old.kill()?;
        std::thread::sleep(Duration::from_secs(2));
        let calls = load.stop()?;
        // What it carried at that moment went with it.
        ensure!(calls.failed <= CALLERS && calls.served > 100, "{node}: {}", calls.said);
        let load = Load::start(&pair, &format!("after-{node}"))?;
        std::thread::sleep(A_WHILE);
        let calls = load.stop()?;
        ensure!(calls.failed == 0 && calls.served > 20, "{node}: {}", calls.said);
    }
    Ok(())
}

#[test]
fn an_older_agent_takes_capture_back_when_the_newer_one_dies() -> Result<()> {
    let Some((mut pair, _listener)) = serving("the newer agent killed")? else { return Ok(()) };
    let before = attached(&pair.bed)?;
    for node in ["n1", "n2"] {
        let old = pair.bed.start_agent_beside(node, &patient())?;
        pair.bed.agent_mut(node).wait_ready(PATIENCE)?;
        pair.served()?;
        pair.bed.agent_mut(node).kill()?;
        pair.bed.put_agent_back(old);
        pair.served()?;
        pair.bed.agent_mut(node).wait_ready(PATIENCE)?;
        let load = Load::start(&pair, &format!("back-{node}"))?;
        std::thread::sleep(A_WHILE);
        let calls = load.stop()?;
        ensure!(calls.failed == 0 && calls.served > 20, "{node}: {}", calls.said);
        let metrics = pair.bed.node(node).tool_place();
        eventually(PATIENCE, "the metrics' port to be taken again", || {
            let said = metrics.run(&["curl", "-sS", "--fail", "http://127.0.0.1:15020/metrics"], PATIENCE)?;
            said.expect_ok("metrics").map(Some)
        })?;
    }
    is_attached_again(&pair.bed, &before)
}

/// Somebody else's program, on the hook that leads pods' connections to the agent, at the root of the node's cgroups.
struct Foreign {
    process: Child,
    counts: BufReader<ChildStdout>,
}

/// Attaches a program that counts connections over IPv4, beside any other, and says its count for each line that it hears.
const FOREIGN: &str = r"
import ctypes, os, platform, struct, sys
call = {'x86_64': 321, 'aarch64': 280}[platform.machine()]
libc = ctypes.CDLL(None, use_errno=True)
def bpf(command, attributes):
    buffer = ctypes.create_string_buffer(attributes.ljust(128, b'\0'), 128)
    result = libc.syscall(call, command, buffer, 128)
    if result < 0: sys.exit('bpf %d: %s' % (command, os.strerror(ctypes.get_errno())))
    return result
def insn(code, to=0, of=0, offset=0, value=0): return struct.pack('<BBhi', code, to | of << 4, offset, value)
counter = bpf(0, struct.pack('<IIII', 2, 4, 8, 1))
program = b''.join([
    insn(0x62, to=10, offset=-4), insn(0xbf, to=2, of=10), insn(0x07, to=2, value=-4),
    insn(0x18, to=1, of=1, value=counter), insn(0), insn(0x85, value=1),
    insn(0x15, to=0, offset=2), insn(0xb7, to=1, value=1), insn(0xdb, to=0, of=1),
    insn(0xb7, to=0, value=1), insn(0x95)])
code, licence = ctypes.create_string_buffer(program), ctypes.create_string_buffer(b'GPL')
sock_addr, inet4_connect, allow_multi = 18, 10, 2
loaded = bpf(5, struct.pack('<IIQQIIQII16sII', sock_addr, len(program) // 8, ctypes.addressof(code),
    ctypes.addressof(licence), 0, 0, 0, 0, 0, b'foreign', 0, inet4_connect))
bpf(8, struct.pack('<IIII', os.open(sys.argv[1], os.O_RDONLY), loaded, inet4_connect, allow_multi))
key, value = ctypes.create_string_buffer(4), ctypes.create_string_buffer(8)
for _ in sys.stdin:
    bpf(1, struct.pack('<IIQQQ', counter, 0, ctypes.addressof(key), ctypes.addressof(value), 0))
    print(struct.unpack('<Q', value.raw)[0], flush=True)
";

impl Foreign {
    fn attach(cgroup: &Path) -> Result<Self> {
        let mut python = Command::new(PYTHON);
        let mut process =
            python.args(["-c", FOREIGN]).arg(cgroup).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let counts = BufReader::new(process.stdout.take().context("no pipe")?);
        let mut foreign = Self { process, counts };
        foreign.count().context("attaching somebody else's program")?;
        Ok(foreign)
    }

    /// How many connections it has seen.
    fn count(&mut self) -> Result<u64> {
        writeln!(self.process.stdin.as_mut().context("no pipe")?)?;
        let mut line = String::new();
        self.counts.read_line(&mut line)?;
        line.trim().parse().with_context(|| format!("it says {line:?}"))
    }
}

impl Drop for Foreign {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[test]
fn somebody_elses_program_at_the_root_cgroup_runs_before_during_and_after() -> Result<()> {
    let Some((mut pair, _listener)) = serving("a foreign program")? else { return Ok(()) };
    let root = pair.bed.node("n1").cgroup.clone();
    let mut foreign = Foreign::attach(&root)?;
    let on_root = || bpftool(&["cgroup", "show", &root.to_string_lossy()]);
    let (shown, ours) = (on_root()?, attached(&pair.bed)?);
    ensure!(shown.contains("foreign"), "bpftool does not show it: {shown}");
    let mut runs = |pair: &Pair, when: &str| -> Result<()> {
        let before = foreign.count()?;
        pair.served().with_context(|| when.to_string())?;
        ensure!(foreign.count()? > before, "{when}: it did not run");
        ensure!(on_root()? == shown, "{when}: {} instead of {shown}", on_root()?);
        Ok(())
    };
    runs(&pair, "beside an agent")?;
    let mut old = pair.bed.start_agent_beside("n1", &patient())?;
    pair.bed.agent_mut("n1").wait_ready(PATIENCE)?;
    runs(&pair, "beside two agents")?;
    old.terminate()?;
    old.wait_end(3 * PATIENCE)?;
    runs(&pair, "after an upgrade")?;
    is_attached_again(&pair.bed, &ours)?;
    pair.bed.agent_mut("n1").kill()?;
    ensure!(on_root()? == shown, "it went with the agent: {}", on_root()?);
    Ok(())
}

#[test]
fn a_pod_that_is_deleted_leaves_both_agents() -> Result<()> {
    let Some((mut pair, _listener)) = serving("a deletion during an upgrade")? else { return Ok(()) };
    let old = pair.bed.start_agent_beside("n1", &patient())?;
    pair.bed.agent_mut("n1").wait_ready(PATIENCE)?;
    let file = pair.bed.pod("client").netns.path();
    let wanted = format!("net:[{}]", std::os::unix::fs::MetadataExt::ino(&std::fs::metadata(file)?));
    let holds = |pid: u32| -> Result<bool> {
        let links = |part: &str, below: &str| -> Result<Vec<std::path::PathBuf>> {
            let entries = std::fs::read_dir(format!("/proc/{pid}/{part}"))?.flatten();
            Ok(entries.filter_map(|entry| std::fs::read_link(entry.path().join(below)).ok()).collect())
        };
        let all = [links("task", "ns/net")?, links("fd", "")?].concat();
        Ok(all.iter().any(|target| target.to_string_lossy() == wanted))
    };
    let pids = [old.pid(), pair.bed.agent("n1").pid()];
    eventually(PATIENCE, "both agents to be in the pod's namespace", || {
        Ok((holds(pids[0])? && holds(pids[1])?).then_some(()))
    })?;
    pair.bed.remove_pod("client")?;
    eventually(PATIENCE, "both agents to let go of the namespace", || {
        Ok((!holds(pids[0])? && !holds(pids[1])?).then_some(()))
    })
}

#[test]
fn an_agent_that_ends_with_no_successor_serves_until_its_last_connection_has_ended() -> Result<()> {
    let Some((mut pair, _listener)) = serving("SIGTERM alone")? else { return Ok(()) };
    for node in ["n1", "n2"] {
        let address = pair.server(Family::V4, 6379).to_string();
        let mut session = pair.bed.pod("client").spawn_probe(&format!("held-{node}"), &["redis", &address])?;
        eventually(PATIENCE, "the session to begin", || Ok(session.log().contains("\"rounds\"").then_some(())))?;
        pair.bed.agent(node).terminate()?;
        let said = eventually(PATIENCE, "the agent to say that it drains", || {
            let (_, said) = pair.bed.agent(node).get("/readyz")?;
            Ok(said.contains("draining").then_some(said))
        })?;
        ensure!(!said.contains("owns capture"), "{said}");
        pair.served().context("new connections while it drains")?;
        ensure!(session.is_running(), "{}", session.log());
        session.kill()?;
        pair.bed.agent_mut(node).wait_end(PATIENCE).context("the end with the last connection")?;
        let url = format!("http://{}/", pair.server(Family::V4, 80));
        let curl = ["curl", "-sS", "--fail", "--max-time", "5", &url];
        let refused: Finished = pair.bed.pod("client").run(&curl, PATIENCE)?;
        ensure!(!refused.ok(), "a connection passed without an agent: {refused}");
        pair.bed.start_agent(node, &patient())?;
        pair.served()?;
    }
    Ok(())
}
