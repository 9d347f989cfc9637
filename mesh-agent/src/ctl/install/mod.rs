//! `meshctl install`, `upgrade` and `uninstall`: the one part of meshctl that changes a cluster, and that says so.
//!
//! What is installed are the files of manifests/ (`objects`), by server-side apply (`cluster`). Then it is waited for: who
//! reads "installed" has agents that are ready. Uninstalling begins with the agents, each of which takes the mesh off its
//! node when it sees that its DaemonSet goes; their rights and their definitions go when they are gone.

pub(super) mod cluster;
mod objects;
#[cfg(test)]
mod tests;
mod uninstall;

use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};
use clap::Args;
use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::core::v1::Container;
use serde_json::Value;

use self::cluster::{Applied, Cluster, Step};
use self::objects::{Profile, Wanted};
pub use self::uninstall::{UninstallArgs, uninstall};
use super::args::{WhomArgs, some_time};
use super::reach::{self, Agents};
use super::table::Tone;
use super::{Screen, Verdict, check};
use crate::told::dump;

/// Between two looks at what is waited for.
pub(super) const ROLLOUT_LOOK_EVERY: Duration = Duration::from_secs(1);

const NEXT: &str = "\
the mesh is installed. Next:
  meshctl check                                            # is all of it well
  kubectl label namespace NAME nodemesh.dev/mesh=enabled   # brings its pods in; no restart of anything
";

/// How an install or an upgrade is done.
#[derive(Args, Debug)]
pub struct How {
    /// How long to wait until controller and agents are ready
    #[arg(long, value_name = "DURATION", default_value = "5m", value_parser = some_time)]
    pub wait: Duration,
    /// Do not wait for them
    #[arg(long, conflicts_with = "wait")]
    pub no_wait: bool,
    /// Have fields as they are here that somebody else applied otherwise
    #[arg(long)]
    pub force_conflicts: bool,
}

/// `meshctl install`
#[derive(Args, Debug)]
pub struct InstallArgs {
    /// What to install
    #[arg(long, value_enum, default_value_t)]
    pub profile: Profile,
    /// The image of agents and controller [default: that of the manifests]
    #[arg(long, value_name = "NAME:TAG")]
    pub image: Option<String>,
    /// Print the objects as YAML and change nothing: for a repository, or kubectl apply --server-side -f -
    #[arg(long)]
    pub render: bool,
    /// How.
    #[command(flatten)]
    pub how: How,
}

/// `meshctl upgrade`
#[derive(Args, Debug)]
pub struct UpgradeArgs {
    /// What to have from now on [default: what is installed]
    #[arg(long, value_enum)]
    pub profile: Option<Profile>,
    /// The image of agents and controller [default: the name of the one that runs, with the version of this meshctl]
    #[arg(long, value_name = "NAME:TAG")]
    pub image: Option<String>,
    /// Print the objects as YAML and change nothing
    #[arg(long)]
    pub render: bool,
    /// Do it though the agents' version is far from this one's
    #[arg(long)]
    pub any_version: bool,
    /// How.
    #[command(flatten)]
    pub how: How,
}

/// `meshctl install`
pub async fn install(args: &InstallArgs, whom: &WhomArgs, screen: &mut Screen<'_>) -> Result<Verdict> {
    let wanted = Wanted { profile: args.profile, namespace: &whom.mesh_namespace, image: args.image.as_deref() };
    let objects = wanted.objects()?;
    if args.render {
        screen.print(&objects::yaml(&objects)?)?;
        return Ok(Verdict::Well);
    }
    let cluster = Cluster::find(whom).await?;
    if let Some(set) = cluster.agents().await? {
        let image = image_of(&set).unwrap_or_default();
        bail!("the mesh is in namespace {} already ({image}): meshctl upgrade changes it", cluster.namespace);
    }
    let elsewhere: Vec<String> = cluster.elsewhere().await?.into_iter().collect();
    ensure!(
        elsewhere.is_empty(),
        "the mesh is in namespace {} already, and two would both capture pods: meshctl upgrade -n {}",
        elsewhere.join(", "),
        elsewhere.join(", ")
    );
    fit(&cluster).await?;
    put(&cluster, &objects, args.profile, &args.how, NEXT, screen).await
}

/// `meshctl upgrade`
pub async fn upgrade(args: &UpgradeArgs, whom: &WhomArgs, screen: &mut Screen<'_>) -> Result<Verdict> {
    let cluster = Cluster::find(whom).await?;
    let Some(set) = cluster.agents().await? else {
        bail!(
            "there is no mesh in namespace {}: meshctl install, or -n with the namespace that it is in",
            cluster.namespace
        )
    };
    if let Some(release) = helm_release(&set) {
        bail!(
            "Helm installed it (release {release}): helm upgrade {release} manifests/helm/nodemesh -n {}",
            cluster.namespace
        );
    }
    let (before, profile) = (profile_of(&set), args.profile.unwrap_or(profile_of(&set)));
    ensure!(
        (before == Profile::Standalone) == (profile == Profile::Standalone),
        "{} and {} have different authorities, so no pod would trust another one's: meshctl uninstall, then meshctl \
         install --profile {}",
        before.word(),
        profile.word(),
        profile.word()
    );
    let image = args.image.clone().or_else(|| image_of(&set).and_then(upgraded));
    let wanted = Wanted { profile, namespace: &whom.mesh_namespace, image: image.as_deref() };
    let objects = wanted.objects()?;
    if args.render {
        screen.print(&objects::yaml(&objects)?)?;
        return Ok(Verdict::Well);
    }
    let versions = versions(whom).await;
    for version in &versions {
        let skew = skew(env!("CARGO_PKG_VERSION"), version);
        if let (Some(why), false) = (skew, args.any_version) {
            bail!("{why}; --any-version does it all the same");
        }
    }
    let now = if versions.is_empty() { "nobody says which".to_string() } else { versions.join(", ") };
    let image = image.or_else(|| image_of(&set).map(str::to_string)).unwrap_or_default();
    screen.print(&format!("agents now: {now}; then: {image}, profile {}\n", profile.word()))?;
    fit(&cluster).await?;
    put(&cluster, &objects, profile, &args.how, "the mesh is upgraded: meshctl check\n", screen).await
}

/// The cluster is fit for the mesh, or what to do.
async fn fit(cluster: &Cluster) -> Result<()> {
    let unfit = check::unfit(&cluster.server, &cluster.namespace, cluster.patience()).await?;
    ensure!(unfit.is_empty(), "this cluster is not fit for the mesh:\n{}", unfit.join("").trim_end());
    Ok(())
}

/// Applies everything, in its order, then waits.
async fn put(
    cluster: &Cluster,
    objects: &[Value],
    profile: Profile,
    how: &How,
    end: &str,
    screen: &mut Screen<'_>,
) -> Result<Verdict> {
    for object in objects {
        let applied = cluster.apply(object, how.force_conflicts).await?;
        let (word, tone) = match applied {
            Applied::Created => ("created  ", Tone::Good),
            Applied::Changed => ("changed  ", Tone::Doubtful),
            Applied::Same => ("same     ", Tone::Faint),
        };
        screen.print(&format!("{} {}\n", screen.paint().apply(word, tone), objects::name(object)))?;
    }
    if how.no_wait {
        screen.print("applied; meshctl check says how far it is\n")?;
        return Ok(Verdict::Well);
    }
    let until = Instant::now() + how.wait;
    let has_controller = profile != Profile::Standalone;
    let is_there = (!has_controller || awaited("controller", until, screen, || cluster.controller_step()).await?)
        && awaited("agents", until, screen, || cluster.agents_step()).await?;
    if is_there {
        screen.print(end)?;
        return Ok(Verdict::Well);
    }
    for line in cluster.obstacles().await {
        screen.print(&format!("{}\n", screen.paint().apply(&line, Tone::Bad)))?;
    }
    let wait = humantime::format_duration(how.wait);
    screen.print(&format!(
        "not ready within {wait} (--wait); it goes on by itself, and meshctl check says how far it is\n"
    ))?;
    Ok(Verdict::Wrong)
}

/// Looks again and again; tells what changed, and whether it was done in time. Somebody who does not answer for a moment is
/// told, and asked again.
async fn awaited<F: Future<Output = Result<Step>>>(
    what: &str,
    until: Instant,
    screen: &mut Screen<'_>,
    look: impl Fn() -> F,
) -> Result<bool> {
    let mut told = String::new();
    loop {
        let step = look().await.unwrap_or_else(|error| Step { is_done: false, told: format!("{error:#}") });
        if step.told != told {
            let tone = if step.is_done { Tone::Good } else { Tone::Plain };
            screen.print(&format!("{}\n", screen.paint().apply(&format!("{what}: {}", step.told), tone)))?;
            told = step.told;
        }
        if step.is_done || Instant::now() >= until {
            return Ok(step.is_done);
        }
        tokio::time::sleep(ROLLOUT_LOOK_EVERY).await;
    }
}

/// What the agents that answer say that they are.
async fn versions(whom: &WhomArgs) -> Vec<String> {
    let Ok(agents) = Agents::find(whom).await else { return Vec::new() };
    let (read, _) = reach::read(agents.ask("/config_dump?sections=agent").await, |_, answer| {
        let mut sections = dump::sections(answer)?;
        dump::section::<dump::AgentSection>(&mut sections, "agent").map(|agent| agent.version)
    });
    let mut versions: Vec<String> = read.into_iter().map(|(_, version)| version).collect();
    versions.sort();
    versions.dedup();
    versions
}

/// Why agents of one version should not be replaced by those of another: two minor versions apart nobody has tried.
fn skew(own: &str, theirs: &str) -> Option<String> {
    let numbers = |version: &str| {
        let mut numbers = version.split(['.', '-', '+']).map(|number| number.parse::<u32>().ok());
        Some((numbers.next()??, numbers.next()??))
    };
    let (Some((own_major, own_minor)), Some((major, minor))) = (numbers(own), numbers(theirs)) else {
        return Some(format!("agents say that they are {theirs}, which is no version that meshctl {own} knows"));
    };
    let is_near = own_major == major && own_minor.abs_diff(minor) <= 1;
    (!is_near).then(|| {
        format!("agents are {theirs}, this is meshctl {own}: go by the versions between them, one after the other")
    })
}

fn agent_of(set: &DaemonSet) -> Option<&Container> {
    let containers = &set.spec.template.spec.as_ref()?.containers;
    containers.iter().find(|container| container.name == "agent")
}

/// The image of the agents.
pub(super) fn image_of(set: &DaemonSet) -> Option<&str> {
    agent_of(set)?.image.as_deref()
}

/// The image of this version, where it is kept where the other one was; None where a digest names the other one.
fn upgraded(image: &str) -> Option<String> {
    if image.contains('@') {
        return None;
    }
    let at = image.rfind('/').map_or(0, |slash| slash + 1);
    let name = image.get(at..)?.split(':').next()?;
    Some(format!("{}{name}:{}", image.get(..at)?, env!("CARGO_PKG_VERSION")))
}

fn profile_of(set: &DaemonSet) -> Profile {
    let containers = set.spec.template.spec.as_ref().map(|spec| spec.containers.as_slice()).unwrap_or_default();
    let variables = agent_of(set).and_then(|agent| agent.env.as_ref());
    let authority = variables.into_iter().flatten().find(|variable| variable.name == "NODEMESH_CA");
    let is_own = authority.and_then(|variable| variable.value.as_ref()).is_some_and(|value| value.starts_with("dir:"));
    match (is_own, containers.iter().any(|container| container.name == "cni")) {
        (true, _) => Profile::Standalone,
        (false, true) => Profile::Cni,
        (false, false) => Profile::Default,
    }
}

/// Helm's release that an object is of.
fn helm_release(set: &DaemonSet) -> Option<&str> {
    set.metadata.annotations.as_ref()?.get("meta.helm.sh/release-name").map(String::as_str)
}
