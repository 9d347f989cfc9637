//! The end of the process, announced: parts that hold a [`Token`] finish what they have and take nothing new.

use tokio::sync::watch;

/// Announces the drain.
#[derive(Clone, Debug)]
pub struct Drain {
    started: watch::Sender<bool>,
}

/// Watches for the drain. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Token {
    started: watch::Receiver<bool>,
}

impl Drain {
    /// A drain that has not started.
    pub fn new() -> Self {
        Self { started: watch::Sender::new(false) }
    }

    /// A token for one part of the process.
    pub fn token(&self) -> Token {
        Token { started: self.started.subscribe() }
    }

    /// Tells every token.
    pub fn start(&self) {
        self.started.send_replace(true);
    }

    /// Takes it back for those that have not noticed yet or ask later: what ended stays ended.
    pub fn withdraw(&self) {
        self.started.send_replace(false);
    }
}

impl Default for Drain {
    fn default() -> Self {
        Self::new()
    }
}

impl Token {
    /// Whether the drain has started, and was not taken back.
    pub fn has_started(&self) -> bool {
        *self.started.borrow()
    }

    /// Returns when the drain starts.
    pub async fn started(&mut self) {
        // An error means that the Drain is gone without having started, which is an end as well.
        let _ = self.started.wait_for(|started| *started).await;
    }
}
