//! `bench scale`: what a large world costs the mesh. A real cluster of two nodes, and in its API server 10 000 pods of 100
//! nodes that are nothing but objects, behind 1 000 Services.
//!
//! How late a change is, is measured where it counts: a policy is written that refuses the calls of real pods, and then it
//! is taken back. From the API server's answer to the first call that went the other way, on both nodes at once.

use std::fmt::Write as _;
use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::report::{self, Figure, Row};
use super::stage::Way;
use crate::cluster::parts::Parts;
use crate::cluster::tools::TOOLS;
use crate::cluster::{self, control, layout};
use crate::testbed::{eventually, run};

const PODS: usize = 10_000;
const SERVICES: usize = 1_000;
const NAMESPACES: usize = 100;
const NODES: usize = 100;
/// Requests under way while the world is made.
const AT_ONCE: &str = "16";
/// For one change to be seen.
const SEEN: Duration = Duration::from_secs(60);
/// For agents to have read the world, and to have given back what that took.
const READ: Duration = Duration::from_secs(300);

/// Where the real pods are.
const HOME: &str = "scale";

/// Makes a cluster, measures in it, and takes it down again.
pub fn measure(samples: u64, binary: &Path) -> Result<Vec<Row>> {
    ensure!(!cluster::is_there(), "a cluster is there, and this needs one of its own: cargo xtask cluster down");
    let parts = cluster::up(&cluster::Options::default())?;
    let measured = World { parts }.measure(samples, binary);
    cluster::down()?;
    measured
}

struct World {
    parts: Parts,
}

impl World {
    fn measure(&self, samples: u64, binary: &Path) -> Result<Vec<Row>> {
        eprintln!("installing the mesh");
        cluster::import_binary(&self.parts, binary)?;
        cluster::apply_mesh(&self.parts, "base")?;
        self.make_callers()?;
        let mut callers = vec![Caller::start(&self.parts, "n1")?, Caller::start(&self.parts, "n2")?];
        println!("{}", report::head());
        let mut rows = Vec::new();
        let mut tell = |row: Row| {
            println!("{}", report::line(&row));
            rows.push(row);
        };
        self.figures("scale.empty", samples, &mut callers)?.into_iter().for_each(&mut tell);
        let begun = Instant::now();
        let objects = self.objects()?;
        self.make_world()?;
        eprintln!("{PODS} pods and {SERVICES} Services were made in {:.0} s", begun.elapsed().as_secs_f64());
        self.wait_until_read(objects + PODS + 2 * SERVICES)?;
        let id = format!("scale.services_{SERVICES}_pods_{PODS}");
        self.figures(&id, samples, &mut callers)?.into_iter().for_each(&mut tell);
        Ok(rows)
    }

    /// Memory of agents and controllers, and how late changes are.
    fn figures(&self, id: &str, samples: u64, callers: &mut [Caller]) -> Result<Vec<Row>> {
        let (mut agents, mut controllers, mut update) = (Figure::default(), Figure::default(), Figure::default());
        for _ in 0..samples {
            for refused in [true, false] {
                // Changes are taken together that come close together; these do not.
                std::thread::sleep(Duration::from_millis(1500));
                callers.iter_mut().for_each(Caller::forget);
                let written = self.refuse(refused)?;
                let mut last = Duration::ZERO;
                for caller in &mut *callers {
                    last = last.max(caller.turns(refused, written)?);
                }
                update.add(Way::Mesh, last.as_secs_f64() * 1e3, 0.0);
            }
        }
        for (command, figure) in [("run", &mut agents), ("controller", &mut controllers)] {
            for bytes in resident(command)? {
                figure.add(Way::Mesh, bytes as f64 / 1e6, 0.0);
            }
        }
        Ok(vec![
            agents.row(format!("{id}.agent_mb"), "MB"),
            controllers.row(format!("{id}.controller_mb"), "MB"),
            update.row(format!("{id}.update_ms"), "ms"),
        ])
    }

    /// Real pods: one that answers and one that calls it from the other node, both ways.
    fn make_callers(&self) -> Result<()> {
        let mut yaml = format!(
            "{{apiVersion: v1, kind: Namespace, metadata: {{name: {HOME}, labels: {{nodemesh.dev/mesh: enabled}}}}}}\n"
        );
        for (node, other) in [("n1", "n2"), ("n2", "n1")] {
            let script = format!(
                "while true; do if curl -sS -o /dev/null --max-time 5 http://web-{other} 2>/dev/null; \
                 then echo answered; else echo refused; fi; done"
            );
            for (name, command) in
                [(format!("web-{node}"), json!(["nginx"])), (format!("caller-{node}"), json!(["sh", "-c", script]))]
            {
                let pod = json!({
                    "apiVersion": "v1", "kind": "Pod",
                    "metadata": {"name": name, "namespace": HOME, "labels": {"app": name}},
                    "spec": {"nodeName": node, "terminationGracePeriodSeconds": 0, "containers": [
                        {"name": "app", "image": TOOLS, "imagePullPolicy": "Never", "command": command},
                    ]},
                });
                write!(yaml, "---\n{pod}\n")?;
            }
            let service = json!({
                "apiVersion": "v1", "kind": "Service", "metadata": {"name": format!("web-{node}"), "namespace": HOME},
                "spec": {"selector": {"app": format!("web-{node}")}, "ports": [{"port": 80, "targetPort": 8080}]},
            });
            write!(yaml, "---\n{service}\n")?;
        }
        cluster::kubectl(&self.parts, &["apply", "--server-side", "-f", "-"], Some(&yaml))?;
        let arguments = ["-n", HOME, "wait", "--for=condition=Ready", "pod", "--all", "--timeout=120s"];
        cluster::kubectl(&self.parts, &arguments, None).map(drop)
    }

    /// Writes the policy that refuses everybody, or takes it back; when the API server had answered.
    fn refuse(&self, refused: bool) -> Result<Instant> {
        let path = format!("/apis/nodemesh.dev/v1alpha1/namespaces/{HOME}/authorizationpolicies");
        let policy = json!({
            "apiVersion": "nodemesh.dev/v1alpha1", "kind": "AuthorizationPolicy",
            "metadata": {"name": "nobody", "namespace": HOME},
            "spec": {"targetRefs": [{"group": "", "kind": "Namespace", "name": HOME}], "action": "DENY",
                "rules": [{"sources": [{"type": "Any"}]}]},
        });
        self.ask(&[match refused {
            true => Request { verb: "POST", path, body: Some(policy) },
            false => Request { verb: "DELETE", path: format!("{path}/nobody"), body: None },
        }])?;
        Ok(Instant::now())
    }

    /// The world that is nothing but objects.
    fn make_world(&self) -> Result<()> {
        let post = |path: String, body: Value| Request { verb: "POST", path, body: Some(body) };
        let spaces = (0..NAMESPACES).map(|index| {
            let metadata = json!({"name": space(index), "labels": {"nodemesh.dev/mesh": "enabled"}});
            post("/api/v1/namespaces".into(), json!({"apiVersion": "v1", "kind": "Namespace", "metadata": metadata}))
        });
        let nodes = (0..NODES).map(|index| {
            let body = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": format!("paper-{index}")}});
            post("/api/v1/nodes".into(), body)
        });
        self.ask(&spaces.chain(nodes).collect::<Vec<_>>())?;
        let services = (0..SERVICES).flat_map(|index| {
            let (namespace, name) = (space(index), format!("s-{index}"));
            let service = json!({
                "apiVersion": "v1", "kind": "Service", "metadata": {"name": name},
                "spec": {"ports": [{"port": 80, "targetPort": 8080}]},
            });
            let endpoints: Vec<Value> = (0..PODS / SERVICES)
                .map(|number| json!({"addresses": [ip(index + number * SERVICES)], "conditions": {"ready": true}}))
                .collect();
            let slice = json!({
                "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
                "metadata": {"name": name, "labels": {"kubernetes.io/service-name": name}},
                "ports": [{"port": 8080, "protocol": "TCP"}], "endpoints": endpoints,
            });
            let slices = format!("/apis/discovery.k8s.io/v1/namespaces/{namespace}/endpointslices");
            [post(format!("/api/v1/namespaces/{namespace}/services"), service), post(slices, slice)]
        });
        self.ask(&services.collect::<Vec<_>>())?;
        let pods: Vec<Request> = (0..PODS)
            .map(|index| {
                let body = json!({
                    "apiVersion": "v1", "kind": "Pod",
                    "metadata": {"name": format!("p-{index}"), "labels": {"app": format!("s-{}", index % SERVICES)}},
                    "spec": {
                        "nodeName": format!("paper-{}", index % NODES), "automountServiceAccountToken": false,
                        "tolerations": [{"operator": "Exists"}], "terminationGracePeriodSeconds": 0,
                        "containers": [{"name": "app", "image": "none", "ports": [{"containerPort": 8080}]}],
                    },
                });
                post(format!("/api/v1/namespaces/{}/pods", space(index)), body)
            })
            .collect();
        let running: Vec<Request> = (0..PODS)
            .map(|index| {
                let ip = ip(index);
                let status = json!({"phase": "Running", "podIP": ip, "podIPs": [{"ip": ip}],
                    "conditions": [{"type": "Ready", "status": "True"}]});
                let path = format!("/api/v1/namespaces/{}/pods/p-{index}/status", space(index));
                Request { verb: "PATCH", path, body: Some(json!({"status": status})) }
            })
            .collect();
        // A namespace's account is made by a controller, a moment after the namespace.
        let account = format!("/api/v1/namespaces/{}/serviceaccounts/default", space(NAMESPACES - 1));
        eventually(READ, "the namespaces' accounts", || {
            Ok(self.ask(&[Request { verb: "GET", path: account.clone(), body: None }]).ok())
        })?;
        for (made, set) in pods.chunks(1000).zip(running.chunks(1000)) {
            self.ask(made)?;
            self.ask(set)?;
            eprint!(".");
        }
        eprintln!();
        Ok(())
    }

    /// Sends requests, several at once, in no order. Every one must succeed.
    fn ask(&self, requests: &[Request]) -> Result<()> {
        let file = |name: &str| layout::pki().join(name).display().to_string();
        let common = format!(
            "cacert = \"{}\"\ncert = \"{}\"\nkey = \"{}\"\nfail-with-body\n",
            file("ca.crt"),
            file("admin.crt"),
            file("admin.key")
        );
        let mut config = String::new();
        for (index, Request { verb, path, body }) in requests.iter().enumerate() {
            let next = if index == 0 { "" } else { "next\n" };
            let kind = if *verb == "PATCH" { "application/merge-patch+json" } else { "application/json" };
            write!(config, "{next}{common}url = \"https://{}:6443{path}\"\nrequest = {verb}\n", layout::CONTROL_IP)?;
            if let Some(body) = body {
                let body = body.to_string().replace('\\', "\\\\").replace('"', "\\\"");
                write!(config, "header = \"content-type: {kind}\"\ndata = \"{body}\"\n")?;
            }
        }
        let place: PathBuf = layout::work().join("requests.curl");
        fs::write(&place, config).with_context(|| format!("writing {}", place.display()))?;
        let path = place.to_string_lossy();
        let argv =
            ["curl", "--no-progress-meter", "--parallel", "--parallel-max", AT_ONCE, "--fail-early", "-K", &path];
        let output = control::place()?.command(&argv)?.output().context("starting curl")?;
        let said = String::from_utf8_lossy(&output.stderr);
        // What was refused stands last: no further request was sent.
        let body = String::from_utf8_lossy(&output.stdout);
        let refusal = body.rfind("{\"kind\":\"Status\"").map_or("", |at| &body[at..]);
        ensure!(output.status.success(), "the API server: {} {refusal}", said.trim());
        Ok(())
    }

    /// Objects that the agents have in force: the least of them.
    fn objects(&self) -> Result<usize> {
        let arguments =
            ["-n", "nodemesh-system", "get", "pods", "-l", "app.kubernetes.io/name=nodemesh-agent", "-o", "name"];
        let mut least = usize::MAX;
        for pod in cluster::kubectl(&self.parts, &arguments, None)?.lines() {
            let dump = ["-n", "nodemesh-system", "exec", pod, "--", "/mesh-agent", "get", "/config_dump"];
            let dump: Value = serde_json::from_str(&cluster::kubectl(&self.parts, &dump, None)?)?;
            let objects = dump["discovery"]["health"]["objects"].as_u64().context("no objects in /config_dump")?;
            least = least.min(usize::try_from(objects)?);
        }
        Ok(least)
    }

    fn wait_until_read(&self, objects: usize) -> Result<()> {
        eventually(READ, "agents to have read the world", || Ok((self.objects()? >= objects).then_some(())))
    }
}

/// One request to the API server.
struct Request {
    verb: &'static str,
    path: String,
    body: Option<Value>,
}

fn space(index: usize) -> String {
    format!("space-{}", index % NAMESPACES)
}

/// Outside what real pods have.
fn ip(index: usize) -> String {
    format!("10.{}.{}.{}", 100 + index / 62_500, index / 250 % 250, 1 + index % 250)
}

/// Bytes of memory that each process of the mesh in the cluster has.
fn resident(command: &str) -> Result<Vec<u64>> {
    let cgroup = format!("{}{}", run::PREFIX, layout::RUN);
    let mut found = Vec::new();
    for process in fs::read_dir("/proc")?.flatten().map(|entry| entry.path()) {
        let read = |name: &str| fs::read_to_string(process.join(name)).unwrap_or_default();
        let is_ours =
            read("cmdline").starts_with(&format!("/mesh-agent\0{command}\0")) && read("cgroup").contains(&cgroup);
        if is_ours {
            let status = read("status");
            let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("a process that ended")?;
            found.push(line.split_whitespace().next().context("no number")?.parse::<u64>()? << 10);
        }
    }
    ensure!(!found.is_empty(), "no mesh-agent {command} runs in the cluster");
    Ok(found)
}

/// What a pod says of its calls, one after another.
struct Caller {
    logs: Child,
    heard: Receiver<(Instant, bool)>,
    name: String,
}

impl Caller {
    fn start(parts: &Parts, node: &str) -> Result<Self> {
        let name = format!("caller-{node}");
        let arguments = ["-n", HOME, "logs", "--follow", "--tail=1", &name];
        let mut command = cluster::kubectl_command(parts, &arguments)?;
        let mut logs = command.stdout(Stdio::piped()).spawn().context("starting kubectl")?;
        let lines = BufReader::new(logs.stdout.take().context("no stdout")?).lines();
        let (tell, heard) = mpsc::channel();
        std::thread::spawn(move || {
            for line in lines.map_while(std::io::Result::ok) {
                if tell.send((Instant::now(), line == "refused")).is_err() {
                    return;
                }
            }
        });
        Ok(Self { logs, heard, name })
    }

    fn forget(&mut self) {
        while self.heard.try_recv().is_ok() {}
    }

    /// How long after `since` the first call was refused, or not refused any more.
    fn turns(&mut self, refused: bool, since: Instant) -> Result<Duration> {
        loop {
            let heard = self.heard.recv_timeout(SEEN.saturating_sub(since.elapsed()));
            let (at, is_refused) = heard.with_context(|| format!("{} was not told to be otherwise", self.name))?;
            if is_refused == refused {
                return Ok(at.saturating_duration_since(since));
            }
        }
    }
}

impl Drop for Caller {
    fn drop(&mut self) {
        let _ = self.logs.kill();
        let _ = self.logs.wait();
    }
}
