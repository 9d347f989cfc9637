//! The commands other than `run`: each looks, prints, and answers with an exit status for scripts.
//!
//! What is looked at belongs to other rooms (the kernel to `capture`, YAML to `discovery`, the root to `identity`); here is
//! only how it is told.

mod ca;
mod policy;

use std::fmt::{self, Display};
use std::io::{self, Write};
use std::path::Path;
use std::process::ExitCode;

use anyhow::Context;
use serde::Serialize;
use tokio::signal::unix::{SignalKind, signal};

use crate::admin::{self, Address};
use crate::bench::Load;
use crate::capture::{self, Feature, Needed, ObjectSource, State};
use crate::cli::{
    BenchArgs, CaCommand, CheckArgs, CniCommand, CniDirectories, CniInstallArgs, DetachArgs, GetArgs, LoadArgs,
    PolicyCommand, RestArgs, ValidateArgs,
};
use crate::cni::install::{self, Places};
use crate::cni::wanted;
use crate::config::{self, Surroundings};
use crate::departure::{Agents, OwnDaemonSet};
use crate::{departure, discovery, telemetry};

/// One feature of the kernel, ready to be told.
#[derive(Clone, Debug, Serialize)]
pub struct FeatureLine {
    /// What it is called.
    pub name: String,
    /// Whether the mesh works without it.
    pub required: bool,
    /// What was found, where there is more to say than that it is there.
    pub found: Option<String>,
    /// What is missing, if it is.
    pub missing: Option<String>,
    /// Why that matters.
    pub matters: String,
}

/// `mesh-agent check`
pub fn check(args: CheckArgs, surroundings: &Surroundings<'_>) -> anyhow::Result<ExitCode> {
    let CheckArgs { json, cgroup_root, kubelet_port, bpf_pins, load, bpf_object } = args;
    let cgroup_root = config::cgroup_root(cgroup_root, surroundings)?;
    let bpf_pins = bpf_pins.unwrap_or_else(|| config::default::BPF_PINS.into());
    let mut features = capture::check(&cgroup_root, kubelet_port, &bpf_pins);
    if load {
        features.extend(capture::programs(&bpf_object.map_or(ObjectSource::Embedded, ObjectSource::File)));
    }
    let status = capture::exit_status(&features);
    let features: Vec<FeatureLine> = features.into_iter().map(FeatureLine::from).collect();
    if json {
        print_json(&features)?
    } else {
        print_lines(&features)?
    }
    Ok(ExitCode::from(status))
}

/// `mesh-agent validate PATH`
pub fn validate(args: ValidateArgs) -> anyhow::Result<ExitCode> {
    let ValidateArgs { path, json, trust_domain } = args;
    // A typing mistake in the path must not look like YAML without fault.
    std::fs::metadata(&path).with_context(|| path.display().to_string())?;
    let trust_domain = trust_domain.as_deref().unwrap_or(config::default::TRUST_DOMAIN);
    let findings = discovery::validate(&path, trust_domain)?;
    if json {
        print_json(&findings)?
    } else {
        print_lines(&findings)?
    }
    Ok(ExitCode::from(u8::from(!findings.is_empty())))
}

/// The routes, policies and authorizers of a file or a directory of YAML, as an agent shows them at `/config_dump`; and how
/// many things are wrong there.
pub(crate) fn objects_of(path: &Path, trust_domain: Option<&str>) -> anyhow::Result<(serde_json::Value, usize)> {
    std::fs::metadata(path).with_context(|| path.display().to_string())?;
    let trust_domain = trust_domain.unwrap_or(config::default::TRUST_DOMAIN).to_string();
    let (state, findings) = discovery::load(path, &discovery::Config { node: String::new(), trust_domain })?;
    let objects = serde_json::json!({
        "routes": { "routes": state.shown_routes() },
        "policies": state.policies(),
        "authorizers": state.authorizers(),
    });
    Ok((objects, findings.len()))
}

/// `mesh-agent get PATH`
pub fn get(args: GetArgs) -> anyhow::Result<ExitCode> {
    let GetArgs { path, admin } = args;
    let admin = admin.as_deref().unwrap_or(config::default::ADMIN);
    let address: Address = admin.parse().with_context(|| format!("--admin {admin}"))?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let goes_on = path == "/flows" || path.starts_with("/flows?");
    let answer = match goes_on {
        true => runtime.block_on(admin::follow(&address, &path, print_part)),
        false => runtime.block_on(admin::ask(&address, &path)).map(Some),
    };
    let answer = answer.with_context(|| format!("asking the agent at {admin} for {path}"))?;
    let Some(answer) = answer else { return Ok(ExitCode::SUCCESS) };
    let mut out = io::stdout().lock();
    out.write_all(&answer.body)?;
    if !answer.body.ends_with(b"\n") {
        out.write_all(b"\n")?;
    }
    Ok(ExitCode::from(u8::from(!answer.is_ok)))
}

/// A part of an answer that goes on; whether somebody reads it.
fn print_part(part: &[u8]) -> bool {
    let mut out = io::stdout().lock();
    out.write_all(part).and_then(|()| out.flush()).is_ok()
}

/// `mesh-agent bench URL`
pub fn bench(args: BenchArgs) -> anyhow::Result<ExitCode> {
    let BenchArgs { load: LoadArgs { url, rate, connections, length }, timeout } = args;
    let load = Load::new(&url, rate, connections, length, timeout)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let came_to = runtime.block_on(load.run(|_| {}))?;
    print_json(&came_to)?;
    Ok(ExitCode::from(u8::from(came_to.failed > 0)))
}

/// `mesh-agent rest DURATION`
pub fn rest(args: RestArgs) -> anyhow::Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        // The first process of a container hears of its end only if it asks for that.
        let mut terminate = signal(SignalKind::terminate())?;
        tokio::select! {
            _ = terminate.recv() => {}
            () = tokio::time::sleep(args.length) => {}
        }
        Ok(ExitCode::SUCCESS)
    })
}

/// `mesh-agent ca`
pub fn ca(command: CaCommand) -> anyhow::Result<ExitCode> {
    print_lines(&ca::run(command)?)?;
    Ok(ExitCode::SUCCESS)
}

/// `mesh-agent policy`
pub fn policy(command: PolicyCommand) -> anyhow::Result<ExitCode> {
    match command {
        PolicyCommand::Test(args) => policy::test(*args),
    }
}

/// `mesh-agent cni`
pub fn cni(command: CniCommand) -> anyhow::Result<ExitCode> {
    match command {
        CniCommand::Install(args) => {
            let _log = telemetry::logs::init(telemetry::logs::Format::Text, config::default::LOG_LEVEL)?;
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(cni_install(args)).map(|()| ExitCode::SUCCESS)
        }
        CniCommand::Uninstall(CniDirectories { conf_dir, bin_dir }) => {
            let changed = install::uninstall(&conf_dir, &bin_dir).map_err(anyhow::Error::msg)?;
            print_lines(&changed.iter().map(|path| path.display()).collect::<Vec<_>>())?;
            Ok(ExitCode::SUCCESS)
        }
    }
}

async fn cni_install(args: CniInstallArgs) -> anyhow::Result<()> {
    let CniInstallArgs { directories: CniDirectories { conf_dir, bin_dir }, socket, daemonset } = args;
    let own: OwnDaemonSet =
        daemonset.parse().map_err(|expected| anyhow::anyhow!("--daemonset {daemonset:?} is refused: {expected}"))?;
    let mut terminate = signal(SignalKind::terminate())?;
    let places = Places { conf: conf_dir, bin: bin_dir, socket };
    let told = async {
        let _ = terminate.recv().await;
    };
    install::keep(&places, told).await.with_context(|| places.bin.display().to_string())?;
    let is_over = match departure::agents(None, &own).await {
        Agents::Gone => true,
        Agents::There(agents) => !wanted::has_plugin(&agents),
        Agents::Unknown => false,
    };
    if is_over {
        let changed = install::uninstall(&places.conf, &places.bin).map_err(anyhow::Error::msg)?;
        tracing::info!(?changed, "the mesh was uninstalled, or set up without the plugin: that is off the node");
    }
    Ok(())
}

/// `mesh-agent detach`
pub fn detach(args: DetachArgs) -> anyhow::Result<ExitCode> {
    let DetachArgs { bpf_pins } = args;
    // Everything below is removed, so the rule of `run` holds here as well.
    anyhow::ensure!(
        config::is_pins_path(&bpf_pins),
        "--bpf-pins {} is refused: expected {}",
        bpf_pins.display(),
        config::PINS_EXPECTED
    );
    capture::detach_all(&bpf_pins)?;
    Ok(ExitCode::SUCCESS)
}

impl From<Feature> for FeatureLine {
    fn from(feature: Feature) -> Self {
        let Feature { name, needed, state, matters, found } = feature;
        let missing = match state {
            State::Offered => None,
            State::Missing(reason) => Some(reason),
        };
        Self { name: name.into(), required: needed == Needed::Required, found, missing, matters: matters.into() }
    }
}

pub(crate) fn print_json(value: &impl Serialize) -> anyhow::Result<()> {
    print_lines(&[serde_json::to_string_pretty(value)?])
}

/// Prints a line each. A reader that has seen enough (`| head`) is no error.
pub(crate) fn print_lines(lines: &[impl Display]) -> anyhow::Result<()> {
    let mut out = io::stdout().lock();
    for line in lines {
        match writeln!(out, "{line}") {
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(()),
            written => written?,
        }
    }
    Ok(())
}

impl Display for FeatureLine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, required, found, missing, matters } = self;
        match (missing, required) {
            (None, _) => match found {
                Some(found) => write!(f, "ok        {name}: {found}"),
                None => write!(f, "ok        {name}"),
            },
            (Some(missing), true) => write!(f, "MISSING   {name}: {missing}\n          {matters}"),
            (Some(missing), false) => write!(f, "optional  {name}: {missing}\n          {matters}"),
        }
    }
}
