//! From a queue to the collector, in batches.

use std::time::Duration;

use tokio::sync::mpsc::error::TryRecvError;
use tokio::sync::{mpsc, watch};

use super::courier::{Courier, Export};

/// Spans, or lines, that go out together: some 500 KiB.
pub const MOST_AT_ONCE: usize = 512;
/// How long one waits for others.
pub const LINGER: Duration = Duration::from_secs(1);
/// How often it is seen whether others have come: a queue takes twenty times what comes meanwhile at 10 000 a second.
pub const GLANCE: Duration = Duration::from_millis(20);

/// Until nobody has anything to tell any more, or the end; what waits then goes out.
pub(super) async fn run<T, R: Export>(
    mut queue: mpsc::Receiver<T>,
    mut courier: Courier,
    mut ended: watch::Receiver<bool>,
    request: impl Fn(Vec<T>) -> R,
) {
    let (mut batch, mut is_over, mut is_closed) = (Vec::new(), false, false);
    let mut end = ended.clone();
    while !is_over {
        tokio::select! {
            last = fill(&mut queue, &mut batch) => is_over = last,
            _ = end.wait_for(|ended| *ended), if !is_closed => {
                queue.close();
                is_closed = true;
                continue;
            }
        }
        if !batch.is_empty() {
            let count = batch.len() as u64;
            let request = request(std::mem::take(&mut batch));
            courier.bring(&request, count, &mut ended).await;
        }
    }
}

/// Takes what there is, once there is something and others have had time to come. True when no more will come. What was
/// taken stays in the batch if this is dropped.
async fn fill<T>(queue: &mut mpsc::Receiver<T>, batch: &mut Vec<T>) -> bool {
    if batch.is_empty() && queue.recv_many(batch, MOST_AT_ONCE).await == 0 {
        return true;
    }
    let others = async {
        while batch.len() < MOST_AT_ONCE {
            // Whoever waits for the next one is woken for each, and that costs the data path more than what it tells.
            tokio::time::sleep(GLANCE).await;
            while batch.len() < MOST_AT_ONCE {
                match queue.try_recv() {
                    Ok(next) => batch.push(next),
                    Err(TryRecvError::Empty) => break,
                    Err(TryRecvError::Disconnected) => return true,
                }
            }
        }
        false
    };
    tokio::time::timeout(LINGER, others).await.unwrap_or(false)
}
