//! Shutdown by tokens: whoever holds a [`Token`] keeps the process alive until the drain window ends.

use std::time::Duration;

use tokio::sync::{mpsc, watch};

/// Starts a drain and waits for its tokens.
pub struct Drain {
    started: watch::Sender<bool>,
    held: mpsc::Sender<()>,
    released: mpsc::Receiver<()>,
}

/// Watches for the drain; dropping it says that its holder is done.
#[derive(Clone)]
pub struct Token {
    started: watch::Receiver<bool>,
    _held: mpsc::Sender<()>,
}

impl Drain {
    /// A drain that has not started.
    pub fn new() -> Self {
        let (held, released) = mpsc::channel(1);
        Self { started: watch::Sender::new(false), held, released }
    }

    /// A token for one part of the process.
    pub fn token(&self) -> Token {
        Token { started: self.started.subscribe(), _held: self.held.clone() }
    }

    /// Tells every token, then waits until all are dropped or `window` is over. True if all were dropped.
    pub async fn run(mut self, window: Duration) -> bool {
        self.started.send_replace(true);
        drop(self.held);
        tokio::time::timeout(window, self.released.recv()).await.is_ok()
    }
}

impl Default for Drain {
    fn default() -> Self {
        Self::new()
    }
}

impl Token {
    /// Returns when the drain starts.
    pub async fn started(&mut self) {
        // An error means that the Drain is gone without having run, which is an end as well.
        let _ = self.started.wait_for(|started| *started).await;
    }

    /// Whether the drain has started.
    pub fn is_started(&self) -> bool {
        *self.started.borrow()
    }
}
