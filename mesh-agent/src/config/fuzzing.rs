//! Fuzz target: the configuration file.

use std::io;
use std::num::NonZeroUsize;
use std::path::Path;

use super::meaning::is_pins_path;
use super::{Config, Surroundings};
use crate::cli::RunArgs;

/// Any text is refused with reasons, or means something within every bound.
pub fn file(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else { return };
    let read = |path: &Path| match path.to_str() {
        Some("/nodemesh.yaml") => Ok(text.to_string()),
        _ => Err(io::ErrorKind::NotFound.into()),
    };
    let surroundings = Surroundings { variable: &|_| None, read: &read, cpus: NonZeroUsize::MIN };
    let typed = RunArgs { config: Some("/nodemesh.yaml".into()), ..RunArgs::default() };
    match Config::load(typed, &surroundings) {
        Ok(config) => {
            assert!(is_pins_path(&config.capture.bpf_pins));
            assert!(!config.node.is_empty());
            assert!(crate::spiffe::check_trust_domain(&config.identity.trust_domain).is_ok());
            assert!((10..=7 * 24 * 3600).contains(&config.identity.svid_ttl.as_secs()));
        }
        Err(refusals) => assert!(refusals.0.iter().all(|refusal| !refusal.to_string().is_empty())),
    }
}
