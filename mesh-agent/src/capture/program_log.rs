//! The programs' own log, for their developers: off unless asked for, and then every outcome as it happens.

use std::time::Duration;

use aya_log::EbpfLogger;

use super::error::Error;
use super::loader::Loaded;

pub(super) const FLUSH_EVERY: Duration = Duration::from_millis(100);

/// Passes the programs' log on to the agent's.
pub(super) struct ProgramLog {
    /// Passes on what there is; none when the log is off.
    flush: Option<Box<dyn FnMut() + Send>>,
}

impl ProgramLog {
    pub fn open(loaded: &mut Loaded, on: bool) -> Result<Self, Error> {
        if !on {
            return Ok(Self { flush: None });
        }
        let logger = EbpfLogger::init(&mut loaded.ebpf).map_err(std::io::Error::other);
        let mut logger = logger.map_err(Error::io("opening the programs' log"))?;
        Ok(Self { flush: Some(Box::new(move || logger.flush())) })
    }

    /// Never ends.
    pub async fn run(self) {
        let Some(mut flush) = self.flush else { return std::future::pending().await };
        loop {
            flush();
            tokio::time::sleep(FLUSH_EVERY).await;
        }
    }
}
