//! Why a setting is refused, said so that the next attempt works.

use std::ffi::OsString;
use std::fmt;
use std::path::PathBuf;

use crate::cli::{Origin, environment_name};

/// Everything that is wrong with the settings, at once.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub struct Refusals(pub Vec<Refusal>);

/// One thing that is wrong.
#[derive(Debug, PartialEq, Eq)]
pub enum Refusal {
    /// A setting that has no default was not given.
    Missing {
        /// Its name, as in the file.
        name: &'static str,
        /// What a value looks like.
        expected: &'static str,
        /// A value that works.
        example: &'static str,
    },
    /// A value is not of the right form.
    Value {
        /// The setting's name, as in the file.
        name: &'static str,
        /// Who gave it.
        origin: Origin,
        /// What was given.
        text: OsString,
        /// What a value looks like.
        expected: String,
        /// A value that works.
        example: &'static str,
    },
    /// The configuration file cannot be used.
    File {
        /// Which.
        path: PathBuf,
        /// What is wrong with it, with the line where it is known.
        reason: String,
    },
    /// No cgroup v2 is mounted, and none was named.
    NoCgroup2,
}

impl fmt::Display for Refusals {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, refusal) in self.0.iter().enumerate() {
            if index > 0 {
                f.write_str("\n")?;
            }
            refusal.fmt(f)?;
        }
        Ok(())
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Refusal::Missing { name, expected, example } => {
                write!(f, "--{name} is needed: {expected}, for example --{name} {example}")
            }
            Refusal::Value { name, origin, text, expected, example } => {
                let (name, separator) = match origin {
                    Origin::Flag | Origin::Default => (format!("--{name}"), " "),
                    Origin::Environment => (environment_name(name), "="),
                    Origin::File => (format!("{name} in the configuration file"), ": "),
                };
                write!(f, "{name}{separator}{text:?} is refused: expected {expected}, for example {example}")
            }
            Refusal::File { path, reason } => write!(f, "{}: {reason}", path.display()),
            Refusal::NoCgroup2 => f.write_str(
                "no cgroup v2 is mounted here, and the mesh finds pods by it; \
                 if it is mounted elsewhere, name it, for example --cgroup-root /sys/fs/cgroup/unified",
            ),
        }
    }
}
