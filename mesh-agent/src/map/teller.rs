//! An agent's end of the channel: tells the controller's replicas what their map is made of.
//!
//! What is told is made when there is room to send it: a controller that is slow, or away, is told less often, and nothing
//! waits here. One whose map nobody looks at is told when it asks, and that there is somebody. Streams that tell at the same
//! time tell the same: it is made once. Each of [`REPLICAS`] streams looks for a replica that no other of them tells; whom the
//! controller's Service leads to is chance.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures_util::Stream;
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::time::{Instant, Interval, MissedTickBehavior, interval_at, sleep, timeout};
use tonic::client::Grpc;
use tonic::metadata::AsciiMetadataValue;
use tonic::transport::Channel;
use tonic::{Code, Request, Status};
use tonic_prost::ProstCodec;

use super::keeper::{MOST_FLOWS, WORLD_EVERY};
use super::words::{self, Edge, Report, TELL, Welcome};
use super::{Asked, LOOK_EVERY, Source, picture, world};

/// Replicas that an agent tells at once.
pub(super) const REPLICAS: usize = 2;
/// What is told at once; parts that would make it more are left out.
pub const MAX_REPORT_BYTES: usize = 1 << 20;
/// A replica that says no more than who it is needs no more.
pub(super) const MAX_WELCOME_BYTES: usize = 1024;
/// For a connection, and for a replica's welcome.
pub(super) const WELCOME_TIMEOUT: Duration = Duration::from_secs(15);
/// Below what the controller calls silence.
pub(super) const SIGN_OF_LIFE: Duration = Duration::from_secs(5);
/// Streams tell at the same time, but for what the machine lets them.
pub(super) const SHARED: Duration = Duration::from_millis(500);
/// See [`Patience::again`].
pub(super) const AGAIN: Duration = Duration::from_secs(5);
/// See [`Patience::another`].
pub(super) const LOOK_FOR_ANOTHER: Duration = Duration::from_secs(60);
/// See [`Patience::not_wanted`].
pub(super) const NOT_WANTED: Duration = Duration::from_secs(120);

/// How a replica of the controller is called.
pub trait Line: Send + Sync + 'static {
    /// A new connection, to whichever replica there is, and the `authorization` of a call.
    fn open(&self) -> Asked<'_, Result<(Channel, AsciiMetadataValue), String>>;
}

/// The replicas that are told.
type Replicas = Arc<Mutex<BTreeSet<String>>>;

/// How often things are done, at least; up to twice that is waited.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// Until a stream that ended is begun anew.
    pub again: Duration,
    /// The same at most where the replica was told already, and there may be no other; [`Patience::again`] the first time,
    /// and twice as long each time after that.
    pub another: Duration,
    /// The same where nobody wants to be told: an authority that is not our controller, or one without a map.
    pub not_wanted: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self { again: AGAIN, another: LOOK_FOR_ANOTHER, not_wanted: NOT_WANTED }
    }
}

/// Tells until it is dropped.
pub async fn tell(source: impl Source, line: impl Line, patience: Patience) {
    let (teller, replicas) = (Arc::new(Teller::new(source)), Replicas::default());
    let streams = (0..REPLICAS).map(|_| keep_telling(&teller, &line, &replicas, patience));
    futures_util::future::join_all(streams).await;
}

async fn keep_telling<S: Source>(teller: &Arc<Teller<S>>, line: &impl Line, replicas: &Replicas, patience: Patience) {
    // Chance leads to another replica soon, if there is one.
    let mut until_another = patience.again;
    loop {
        let pause = match once(teller, line, replicas).await {
            Ended::Over => {
                until_another = patience.again;
                patience.again
            }
            Ended::Twice => {
                let next = until_another.saturating_mul(2).min(patience.another);
                std::mem::replace(&mut until_another, next)
            }
            Ended::NotWanted => patience.not_wanted,
        };
        // A thousand agents are not to come at once.
        sleep(pause.mul_f64(1.0 + fastrand::f64())).await;
    }
}

/// What all streams tell of.
struct Teller<S> {
    source: S,
    since: Instant,
    /// What is told most often, and since when it is so.
    made: tokio::sync::Mutex<Option<(Instant, Made)>>,
}

#[derive(Clone, Default)]
struct Made {
    counts: Bytes,
    denials: Option<Bytes>,
}

impl<S: Source> Teller<S> {
    fn new(source: S) -> Self {
        Self { source, since: Instant::now(), made: tokio::sync::Mutex::new(None) }
    }

    async fn made(&self) -> Made {
        let mut last = self.made.lock().await;
        if let Some((at, made)) = &*last
            && at.elapsed() < SHARED
        {
            return made.clone();
        }
        let (counts, denials) = tokio::join!(self.source.counts(), self.source.ask_one("/denials"));
        let counts = counts.first().map(|(_, reading)| words::written(reading)).unwrap_or_default();
        let made = Made { counts, denials: denials.ok() };
        *last = Some((Instant::now(), made.clone()));
        made
    }

    /// The same for each stream.
    fn ticks(&self) -> Interval {
        let mut ticks = interval_at(self.since, LOOK_EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
        ticks
    }
}

/// How a stream ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ended {
    /// As any may.
    Over,
    /// Its replica is told by another.
    Twice,
    /// Nobody listens there.
    NotWanted,
}

async fn once<S: Source>(teller: &Arc<Teller<S>>, line: &impl Line, replicas: &Replicas) -> Ended {
    let (channel, authorization) = match line.open().await {
        Ok(opened) => opened,
        Err(error) => {
            tracing::debug!(%error, "the controller's map is not told");
            return Ended::Over;
        }
    };
    match call(teller, channel, authorization, replicas).await {
        Ok(ended) => ended,
        Err(status) => {
            tracing::debug!(%status, "the controller's map is told no more");
            if status.code() == Code::Unimplemented { Ended::NotWanted } else { Ended::Over }
        }
    }
}

async fn call<S: Source>(
    teller: &Arc<Teller<S>>,
    channel: Channel,
    authorization: AsciiMetadataValue,
    replicas: &Replicas,
) -> Result<Ended, Status> {
    let late = |_| Status::deadline_exceeded("no welcome in time");
    let (want, wanted) = watch::channel(Wish::default());
    let mut request = Request::new(reports(teller.clone(), wanted));
    request.metadata_mut().insert("authorization", authorization);
    let mut grpc = Grpc::new(channel).max_decoding_message_size(MAX_WELCOME_BYTES);
    let welcomed = async {
        grpc.ready().await.map_err(|error| Status::unavailable(error.to_string()))?;
        let codec = ProstCodec::<Report, Welcome>::default();
        let mut answers =
            grpc.streaming(request, http::uri::PathAndQuery::from_static(TELL), codec).await?.into_inner();
        let welcome = answers.message().await?.ok_or_else(|| Status::unavailable("no welcome"))?;
        Ok::<_, Status>((answers, welcome))
    };
    let (mut answers, Welcome { replica, mut once, mut edges }) =
        timeout(WELCOME_TIMEOUT, welcomed).await.map_err(late)??;
    let Some(_place) = Place::take(replicas, replica) else { return Ok(Ended::Twice) };
    loop {
        // The reports may have ended: then the answers end too.
        let _ = want.send(Wish { wanted: if once { Wanted::Once } else { Wanted::Always }, edges });
        let Some(welcome) = answers.message().await? else { return Ok(Ended::Over) };
        Welcome { once, edges, .. } = welcome;
    }
}

/// What the replica of a stream wants to be told.
#[derive(Clone, Debug, Default)]
struct Wish {
    wanted: Wanted,
    /// Of these live connections too.
    edges: Vec<Edge>,
}

/// How often.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Wanted {
    /// It has not said who it is.
    #[default]
    Nothing,
    /// All, when it asks.
    Once,
    /// All, again and again.
    Always,
}

/// That a replica is told, until this is dropped.
struct Place {
    replicas: Replicas,
    replica: String,
}

impl Place {
    fn take(replicas: &Replicas, replica: String) -> Option<Self> {
        let is_new = replicas.lock().unwrap_or_else(PoisonError::into_inner).insert(replica.clone());
        is_new.then(|| Self { replicas: replicas.clone(), replica })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.replicas.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.replica);
    }
}

/// What was told last on a stream.
#[derive(Default)]
struct Last {
    denials: Bytes,
    looked: Option<Instant>,
    /// What was more than is told at once was told in the log.
    was_large: bool,
}

/// One after the other, each as things are when there is room for it.
fn reports<S: Source>(
    teller: Arc<Teller<S>>,
    wanted: watch::Receiver<Wish>,
) -> impl Stream<Item = Report> + Send + 'static {
    let ticks = teller.ticks();
    let telling = Telling { teller, wanted, ticks, last: Last::default(), owes: false };
    futures_util::stream::unfold(telling, |mut telling| async move {
        let report = telling.next().await?;
        Some((report, telling))
    })
}

/// One stream.
struct Telling<S> {
    teller: Arc<Teller<S>>,
    wanted: watch::Receiver<Wish>,
    ticks: Interval,
    last: Last,
    /// The replica has asked and was not told yet.
    owes: bool,
}

impl<S: Source> Telling<S> {
    /// None: nobody listens any more.
    async fn next(&mut self) -> Option<Report> {
        loop {
            self.owes |= self.wanted.has_changed().ok()?;
            let Wish { wanted, edges } = self.wanted.borrow_and_update().clone();
            if self.owes && wanted != Wanted::Nothing {
                self.owes = false;
                return Some(report(&self.teller, &mut self.last, &edges).await);
            }
            tokio::select! {
                asked = self.wanted.changed() => {
                    asked.ok()?;
                    self.owes = true;
                }
                _ = self.ticks.tick(), if wanted == Wanted::Always => {
                    return Some(report(&self.teller, &mut self.last, &edges).await);
                }
                () = sleep(SIGN_OF_LIFE), if wanted == Wanted::Once => {
                    return Some(Report { is_sign_of_life: true, ..Report::default() });
                }
            }
        }
    }
}

async fn report<S: Source>(teller: &Teller<S>, last: &mut Last, edges: &[Edge]) -> Report {
    let Made { counts, denials } = teller.made().await;
    let mut left = MAX_REPORT_BYTES.saturating_sub(SLACK);
    let mut fits = |part: &Bytes| {
        let fits = part.len() <= left;
        if fits {
            left -= part.len();
        }
        fits
    };
    let counts = if fits(&counts) { counts } else { Bytes::new() };
    let mut report = Report { counts, ..Report::default() };
    if let Some(denials) = denials
        && denials != last.denials
        && fits(&denials)
    {
        last.denials = denials.clone();
        report.denials = Some(denials);
    }
    if last.looked.is_none_or(|looked| looked.elapsed() >= WORLD_EVERY)
        && let Ok(world) = teller.source.ask_one(world::OF_AGENTS).await
    {
        last.looked = Some(Instant::now());
        if fits(&world) {
            report.world = Some(world);
        } else if !std::mem::replace(&mut last.was_large, true) {
            tracing::warn!(bytes = world.len(), "this node's pods are more than the controller's map is told at once");
        }
    }
    if !edges.is_empty()
        && let Ok(all) = teller.source.ask_one("/connections").await
    {
        report.connections = Some(between(&all, edges)).filter(&mut fits);
    }
    report
}

/// Of live connections those of these edges, of each as many as are shown.
fn between(all: &[u8], edges: &[Edge]) -> Bytes {
    let all: Vec<Value> = serde_json::from_slice(all).unwrap_or_default();
    let of = |edge: &Edge| {
        let own = all.iter().filter(|connection| picture::is_between(connection, &edge.from, &edge.to));
        own.take(MOST_FLOWS).collect::<Vec<_>>()
    };
    let told: Vec<&Value> = edges.iter().flat_map(of).collect();
    json!(told).to_string().into()
}

/// For what stands around the parts of a report.
pub(super) const SLACK: usize = 1024;
