//! What becomes of identities as time goes by: the root is replaced, the authority is away, the clock jumps.

use std::cell::Cell;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, Instant, SystemTime};

use mesh_agent::drain::Drain;
use mesh_agent::hbone::{Limits, Pool};
use mesh_agent::identity::local_ca::LocalCa;
use mesh_agent::identity::{Clock, Config, Identities, Phase, RootDirectory, RootId, Svid};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::support::*;

/// A root directory and the agents that share it.
struct Shared {
    _home: tempfile::TempDir,
    path: PathBuf,
}

impl Shared {
    fn new() -> Self {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("nodemesh-ca");
        Self { _home: home, path }
    }

    /// An agent with one identity, issued.
    async fn agent(&self, account: &str, clock: &Clock) -> Identities {
        let ca = LocalCa::directory_with_clock(&self.path, TRUST_DOMAIN, clock.clone()).unwrap();
        let config = Config { trust_domain: TRUST_DOMAIN.to_string(), lifetime: Duration::from_secs(3600) };
        let identities = Identities::with_clock(Arc::new(ca), config, clock.clone());
        identities.want(&[id(account)].into());
        // Never drained: the test's end is the end.
        let drain = Drain::new();
        tokio::spawn(identities.clone().run(drain.token()));
        std::mem::forget(drain);
        identities.ready(&id(account)).await;
        identities
    }

    fn rotate(&self, phase: Phase) {
        RootDirectory::new(&self.path, TRUST_DOMAIN).unwrap().rotate(phase, true).unwrap();
    }
}

/// A clock that a test can put forward and back, by seconds.
fn adjustable() -> (Clock, Arc<AtomicI64>) {
    let offset = Arc::new(AtomicI64::new(0));
    let read = offset.clone();
    let clock = Clock::new(move || {
        let offset = read.load(Ordering::Relaxed);
        let by = Duration::from_secs(offset.unsigned_abs());
        if offset < 0 { SystemTime::now() - by } else { SystemTime::now() + by }
    });
    (clock, offset)
}

async fn eventually(what: &str, mut is_so: impl FnMut() -> bool) {
    let until = Instant::now() + Duration::from_secs(30);
    while !is_so() {
        assert!(Instant::now() < until, "{what} never came true");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

fn root_of(identities: &Identities, account: &str) -> Option<RootId> {
    identities.svid(&id(account)).map(|svid| svid.root)
}

fn peers_of(identities: &Identities, root: RootId) -> u64 {
    identities.roots().into_iter().find(|status| status.id == root).map_or(0, |status| status.peers)
}

async fn echoes(stream: &mut TcpStream) -> bool {
    stream.write_all(b"x").await.is_ok() && matches!(stream.read_u8().await, Ok(b'x'))
}

/// Opens with exactly this certificate, on a tunnel of its own.
async fn opens_with(svid: &Arc<Svid>, server: &Server, app: std::net::SocketAddr) -> bool {
    let connect = async || TcpStream::connect(server.address).await;
    Pool::new(Limits::default()).open(&key("other", &id("server")), svid, connect, &request(app)).await.is_ok()
}

#[test]
fn a_root_is_replaced_under_traffic() {
    local(async {
        let shared = Shared::new();
        let near = shared.agent("client", &Clock::system()).await;
        let far = shared.agent("server", &Clock::system()).await;
        let server = Server::start(&far, "server", Limits::default(), relay()).await;
        let client = Client::new(&near, "client", "server", server.address, Limits::default());
        let app = app(echo).await;
        let old_svid = near.svid(&id("client")).unwrap();
        let old = old_svid.root;
        let mut session = client.dial(app).await;
        assert!(echoes(&mut session).await);
        let (opened, is_over) = (Rc::new(Cell::new(0)), Rc::new(Cell::new(false)));
        let traffic = tokio::task::spawn_local({
            let (client, opened, is_over) = (client.clone(), opened.clone(), is_over.clone());
            async move {
                while !is_over.get() {
                    client.open(app).await.expect("a new connection during the rotation");
                    opened.set(opened.get() + 1);
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
            }
        });

        shared.rotate(Phase::Prepare);
        eventually("both trust two roots", || near.roots().len() == 2 && far.roots().len() == 2).await;
        assert_eq!((root_of(&near, "client"), root_of(&far, "server")), (Some(old), Some(old)));

        shared.rotate(Phase::Switch);
        let is_new =
            |identities: &Identities, account: &str| root_of(identities, account).is_some_and(|now| now != old);
        eventually("both are renewed", || is_new(&near, "client") && is_new(&far, "server")).await;
        let new = root_of(&near, "client").unwrap();
        assert_eq!(root_of(&far, "server"), Some(new));
        eventually("new tunnels rest on the new root", || peers_of(&far, new) > 0).await;
        assert!(echoes(&mut session).await, "the switch cut a session");
        assert_eq!((peers_of(&near, old) > 0, peers_of(&far, old) > 0), (true, true), "the session's own tunnel");
        assert!(opens_with(&old_svid, &server, app).await, "what the earlier root signed is no longer taken");

        shared.rotate(Phase::Finish);
        eventually("one root is left", || near.roots().len() == 1 && far.roots().len() == 1).await;
        let ended = tokio::time::timeout(Duration::from_secs(30), session.read_u8()).await;
        assert!(matches!(ended, Ok(Err(_))), "a session that rests on the withdrawn root goes on: {ended:?}");
        assert!(!opens_with(&old_svid, &server, app).await, "a certificate of the withdrawn root is taken");
        let before = opened.get();
        eventually("connections go on", || opened.get() > before + 10).await;
        is_over.set(true);
        traffic.await.unwrap();
    });
}

#[test]
fn a_rotation_that_is_cancelled_leaves_no_trace() {
    local(async {
        let shared = Shared::new();
        let agent = shared.agent("client", &Clock::system()).await;
        let before = agent.svid(&id("client")).unwrap();
        shared.rotate(Phase::Prepare);
        eventually("two roots are trusted", || agent.roots().len() == 2).await;
        shared.rotate(Phase::Cancel);
        eventually("one root is trusted", || agent.roots().len() == 1).await;
        assert_eq!(agent.svid(&id("client")).unwrap().generation, before.generation);
    });
}

#[test]
fn while_the_authority_is_away_what_is_valid_goes_on_and_what_has_ended_is_refused() {
    local(async {
        let (clock, offset) = adjustable();
        let shared = Shared::new();
        let near = shared.agent("client", &clock).await;
        let far = shared.agent("server", &clock).await;
        let server = Server::start(&far, "server", Limits::default(), relay()).await;
        let client = Client::new(&near, "client", "server", server.address, Limits::default());
        let app = app(echo).await;
        let mut session = client.dial(app).await;
        assert!(echoes(&mut session).await);

        let away = shared.path.with_extension("away");
        fs::rename(&shared.path, &away).unwrap();
        eventually("the agents notice", || near.trouble().is_some() && far.trouble().is_some()).await;
        near.force_rotate();
        eventually("a renewal fails", || near.status()[0].failures > 0).await;
        let status = near.status().remove(0);
        assert!(status.last_error.is_some_and(|error| error.contains("nodemesh-ca")));
        assert!(status.seconds_left.is_some_and(|left| left > 3000.0));
        client.open(app).await.expect("a certificate that is valid is of no use");

        // An hour and a half later, both certificates have ended.
        offset.store(5400, Ordering::Relaxed);
        assert!(near.svid(&id("client")).is_none() && far.svid(&id("server")).is_none());
        assert!(near.status()[0].seconds_left.is_some_and(|left| left < 0.0));
        assert!(echoes(&mut session).await, "a live session ended with the certificate");
        assert!(!opens_with(&client.svid_at_start(), &server, app).await, "an ended certificate opens a tunnel");

        let failures = near.status()[0].failures;
        fs::rename(&away, &shared.path).unwrap();
        let back = Instant::now();
        near.ready(&id("client")).await;
        far.ready(&id("server")).await;
        assert!(back.elapsed() < Duration::from_secs(20), "recovery took {:?}", back.elapsed());
        client.open(app).await.expect("a new connection after the recovery");
        assert!(echoes(&mut session).await);
        let status = near.status().remove(0);
        assert_eq!((status.last_error, near.trouble()), (None, None));
        assert!(status.failures >= failures, "the count of failures is a counter");
    });
}

#[test]
fn a_step_of_the_clock_renews() {
    local(async {
        let (clock, offset) = adjustable();
        let shared = Shared::new();
        let agent = shared.agent("client", &clock).await;
        for (what, seconds) in [("forward past the end", 7200), ("back by two days", -172_800), ("to the truth", 0)] {
            let before = agent.svid(&id("client")).map(|svid| svid.generation);
            offset.store(seconds, Ordering::Relaxed);
            let now = clock.now();
            let is_renewed = || {
                let svid = agent.svid(&id("client"));
                svid.is_some_and(|svid| {
                    before.is_none_or(|before| svid.generation > before)
                        && svid.not_after > now + Duration::from_secs(3500)
                        && svid.not_after < now + Duration::from_secs(3700)
                })
            };
            eventually(what, is_renewed).await;
        }
        // Within what certificates are backdated by, nothing need happen, and nothing does.
        let before = agent.svid(&id("client")).unwrap().generation;
        offset.store(-50, Ordering::Relaxed);
        tokio::time::sleep(Duration::from_secs(6)).await;
        assert_eq!(agent.svid(&id("client")).unwrap().generation, before);
    });
}

/// A node starts with its clock ahead and with no authority: nothing is put off to when the clock was.
#[test]
fn a_clock_that_is_put_back_before_the_first_certificate_delays_nothing() {
    local(async {
        let (clock, offset) = adjustable();
        let shared = Shared::new();
        let ca = LocalCa::directory_with_clock(&shared.path, TRUST_DOMAIN, clock.clone()).unwrap();
        let away = shared.path.with_extension("away");
        fs::rename(&shared.path, &away).unwrap();
        offset.store(8 * 3600, Ordering::Relaxed);
        let config = Config { trust_domain: TRUST_DOMAIN.to_string(), lifetime: Duration::from_secs(3600) };
        let agent = Identities::with_clock(Arc::new(ca), config, clock);
        agent.want(&[id("client")].into());
        let drain = Drain::new();
        tokio::spawn(agent.clone().run(drain.token()));
        eventually("a request fails", || agent.status()[0].failures > 0).await;

        offset.store(0, Ordering::Relaxed);
        fs::rename(&away, &shared.path).unwrap();
        let back = Instant::now();
        agent.ready(&id("client")).await;
        assert!(back.elapsed() < Duration::from_secs(20), "recovery took {:?}", back.elapsed());

        // Asked to renew while it is ahead again, and the authority is away again.
        let first = agent.svid(&id("client")).unwrap().generation;
        fs::rename(&shared.path, &away).unwrap();
        eventually("the agent notices", || agent.trouble().is_some()).await;
        let failures = agent.status()[0].failures;
        offset.store(1800, Ordering::Relaxed);
        agent.force_rotate();
        eventually("a renewal fails", || agent.status()[0].failures > failures).await;
        offset.store(0, Ordering::Relaxed);
        fs::rename(&away, &shared.path).unwrap();
        eventually("it is renewed", || agent.svid(&id("client")).is_some_and(|svid| svid.generation > first)).await;
    });
}

#[test]
fn peers_whose_clocks_differ_by_less_than_the_backdating_talk() {
    local(async {
        for (near_ahead, far_ahead) in [(50, 0), (0, 50)] {
            let ((near_clock, near_offset), (far_clock, far_offset)) = (adjustable(), adjustable());
            near_offset.store(near_ahead, Ordering::Relaxed);
            far_offset.store(far_ahead, Ordering::Relaxed);
            let shared = Shared::new();
            let near = shared.agent("client", &near_clock).await;
            let far = shared.agent("server", &far_clock).await;
            let server = Server::start(&far, "server", Limits::default(), relay()).await;
            let client = Client::new(&near, "client", "server", server.address, Limits::default());
            client.open(app(echo).await).await.unwrap_or_else(|error| panic!("{near_ahead} {far_ahead}: {error}"));
        }
    });
}

type Spoil = fn(&Path);

/// What may be wrong with the directory, and what is said then.
const UNUSABLE: &[(&str, Spoil, &str)] = &[
    ("a key that the group may read", |ca| chmod(&ca.join("root.pem"), 0o640), "chmod 600"),
    ("a key that everybody may read", |ca| chmod(&ca.join("root.pem"), 0o604), "mesh-agent ca rotate"),
    ("a directory that others may write to", |ca| chmod(ca, 0o770), "chmod go-w"),
    (
        "roots that others may write to",
        |ca| {
            fs::create_dir(ca.join("roots")).unwrap();
            chmod(&ca.join("roots"), 0o777);
        },
        "chmod go-w",
    ),
    (
        "a trusted root that is none",
        |ca| {
            fs::create_dir(ca.join("roots")).unwrap();
            fs::write(ca.join("roots/extra.pem"), "nonsense").unwrap();
        },
        "no certificate in PEM",
    ),
    (
        "the root of another mesh",
        |ca| {
            let other = tempfile::tempdir().unwrap();
            LocalCa::directory(&other.path().join("ca"), "elsewhere").unwrap();
            fs::create_dir(ca.join("roots")).unwrap();
            fs::copy(other.path().join("ca/root-cert.pem"), ca.join("roots/other.pem")).unwrap();
        },
        "root of spiffe://elsewhere",
    ),
];

fn chmod(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

#[test]
fn a_directory_that_cannot_be_relied_on_is_refused_at_start_and_heeded_no_further_while_running() {
    local(async {
        for (what, spoil, said) in UNUSABLE {
            let shared = Shared::new();
            let agent = shared.agent("client", &Clock::system()).await;
            let roots = agent.roots();
            spoil(&shared.path);
            let refused = LocalCa::directory(&shared.path, TRUST_DOMAIN).err().unwrap_or_else(|| panic!("{what}"));
            assert!(refused.to_string().contains(said), "{what}: {refused}");
            eventually(what, || agent.trouble().is_some_and(|trouble| trouble.contains(said))).await;
            assert_eq!(agent.roots(), roots, "{what}");
        }
    });
}
