//! The cluster and what tests do to it.

use std::process::{Child, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use xtask::cluster::parts::Parts;
use xtask::cluster::{self, node, tools::TOOLS};
use xtask::rings::can_use_cluster;
use xtask::testbed::eventually;

/// How long anything in a cluster may take to become as it should be.
pub const PATIENCE: Duration = Duration::from_secs(90);

/// The same for pods that start: images are unpacked, sandboxes made, probes asked.
const STARTED: Duration = Duration::from_secs(180);

/// One test at a time has the cluster.
static TURN: Mutex<()> = Mutex::new(());
/// Whether the mesh is installed, and as it should be.
static INSTALLED: AtomicBool = AtomicBool::new(false);

/// The cluster.
pub struct Kube {
    pub parts: Parts,
}

/// Runs a test in a cluster with the mesh; skips it aloud where there can be none.
pub fn in_cluster(name: &str, test: impl FnOnce(&Kube) -> Result<()>) {
    if !can_use_cluster(name) {
        return;
    }
    let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let run = || -> Result<()> {
        let kube = Kube { parts: cluster::up(&cluster::Options::default())? };
        if !INSTALLED.load(Ordering::Relaxed) {
            kube.install("base")?;
        }
        test(&kube).map_err(|error| {
            // Who knows how far it came: the next test is not to fail for this one's sake.
            kube.spoil();
            kube.explain(error)
        })
    };
    let done = run();
    drop(turn);
    if let Err(error) = done {
        panic!("{error:#}");
    }
}

impl Kube {
    /// Installs the mesh as it was built, from a folder of manifests/.
    pub fn install(&self, manifests: &str) -> Result<()> {
        cluster::import_agent(&self.parts)?;
        cluster::apply_mesh(&self.parts, manifests)?;
        INSTALLED.store(true, Ordering::Relaxed);
        Ok(())
    }

    /// The next test finds no mesh that it could use.
    pub fn spoil(&self) {
        INSTALLED.store(false, Ordering::Relaxed);
    }

    /// kubectl's stdout.
    pub fn kubectl(&self, arguments: &[&str]) -> Result<String> {
        cluster::kubectl(&self.parts, arguments, None)
    }

    /// Applies YAML.
    pub fn apply(&self, yaml: &str) -> Result<()> {
        cluster::kubectl(&self.parts, &["apply", "--server-side", "-f", "-"], Some(yaml)).map(drop)
    }

    /// A namespace that is not there before and not after.
    pub fn namespace(&self, name: &str, labels: &str) -> Result<Namespace<'_>> {
        let _ = self.kubectl(&["delete", "namespace", name, "--ignore-not-found", "--timeout=120s"]);
        self.apply(&format!("{{apiVersion: v1, kind: Namespace, metadata: {{name: {name}, labels: {{{labels}}}}}}}"))?;
        Ok(Namespace { kube: self, name: name.to_string() })
    }

    /// A namespace of the mesh where no stranger is let in: `web` on n1 and those who call it, by name and node, each of
    /// whom has had an answer.
    pub fn shop(&self, name: &str, callers: &[(&str, &str)]) -> Result<Namespace<'_>> {
        let namespace = self.namespace(name, ENABLED)?;
        namespace.web("web", "n1")?;
        for (caller, node) in callers {
            namespace.client(caller, node)?;
        }
        namespace.wait_ready()?;
        // Else a caller is answered before it is of the mesh, and refused a moment later because it is not yet.
        namespace.wait_captured()?;
        namespace.apply(STRICT)?;
        for (caller, _) in callers {
            namespace.eventually_answers(caller, "http://web/", "web to ")?;
        }
        Ok(namespace)
    }

    /// A namespace that is not of the mesh, with one pod in it, `stranger` on n2.
    pub fn strangers(&self, name: &str) -> Result<Namespace<'_>> {
        let namespace = self.namespace(name, "")?;
        namespace.client("stranger", "n2")?;
        namespace.wait_ready()?;
        Ok(namespace)
    }

    /// What a shell on a node says, as root there.
    pub fn on_node(&self, node: &str, script: &str) -> Result<String> {
        let output = node::command(node, &self.parts, &["sh", "-c", script])?.output().context("entering a node")?;
        Ok(String::from_utf8_lossy(&output.stdout).trim().to_string())
    }

    /// The agent's pod on a node.
    pub fn agent(&self, node: &str) -> Result<String> {
        let field = format!("spec.nodeName={node}");
        let pods = self.kubectl(&[
            "-n",
            "nodemesh-system",
            "get",
            "pods",
            "-l",
            "app.kubernetes.io/name=nodemesh-agent",
            "--field-selector",
            &field,
            "--sort-by=.metadata.creationTimestamp",
            "-o",
            "name",
        ])?;
        pods.lines().last().map(str::to_string).with_context(|| format!("no agent on {node}"))
    }

    /// The agent's log.
    pub fn agent_log(&self, node: &str) -> Result<String> {
        self.kubectl(&["-n", "nodemesh-system", "logs", &self.agent(node)?])
    }

    /// Waits until a line of the agent's log has all of these in it: it is written when a connection ends, and is on its way
    /// for a moment.
    pub fn eventually_logs(&self, node: &str, parts: &[&str]) -> Result<()> {
        eventually(PATIENCE, &format!("a line with {parts:?} in the log of {node}'s agent"), || {
            let log = self.agent_log(node)?;
            let is_there = log.lines().any(|line| parts.iter().all(|part| line.contains(part)));
            ensure!(is_there, "it is in no line:\n{log}");
            Ok(Some(()))
        })
    }

    /// A test's error with what the cluster looks like below it.
    fn explain(&self, error: anyhow::Error) -> anyhow::Error {
        let mut text = format!("{error:#}\n");
        let views: [&[&str]; 4] = [
            &["get", "pods", "-A", "-o", "wide"],
            &["get", "events", "-A", "--sort-by=.lastTimestamp"],
            &["-n", "nodemesh-system", "logs", "daemonset/nodemesh-agent", "--all-pods", "--prefix", "--tail=15"],
            &["-n", "nodemesh-system", "logs", "deployment/nodemesh-controller", "--all-pods", "--prefix", "--tail=15"],
        ];
        for view in views {
            let shown = self.kubectl(view).unwrap_or_else(|error| format!("{error:#}"));
            let lines: Vec<&str> = shown.lines().collect();
            let last = lines.len().saturating_sub(40);
            text.push_str(&format!("--- kubectl {}\n{}\n", view.join(" "), lines[last..].join("\n")));
        }
        // Once more where whoever reads a log from its end finds it.
        text.push_str(&format!("--- the failure\n{error:#}"));
        anyhow::anyhow!(text)
    }
}

/// A namespace of a test.
pub struct Namespace<'a> {
    pub kube: &'a Kube,
    pub name: String,
}

impl Drop for Namespace<'_> {
    fn drop(&mut self) {
        // Not waited for: who wants one of that name waits.
        let _ = self.kube.kubectl(&["delete", "namespace", &self.name, "--wait=false"]);
    }
}

impl Namespace<'_> {
    /// kubectl in this namespace.
    pub fn kubectl(&self, arguments: &[&str]) -> Result<String> {
        let arguments: Vec<&str> = ["-n", &self.name].into_iter().chain(arguments.iter().copied()).collect();
        self.kube.kubectl(&arguments)
    }

    /// Applies YAML of objects that name no namespace.
    pub fn apply(&self, yaml: &str) -> Result<()> {
        cluster::kubectl(&self.kube.parts, &["-n", &self.name, "apply", "--server-side", "-f", "-"], Some(yaml))
            .map(drop)
    }

    /// A pod of the tools' image on a node, with more about its container, under a service account of its name.
    pub fn pod(&self, name: &str, node: &str, container: &str) -> Result<()> {
        self.apply(&pod(name, node, container))
    }

    /// A pod that sleeps, to call others from.
    pub fn client(&self, name: &str, node: &str) -> Result<()> {
        self.pod(name, node, "")
    }

    /// A pod that listens on port 8080, behind a Service of its name on port 80.
    pub fn served(&self, name: &str, node: &str, container: &str) -> Result<()> {
        self.pod(name, node, container)?;
        self.apply(&format!(
            "{{apiVersion: v1, kind: Service, metadata: {{name: {name}}}, \
              spec: {{selector: {{app: {name}}}, ports: [{{port: 80, targetPort: 8080}}]}}}}"
        ))
    }

    /// nginx, which says its name and its caller's address.
    pub fn web(&self, name: &str, node: &str) -> Result<()> {
        // A probe that a busy machine is late with takes nobody's endpoint away.
        let probe = "{httpGet: {port: 8080, path: /}, periodSeconds: 1, timeoutSeconds: 10}";
        self.served(name, node, &format!("command: [nginx], readinessProbe: {probe}"))
    }

    /// A field of an object, by its JSON path.
    pub fn field(&self, object: &str, path: &str) -> Result<String> {
        self.kubectl(&["get", object, "-o", &format!("jsonpath={{{path}}}")])
    }

    /// Waits until a field says something.
    pub fn eventually_says(&self, object: &str, path: &str, expected: &str) -> Result<()> {
        eventually(PATIENCE, &format!("{path} of {object} to be {expected}"), || {
            Ok((self.field(object, path)? == expected).then_some(()))
        })
    }

    /// Waits until all pods are ready.
    pub fn wait_ready(&self) -> Result<()> {
        self.wait_all("Ready")
    }

    /// Waits until the mesh has all pods.
    pub fn wait_captured(&self) -> Result<()> {
        self.wait_all("nodemesh.dev/Captured")
    }

    /// Waits until a condition of all pods is true. Who ends already does not count: `kubectl wait` would wait for a pod that
    /// went in the meantime.
    fn wait_all(&self, condition: &str) -> Result<()> {
        let each = format!(
            "jsonpath={{range .items[*]}}{{.metadata.name}} {{.metadata.deletionTimestamp}} \
             {{.status.conditions[?(@.type=='{condition}')].status}}{{\"\\n\"}}{{end}}"
        );
        eventually(STARTED, &format!("{condition} of all pods of {}", self.name), || {
            let said = self.kubectl(&["get", "pods", "-o", &each])?;
            // Between the two blanks stands when it was deleted.
            let stay: Vec<&str> = said.lines().filter(|line| line.contains("  ")).collect();
            let wait: Vec<&&str> = stay.iter().filter(|line| !line.ends_with(" True")).collect();
            ensure!(!stay.is_empty() && wait.is_empty(), "of {stay:?} these are not: {wait:?}");
            Ok(Some(()))
        })
    }

    /// Runs a command in a pod; its stdout, and whether it ended well.
    pub fn run(&self, pod: &str, argv: &[&str]) -> Result<(bool, String)> {
        let arguments = ["-n", &self.name, "exec", pod, "--"];
        let arguments: Vec<&str> = arguments.into_iter().chain(argv.iter().copied()).collect();
        let output = cluster::kubectl_command(&self.kube.parts, &arguments)?.output().context("starting kubectl")?;
        let said = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        Ok((output.status.success(), said))
    }

    /// Asks a URL with curl; its answer.
    pub fn curl(&self, from: &str, url: &str) -> Result<String> {
        let (ok, said) = self.run(from, &["curl", "-sS", "--max-time", "10", url])?;
        ensure!(ok, "{from} asked {url}: {said}");
        Ok(said)
    }

    /// Whether curl is refused.
    pub fn is_refused(&self, from: &str, url: &str) -> Result<bool> {
        let script = format!("curl -sS --max-time 10 -o /dev/null {url}; echo status $?");
        eventually(PATIENCE, &format!("{url} to answer {from} or to refuse it"), || {
            let (_, said) = self.run(from, &["sh", "-c", &script])?;
            Ok(match said.lines().find_map(|line| line.strip_prefix("status ")) {
                Some("0") => Some(false),
                // 7: could not connect, 52: nothing came back, 56: the connection was reset.
                Some("7" | "52" | "56") => Some(true),
                // The name was not known, or nothing came in time: neither.
                _ => None,
            })
        })
    }

    /// Waits for an answer that contains something.
    pub fn eventually_answers(&self, from: &str, url: &str, what: &str) -> Result<()> {
        eventually(PATIENCE, &format!("{url} to answer {from} with {what:?}"), || {
            let answer = self.curl(from, url)?;
            Ok(answer.contains(what).then_some(()))
        })
    }

    /// Waits for a refusal.
    pub fn eventually_refuses(&self, from: &str, url: &str) -> Result<()> {
        eventually(PATIENCE, &format!("{url} to refuse {from}"), || Ok(self.is_refused(from, url)?.then_some(())))
    }

    /// New connections one after another until [`Load::end`].
    pub fn load(&self, from: &str, url: &str) -> Result<Load> {
        let script = format!(
            "rm -f /tmp/stop; good=0; bad=0; while [ ! -e /tmp/stop ]; do \
             if curl -sS --max-time 10 -o /dev/null {url} 2>/tmp/said; then good=$((good+1)); \
             else bad=$((bad+1)); echo \"$(date +%T) $(cat /tmp/said)\"; fi; done; echo good $good bad $bad"
        );
        let arguments = ["-n", &self.name, "exec", from, "--", "sh", "-c", &script];
        let mut command = cluster::kubectl_command(&self.kube.parts, &arguments)?;
        let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn()?;
        Ok(Load { child, from: from.to_string(), begun: Instant::now() })
    }
}

/// Connections in progress.
pub struct Load {
    child: Child,
    from: String,
    begun: Instant,
}

/// What became of them.
#[derive(Debug)]
pub struct Counted {
    pub good: u64,
    pub bad: u64,
    /// What was wrong with the bad ones.
    #[expect(dead_code, reason = "shown where a test fails")]
    pub said: String,
    pub took: Duration,
}

impl Load {
    /// Ends it and counts.
    pub fn end(mut self, namespace: &Namespace<'_>) -> Result<Counted> {
        let (ok, said) = namespace.run(&self.from, &["touch", "/tmp/stop"])?;
        ensure!(ok, "ending the load: {said}");
        let took = self.begun.elapsed();
        let end = Instant::now() + PATIENCE;
        while self.child.try_wait()?.is_none() {
            if Instant::now() > end {
                self.child.kill()?;
                bail!("the load did not end");
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        let output = self.child.wait_with_output()?;
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        let line = said.lines().last().unwrap_or_default();
        let words: Vec<&str> = line.split(' ').collect();
        let ["good", good, "bad", bad] = words[..] else { bail!("the load said {said}") };
        Ok(Counted { good: good.parse()?, bad: bad.parse()?, said, took })
    }
}

/// A pod of the tools' image with a service account of its own.
fn pod(name: &str, node: &str, container: &str) -> String {
    let comma = if container.is_empty() { "" } else { ", " };
    format!(
        "{{apiVersion: v1, kind: ServiceAccount, metadata: {{name: {name}}}}}\n---\n\
         {{apiVersion: v1, kind: Pod, metadata: {{name: {name}, labels: {{app: {name}}}}}, spec: {{nodeName: {node}, \
         serviceAccountName: {name}, terminationGracePeriodSeconds: 1, \
         containers: [{{name: main, image: \"{TOOLS}\"{comma}{container}}}]}}}}"
    )
}

/// Enrols what is labelled with it.
pub const ENABLED: &str = "nodemesh.dev/mesh: enabled";

/// Nobody without an identity is let in.
pub const STRICT: &str = "{apiVersion: nodemesh.dev/v1alpha1, kind: PeerAuthentication, metadata: {name: strict}, \
                          spec: {targetRefs: [{kind: Namespace}], mode: STRICT}}";

/// Lets nobody but `shop` of a namespace reach its `web`.
pub fn only_shop(namespace: &str) -> String {
    format!(
        "
apiVersion: nodemesh.dev/v1alpha1
kind: AuthorizationPolicy
metadata: {{name: only-shop}}
spec:
  targetRefs: [{{kind: Service, name: web}}]
  action: ALLOW
  rules:
  - sources: [{{type: ServiceAccount, serviceAccount: {{namespace: {namespace}, name: shop}}}}]
"
    )
}
