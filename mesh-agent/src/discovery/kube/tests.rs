//! Scripts of what watches tell, without an API server; and the same objects from both sources.

use std::path::Path;
use std::time::Duration;

use ::kube::api::ApiResource;
use serde_json::{Value, json};

use super::kinds::{self, Watch};
use super::ledger::{Ledger, Moment};
use super::object::Watched;
use super::watch::{Cause, Failure, Heard};
use crate::discovery::document;
use crate::discovery::finding::Effect;
use crate::discovery::object::{self, Meaning};
use crate::discovery::publisher::Current;
use crate::discovery::sequences::told;
use crate::discovery::tests::config;
use crate::discovery::{WatchState, load};
use crate::state::{Key, Kind};

const CERTAIN: Duration = Duration::from_secs(60);

struct Script {
    ledger: Ledger,
    current: Current,
    watches: Vec<Watch>,
    now: Moment,
}

impl Script {
    fn new() -> Self {
        let (watches, now) = (kinds::watches("node-1"), Moment::now());
        let ledger = Ledger::new(watches.clone(), CERTAIN, now.wall);
        Self { ledger, current: Current::new(&config("node-1")), watches, now }
    }

    fn number(&self, watch: &str) -> usize {
        self.watches.iter().position(|known| known.name == watch).unwrap()
    }

    fn hears(&mut self, watch: &str, heard: Heard) {
        let observed = self.ledger.hear(self.number(watch), heard, &self.current.store, self.now);
        for observed in &observed {
            self.current.observe(observed);
        }
    }

    fn object(&mut self, watch: &str, object: &Value) {
        let resource = self.resource(watch);
        let watched: Watched = serde_json::from_value(object.clone()).unwrap();
        self.hears(watch, Heard::Object(Box::new(watched), resource.into()));
    }

    fn resource(&self, watch: &str) -> ApiResource {
        self.watches[self.number(watch)].resources().next().unwrap()
    }

    /// By the clock that does not jump.
    fn later(&mut self, seconds: u64) {
        self.now.mono += Duration::from_secs(seconds);
    }

    fn state(&self, watch: &str) -> WatchState {
        self.ledger.report()[self.number(watch)].state
    }

    /// Everything is listed, and there is nothing.
    fn settled() -> Self {
        let mut script = Self::new();
        for watch in script.watches.clone() {
            script.hears(watch.name, Heard::Listing);
            script.hears(watch.name, Heard::Listed);
        }
        assert!(script.ledger.is_settled() && script.ledger.is_current());
        script
    }

    fn pods(&mut self) -> Vec<String> {
        let mut names: Vec<_> = self.current.engine.snapshot().workloads().map(|pod| pod.name.to_string()).collect();
        names.sort();
        names
    }
}

fn pod(name: &str, uid: &str) -> Value {
    json!({
        "metadata": {"namespace": "shop", "name": name, "uid": uid, "resourceVersion": "7", "managedFields": [{"manager": "x"}]},
        "spec": {"nodeName": "node-1", "containers": [{"name": "app", "env": [], "ports": [{"containerPort": 80}]}]},
        "status": {"podIPs": [{"ip": format!("10.0.0.{}", name.as_bytes()[0])}], "containerStatuses": [{}]},
    })
}

fn failure(cause: Cause) -> Heard {
    Heard::Failed(Failure { cause, reason: "because".to_string() })
}

const HERE: &str = "pods (this node)";
const ELSEWHERE: &str = "pods (elsewhere)";
const POLICIES: &str = "authorizationpolicies.nodemesh.dev";

#[test]
fn the_first_snapshot_waits_for_every_list() {
    let mut script = Script::new();
    for watch in script.watches.clone() {
        assert!(!script.ledger.is_settled());
        assert!(script.ledger.missing().contains(watch.name));
        script.hears(watch.name, Heard::Listing);
        script.hears(watch.name, Heard::Listed);
    }
    assert!(script.ledger.is_settled());
    let mut names: Vec<&str> = script.watches.iter().map(|watch| watch.name).collect();
    names.dedup();
    assert_eq!(names.len(), script.watches.len());
    assert_eq!(kinds::watches("").len(), script.watches.len() - 1, "without a node all pods are in one list");
}

/// What vanished while nobody looked goes when the new list is whole, not before; nothing else does.
#[test]
fn a_new_list_takes_away_what_is_not_in_it() {
    let mut script = Script::settled();
    for name in ["a", "b"] {
        script.object(HERE, &pod(name, name));
    }
    script.hears(HERE, Heard::Expired);
    assert_eq!((script.state(HERE), script.ledger.is_current()), (WatchState::Listing, false));
    script.hears(HERE, Heard::Listing);
    script.object(HERE, &pod("b", "b"));
    // The list broke off and is begun again.
    script.hears(HERE, failure(Cause::Unreachable));
    script.hears(HERE, Heard::Listing);
    script.object(HERE, &pod("b", "b"));
    assert_eq!(script.pods(), ["a", "b"]);
    script.hears(HERE, Heard::Listed);
    assert_eq!((script.pods(), script.state(HERE)), (vec!["b".to_string()], WatchState::Following));
    let gone = Key { kind: Kind::Pod, namespace: "shop".into(), name: "b".into() };
    script.hears(HERE, Heard::Gone(gone));
    assert_eq!(script.pods(), [""; 0]);
}

/// Nothing that fails takes anything away, and what fails is named, with what would help.
#[test]
fn failures_are_named_and_take_nothing_away() {
    for (cause, state, told) in [
        (Cause::Unreachable, WatchState::Unreachable, "no answer: because"),
        (Cause::Forbidden, WatchState::Forbidden, "verbs list and watch on pods of API group \"\""),
        (Cause::Refused, WatchState::Refused, "refused: because"),
    ] {
        let mut script = Script::settled();
        script.object(HERE, &pod("a", "a"));
        script.hears(HERE, failure(cause));
        assert_eq!((script.state(HERE), script.ledger.is_current()), (state, false));
        assert_eq!((script.pods(), script.ledger.is_settled()), (vec!["a".to_string()], true));
        let trouble = script.ledger.trouble().unwrap();
        assert!(trouble.contains(HERE) && trouble.contains(told), "{trouble}");
        script.hears(HERE, Heard::Answered);
        assert_eq!((script.state(HERE), script.ledger.trouble()), (WatchState::Following, None));
        let report = &script.ledger.report()[script.number(HERE)];
        assert_eq!((report.failures.clone(), report.lists), (vec![(cause.word(), 1)], 1));
    }
    // What all suffer from is said once.
    let mut script = Script::new();
    for watch in script.watches.clone() {
        script.hears(watch.name, failure(Cause::Unreachable));
    }
    assert_eq!(script.ledger.trouble().as_deref(), Some("no answer: because"));
}

/// A kind that is not served is empty; said once is not enough before the first snapshot. One that is no longer served
/// keeps what it had for a while.
#[test]
fn a_kind_that_is_not_served() {
    let mut script = Script::new();
    for watch in script.watches.clone().iter().filter(|watch| watch.name != POLICIES) {
        script.hears(watch.name, Heard::Listed);
    }
    script.hears(POLICIES, Heard::NotServed);
    assert!(!script.ledger.is_settled());
    script.hears(POLICIES, Heard::NotServed);
    assert!(script.ledger.is_settled() && script.ledger.is_current());

    let policy = json!({
        "metadata": {"namespace": "shop", "name": "p", "uid": "p", "generation": 3},
        "spec": {"targetRefs": [{"kind": "Namespace"}], "action": "DENI"},
        "status": {"ancestors": "whatever somebody wrote"},
    });
    script.hears(POLICIES, Heard::Listing);
    script.object(POLICIES, &policy);
    script.hears(POLICIES, Heard::Listed);
    let findings = script.current.findings();
    let [finding] = &findings[..] else { panic!("{findings:?}") };
    assert_eq!((&*finding.field, finding.effect), ("spec.action", Effect::TargetDeniesAll));
    assert_eq!(finding.origin, crate::discovery::Origin::Cluster { generation: Some(3) });
    assert!(finding.to_string().starts_with("AuthorizationPolicy shop/p spec.action: unknown variant"), "{finding}");
    // Nothing else counts than that it says so all the time: not a step of the clock, and not what was said before it gave
    // no answer.
    script.hears(POLICIES, Heard::NotServed);
    script.now.wall += Duration::from_secs(3600);
    script.hears(POLICIES, Heard::NotServed);
    script.later(70);
    script.hears(POLICIES, failure(Cause::Unreachable));
    for (seconds, findings) in [(0, 1), (30, 1), (29, 1), (1, 0)] {
        script.later(seconds);
        script.hears(POLICIES, Heard::NotServed);
        assert_eq!(script.current.findings().len(), findings, "{seconds} s later");
    }
}

/// What every API server serves is not gone because somebody does not find it.
#[test]
fn only_what_is_defined_can_be_missing() {
    let missing = |watch: &&Watch| !watch.is_built_in();
    let names: Vec<&str> = kinds::watches("node-1").iter().filter(missing).map(|watch| watch.name).collect();
    assert!(names.len() == 10 && names.contains(&POLICIES), "{names:?}");
    assert!(names.iter().all(|name| name.ends_with(".nodemesh.dev") || name.ends_with(".gateway.networking.k8s.io")));
}

/// A pod that gets its node passes from one list to the other, whichever tells first.
#[test]
fn a_pod_passes_from_one_list_to_the_other() {
    let key = || Key { kind: Kind::Pod, namespace: "shop".into(), name: "a".into() };
    for gone_first in [true, false] {
        let mut script = Script::settled();
        script.object(ELSEWHERE, &pod("a", "a"));
        if gone_first {
            script.hears(ELSEWHERE, Heard::Gone(key()));
        }
        script.object(HERE, &pod("a", "a"));
        if !gone_first {
            script.hears(ELSEWHERE, Heard::Gone(key()));
        }
        assert_eq!((script.pods(), script.current.findings()), (vec!["a".to_string()], vec![]));
    }
}

/// Another pod under the name of one that is gone is not its next version: nothing of the one before stays.
#[test]
fn a_namesake_that_cannot_be_read_leaves_nothing_of_the_one_before() {
    let mut broken = pod("a", "a");
    broken["status"]["podIPs"][0]["ip"] = json!("10.0.0");
    let mut script = Script::settled();
    script.object(HERE, &pod("a", "a"));
    script.object(HERE, &broken);
    assert_eq!(script.pods(), ["a"], "its last good version stays");
    broken["metadata"]["uid"] = json!("b");
    script.object(HERE, &broken);
    assert_eq!(script.pods(), [""; 0]);
    script.object(HERE, &pod("a", "b"));
    assert_eq!((script.pods(), script.current.findings()), (vec!["a".to_string()], vec![]));
}

/// The samples, read from their files and told by watches, mean the same: what is pruned means nothing.
#[test]
fn both_sources_mean_the_same() {
    let samples = Path::new(env!("CARGO_MANIFEST_DIR")).join("../manifests/samples");
    let (state, findings) = load(&samples, &config("node-1")).unwrap();
    assert_eq!(findings, []);
    let mut script = Script::settled();
    let mut told_of = 0;
    let mut paths: Vec<_> = std::fs::read_dir(&samples).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    for path in paths {
        let text = std::fs::read_to_string(path).unwrap();
        for document in document::split(&text) {
            let document = document.parse().unwrap();
            for (_, object) in object::objects(&document) {
                let Meaning::Known { kind, key: Ok(key) } = object::meaning(object) else { continue };
                let mut object = object.clone();
                // What an API server adds.
                if !key.namespace.is_empty() {
                    object["metadata"]["namespace"] = json!(key.namespace);
                }
                object["metadata"]["managedFields"] = json!([{"manager": "kubectl"}]);
                object["metadata"]["resourceVersion"] = json!("1");
                let here = object["spec"]["nodeName"] == "node-1";
                let of_kind =
                    |watch: &&Watch| watch.kind == kind && (kind != Kind::Pod || (watch.name == HERE) == here);
                let watch = script.watches.iter().find(of_kind).unwrap().name;
                script.object(watch, &object);
                told_of += 1;
            }
        }
    }
    assert!(told_of > 20, "{told_of}");
    assert_eq!(script.current.findings(), []);
    assert_eq!(told(&script.current.engine.snapshot()), told(&state));
}
