//! How agents are asked: at their admin addresses, or through the API server by `exec` in their pods, as kubectl would and
//! with the same rights.

use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result, bail, ensure};
use bytes::Bytes;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Status;
use kube::Api;
use kube::api::{AttachParams, AttachedProcess, ListParams};
use serde::Serialize;
use tokio::io::{AsyncRead, AsyncReadExt as _};
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinSet;

use super::args::WhomArgs;
use super::table::{Paint, Tone};
use crate::admin::{self, Address, MAX_ANSWER_BYTES};
use crate::apiserver::{ApiServer, chain};
pub use crate::told::{Name, Told};

/// How many agents are asked at once: each through the API server is a connection to it, and to its node's kubelet.
pub(super) const AT_ONCE: usize = 16;
/// How much of an answer may wait in memory before it is read.
pub(super) const CHUNK_BYTES: usize = 64 * 1024;
/// How much of what a failed command says is kept.
pub(super) const MAX_COMPLAINT_BYTES: u64 = 4096;

/// How many parts of an answer that goes on wait to be cut into lines.
pub(super) const PARTS: usize = 4096;
/// The longest line of such an answer: a path of 16 KiB and names, all escaped.
pub(super) const MAX_LINE_BYTES: usize = 256 * 1024;

/// The label of the agents' pods.
const AGENTS: &str = "app.kubernetes.io/name=nodemesh-agent";
/// The container of the agent in its pod.
const CONTAINER: &str = "agent";
/// The agent in its image.
const PROGRAM: &str = "/mesh-agent";

/// The agents that are asked.
pub struct Agents {
    agents: Vec<Agent>,
    timeout: Duration,
}

/// One agent and the way to it.
#[derive(Clone)]
struct Agent {
    name: Name,
    way: Way,
}

#[derive(Clone)]
enum Way {
    Admin(Address),
    Exec(Box<Api<Pod>>),
    /// There is none: why.
    None(String),
}

/// What is heard of an agent that is listened to: a line without its end, or why there are no more.
pub struct Heard {
    /// Whose it is.
    pub name: Name,
    /// What.
    pub what: Result<String, String>,
}

/// When an agent was asked, and when its answer was here.
pub type Between = (f64, f64);

/// What agents are asked for.
#[derive(Clone)]
enum Asked {
    /// A path of their own HTTP.
    Path(String),
    /// What the kernel of their node offers: `mesh-agent check` in their pod.
    Kernel,
}

impl Agents {
    /// Those at the addresses that were named, else those of the cluster.
    ///
    /// # Errors
    /// Nobody can be asked; it says what to do.
    pub async fn find(whom: &WhomArgs) -> Result<Self> {
        let agents = if whom.admin.is_empty() { of_cluster(whom).await? } else { of_addresses(whom)? };
        Ok(Self { agents, timeout: whom.timeout })
    }

    /// How many they are; one at least.
    pub fn count(&self) -> usize {
        self.agents.len()
    }

    /// Their names.
    pub fn names(&self) -> impl Iterator<Item = &Name> {
        self.agents.iter().map(|agent| &agent.name)
    }

    /// The same agents, as many together as are asked at once.
    pub fn few(&self) -> impl Iterator<Item = Self> {
        self.agents.chunks(AT_ONCE).map(|agents| Self { agents: agents.to_vec(), timeout: self.timeout })
    }

    /// Asks every agent for a path, several at once. The answers are in the order of the agents' names.
    pub async fn ask(&self, path: &str) -> Vec<Told> {
        self.ask_timed(path).await.into_iter().map(|(told, _)| told).collect()
    }

    /// The same, each with when it was asked and when its answer was here, in seconds of this machine's Unix time.
    pub async fn ask_timed(&self, path: &str) -> Vec<(Told, Between)> {
        self.ask_for(Asked::Path(path.to_string())).await
    }

    /// Asks every agent what the kernel of its node offers, as `mesh-agent check --json` says it: in their pods alone.
    pub async fn ask_kernels(&self) -> Vec<Told> {
        self.ask_for(Asked::Kernel).await.into_iter().map(|(told, _)| told).collect()
    }

    /// Listens to every agent at a path whose answer goes on, for as long as lines are taken. Each line, and why somebody is
    /// heard no more, goes to `lines`, in the order in which they come.
    pub fn follow(&self, path: &str, lines: &mpsc::Sender<Heard>) {
        for agent in self.agents.iter().cloned() {
            let (path, lines) = (path.to_string(), lines.clone());
            tokio::spawn(async move {
                let ended = agent.follow(&path, &lines).await.unwrap_or_else(|error| error);
                // Nobody hears who listens no more.
                let _ = lines.send(Heard { name: agent.name, what: Err(ended) }).await;
            });
        }
    }

    async fn ask_for(&self, wanted: Asked) -> Vec<(Told, Between)> {
        let permits = Arc::new(Semaphore::new(AT_ONCE));
        let mut asked = JoinSet::new();
        for agent in self.agents.iter().cloned() {
            let (permits, wanted, timeout) = (permits.clone(), wanted.clone(), self.timeout);
            asked.spawn(async move {
                let _permit = permits.acquire_owned().await;
                let begun = now();
                let late = |_| Err(format!("no answer within {}", humantime::format_duration(timeout)));
                let answer = tokio::time::timeout(timeout, agent.answer(&wanted)).await.unwrap_or_else(late);
                (Told { name: agent.name, answer }, (begun, now()))
            });
        }
        let mut told = asked.join_all().await;
        told.sort_by(|(one, _), (other, _)| one.name.cmp(&other.name));
        told
    }

    /// Asks one after another until one answers: of what all know alike.
    ///
    /// # Errors
    /// Why the last one did not.
    pub async fn ask_one(&self, path: &str) -> Result<Bytes, String> {
        let asked = Asked::Path(path.to_string());
        let mut answer = Err("there is no agent".to_string());
        for agent in &self.agents {
            let late = |_| Err(format!("no answer within {}", humantime::format_duration(self.timeout)));
            answer = tokio::time::timeout(self.timeout, agent.answer(&asked)).await.unwrap_or_else(late);
            if answer.is_ok() {
                break;
            }
        }
        answer
    }
}

/// An agent that did not answer.
#[derive(Debug, Serialize)]
pub struct Unanswered {
    /// Its node.
    pub node: String,
    /// Its pod.
    pub pod: Option<String>,
    /// Why.
    pub error: String,
}

impl Unanswered {
    fn new(name: Name, error: String) -> Self {
        Self { node: name.node, pod: name.pod, error }
    }

    /// A line each, below a table.
    pub fn lines(unanswered: &[Self], paint: Paint) -> String {
        let line = |one: &Self| {
            let line = format!("{}: does not answer: {}", one.node, one.error);
            format!("{}\n", paint.apply(&line, Tone::Bad))
        };
        let lines: String = unanswered.iter().map(line).collect();
        if lines.is_empty() { lines } else { format!("\n{lines}") }
    }
}

/// This machine's clock, in seconds of Unix time.
pub fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64())
}

/// What the answers say, read by `read`, and who gave none that can be read.
pub fn read<T>(told: Vec<Told>, read: impl Fn(&Name, &[u8]) -> Result<T, String>) -> (Vec<(Name, T)>, Vec<Unanswered>) {
    let (mut all, mut unanswered) = (Vec::new(), Vec::new());
    for Told { name, answer } in told {
        match answer.and_then(|answer| read(&name, &answer)) {
            Ok(said) => all.push((name, said)),
            Err(error) => unanswered.push(Unanswered::new(name, error)),
        }
    }
    (all, unanswered)
}

fn of_addresses(whom: &WhomArgs) -> Result<Vec<Agent>> {
    ensure!(
        whom.kubeconfig.is_none() && whom.context.is_none(),
        "--admin asks agents at their addresses, --kubeconfig and --context those of a cluster: give one or the other"
    );
    let agent = |address: &Address| {
        let name = Name { node: address.to_string(), pod: None };
        Agent { name, way: Way::Admin(address.clone()) }
    };
    Ok(whom.admin.iter().map(agent).collect())
}

async fn of_cluster(whom: &WhomArgs) -> Result<Vec<Agent>> {
    let WhomArgs { admin: _, mesh_namespace, kubeconfig, context, timeout } = whom;
    let server = ApiServer::find_context(kubeconfig.clone(), context.clone()).await;
    let server = server.context("to ask agents without a cluster: --admin IP:PORT or --admin unix:PATH")?;
    let pods: Api<Pod> = Api::namespaced(server.client()?, mesh_namespace);
    let parameters = ListParams::default().labels(AGENTS);
    let listed = tokio::time::timeout(*timeout, pods.list(&parameters)).await;
    let listed = match listed {
        Ok(Ok(listed)) => listed,
        Ok(Err(kube::Error::Api(status))) if status.code == 403 => bail!(
            "you may not list the agents: {}\nsee: kubectl auth can-i list pods -n {mesh_namespace}",
            status.message
        ),
        Ok(Err(error)) => bail!("listing the agents at {}: {}", server.address(), chain(&error)),
        Err(_) => bail!("{} did not answer within {}", server.address(), humantime::format_duration(*timeout)),
    };
    ensure!(
        !listed.items.is_empty(),
        "no agents in namespace {mesh_namespace}: is the mesh elsewhere? kubectl get pods -A -l {AGENTS}, then -n NAMESPACE \
         (it is that of the mesh itself; pods are chosen by --namespace)"
    );
    Ok(listed.items.iter().map(|pod| of_pod(pod, &pods)).collect())
}

fn of_pod(pod: &Pod, pods: &Api<Pod>) -> Agent {
    let pod_name = pod.metadata.name.clone().unwrap_or_default();
    let node = pod.spec.as_ref().and_then(|spec| spec.node_name.clone());
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref()).unwrap_or("Unknown");
    let way = match phase {
        "Running" => Way::Exec(Box::new(pods.clone())),
        other => Way::None(format!("its pod {pod_name} is {other}: kubectl describe pod has why")),
    };
    Agent { name: Name { node: node.unwrap_or_else(|| "-".into()), pod: Some(pod_name) }, way }
}

impl Agent {
    fn pod(&self) -> &str {
        self.name.pod.as_deref().unwrap_or_default()
    }

    async fn answer(&self, wanted: &Asked) -> Result<Bytes, String> {
        match (&self.way, wanted) {
            (Way::Admin(address), Asked::Path(path)) => {
                let answer = admin::ask(address, path).await.map_err(|error| error.to_string())?;
                if answer.is_ok { Ok(answer.body) } else { Err(complaint(&answer.body, "it refuses")) }
            }
            (Way::Admin(_), Asked::Kernel) => Err("told in its pod alone; on its node: mesh-agent check".into()),
            (Way::Exec(pods), Asked::Path(path)) => {
                let Ran { said, complained, ended } = run(pods, self.pod(), CONTAINER, &["get", path]).await?;
                outcome(said, &complained, ended)
            }
            (Way::Exec(pods), Asked::Kernel) => {
                let Ran { said, complained, ended } = run(pods, self.pod(), CONTAINER, &["check", "--json"]).await?;
                // Its exit status says what the list says, too.
                match said.is_empty() {
                    true => outcome(said, &complained, ended),
                    false => Ok(said.into()),
                }
            }
            (Way::None(why), _) => Err(why.clone()),
        }
    }
}

impl Agent {
    /// Hands over lines until there are no more; why that is so.
    async fn follow(&self, path: &str, lines: &mpsc::Sender<Heard>) -> Result<String, String> {
        let mut cut = Lines::default();
        match &self.way {
            Way::Admin(address) => {
                let (parts, mut arrived) = mpsc::channel(PARTS);
                let take = |part: &[u8]| parts.try_send(Bytes::copy_from_slice(part)).is_ok();
                let asking = admin::follow(address, path, take);
                let mut asking = pin!(asking);
                loop {
                    tokio::select! {
                        part = arrived.recv() => if !self.hand_over(cut.take(&part.unwrap_or_default()), lines).await {
                            return Ok("nobody listens".into());
                        },
                        ended = &mut asking => {
                            while let Ok(part) = arrived.try_recv() {
                                self.hand_over(cut.take(&part), lines).await;
                            }
                            return match ended {
                            Ok(Some(answer)) => Err(complaint(&answer.body, "it refuses")),
                            Ok(None) => Ok("its answer ended".into()),
                            Err(error) => Err(error.to_string()),
                            };
                        }
                    }
                }
            }
            Way::Exec(pods) => {
                let mut process = start(pods, self.pod(), CONTAINER, &["get", path]).await?;
                let (stdout, stderr) = (process.stdout(), process.stderr());
                let Some(mut stdout) = stdout else { return Err("its pod gives no output".into()) };
                let mut part = vec![0; CHUNK_BYTES];
                loop {
                    let read = stdout.read(&mut part).await.map_err(|error| error.to_string())?;
                    if read == 0 {
                        let said = read_all(stderr, MAX_COMPLAINT_BYTES).await.unwrap_or_default();
                        return Err(complaint(&said, "its answer ended"));
                    }
                    if !self.hand_over(cut.take(part.get(..read).unwrap_or_default()), lines).await {
                        return Ok("nobody listens".into());
                    }
                }
            }
            Way::None(why) => Err(why.clone()),
        }
    }

    /// Whether somebody takes them.
    async fn hand_over(&self, all: Vec<String>, lines: &mpsc::Sender<Heard>) -> bool {
        for line in all {
            if lines.send(Heard { name: self.name.clone(), what: Ok(line) }).await.is_err() {
                return false;
            }
        }
        true
    }
}

/// Cuts what comes in parts into lines. Empty ones say only that somebody is there.
#[derive(Default)]
struct Lines {
    begun: Vec<u8>,
}

impl Lines {
    fn take(&mut self, part: &[u8]) -> Vec<String> {
        let mut whole = Vec::new();
        for piece in part.split_inclusive(|byte| *byte == b'\n') {
            self.begun.extend_from_slice(piece);
            if piece.ends_with(b"\n") {
                let line = String::from_utf8_lossy(&self.begun).trim().to_string();
                self.begun.clear();
                whole.extend((!line.is_empty()).then_some(line));
            } else if self.begun.len() > MAX_LINE_BYTES {
                // No agent says such a thing; what follows begins anew.
                self.begun.clear();
            }
        }
        whole
    }
}

/// What a command in a pod said, and how it ended, if it was told.
pub struct Ran {
    /// To standard output.
    pub said: Vec<u8>,
    /// To standard error, the beginning of it.
    pub complained: Vec<u8>,
    /// None: the connection ended first.
    pub ended: Option<Status>,
}

/// `/mesh-agent` with some arguments in a pod of its image.
async fn start(pods: &Api<Pod>, pod: &str, container: &str, arguments: &[&str]) -> Result<AttachedProcess, String> {
    let parameters = AttachParams::default().container(container).stdin(false).max_stdout_buf_size(CHUNK_BYTES);
    let started = pods.exec(pod, [&[PROGRAM], arguments].concat(), &parameters).await;
    started.map_err(|error| match &error {
        kube::Error::Api(status) if status.code == 403 => {
            format!(
                "you may not exec in its pod: {}; see: kubectl auth can-i get pods/exec, and create",
                status.message
            )
        }
        _ => chain(&error),
    })
}

/// Such a command, to its end.
///
/// # Errors
/// It was not begun, or says too much.
pub async fn run(pods: &Api<Pod>, pod: &str, container: &str, arguments: &[&str]) -> Result<Ran, String> {
    let mut process = start(pods, pod, container, arguments).await?;
    let (stdout, stderr, status) = (process.stdout(), process.stderr(), process.take_status());
    let bound = MAX_ANSWER_BYTES as u64;
    // Read side by side: one that nobody reads holds back the others.
    let mut reading = pin!(async { tokio::join!(read_all(stdout, bound + 1), read_all(stderr, MAX_COMPLAINT_BYTES)) });
    let mut ending = pin!(async {
        match status {
            Some(status) => status.await,
            None => None,
        }
    });
    let ((said, complained), ended) = tokio::select! {
        said = &mut reading => (said, ending.await),
        // Where the connection broke nothing ends what is read.
        ended = &mut ending => match ended {
            Some(_) => (reading.await, ended),
            None => return Ok(Ran { said: Vec::new(), complained: Vec::new(), ended: None }),
        },
    };
    let said = said.map_err(|error| error.to_string())?;
    if said.len() as u64 > bound {
        return Err(format!("its answer is longer than {bound} bytes"));
    }
    Ok(Ran { said, complained: complained.unwrap_or_default(), ended })
}

async fn read_all(stream: Option<impl AsyncRead + Unpin>, bound: u64) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    if let Some(stream) = stream {
        stream.take(bound).read_to_end(&mut bytes).await?;
    }
    Ok(bytes)
}

/// What a command came to. Without a word of how it ended, what it said may be half of it.
pub fn outcome(said: Vec<u8>, complained: &[u8], ended: Option<Status>) -> Result<Bytes, String> {
    match ended {
        Some(status) if status.status.as_deref() == Some("Success") => Ok(said.into()),
        Some(status) if complained.is_empty() && said.is_empty() => {
            Err(status.message.unwrap_or_else(|| "the command in its pod failed".into()))
        }
        Some(_) if complained.is_empty() => Err(complaint(&said, "it refuses")),
        Some(_) => Err(complaint(complained, "the command in its pod failed")),
        None => Err("the connection through the API server ended before the answer did".into()),
    }
}

/// The first line of a text.
fn complaint(text: &[u8], otherwise: &str) -> String {
    let text = String::from_utf8_lossy(text);
    text.lines().map(str::trim).find(|line| !line.is_empty()).unwrap_or(otherwise).to_string()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_a_command_in_a_pod_comes_to() {
        let success = json!({"status": "Success"});
        let failure = json!({"status": "Failure", "reason": "NonZeroExitCode", "message": "exit code 1"});
        let table = [
            ("{}\n", "", Some(&success), Ok("{}\n")),
            ("not ready\n", "", Some(&failure), Err("not ready")),
            ("", "error: asking the agent\nmore", Some(&failure), Err("error: asking the agent")),
            ("", "", Some(&failure), Err("exit code 1")),
            ("{\"half\":", "", None, Err("the connection through the API server ended before the answer did")),
        ];
        for (said, complained, ended, expected) in table {
            let ended = ended.map(|status| serde_json::from_value(status.clone()).unwrap());
            let came_to = outcome(said.into(), complained.as_bytes(), ended);
            assert_eq!(came_to, expected.map(Bytes::from).map_err(String::from), "{said:?} {complained:?}");
        }
    }

    #[tokio::test]
    async fn pods_by_how_they_are() {
        let config = kube::Config::new("http://127.0.0.1:1".parse().unwrap());
        let pods: Api<Pod> = Api::default_namespaced(kube::Client::try_from(config).unwrap());
        let table = [
            (
                json!({"metadata": {"name": "a"}, "spec": {"nodeName": "n", "containers": []}, "status": {"phase": "Running"}}),
                "n",
                true,
            ),
            (
                json!({"metadata": {"name": "a"}, "spec": {"nodeName": "n", "containers": []}, "status": {"phase": "Pending"}}),
                "n",
                false,
            ),
            (json!({"metadata": {"name": "a"}}), "-", false),
        ];
        for (pod, node, is_asked) in table {
            let agent = of_pod(&serde_json::from_value(pod.clone()).unwrap(), &pods);
            assert_eq!(agent.name, Name { node: node.into(), pod: Some("a".into()) }, "{pod}");
            assert_eq!(matches!(agent.way, Way::Exec(_)), is_asked, "{pod}");
        }
    }
}
