//! Whose turn it is on a worker: what has more to move than a round takes turns, by pod and by bytes.
//!
//! ```text
//! turn:  what has come is looked for ─► each task that is ready, once ─► pod A: a round, shared by its busy pumps
//!                                                                        pod B: a round, all of it one pump's
//! ```
//!
//! A turn is what a worker does between two looks at its sockets. In each, every pod may move [`COPY_ROUND_BYTES`] in all,
//! or [`TURN_LEAST_BYTES`] by each pump where these are many: who opens more connections gets no more of the worker.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Wake, Waker};

use tokio::task::yield_now;

use super::budget::PodBudget;
use super::limits::TURN_LEAST_BYTES;
use crate::hbone::limits::COPY_ROUND_BYTES;

const ROUND: usize = COPY_ROUND_BYTES as usize;
const LEAST: usize = TURN_LEAST_BYTES as usize;

thread_local! {
    static TURNS: Turns = Turns::default();
}

/// Of this worker.
#[derive(Default)]
struct Turns {
    number: Cell<u64>,
    /// Who is woken when the next one begins.
    waiting: RefCell<Vec<Waker>>,
    /// By pod: those whose pumps had more to move than a round lately.
    busy: RefCell<HashMap<usize, Busy>>,
}

#[derive(Clone, Copy, Default)]
struct Busy {
    turn: u64,
    /// Pumps that had more to move than their round, in this turn and in the one before.
    now: usize,
    before: usize,
}

/// Woken, by the worker whose turn is over, when it has looked at its sockets.
struct Bell;

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        TURNS.with(|turns| {
            turns.number.set(turns.number.get().saturating_add(1));
            turns.waiting.take().into_iter().for_each(Waker::wake);
        });
    }
}

impl Busy {
    fn at(self, turn: u64) -> Self {
        match turn.saturating_sub(self.turn) {
            0 => self,
            1 => Self { turn, now: 0, before: self.now },
            _ => Self { turn, ..Self::default() },
        }
    }
}

/// One pump's place in the turns of its worker.
#[derive(Default)]
pub(super) struct Turn {
    /// The turn that it waits for, or had its round in; 0: it never waited.
    next: u64,
}

impl Turn {
    /// Bytes that this pump of the pod may move each way before it waits; none while it waits. For each time that it is
    /// polled.
    pub fn begin(&self, pod: Option<&Arc<PodBudget>>) -> usize {
        TURNS.with(|turns| {
            let number = turns.number.get();
            if self.next > number {
                return 0;
            }
            let busy = turns.busy.borrow().get(&key(pod)).map_or(0, |busy| busy.at(number).before);
            (ROUND / busy.max(1)).max(LEAST)
        })
    }

    /// Waits for the next turn, which comes when the worker has looked for what has come for others. Woken at once, a task
    /// would be polled some dozens of times before that.
    pub fn wait(&mut self, cx: &mut Context<'_>, pod: Option<&Arc<PodBudget>>) {
        let is_first = TURNS.with(|turns| {
            let number = turns.number.get();
            if self.next > number {
                return false;
            }
            self.next = number.saturating_add(1);
            let mut all = turns.busy.borrow_mut();
            if !all.contains_key(&key(pod)) {
                // Those that are not busy any more make room.
                all.retain(|_, busy| busy.turn.saturating_add(1) >= number);
            }
            let busy = all.entry(key(pod)).or_default();
            *busy = busy.at(number);
            busy.now = busy.now.saturating_add(1);
            let mut waiting = turns.waiting.borrow_mut();
            waiting.push(cx.waker().clone());
            waiting.len() == 1
        });
        if is_first {
            // The runtime wakes what says "not yet" so when all who are ready have been polled, and sockets looked at.
            let bell = Waker::from(Arc::new(Bell));
            let _ = pin!(yield_now()).poll(&mut Context::from_waker(&bell));
        }
    }
}

/// By address: a pod that comes to the place of one that is gone shares with nobody.
fn key(pod: Option<&Arc<PodBudget>>) -> usize {
    pod.map_or(0, |pod| Arc::as_ptr(pod) as usize)
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::rc::Rc;
    use std::task::Poll;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::super::budget::Budgets;
    use super::*;

    fn worker<F: Future>(test: F) -> F::Output {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        tokio::task::LocalSet::new().block_on(&runtime, test)
    }

    fn pod() -> Arc<PodBudget> {
        PodBudget::new(Budgets {
            connections: 1,
            accept_rate: 1,
            accept_burst: 1,
            handshakes: 1,
            buffered_bytes: 1,
            descriptors: 1,
        })
    }

    /// How often something that never has enough is polled before another task hears what has come for it, at most.
    fn polls_before_others(mut wait: impl FnMut(&mut Context<'_>) + 'static) -> u64 {
        worker(async move {
            let polls = Rc::new(Cell::new(0u64));
            let counted = polls.clone();
            tokio::task::spawn_local(poll_fn(move |cx| {
                counted.set(counted.get() + 1);
                wait(cx);
                Poll::<()>::Pending
            }));
            let (mut far, mut near) = tokio::net::UnixStream::pair().unwrap();
            let mut most = 0;
            for _ in 0..20 {
                // There is nothing, so that the driver has to say when there is.
                near.try_read(&mut [0; 1]).unwrap_err();
                far.write_all(b"x").await.unwrap();
                let before = polls.get();
                near.read_u8().await.unwrap();
                most = most.max(polls.get() - before);
            }
            most
        })
    }

    #[test]
    fn who_waits_for_his_turn_lets_others_hear_what_has_come() {
        let mut turn = Turn::default();
        let waited = polls_before_others(move |cx| {
            turn.begin(None);
            turn.wait(cx, None);
        });
        assert!(waited <= 4, "{waited} rounds of the other's");
        // What turns are there for: woken at once, it is polled again and again.
        let waited = polls_before_others(|cx| cx.waker().wake_by_ref());
        assert!(waited >= 30, "{waited} only: turns are not needed any more");
    }

    /// Pumps of two pods, which always have more to move.
    fn moved(pumps: [usize; 2]) -> [usize; 2] {
        worker(async move {
            let moved: [Rc<Cell<usize>>; 2] = Default::default();
            for (pumps, moved) in std::iter::zip(pumps, &moved) {
                let pod = pod();
                for _ in 0..pumps {
                    let (pod, moved, mut turn) = (pod.clone(), moved.clone(), Turn::default());
                    tokio::task::spawn_local(poll_fn(move |cx| {
                        moved.set(moved.get() + turn.begin(Some(&pod)));
                        turn.wait(cx, Some(&pod));
                        Poll::<()>::Pending
                    }));
                }
            }
            for _ in 0..200 {
                tokio::task::yield_now().await;
            }
            moved.map(|moved| moved.get())
        })
    }

    #[test]
    fn a_pod_of_many_pumps_moves_no_more_than_one_of_one() {
        for pumps in [[1, 1], [8, 1], [30, 1]] {
            let [many, one] = moved(pumps);
            assert!(one >= 100 * ROUND, "{pumps:?}: {one} bytes in 200 turns");
            let share = many as f64 / one as f64;
            assert!((0.7..1.4).contains(&share), "{pumps:?}: {many} and {one} bytes");
        }
        // Beyond ROUND / LEAST pumps each has its least, so that what it does is worth the look.
        let [many, one] = moved([64, 1]);
        let share = many as f64 / one as f64;
        assert!((1.4..2.8).contains(&share), "{many} and {one} bytes");
    }

    #[test]
    fn pods_that_are_not_busy_are_forgotten() {
        worker(async {
            // All of them live: none is at the address of another.
            let pods: Vec<_> = (0..50).map(|_| pod()).collect();
            for pod in &pods {
                let mut turn = Turn::default();
                for _ in 0..3 {
                    poll_fn(|cx| {
                        turn.begin(Some(pod));
                        turn.wait(cx, Some(pod));
                        Poll::Ready(())
                    })
                    .await;
                    yield_now().await;
                }
            }
            assert!(TURNS.with(|turns| turns.busy.borrow().len()) <= 3);
        });
    }
}
