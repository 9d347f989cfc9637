//! A node's agent: started as a DaemonSet's container would be, asked through its admin socket.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use rustix::process::Signal;
use serde_json::Value;

use super::eventually;
use super::node::Node;
use super::process::{Process, tail};
use super::run::Run;
use crate::build;

/// How agents are started.
#[derive(Clone, Debug, Default)]
pub struct AgentOptions {
    /// More arguments to `mesh-agent run`.
    pub arguments: Vec<String>,
    /// Another binary than the one that tests are run with.
    pub binary: Option<PathBuf>,
}

impl AgentOptions {
    /// With these arguments besides.
    pub fn with<T: Into<String>>(arguments: impl IntoIterator<Item = T>) -> Self {
        Self { arguments: arguments.into_iter().map(Into::into).collect(), ..Self::default() }
    }
}

/// The name of the agent that a node is started with.
pub(super) const FIRST: &str = "agent";

/// How long it may take to answer, and to end: a busy machine's time, not the agent's.
const PATIENCE: Duration = Duration::from_secs(60);

/// A node's agent process.
pub struct Agent {
    /// The node's name.
    pub node: String,
    admin: PathBuf,
    pins: PathBuf,
    process: Process,
}

impl Agent {
    /// `name` tells the agents of one node apart: by their logs and admin sockets.
    pub(super) fn start(run: &Run, node: &Node, name: &str, options: &AgentOptions) -> Result<Self> {
        let binary = options.binary.clone().map_or_else(build::agent_binary, Ok)?;
        let socket = if name == FIRST { "admin".to_string() } else { format!("{name}-admin") };
        let admin = run.dir().join(format!("{}-{socket}.sock", node.name));
        let pins = run.bpffs().join(&node.name);
        std::fs::create_dir_all(&pins).with_context(|| format!("making {}", pins.display()))?;
        let world = run.dir().join("world");
        let mut arguments = vec![
            binary.to_string_lossy().into_owned(),
            "run".to_string(),
            format!("--node={}", node.name),
            format!("--discovery=dir:{}", world.display()),
            format!("--cgroup-root={}", node.cgroup.display()),
            format!("--bpf-pins={}", pins.display()),
            format!("--ca=dir:{}", run.dir().join("ca").display()),
            format!("--admin=unix:{}", admin.display()),
            "--readiness=127.0.0.1:15021".to_string(),
            "--log-format=json".to_string(),
        ];
        for default in ["--drain-window=2s", "--metrics=127.0.0.1:15020"] {
            let flag = default.split_inclusive('=').next().unwrap_or_default();
            if !options.arguments.iter().any(|argument| argument.starts_with(flag)) {
                arguments.push(default.to_string());
            }
        }
        arguments.extend(options.arguments.iter().cloned());
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        let process = node.agent_place().spawn(name, &arguments)?;
        Ok(Self { node: node.name.clone(), admin, pins, process })
    }

    /// Waits until /readyz says yes; the error says what was missing.
    pub fn wait_ready(&mut self, timeout: Duration) -> Result<()> {
        let what = format!("the agent of {} to be ready", self.node);
        let waited = eventually(timeout, &what, || {
            self.process.check_running()?;
            let (status, body) = self.get("/readyz")?;
            ensure!(status == 200, "/readyz answers {status}: {}", body.trim());
            Ok(Some(()))
        });
        waited.with_context(|| format!("log of the agent:\n{}", tail(&self.process.log(), 15)))
    }

    /// GET on the admin socket: status and body.
    pub fn get(&self, path: &str) -> Result<(u16, String)> {
        request(&self.admin, "GET", path)
    }

    /// GET on the admin socket, which must answer 200 with JSON.
    pub fn get_json(&self, path: &str) -> Result<Value> {
        let (status, body) = self.get(path)?;
        ensure!(status == 200, "{path} on {} answers {status}: {body}", self.node);
        serde_json::from_str(&body).with_context(|| format!("{path} on {} is no JSON: {body}", self.node))
    }

    /// POST on the admin socket, which must answer with success.
    pub fn post(&self, path: &str) -> Result<String> {
        let (status, body) = request(&self.admin, "POST", path)?;
        ensure!((200..300).contains(&status), "{path} on {} answers {status}: {body}", self.node);
        Ok(body)
    }

    /// How the kernel programs ended and how often, such as `lookup_tunnel 3, guard_tcp 12`; for people.
    pub fn kernel_outcomes(&self) -> String {
        let metrics = self.get("/metrics").map_or_else(|error| format!("{error:#}"), |(_, body)| body);
        let counted = metrics.lines().filter_map(|line| {
            let (name, count) = line.strip_prefix("nodemesh_kernel_outcomes_total{outcome=\"")?.split_once("\"} ")?;
            (count != "0").then(|| format!("{name} {count}"))
        });
        counted.collect::<Vec<_>>().join(", ")
    }

    /// How often the kernel programs of its node ended in an outcome.
    pub fn kernel_outcome(&self, name: &str) -> Result<u64> {
        let (_, metrics) = self.get("/metrics")?;
        let line = metrics.lines().find(|line| line.contains(&format!("outcome=\"{name}\"")));
        let value = line.and_then(|line| line.rsplit(' ').next()).with_context(|| format!("no outcome {name}"))?;
        Ok(value.parse()?)
    }

    /// The sum of a metric over all its labels; nothing of it is zero.
    pub fn metric_sum(&self, name: &str) -> Result<f64> {
        let (_, metrics) = self.get("/metrics")?;
        let is_it = |line: &&str| line.strip_prefix(name).is_some_and(|rest| rest.starts_with(['{', ' ']));
        Ok(metrics.lines().filter(is_it).filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum())
    }

    /// Its resident memory in bytes.
    pub fn resident(&self) -> Result<u64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid()))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
        let kibibytes: u64 = line.split_whitespace().next().context("no number")?.parse()?;
        Ok(kibibytes << 10)
    }

    /// The access log's records so far, as they were logged.
    pub fn access_log(&self) -> Vec<Value> {
        let log = self.process.log();
        let records = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        records.filter(|record| record["target"] == "access").collect()
    }

    /// Everything it has logged.
    pub fn log(&self) -> String {
        self.process.log()
    }

    /// Where it pins its programs and maps.
    pub fn pins(&self) -> &Path {
        &self.pins
    }

    /// Its admin socket.
    pub fn admin(&self) -> &Path {
        &self.admin
    }

    /// Its pid.
    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// Stops it where it is (SIGSTOP), until [`Agent::resume`].
    pub fn pause(&self) -> Result<()> {
        self.process.signal(Signal::STOP)
    }

    /// Lets it go on.
    pub fn resume(&self) -> Result<()> {
        self.process.signal(Signal::CONT)
    }

    /// kill -9.
    pub fn kill(&mut self) -> Result<()> {
        self.process.kill()
    }

    /// SIGABRT, as a crash; how it ended.
    pub fn abort(&mut self) -> Result<ExitStatus> {
        self.process.signal(Signal::ABORT)?;
        self.process.wait(PATIENCE)
    }

    /// SIGTERM, without waiting for what follows.
    pub fn terminate(&self) -> Result<()> {
        self.process.signal(Signal::TERM)
    }

    /// Whether it has not ended yet.
    pub fn is_running(&mut self) -> bool {
        self.process.is_running()
    }

    /// Waits until it has ended by itself, with success.
    pub fn wait_end(&mut self, timeout: Duration) -> Result<()> {
        let status = self.process.wait(timeout)?;
        ensure!(status.success(), "the agent of {} ended with {status}", self.node);
        Ok(())
    }

    /// SIGTERM, and waits until it has drained.
    pub fn stop(&mut self) -> Result<()> {
        self.process.signal(Signal::TERM)?;
        let status = self.process.wait(PATIENCE)?;
        if !status.success() {
            bail!("the agent of {} ended with {status}:\n{}", self.node, tail(&self.process.log(), 15));
        }
        Ok(())
    }

    pub(super) fn keep(&mut self) {
        self.process.keep();
    }
}

fn request(socket: &Path, method: &str, path: &str) -> Result<(u16, String)> {
    let mut stream = UnixStream::connect(socket).with_context(|| format!("connecting to {}", socket.display()))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    // HTTP/1.0: the answer ends with the connection and is never chunked.
    write!(stream, "{method} {path} HTTP/1.0\r\nhost: localhost\r\ncontent-length: 0\r\n\r\n")?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).with_context(|| format!("reading the answer to {method} {path}"))?;
    let answer = String::from_utf8_lossy(&answer);
    let (head, body) = answer.split_once("\r\n\r\n").context("the admin socket's answer is no HTTP")?;
    let status = head.split(' ').nth(1).and_then(|code| code.parse().ok()).context("no status in the answer")?;
    Ok((status, body.to_string()))
}
