//! Tunnels that are open, per worker, by source pod, destination identity and destination address.
//!
//! ```text
//! none ──one caller establishes, the others wait──► open ──newer certificate, GOAWAY, idle, pod left──► retired ──last stream──► closed
//! ```
//! A retired tunnel takes no new streams and lives until those that it has are done.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::io;
use std::net::IpAddr;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime};

use tokio::net::TcpStream;
use tokio::time::Instant;
use tokio_rustls::client::TlsStream;
use tracing::debug;

use super::backoff::{Backoffs, Turn};
use super::client::{self, OpenError, Timeout};
use super::connection::Connection;
use super::limits::{self, Limits};
use super::liveness;
use super::session::Opener;
use super::socket::{Below, Socket};
use super::stream::Stream;
use super::tally::Tally;
use super::words::ConnectRequest;
use crate::identity::{Peer, Svid};
use crate::spiffe::SpiffeId;

/// What tells one tunnel from another. Two pods of one service account never share one.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct TunnelKey {
    /// The pod that connects, by uid.
    pub source_uid: Arc<str>,
    /// Whom it connects to.
    pub destination: SpiffeId,
    /// Where: the destination pod's IP; the port is always 15008.
    pub address: IpAddr,
}

/// A tunnel as shown to operators.
#[derive(Clone, Debug)]
pub struct TunnelStatus {
    /// What it is for.
    pub key: TunnelKey,
    /// The generation of the certificate that it was made with.
    pub generation: u64,
    /// Streams open now.
    pub streams: u32,
    /// Whether it takes new streams.
    pub retired: bool,
    /// Since when it is open.
    pub since: SystemTime,
}

/// The tunnels of one worker. Not shared between threads; clones are the same pool.
#[derive(Clone)]
pub struct Pool {
    inner: Rc<Inner>,
}

struct Inner {
    limits: Limits,
    slots: RefCell<HashMap<TunnelKey, Rc<Slot>>>,
    backoffs: RefCell<Backoffs>,
    tally: Arc<Tally>,
    /// Every tunnel that still lives, retired ones too; for status only.
    living: RefCell<Vec<Weak<Tunnel>>>,
}

/// What the pool has for one key.
#[derive(Default)]
struct Slot {
    /// Held by the one caller that establishes.
    establishing: tokio::sync::Mutex<()>,
    /// Tries that have come to an end; callers who waited for a try that failed take its error for theirs.
    tries: Cell<u64>,
    failure: RefCell<Option<(u64, OpenError)>>,
    open: RefCell<Vec<Open>>,
}

/// A tunnel that takes streams. Dropping this retires it.
struct Open(Rc<Tunnel>);

struct Tunnel {
    key: TunnelKey,
    generation: u64,
    /// Who is at the far end, and whether that still holds.
    peer: Peer,
    streams: Cell<u32>,
    idle_since: Cell<Instant>,
    since: SystemTime,
    /// Opens streams; none once the tunnel is retired. With the last of it gone, the connection says goodbye by itself.
    opener: RefCell<Option<Opener>>,
    tally: Arc<Tally>,
    /// Its socket.
    below: Below,
}

/// The tunnel that a stream is in, for whoever keeps the stream for later.
#[derive(Clone)]
pub struct Carrier(Weak<Tunnel>);

impl Carrier {
    /// Whether the tunnel would take a new stream of the holder of this certificate: it has not been retired, the peer
    /// has not said goodbye, neither side's certificate has ended or been replaced, and the peer's root is trusted.
    pub fn is_current(&self, svid: &Svid) -> bool {
        self.0.upgrade().is_some_and(|tunnel| tunnel.takes_streams_of(svid) && !tunnel.is_going_away())
    }
}

/// One stream's place in a tunnel; given back on drop.
pub(super) struct Occupied(Rc<Tunnel>);

impl Occupied {
    fn new(tunnel: &Rc<Tunnel>) -> Self {
        tunnel.streams.set(tunnel.streams.get() + 1);
        tunnel.tally.streams.fetch_add(1, Ordering::Relaxed);
        Self(tunnel.clone())
    }

    /// The tunnel's socket.
    pub(super) fn below(&self) -> Below {
        self.0.below.clone()
    }

    /// The tunnel, without a place in it.
    pub(super) fn carrier(&self) -> Carrier {
        Carrier(Rc::downgrade(&self.0))
    }
}

impl Drop for Occupied {
    fn drop(&mut self) {
        self.0.streams.set(self.0.streams.get().saturating_sub(1));
        self.0.idle_since.set(Instant::now());
        self.0.tally.streams.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A caller's hold on a slot: the last one leaves no empty slot behind.
struct Visit<'a> {
    inner: &'a Inner,
    key: &'a TunnelKey,
    slot: Rc<Slot>,
}

impl Drop for Visit<'_> {
    fn drop(&mut self) {
        let is_ours = self.inner.slots.borrow().get(self.key).is_some_and(|slot| Rc::ptr_eq(slot, &self.slot));
        if is_ours {
            // The map holds it, and this visit.
            self.inner.forget_if_empty(self.key, 2);
        }
    }
}

impl Pool {
    /// An empty pool. Use it within a `LocalSet`.
    pub fn new(limits: Limits) -> Self {
        Self::counted(limits, Arc::default())
    }

    /// An empty pool that counts into `tally`.
    pub fn counted(limits: Limits, tally: Arc<Tally>) -> Self {
        let inner = Inner {
            limits,
            slots: RefCell::default(),
            backoffs: RefCell::default(),
            tally,
            living: RefCell::default(),
        };
        Self { inner: Rc::new(inner) }
    }

    /// Opens a stream, on a tunnel that is there or on a new one. `connect_tcp` dials the peer's port 15008 from the
    /// source pod's namespace. A request that a peer did not take because it was saying goodbye goes to a new tunnel.
    pub async fn open(
        &self,
        key: &TunnelKey,
        svid: &Arc<Svid>,
        connect_tcp: impl AsyncFn() -> io::Result<TcpStream>,
        request: &ConnectRequest,
    ) -> Result<Stream, OpenError> {
        let mut fresh = 0;
        loop {
            let (is_fresh, (opener, occupied)) = match self.check_out(key, svid) {
                Some(place) => (false, place),
                None => (true, self.establish(key, svid, &connect_tcp).await?),
            };
            fresh += u64::from(is_fresh);
            let tunnel = occupied.0.clone();
            match client::connect(opener, Some(occupied), request, &self.inner.limits).await {
                Err(error) if error.is_stale_tunnel() => {
                    self.inner.retire(&tunnel);
                    if is_fresh && (fresh >= limits::FRESH_TUNNELS || !error.is_goodbye()) {
                        self.inner.failed(key, &error);
                        return Err(error);
                    }
                }
                outcome => return outcome,
            }
        }
    }

    /// Retires the tunnels of a pod that left.
    pub fn drop_source(&self, uid: &str) {
        self.inner.backoffs.borrow_mut().drop_source(uid);
        self.inner.slots.borrow_mut().retain(|key, slot| {
            let left = *key.source_uid == *uid;
            if left {
                slot.open.borrow_mut().clear();
            }
            !left
        });
    }

    /// Every tunnel of this worker.
    pub fn status(&self) -> Vec<TunnelStatus> {
        let mut living = self.inner.living.borrow_mut();
        living.retain(|tunnel| tunnel.strong_count() > 0);
        living.iter().filter_map(Weak::upgrade).map(|tunnel| tunnel.status()).collect()
    }

    /// A place in an open tunnel that was made with this certificate or a newer one.
    fn check_out(&self, key: &TunnelKey, svid: &Svid) -> Option<(Opener, Occupied)> {
        let slot = self.inner.slots.borrow().get(key).cloned()?;
        slot.check_out(svid, &self.inner.limits)
    }

    /// Makes a tunnel, or waits for the caller who is making one. A peer that could not be reached lately is tried by
    /// one caller at a time, in its time; the others hear of it at once.
    async fn establish(
        &self,
        key: &TunnelKey,
        svid: &Arc<Svid>,
        connect_tcp: impl AsyncFn() -> io::Result<TcpStream>,
    ) -> Result<(Opener, Occupied), OpenError> {
        let turn = self.inner.backoffs.borrow().turn(key, Instant::now());
        if let Turn::Wait(reason) = turn {
            return Err(self.inner.backing_off(reason));
        }
        let slot = self.inner.slots.borrow_mut().entry(key.clone()).or_default().clone();
        let visit = Visit { inner: &self.inner, key, slot };
        let slot = &visit.slot;
        let tries = slot.tries.get();
        let patience = match turn {
            Turn::Retry => Duration::from_millis(limits::RETRY_WAIT_MS),
            Turn::Free | Turn::Wait(_) => Duration::MAX,
        };
        let Ok(_establishing) = tokio::time::timeout(patience, slot.establishing.lock()).await else {
            return Err(self.inner.backing_off("another connection is trying".to_string()));
        };
        if let Some(place) = slot.check_out(svid, &self.inner.limits) {
            return Ok(place);
        }
        if let Some(error) = slot.failure_since(tries) {
            return Err(error);
        }
        if slot.open.borrow().len() as u64 >= limits::MAX_TUNNELS_PER_KEY {
            return Err(OpenError::TooManyTunnels);
        }
        let connect_timeout = match turn {
            Turn::Retry => self.inner.limits.retry_connect_timeout,
            Turn::Free | Turn::Wait(_) => self.inner.limits.connect_timeout,
        };
        let made = self.make(key, svid, connect_timeout, connect_tcp).await;
        self.inner.tally.established(&made);
        slot.tries.set(slot.tries.get() + 1);
        match made {
            Ok(open) => {
                self.inner.backoffs.borrow_mut().reached(key);
                let (opener, open) = open;
                let place = (opener, Occupied::new(&open.0));
                // The pod may have left meanwhile: then this tunnel serves its first stream and nobody else.
                slot.open.borrow_mut().push(open);
                Ok(place)
            }
            Err(error) => {
                self.inner.failed(key, &error);
                *slot.failure.borrow_mut() = Some((slot.tries.get(), error.clone()));
                Err(error)
            }
        }
    }

    async fn make(
        &self,
        key: &TunnelKey,
        svid: &Arc<Svid>,
        connect_timeout: Duration,
        connect_tcp: impl AsyncFn() -> io::Result<TcpStream>,
    ) -> Result<(Opener, Open), OpenError> {
        let limits = &self.inner.limits;
        let tcp = match tokio::time::timeout(connect_timeout, connect_tcp()).await {
            Ok(Ok(tcp)) => tcp,
            Ok(Err(error)) => return Err(OpenError::Connect { kind: error.kind(), message: error.to_string() }),
            Err(_) => return Err(OpenError::TimedOut(Timeout::Connect)),
        };
        let (opener, connection, peer, below) =
            client::establish(tcp, svid, key.address, &key.destination, limits).await?;
        let tunnel = Tunnel::new(key.clone(), svid.generation, peer, opener.clone(), below, self.inner.tally.clone());
        let tunnel = Rc::new(tunnel);
        self.inner.living.borrow_mut().retain(|tunnel| tunnel.strong_count() > 0);
        self.inner.living.borrow_mut().push(Rc::downgrade(&tunnel));
        tokio::task::spawn_local(drive(connection, tunnel.clone(), Rc::downgrade(&self.inner)));
        Ok((opener, Open(tunnel)))
    }
}

impl Slot {
    fn check_out(&self, svid: &Svid, limits: &Limits) -> Option<(Opener, Occupied)> {
        let mut open = self.open.borrow_mut();
        open.retain(|open| open.0.takes_streams_of(svid));
        // The fullest first leaves the others to fall idle.
        let free = open.iter().filter(|open| open.0.has_room(limits)).max_by_key(|open| open.0.streams.get())?;
        let opener = free.0.opener.borrow().clone()?;
        Some((opener, Occupied::new(&free.0)))
    }

    fn failure_since(&self, tries: u64) -> Option<OpenError> {
        let failure = self.failure.borrow();
        let (at, error) = failure.as_ref()?;
        (*at > tries).then(|| error.clone())
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.retire();
    }
}

impl Inner {
    fn failed(&self, key: &TunnelKey, error: &OpenError) {
        self.backoffs.borrow_mut().failed(key, error, Instant::now(), fastrand::f32());
    }

    fn backing_off(&self, reason: String) -> OpenError {
        let error = OpenError::BackingOff(reason);
        self.tally.established::<()>(&Err(error.clone()));
        error
    }

    fn retire(&self, tunnel: &Rc<Tunnel>) {
        tunnel.retire();
        if let Some(slot) = self.slots.borrow().get(&tunnel.key) {
            slot.open.borrow_mut().retain(|open| !open.0.is_retired());
        }
        self.forget_if_empty(&tunnel.key, 1);
    }

    /// Drops a slot that has nothing and that no more than so many hold, the map among them.
    fn forget_if_empty(&self, key: &TunnelKey, holders: usize) {
        let mut slots = self.slots.borrow_mut();
        let unused = |slot: &Rc<Slot>| Rc::strong_count(slot) <= holders && slot.open.borrow().is_empty();
        if slots.get(key).is_some_and(unused) {
            slots.remove(key);
        }
    }
}

impl Tunnel {
    fn new(key: TunnelKey, generation: u64, peer: Peer, opener: Opener, below: Below, tally: Arc<Tally>) -> Self {
        tally.tunnels.fetch_add(1, Ordering::Relaxed);
        Self {
            tally,
            below,
            key,
            generation,
            peer,
            streams: Cell::new(0),
            idle_since: Cell::new(Instant::now()),
            since: SystemTime::now(),
            opener: RefCell::new(Some(opener)),
        }
    }

    fn retire(&self) {
        self.opener.take();
    }

    fn is_retired(&self) -> bool {
        self.opener.borrow().is_none()
    }

    /// Whether the peer has said goodbye, or the connection is lost.
    fn is_going_away(&self) -> bool {
        self.opener.borrow().as_ref().is_none_or(Opener::is_going_away)
    }

    fn has_room(&self, limits: &Limits) -> bool {
        let most = self.opener.borrow().as_ref().map_or(0, Opener::most_streams);
        (self.streams.get() as usize) < most.min(limits.max_streams as usize)
    }

    /// Made with this certificate or a newer one, to a peer whose own still holds.
    fn takes_streams_of(&self, svid: &Svid) -> bool {
        !self.is_retired() && self.generation >= svid.generation && self.peer.is_current()
    }

    fn status(&self) -> TunnelStatus {
        TunnelStatus {
            key: self.key.clone(),
            generation: self.generation,
            streams: self.streams.get(),
            retired: self.is_retired(),
            since: self.since,
        }
    }
}

impl Drop for Tunnel {
    fn drop(&mut self) {
        self.tally.tunnels.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Drives a tunnel to its end: closed, lost, or not answering.
async fn drive(connection: Connection<TlsStream<Socket>>, tunnel: Rc<Tunnel>, pool: Weak<Inner>) {
    let Some(limits) = pool.upgrade().map(|pool| pool.limits.clone()) else { return };
    let session = connection.session().clone();
    let retire = || {
        tunnel.retire();
        if let Some(pool) = pool.upgrade() {
            pool.retire(&tunnel);
        }
    };
    let watch_idle = async {
        until_idle(&tunnel, &limits).await;
        // With the pool's handle gone, the connection says goodbye by itself.
        retire();
        std::future::pending::<()>().await;
    };
    let address = tunnel.key.address;
    tokio::select! {
        ended = connection.run() => match ended {
            Ok(()) => debug!(%address, "tunnel closed"),
            Err(error) => debug!(%address, %error, "tunnel lost"),
        },
        () = liveness::keep_alive(&session, &limits, || tunnel.streams.get() > 0) => debug!(%address, "tunnel lost: no answer to a ping"),
        () = tunnel.peer.distrusted() => debug!(%address, "tunnel cut: the root of its peer is no longer trusted"),
        () = watch_idle => {}
    }
    retire();
}

async fn until_idle(tunnel: &Tunnel, limits: &Limits) {
    loop {
        let idle = if tunnel.streams.get() == 0 { tunnel.idle_since.get().elapsed() } else { Duration::ZERO };
        match limits.idle_tunnel.checked_sub(idle) {
            Some(left) if !left.is_zero() => tokio::time::sleep(left).await,
            Some(_) | None => return,
        }
    }
}
