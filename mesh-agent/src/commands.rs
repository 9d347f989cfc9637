//! The commands other than `run`: each looks, prints, and answers with an exit status for scripts.
//!
//! What is looked at belongs to other rooms (the kernel to `capture`, YAML to `discovery`); here is only how it is told.

use std::fmt::{self, Display};
use std::io::{self, Write};
use std::path::Path;
use std::process::ExitCode;

use anyhow::Context;
use serde::Serialize;

use crate::cli::{CheckArgs, DetachArgs, ValidateArgs};
use crate::config::{self, Surroundings};

/// Something that the mesh needs is missing.
const REQUIRED_MISSING: u8 = 1;
/// Everything needed is there, something optional is not.
const OPTIONAL_MISSING: u8 = 2;

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
    let features = kernel_features(&cgroup_root)?;
    if json {
        print_json(&features)?
    } else {
        print_lines(&features)?
    }
    Ok(ExitCode::from(check_status(&features)))
}

/// `mesh-agent validate PATH`
pub fn validate(args: ValidateArgs) -> anyhow::Result<ExitCode> {
    let ValidateArgs { path, json } = args;
    // A typing mistake in the path must not look like YAML without fault.
    std::fs::metadata(&path).with_context(|| path.display().to_string())?;
    let findings = yaml_findings(&path)?;
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
    detach_kernel(&bpf_pins)?;
    Ok(ExitCode::SUCCESS)
}

/// `capture::check`, told as [`FeatureLine`]s.
fn kernel_features(_cgroup_root: &Path) -> anyhow::Result<Vec<FeatureLine>> {
    anyhow::bail!("this build does not look at the kernel yet")
}

/// `discovery::validate`: whatever it returns is printed by Display, a line each, or as JSON.
fn yaml_findings(_path: &Path) -> anyhow::Result<Vec<String>> {
    anyhow::bail!("this build does not read YAML yet")
}

/// `capture::detach_all`
fn detach_kernel(_bpf_pins: &Path) -> anyhow::Result<()> {
    anyhow::bail!("this build has no programs to detach yet")
}

fn check_status(features: &[FeatureLine]) -> u8 {
    let is_missing =
        |required: bool| features.iter().any(|feature| feature.required == required && feature.missing.is_some());
    if is_missing(true) {
        REQUIRED_MISSING
    } else if is_missing(false) {
        OPTIONAL_MISSING
    } else {
        0
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

#[cfg(test)]
mod tests {
    use super::*;

    fn feature(required: bool, missing: Option<&str>) -> FeatureLine {
        FeatureLine {
            name: "tcx".into(),
            required,
            missing: missing.map(str::to_string),
            matters: "the guard is attached through clsact".into(),
        }
    }

    #[test]
    fn the_exit_status_tells_needed_from_optional() {
        assert_eq!(check_status(&[feature(true, None), feature(false, None)]), 0);
        assert_eq!(check_status(&[feature(true, None), feature(false, Some("needs 6.6"))]), OPTIONAL_MISSING);
        assert_eq!(
            check_status(&[feature(true, Some("needs 5.9")), feature(false, Some("needs 6.6"))]),
            REQUIRED_MISSING
        );
    }
}
