//! The two pods from which a load is made, one in the mesh and one out of it: made, waited for, asked by exec, and deleted
//! whatever happens. Should this process be killed, they end by themselves.

use std::str::FromStr;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, bail};
use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use kube::api::{DeleteParams, PostParams};
use serde::Serialize;
use serde_json::{Value, json};
use tokio::signal::unix::{SignalKind, signal};

use super::Told;
use crate::bench::{Load, Summary};
use crate::conditions::CAPTURED;
use crate::ctl::install::cluster::{self, Cluster};
use crate::ctl::install::image_of;
use crate::ctl::reach;
use crate::discovery::MESH_LABEL;

/// Between two looks at whether the pods are there.
pub const POD_LOOK_EVERY: Duration = Duration::from_millis(500);
/// What a load in a pod may take beyond its own time: exec, and the way of its words.
pub const RUNS_LONGER: Duration = Duration::from_secs(30);
/// How much longer than all of it should take the pods live whom nobody deletes.
pub const LIVES_LONGER: Duration = Duration::from_secs(60);

/// The pods' only container.
const CONTAINER: &str = "bench";
/// The pods' label app.kubernetes.io/name.
const NAME: &str = "meshctl-bench";
/// What tells the pods of one run from those of another.
const RUN: &str = "nodemesh.dev/bench";
/// Nobody of the image: it has no users.
const NOBODY: u32 = 65_532;

/// Whose pods they are to be like.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Account {
    pub namespace: String,
    pub service_account: String,
}

impl FromStr for Account {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (namespace, service_account) = text.split_once('/').unwrap_or((text, "default"));
        let is_name = |name: &str| !name.is_empty() && !name.contains('/');
        match is_name(namespace) && is_name(service_account) {
            true => Ok(Self { namespace: namespace.into(), service_account: service_account.into() }),
            false => Err("expected NAMESPACE or NAMESPACE/SERVICEACCOUNT"),
        }
    }
}

/// What is measured from where.
pub struct Wanted<'a> {
    pub from: &'a Account,
    /// None: as the cluster chooses.
    pub node: Option<&'a str>,
    /// How long the pods may take to be there.
    pub wait: Duration,
    pub load: &'a Load,
}

/// Where the pods were.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Place {
    pub namespace: String,
    pub service_account: String,
    pub node: String,
}

/// What the pods said.
pub struct Measured {
    pub place: Place,
    /// The load, in one line.
    pub told: String,
    pub plain: Summary,
    pub meshed: Summary,
    /// Pods that could not be deleted: what to do.
    pub left: Vec<String>,
}

/// Whoever typed it wants no more.
pub fn interruption() -> Result<impl Future<Output = ()>> {
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    Ok(async move {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
    })
}

/// Makes the pods, asks by them one after the other, and deletes them.
///
/// # Errors
/// They cannot be, or cannot be asked. They are deleted all the same.
pub async fn measure(
    cluster: &Cluster,
    wanted: &Wanted<'_>,
    interrupted: impl Future<Output = ()>,
) -> Result<Measured> {
    let set = cluster.agents().await?;
    let image = set.as_ref().and_then(image_of);
    let image = image.with_context(|| {
        format!(
            "there is no mesh in namespace {}, whose image they would have: -n names the one that it is in",
            cluster.namespace
        )
    })?;
    let pair = Pair::new(cluster, wanted);
    // To its end, also where somebody wants no more: what is asked for while it is deleted might be made after that.
    let measured = match pair.make(image).await {
        Err(error) => Err(error),
        Ok(()) => tokio::select! {
            measured = pair.measure() => measured,
            () = interrupted => Err(anyhow!("interrupted")),
        },
    };
    let left = pair.delete().await;
    if measured.is_err() {
        left.iter().for_each(|line| eprintln!("{line}"));
    }
    let (node, plain, meshed) = measured?;
    let Account { namespace, service_account } = wanted.from.clone();
    Ok(Measured { place: Place { namespace, service_account, node }, told: wanted.load.told(), plain, meshed, left })
}

/// Which of the two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Which {
    Plain,
    Meshed,
}

impl Which {
    const BOTH: [Self; 2] = [Self::Plain, Self::Meshed];

    fn word(self) -> &'static str {
        match self {
            Self::Plain => "plain",
            Self::Meshed => "meshed",
        }
    }
}

/// The pods of one run.
struct Pair<'a> {
    cluster: &'a Cluster,
    wanted: &'a Wanted<'a>,
    pods: Api<Pod>,
    /// Names are chosen here: whoever hears no answer knows what to delete.
    run: String,
}

impl<'a> Pair<'a> {
    fn new(cluster: &'a Cluster, wanted: &'a Wanted<'a>) -> Self {
        let pods = Api::namespaced(cluster.client(), &wanted.from.namespace);
        Self { cluster, wanted, pods, run: format!("{:08x}", fastrand::u32(..)) }
    }

    fn name(&self, which: Which) -> String {
        format!("{NAME}-{}-{}", which.word(), self.run)
    }

    /// After which the pods end by themselves.
    fn life(&self) -> Duration {
        self.wanted.wait + (self.wanted.load.at_most() + RUNS_LONGER) * 2 + LIVES_LONGER
    }

    async fn make(&self, image: &str) -> Result<()> {
        for which in Which::BOTH {
            let pod = serde_json::from_value(self.pod(which, image)).context("a pod of our own")?;
            let parameters = PostParams { field_manager: Some(cluster::MANAGER.into()), ..PostParams::default() };
            let made = self.cluster.within(self.pods.create(&parameters, &pod)).await;
            made.with_context(|| format!("making pod {}/{}", self.wanted.from.namespace, self.name(which)))?;
        }
        Ok(())
    }

    /// As the profile `restricted` of pod security has it. Both ask to be where pods of this run are, so they are on one
    /// node, whichever is first.
    fn pod(&self, which: Which, image: &str) -> Value {
        let mesh = match which {
            Which::Plain => "disabled",
            Which::Meshed => "enabled",
        };
        let life = self.life().as_secs();
        let mut affinity = json!({"podAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [
            {"topologyKey": "kubernetes.io/hostname", "labelSelector": {"matchLabels": {RUN: self.run}}},
        ]}});
        if let Some(node) = self.wanted.node {
            affinity["nodeAffinity"] = json!({"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [
                {"matchFields": [{"key": "metadata.name", "operator": "In", "values": [node]}]},
            ]}});
        }
        json!({
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {
                "name": self.name(which),
                "namespace": self.wanted.from.namespace,
                "labels": {
                    "app.kubernetes.io/name": NAME, "app.kubernetes.io/managed-by": "meshctl", RUN: self.run, MESH_LABEL: mesh,
                },
            },
            "spec": {
                "serviceAccountName": self.wanted.from.service_account,
                "automountServiceAccountToken": false,
                "enableServiceLinks": false,
                "restartPolicy": "Never",
                "activeDeadlineSeconds": life,
                "terminationGracePeriodSeconds": 1,
                "affinity": affinity,
                "nodeSelector": {"kubernetes.io/os": "linux"},
                "securityContext": {
                    "runAsNonRoot": true, "runAsUser": NOBODY, "runAsGroup": NOBODY,
                    "seccompProfile": {"type": "RuntimeDefault"},
                },
                "containers": [{
                    "name": CONTAINER,
                    "image": image,
                    "imagePullPolicy": "IfNotPresent",
                    "command": ["/mesh-agent", "rest", format!("{life}s")],
                    // No limit of processor time: it would be measured.
                    "resources": {"requests": {"cpu": "100m", "memory": "32Mi"}, "limits": {"memory": "128Mi"}},
                    "securityContext": {
                        "allowPrivilegeEscalation": false, "readOnlyRootFilesystem": true, "capabilities": {"drop": ["ALL"]},
                    },
                }],
            },
        })
    }

    /// The node, and what both pods said, one after the other: neither is in the other's way.
    async fn measure(&self) -> Result<(String, Summary, Summary)> {
        let told = Told::new();
        let node = self.there(&told).await?;
        let plain = self.ask(Which::Plain, &told).await?;
        let meshed = self.ask(Which::Meshed, &told).await?;
        Ok((node, plain, meshed))
    }

    /// Waits for both; their node.
    async fn there(&self, told: &Told) -> Result<String> {
        let until = Instant::now() + self.wanted.wait;
        loop {
            let mut waits = Vec::new();
            let mut node = None;
            for which in Which::BOTH {
                let name = self.name(which);
                let pod = self.cluster.within(self.pods.get_opt(&name)).await?;
                let pod = pod.with_context(|| format!("pod {name} was deleted by somebody else"))?;
                match standing(&pod, which) {
                    Standing::There => node = cluster::node_of(&pod).map(str::to_string),
                    Standing::Waits(why) => waits.push(why),
                    Standing::Over(why) => bail!("{why}"),
                }
            }
            match node {
                Some(node) if waits.is_empty() => return Ok(node),
                _ if Instant::now() >= until => {
                    let wait = humantime::format_duration(self.wanted.wait);
                    bail!("the pods are not there within {wait} (--wait): {}", waits.join("; "))
                }
                _ => told.say(&waits.join("; ")),
            }
            tokio::time::sleep(POD_LOOK_EVERY).await;
        }
    }

    async fn ask(&self, which: Which, told: &Told) -> Result<Summary> {
        let (load, name) = (self.wanted.load, self.name(which));
        let arguments = load.arguments();
        let typed: Vec<&str> = ["bench"].into_iter().chain(arguments.iter().map(String::as_str)).collect();
        let most = load.at_most() + RUNS_LONGER;
        let running = tokio::time::timeout(most, reach::run(&self.pods, &name, CONTAINER, &typed));
        tokio::pin!(running);
        let begun = Instant::now();
        let ran = loop {
            tokio::select! {
                ran = &mut running => break ran,
                () = tokio::time::sleep(POD_LOOK_EVERY) => {
                    let length = humantime::format_duration(load.length());
                    told.say(&format!("{}: {}s of {length}", which.word(), begun.elapsed().as_secs()));
                }
            }
        };
        let ran = ran.map_err(|_| format!("it did not end within {}", humantime::format_duration(most)));
        let came_to = ran.and_then(|ran| ran).and_then(|reach::Ran { said, complained, ended }| {
            // That a request failed is an exit status of its own, and in what was said.
            serde_json::from_slice(&said).map_err(|error| match reach::outcome(said, &complained, ended) {
                Err(why) => why,
                Ok(_) => format!("what it said cannot be read: {error}"),
            })
        });
        came_to.map_err(|why| anyhow!("the load in pod {name}: {why}{}", hint(&why)))
    }

    /// Deletes both; what to do where that failed.
    async fn delete(&self) -> Vec<String> {
        let mut left = Vec::new();
        for which in Which::BOTH {
            let (namespace, name) = (&self.wanted.from.namespace, self.name(which));
            let deleted = self.cluster.within(async {
                match self.pods.delete(&name, &DeleteParams::default()).await {
                    // One that was refused is none.
                    Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
                    deleted => deleted.map(drop),
                }
            });
            if let Err(error) = deleted.await {
                let life = humantime::format_duration(Duration::from_secs(self.life().as_secs()));
                left.push(format!(
                    "pod {name} is left, and ends by itself within {life}: {error:#}; kubectl -n {namespace} delete pod {name}"
                ));
            }
        }
        left
    }
}

/// What may help.
fn hint(why: &str) -> &'static str {
    // clap's words, of an agent of an earlier version.
    if why.contains("unrecognized subcommand") { TOO_OLD } else { "" }
}

const TOO_OLD: &str = "; the agents' image is too old for it: meshctl upgrade";
/// How a program ends that is asked for what it does not know: clap's.
const WRONG_USE: i32 = 2;

/// How far a pod is.
#[derive(Debug, PartialEq, Eq)]
enum Standing {
    /// A load can be made from it.
    There,
    /// Not yet: why.
    Waits(String),
    /// It will not be: why.
    Over(String),
}

fn standing(pod: &Pod, which: Which) -> Standing {
    let name = pod.metadata.name.as_deref().unwrap_or_default();
    let status = pod.status.as_ref();
    let phase = status.and_then(|status| status.phase.as_deref()).unwrap_or("Unknown");
    if matches!(phase, "Failed" | "Succeeded") || pod.metadata.deletion_timestamp.is_some() {
        let why = status.and_then(|status| status.message.clone().or(status.reason.clone())).unwrap_or_default();
        let containers = status.and_then(|status| status.container_statuses.as_ref()).into_iter().flatten();
        let ended = containers.filter_map(|container| container.state.as_ref()?.terminated.as_ref()).next();
        let old = if ended.is_some_and(|ended| ended.exit_code == WRONG_USE) { TOO_OLD } else { "" };
        return Standing::Over(format!("pod {name} ended before it was asked ({phase}): {why}{old}"));
    }
    if !cluster::is_ready(pod) {
        return Standing::Waits(cluster::obstacle(pod).unwrap_or_else(|| format!("pod {name} is {phase}")));
    }
    let conditions = status.and_then(|status| status.conditions.as_ref()).into_iter().flatten();
    let captured = conditions.clone().find(|condition| condition.type_ == CAPTURED);
    match (which, captured) {
        (Which::Plain, _) => Standing::There,
        (Which::Meshed, Some(condition)) if condition.status == "True" => Standing::There,
        (Which::Meshed, Some(condition)) => {
            let words = [condition.reason.as_deref(), condition.message.as_deref()];
            let words: Vec<&str> = words.into_iter().flatten().filter(|word| !word.is_empty()).collect();
            Standing::Waits(format!("pod {name} is not captured: {}", words.join(": ")))
        }
        (Which::Meshed, None) => {
            let node = cluster::node_of(pod).unwrap_or("-");
            Standing::Waits(format!(
                "pod {name} is not captured: no agent on {node} says anything of it (meshctl check)"
            ))
        }
    }
}
