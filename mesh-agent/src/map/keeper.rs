//! Asks in turn, and keeps what was answered.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use serde_json::{Value, json};
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, sleep, sleep_until, timeout};

use super::Source;
use super::history::History;
use super::picture::{self, DenialSeen, Picture};
use super::world::{self, World};
use crate::told::dump::Dump;
use crate::told::{Name, Told};

/// How often pods, certificates, Services, routes and policies are asked for.
pub(super) const WORLD_EVERY: Duration = Duration::from_secs(10);
/// How often a round is made that nobody looks at: charts are to have something of the last quarter of an hour for whoever
/// comes.
pub(super) const UNWATCHED_EVERY: Duration = Duration::from_secs(30);
/// A page that is loaded anew, or a script that asks now and then, is one who looks.
pub(super) const WATCHED_LATELY: Duration = Duration::from_secs(60);
/// For two rounds, and agents that have to be told first.
pub(super) const FRESH_WITHIN: Duration = Duration::from_secs(6);
/// How old a list of live connections may be that is shown.
pub(super) const FLOWS_AGE: Duration = Duration::from_secs(3);
/// How many live connections are shown of an edge.
pub(super) const MOST_FLOWS: usize = 200;

/// A picture, as it is sent.
#[derive(Clone, Default)]
pub struct Shot {
    /// How many there were before.
    pub number: u64,
    /// JSON.
    pub json: Bytes,
    /// Made while somebody looked.
    is_watched: bool,
}

/// The map of a mesh. Cheap to clone.
#[derive(Clone)]
pub struct Map {
    inner: Arc<Inner>,
}

struct Inner {
    source: Box<dyn Source>,
    kept: Mutex<Kept>,
    /// The live connections of all agents, since when they are known; asked by one at a time.
    flows: tokio::sync::Mutex<Option<(Instant, Flows)>>,
    shots: watch::Sender<Shot>,
    /// When somebody looked last.
    looked: Mutex<Option<Instant>>,
    /// Somebody looks again.
    came: Notify,
}

/// Live connections, and why some are missing.
type Flows = (Vec<Value>, Option<String>);

#[derive(Default)]
struct Kept {
    world: World,
    history: History,
    denials: Vec<DenialSeen>,
}

impl Map {
    /// A map of what this source tells; nothing is asked yet.
    pub fn new(source: impl Source) -> Self {
        let inner = Inner {
            source: Box::new(source),
            kept: Mutex::default(),
            flows: tokio::sync::Mutex::new(None),
            shots: watch::Sender::new(Shot::default()),
            looked: Mutex::default(),
            came: Notify::new(),
        };
        Self { inner: Arc::new(inner) }
    }

    /// Asks again and again, seldom while nobody looks; never ends.
    pub async fn run(&self, every: Duration) {
        let mut looked = None::<Instant>;
        loop {
            let is_watched = self.is_watched();
            sleep(self.inner.source.attend(is_watched)).await;
            let begun = Instant::now();
            if looked.is_none_or(|looked| looked.elapsed() >= WORLD_EVERY) {
                looked = Some(Instant::now());
                self.look().await;
            }
            self.round(is_watched).await;
            if is_watched {
                sleep_until(begun + every).await;
            } else {
                // What is made seldom for those who look is not made oftener for nobody.
                let _ = timeout(every.max(UNWATCHED_EVERY), self.inner.came.notified()).await;
            }
        }
    }

    /// Whether somebody looks, or has a moment ago.
    fn is_watched(&self) -> bool {
        let mut looked = self.inner.looked.lock().unwrap_or_else(PoisonError::into_inner);
        if self.inner.shots.receiver_count() > 0 {
            *looked = Some(Instant::now());
        }
        looked.is_some_and(|looked| looked.elapsed() < WATCHED_LATELY)
    }

    /// So much time goes by since somebody looked.
    #[cfg(test)]
    pub(super) fn age(&self, span: Duration) {
        let mut looked = self.inner.looked.lock().unwrap();
        *looked = looked.and_then(|looked| looked.checked_sub(span));
    }

    /// Somebody looks. Returns whether somebody did before.
    fn looked(&self) -> bool {
        let was_watched = self.is_watched();
        *self.inner.looked.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
        if !was_watched {
            self.inner.came.notify_one();
        }
        was_watched
    }

    /// Pictures, as they are made; whoever has these looks.
    pub fn shots(&self) -> watch::Receiver<Shot> {
        self.looked();
        self.inner.shots.subscribe()
    }

    /// A picture of now: where nobody looked, the next that is made. None: there is none yet.
    pub async fn shot(&self) -> Option<Shot> {
        let was_watched = self.looked();
        let mut shots = self.inner.shots.subscribe();
        let last = shots.borrow().clone();
        let known = if was_watched && last.is_watched { 0 } else { last.number };
        let next = timeout(FRESH_WITHIN, shots.wait_for(|shot| shot.number > known)).await;
        let next = next.ok().and_then(Result::ok).map(|shot| shot.clone());
        next.or_else(|| Some(last).filter(|last| last.number > 0))
    }

    /// What is known of an edge, as JSON. None: there is none.
    pub async fn edge(&self, from: &str, to: &str) -> Option<Value> {
        self.looked();
        self.kept().history.track(from, to)?;
        let may_be_kept = self.inner.source.look_at(from, to);
        let mut flows = self.inner.flows.lock().await;
        if !may_be_kept || flows.as_ref().is_none_or(|(since, _)| since.elapsed() >= FLOWS_AGE) {
            let asked = self.inner.source.ask("/connections").await;
            *flows = Some((Instant::now(), flows_of(asked)));
        }
        let told = match flows.as_ref() {
            Some((_, (found, Some(trouble)))) if found.is_empty() => Err(trouble.as_str()),
            Some((_, (found, _))) => Ok(found.as_slice()),
            None => Ok(&[][..]),
        };
        let kept = self.kept();
        picture::edge(from, to, kept.parts(), told).map(|detail| json!(detail))
    }

    /// What is known of a workload, as JSON. None: there is none.
    pub fn workload(&self, id: &str) -> Option<Value> {
        self.looked();
        let kept = self.kept();
        picture::workload(id, kept.parts()).map(|detail| json!(detail))
    }

    pub(super) async fn look(&self) {
        let source = &self.inner.source;
        let (told, of_any) = tokio::join!(source.ask(world::OF_AGENTS), source.ask_one(world::OF_ANY));
        let told = told.into_iter().map(|Told { name, answer }| (name, answer.and_then(|answer| Dump::read(&answer))));
        let of_any = of_any.and_then(|answer| serde_json::from_slice(&answer).map_err(|error| error.to_string()));
        let world = World::new(told.collect(), of_any);
        self.kept().world = world;
    }

    /// Counts and refusals, and a picture of all.
    pub(super) async fn round(&self, is_watched: bool) {
        let source = &self.inner.source;
        let (readings, denials) = tokio::join!(source.counts(), source.ask("/denials"));
        let at = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64());
        let readings = readings.into_iter().collect();
        let denials = denials.into_iter().filter_map(|Told { name, answer }| Some((name, list(&answer.ok()?)?)));
        let denials: Vec<(Name, Vec<Value>)> = denials.collect();
        let json = {
            let mut kept = self.kept();
            let Kept { world, history, denials: shown } = &mut *kept;
            history.mark_cut(source.unread() > 0);
            history.take(at, readings, |(from, to)| (world.shown(from), world.shown(to)));
            *shown = picture::denials(denials, world);
            serde_json::to_vec(&Picture::new(at, world, history, shown, source.unread()))
        };
        // Numbers and texts alone: this does not fail.
        let Ok(json) = json else { return };
        self.inner.shots.send_modify(|shot| *shot = Shot { number: shot.number + 1, json: json.into(), is_watched });
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.inner.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Kept {
    fn parts(&self) -> (&World, &History, &[DenialSeen]) {
        (&self.world, &self.history, &self.denials)
    }
}

fn list(answer: &[u8]) -> Option<Vec<Value>> {
    serde_json::from_slice(answer).ok()
}

/// What all agents told, with the node of each; and why one did not.
fn flows_of(told: Vec<Told>) -> Flows {
    let (mut flows, mut trouble) = (Vec::new(), None);
    for Told { name, answer } in told {
        match answer.and_then(|answer| list(&answer).ok_or_else(|| "no list of connections".to_string())) {
            Ok(own) => flows.extend(own.into_iter().map(|mut flow| {
                if let Some(flow) = flow.as_object_mut() {
                    flow.insert("agent".to_string(), json!(name.node));
                }
                flow
            })),
            Err(error) => trouble = Some(format!("{}: {error}", name.node)),
        }
    }
    (flows, trouble)
}
