//! Fuzz targets: whatever may stand in the directory of the world.
//!
//! The law is that what cannot be read never makes the mesh more permissive. It is judged by asking policy about every
//! caller of a small world, before and after.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::OnceLock;

use serde_json::Value;

use super::document;
use super::file::SourceFile;
use super::finding::Effect;
use super::object::{self, Key, Kind};
use super::store::Store;
use super::{join, translate::Item};
use crate::policy::{self, Facts, WorkloadPolicy};
use crate::spiffe::SpiffeId;
use crate::state::MeshState;

const TRUST_DOMAIN: &str = "cluster.local";
const NODE: &str = "n1";
/// Most of an input; beyond it a text says nothing that a shorter one does not.
const MAX_INPUT: usize = 32 << 10;

/// Two pods that are enrolled, and the Service of one.
const PODS: &str = include_str!("../../fuzz/seeds/pods.yaml");
/// A DENY, an ALLOW and a STRICT for the pod `server`.
const POLICIES: &str = include_str!("../../fuzz/seeds/policies.yaml");

/// Any text as a file, first as what an agent starts with, then as what follows the policies in their own file.
pub fn world(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else { return };
    if text.len() > MAX_INPUT {
        return;
    }
    let alone = read(&nothing(), text);
    state(&alone);
    check_findings(&nothing(), &alone);
    assert_eq!(read(&nothing(), text).findings(), alone.findings(), "two readings of one text differ");
    let before = good();
    let after = read(before, text);
    check_findings(before, &after);
    let is_broken = document::split(text).iter().any(|document| document.parse().is_err());
    if is_broken {
        for key in before.items().into_keys().filter(|key| key.kind.is_policy()) {
            assert!(after.items().contains_key(key), "{} is gone although its file is broken", key.object());
        }
    }
    // With nothing in it that could be read, and a part that could not, it cannot have allowed anything.
    if is_broken && only_policies_of_its_own(&alone) {
        assert_not_more_permissive(before, &after);
    }
}

/// The policies with up to four places changed: a typing mistake refuses more, or says what it says.
pub fn edit(input: &[u8]) {
    let mut text = POLICIES.as_bytes().to_vec();
    for edit in input.chunks(4).take(4) {
        let [high, low, action, byte] = *edit else { break };
        let at = usize::from(u16::from_be_bytes([high, low])) % (text.len() + 1);
        match action % 4 {
            0 if at < text.len() => drop(text.remove(at)),
            1 => text.insert(at, byte),
            2 => drop(text.drain(at..text.len().min(at + usize::from(byte) % 16))),
            _ => {
                if let Some(place) = text.get_mut(at) {
                    *place = byte;
                }
            }
        }
    }
    let Ok(text) = std::str::from_utf8(&text) else { return };
    world(text.as_bytes());
    let after = read(good(), text);
    // Where every object kept its name and kind, and something in it was refused, nothing was opened.
    let alone = read(&nothing(), text);
    let findings = after.findings();
    let stays = findings.iter().filter(|finding| finding.effect == Effect::PreviousStays);
    let refused: Vec<&str> = stays.map(|finding| finding.object.as_str()).collect();
    let items = alone.items();
    let same = |(key, item): (&Key, &Item)| {
        let unchanged = items.get(key).is_some_and(|now| format!("{now:?}") == format!("{item:?}"));
        !key.kind.is_policy() || unchanged || refused.iter().any(|object| is_called(key, object))
    };
    if good().items().into_iter().all(same) {
        assert_not_more_permissive(good(), &after);
    }
}

/// A JSON value as the body of each kind: it is read or refused with a reason. As an AuthorizationPolicy for the pod it
/// lets nobody in whom no rule of it could mean.
pub fn object(input: &[u8]) {
    let Ok(value) = serde_json::from_slice::<Value>(input) else { return };
    let _ = object::meaning(&value);
    for kind in [
        Kind::Namespace,
        Kind::Node,
        Kind::Pod,
        Kind::Service,
        Kind::EndpointSlice,
        Kind::HttpRoute,
        Kind::GrpcRoute,
        Kind::TcpRoute,
        Kind::TlsRoute,
        Kind::ReferenceGrant,
        Kind::PeerAuthentication,
        Kind::AuthorizationPolicy,
        Kind::RequestAuthentication,
        Kind::TrafficPolicy,
        Kind::ExternalAuthorizer,
    ] {
        let key = Key { kind, namespace: "shop".to_string(), name: "fuzz".to_string() };
        match object::read(&key, &value, TRUST_DOMAIN) {
            Ok(_) => {}
            Err(problem) => assert!(!problem.reason.is_empty()),
        }
    }
    let Value::Object(mut policy) = value else { return };
    policy.insert("apiVersion".to_string(), "nodemesh.dev/v1alpha1".into());
    policy.insert("kind".to_string(), "AuthorizationPolicy".into());
    policy.insert("metadata".to_string(), serde_json::json!({ "namespace": "shop", "name": "fuzz" }));
    let alone = read(&nothing(), &Value::Object(policy).to_string());
    check_findings(&nothing(), &alone);
    if !alone.unreadable().is_empty() {
        assert_not_more_permissive(&read(&nothing(), ""), &alone);
    }
}

/// The pods alone.
fn nothing() -> Store {
    let mut store = Store::new(TRUST_DOMAIN);
    store.apply(&[file("pods.yaml", PODS)], &[]);
    store
}

fn read(before: &Store, text: &str) -> Store {
    let mut store = before.clone();
    store.apply(&[file("policies.yaml", text)], &[]);
    store
}

fn file(name: &str, text: &str) -> SourceFile {
    SourceFile { path: name.into(), content: Ok(text.to_string()) }
}

fn good() -> &'static Store {
    static GOOD: OnceLock<Store> = OnceLock::new();
    GOOD.get_or_init(|| {
        let store = read(&nothing(), POLICIES);
        assert_eq!(store.findings(), [], "the samples are wrong");
        assert!(!allowed(&store).is_empty() && allowed(&store).len() < callers().len());
        store
    })
}

fn state(store: &Store) -> MeshState {
    MeshState::build(1, NODE, &join::world(store))
}

/// What every finding promises is so.
fn check_findings(before: &Store, after: &Store) {
    for finding in &after.findings() {
        assert!(!finding.reason.is_empty());
        match finding.effect {
            Effect::PreviousStays if !finding.object.is_empty() => {
                let items = before.items();
                let stays = |key: &&Key| is_called(key, &finding.object) && items.contains_key(*key);
                assert!(after.items().keys().any(stays), "{finding}: it does not stay");
            }
            Effect::TargetDeniesAll | Effect::TargetStrict => assert!(!after.unreadable().is_empty(), "{finding}"),
            Effect::RouteFails => {
                let stands = |key: &&Key| is_called(key, &finding.object) && key.kind.route().is_some();
                assert!(after.items().into_keys().any(|key| stands(&key)), "{finding}: nothing stands for it");
            }
            Effect::PreviousStays
            | Effect::Skipped
            | Effect::LaterWins
            | Effect::ExcludesNothing
            | Effect::ClaimsDropped
            | Effect::RuleFails
            | Effect::ShareFails
            | Effect::NoEffect
            | Effect::NotAttached
            | Effect::RefusesUnasked
            | Effect::OlderCounts => {}
        }
    }
}

/// Findings about an object of no known kind give its name alone.
fn is_called(key: &Key, object: &str) -> bool {
    key.object() == object || key.name == object
}

/// Whether nothing of the text beyond the pods was read.
fn only_policies_of_its_own(alone: &Store) -> bool {
    alone.items().len() == nothing().items().len()
}

fn assert_not_more_permissive(before: &Store, after: &Store) {
    let allowed_before = allowed(before);
    for facts in allowed(after) {
        assert!(allowed_before.contains(&facts), "opened by what cannot be read: {facts:?}");
    }
}

/// Everything that reaches the pod `server`.
fn allowed(store: &Store) -> Vec<Facts> {
    let state = state(store);
    let server = state.local_workloads().find(|workload| &*workload.name == "server");
    let policy: Option<&std::sync::Arc<WorkloadPolicy>> = server.and_then(|server| state.inbound_policy(&server.uid));
    let Some(policy) = policy else { return Vec::new() };
    callers().into_iter().filter(|facts| policy::authorize(policy, facts).is_ok()).collect()
}

fn callers() -> Vec<Facts> {
    let named = [None, Some("client"), Some("other"), Some("admin")];
    let facts = |account: Option<&str>, ip: u8, port: u16| Facts {
        source: account.and_then(|account| SpiffeId::new(TRUST_DOMAIN, "shop", account).ok()),
        destination_port: port,
        ..caller(ip)
    };
    let mut callers = Vec::new();
    for account in named {
        for ip in [3, 9] {
            callers.extend([80, 8080, 9090].map(|port| facts(account, ip, port)));
        }
    }
    callers
}

fn caller(ip: u8) -> Facts {
    Facts {
        source: None,
        is_same_node: false,
        source_ip: IpAddr::V4(Ipv4Addr::new(10, 244, 1, ip)),
        destination_ip: IpAddr::V4(Ipv4Addr::new(10, 244, 1, 5)),
        destination_port: 8080,
    }
}
