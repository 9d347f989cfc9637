//! Discovery while it runs: a real directory, a real clock.

use std::fs;
use std::path::Path;
use std::time::Duration;

use mesh_agent::discovery::{self, Config, Health, Source};
use mesh_agent::drain::Drain;
use mesh_agent::readiness::Readiness;
use mesh_agent::state::{StateReader, StateWriter};
use tempfile::TempDir;

/// Generous: the machine may be busy.
const PATIENCE: Duration = Duration::from_secs(60);

struct Running {
    place: TempDir,
    state: StateReader,
    health: Health,
    readiness: Readiness,
    drain: Drain,
}

impl Running {
    /// Returns with the first snapshot.
    async fn start(files: usize) -> Self {
        let place = tempfile::tempdir().unwrap();
        write(place.path(), files);
        let (writer, state) = StateWriter::new("node");
        let (health, readiness, drain) = (Health::default(), Readiness::default(), Drain::new());
        let config = Config { node: "node".into(), trust_domain: "cluster.local".into() };
        let source = Source::Directory(place.path().join("world"));
        tokio::spawn(discovery::run(
            source,
            config,
            writer,
            health.clone(),
            readiness.clone(),
            Default::default(),
            drain.token(),
        ));
        let running = Self { place, state, health, readiness, drain };
        running.eventually("the first snapshot", |running| running.services() == files).await;
        running
    }

    async fn eventually(&self, what: &str, holds: impl Fn(&Self) -> bool) {
        let waited = tokio::time::timeout(PATIENCE, async {
            while !holds(self) {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        });
        waited.await.unwrap_or_else(|_| panic!("{what}: {:?}", self.health.report()));
    }

    fn services(&self) -> usize {
        self.state.current().services().count()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.drain.start();
    }
}

/// So many Services, a file each, in the directory that is read.
fn write(place: &Path, services: usize) {
    let world = place.join("world");
    fs::create_dir_all(&world).unwrap();
    for number in 0..services {
        let service = format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: s-{number}, namespace: default}}\nspec:\n  clusterIP: 10.96.{}.{}\n  ports: [{{port: 80}}]\n",
            number / 250,
            number % 250
        );
        fs::write(place.join(".staged"), service).unwrap();
        fs::rename(place.join(".staged"), world.join(format!("s-{number}.yaml"))).unwrap();
    }
}

#[tokio::test]
async fn a_thousand_files_at_once_make_few_snapshots() {
    let running = Running::start(1).await;
    let before = running.state.current().version;
    write(running.place.path(), 1000);
    running.eventually("all of them", |running| running.services() == 1000).await;
    let snapshots = running.state.current().version - before;
    assert!(snapshots <= 100, "{snapshots} snapshots for a thousand files");
}

/// What is in force stays, its age grows, and what comes back is read.
#[tokio::test]
async fn a_directory_that_vanishes_leaves_the_last_state_and_its_age() {
    let running = Running::start(3).await;
    let (world, aside) = (running.place.path().join("world"), running.place.path().join("aside"));
    fs::rename(&world, &aside).unwrap();
    running.eventually("the loss", |running| running.health.report().unreachable.is_some()).await;
    let lost = running.health.report();
    assert_eq!((running.services(), running.readiness.missing()), (3, Vec::new()));
    let since = lost.unreachable_since.expect("since when");
    assert!(lost.seen.is_some_and(|seen| seen <= since), "{lost:?}");

    // A directory with nothing in it is no better.
    fs::create_dir(&world).unwrap();
    running
        .eventually("its emptiness", |running| {
            running.health.report().unreachable.as_ref().is_some_and(|reason| reason.contains("no files"))
        })
        .await;
    let empty = running.health.report();
    assert_eq!((running.services(), empty.seen, empty.unreachable_since), (3, lost.seen, Some(since)));

    fs::remove_dir(&world).unwrap();
    fs::rename(&aside, &world).unwrap();
    running.eventually("its return", |running| running.health.report().unreachable.is_none()).await;
    assert!(running.health.report().seen > lost.seen);
    write(running.place.path(), 4);
    running.eventually("what is new in it", |running| running.services() == 4).await;
}
