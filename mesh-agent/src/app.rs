//! The composition root: builds the rooms, connects them, waits, drains.

use crate::config::Config;
use crate::telemetry::logs;

/// Runs the agent until it is told to end.
pub fn run(config: Config) -> anyhow::Result<()> {
    let _log = logs::init(config.logs.format, &config.logs.level)?;
    anyhow::bail!("the rooms of the agent are not connected yet (node {})", config.node)
}
