//! The commands other than `run`: each looks, prints, and answers with an exit status for scripts.
//!
//! What is looked at belongs to other rooms (the kernel to `capture`, YAML to `discovery`); here is only how it is told.

use std::fmt::{self, Display};
use std::io::{self, Write};
use std::process::ExitCode;

use anyhow::Context;
use serde::Serialize;

use crate::capture::{self, Feature, Needed, State};
use crate::cli::{CheckArgs, DetachArgs, ValidateArgs};
use crate::config::{self, Surroundings};
use crate::discovery;

/// One feature of the kernel, ready to be told.
#[derive(Clone, Debug, Serialize)]
pub struct FeatureLine {
    /// What it is called.
    pub name: String,
    /// Whether the mesh works without it.
    pub required: bool,
    /// What is missing, if it is.
    pub missing: Option<String>,
    /// Why that matters.
    pub matters: String,
}

/// `mesh-agent check`
pub fn check(args: CheckArgs, surroundings: &Surroundings<'_>) -> anyhow::Result<ExitCode> {
    let CheckArgs { json, cgroup_root } = args;
    let cgroup_root = config::cgroup_root(cgroup_root, surroundings)?;
    let features = capture::check(&cgroup_root);
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
        let Feature { name, needed, state, matters } = feature;
        let missing = match state {
            State::Offered => None,
            State::Missing(reason) => Some(reason),
        };
        Self { name: name.into(), required: needed == Needed::Required, missing, matters: matters.into() }
    }
}

fn print_json(value: &impl Serialize) -> anyhow::Result<()> {
    print_lines(&[serde_json::to_string_pretty(value)?])
}

/// Prints a line each. A reader that has seen enough (`| head`) is no error.
fn print_lines(lines: &[impl Display]) -> anyhow::Result<()> {
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
        let Self { name, required, missing, matters } = self;
        match (missing, required) {
            (None, _) => write!(f, "ok        {name}"),
            (Some(missing), true) => write!(f, "MISSING   {name}: {missing}\n          {matters}"),
            (Some(missing), false) => write!(f, "optional  {name}: {missing}\n          {matters}"),
        }
    }
}
