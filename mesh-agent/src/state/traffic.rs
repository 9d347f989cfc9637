//! TrafficPolicies by what they are attached to: of several on one target the oldest counts.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use super::claims::Claims;
use super::cow::CowMap;
use super::object::{Key, Kind, Name};
use super::{MeshState, Service};
use crate::resilience::policy::{Target, TargetKind, Traffic, TrafficPolicy};
use crate::routes::RouteKind;

/// A target of any namespace.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Attached {
    kind: TargetKind,
    name: Name,
}

/// The order in which policies on one target count: by age, one without a time after all others, then by name.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
struct Rank {
    has_no_time: bool,
    created: Option<i64>,
    name: Name,
}

impl From<&TrafficPolicy> for Rank {
    fn from(policy: &TrafficPolicy) -> Self {
        let name = Name::new(&policy.namespace, &policy.name);
        Self { has_no_time: policy.created.is_none(), created: policy.created, name }
    }
}

/// Every policy object, and which of them counts where.
#[derive(Default)]
pub(super) struct TrafficPolicies {
    objects: HashMap<Name, Arc<TrafficPolicy>>,
    claims: Claims<Attached, Rank, Arc<TrafficPolicy>>,
    /// Targets that several policies name.
    contested: BTreeSet<Attached>,
}

/// A policy that does not count at one of its targets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Overruled {
    /// The policy.
    pub policy: Key,
    /// Which of its targets, counted from 0.
    pub target: usize,
    /// The policy that counts there, as `namespace/name`.
    pub by: String,
}

impl TrafficPolicies {
    /// Takes a policy as it is now, and settles its targets in the snapshot.
    pub(super) fn take(
        &mut self,
        name: &Name,
        policy: Option<Arc<TrafficPolicy>>,
        in_force: &mut CowMap<Attached, Arc<TrafficPolicy>>,
    ) {
        let before = match &policy {
            Some(policy) => self.objects.insert(name.clone(), policy.clone()),
            None => self.objects.remove(name),
        };
        let (before, now) = (before.as_deref().map(Rank::from), policy.as_deref().map(Rank::from));
        let mut changed = Vec::new();
        // Its rank may be another now: then it gives up what it claimed under the old one.
        if let Some(before) = before.filter(|before| Some(before) != now.as_ref()) {
            changed = self.claims.replace(&before, []);
        }
        if let (Some(rank), Some(policy)) = (now, policy) {
            let claimed = policy.targets.iter().map(|target| (attached(&policy, target), policy.clone()));
            changed.extend(self.claims.replace(&rank, claimed));
        }
        for target in changed {
            in_force.set(&target, self.claims.first(&target).map(|(_, policy)| policy.clone()));
            if self.claims.claimants(&target).nth(1).is_some() {
                self.contested.insert(target);
            } else {
                self.contested.remove(&target);
            }
        }
    }

    /// The policies that do not count at some target, in the targets' order.
    pub(super) fn overruled(&self) -> impl Iterator<Item = Overruled> {
        self.contested.iter().flat_map(|target| {
            let by = self.claims.first(target).map(|(rank, _)| format!("{}/{}", rank.name.namespace, rank.name.name));
            let others = self.claims.claimants(target).skip(1);
            others.map(move |(rank, policy)| Overruled {
                policy: Key {
                    kind: Kind::TrafficPolicy,
                    namespace: rank.name.namespace.to_string(),
                    name: rank.name.name.to_string(),
                },
                target: policy.targets.iter().position(|own| attached(policy, own) == *target).unwrap_or_default(),
                by: by.clone().unwrap_or_default(),
            })
        })
    }
}

fn attached(policy: &TrafficPolicy, target: &Target) -> Attached {
    Attached { kind: target.kind, name: Name::new(&policy.namespace, &target.name) }
}

impl MeshState {
    /// How requests to a Service are treated, and by which route they came if by one: kind, namespace, name. Two look-ups;
    /// whoever keeps what follows compares [`MeshState::traffic_stamp`].
    pub fn traffic(&self, service: &Service, route: Option<(RouteKind, &Arc<str>, &Arc<str>)>) -> Traffic {
        let of = |kind, namespace: &Arc<str>, name: &Arc<str>| {
            let policy = self.traffic_policies.get(&Attached { kind, name: Name::new(namespace, name) })?;
            Some(&policy.settings)
        };
        let of_service = of(TargetKind::Service, &service.namespace, &service.name);
        let of_route = route.and_then(|(kind, namespace, name)| match kind {
            RouteKind::Http => of(TargetKind::HttpRoute, namespace, name),
            RouteKind::Grpc => of(TargetKind::GrpcRoute, namespace, name),
            RouteKind::Tcp | RouteKind::Tls => None,
        });
        Traffic::of(of_service, of_route)
    }

    /// The TrafficPolicies that count somewhere, in no order, as often as they do.
    pub fn traffic_policies(&self) -> impl Iterator<Item = &Arc<TrafficPolicy>> {
        self.traffic_policies.values()
    }

    /// Equal in two snapshots: so is every [`MeshState::traffic`].
    pub fn traffic_stamp(&self) -> &super::Stamp {
        &self.stamps.traffic
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;
    use crate::resilience::policy::{Settings, Timeouts};
    use crate::state::{Engine, Item};

    fn policy(name: &str, created: Option<i64>, targets: &[(TargetKind, &str)]) -> TrafficPolicy {
        let timeouts = Timeouts { request: Some(Duration::from_millis(name.len() as u64)), ..Timeouts::default() };
        TrafficPolicy {
            namespace: "shop".into(),
            name: name.into(),
            created,
            targets: targets.iter().map(|(kind, name)| Target { kind: *kind, name: (*name).into() }).collect(),
            settings: Settings { timeouts: Some(timeouts), ..Settings::default() }.into(),
        }
    }

    fn key(name: &str) -> Key {
        Key { kind: Kind::TrafficPolicy, namespace: "shop".into(), name: name.into() }
    }

    fn service(namespace: &str, name: &str) -> Service {
        Service {
            namespace: namespace.into(),
            name: name.into(),
            cluster_ips: Vec::new(),
            external: Default::default(),
            affinity: Default::default(),
            ports: Vec::new(),
        }
    }

    /// The length of the name of the policy that counts.
    fn counts(state: &MeshState, namespace: &str) -> Option<u128> {
        Some(state.traffic(&service(namespace, "web"), None).timeouts().request?.as_millis())
    }

    #[test]
    fn the_oldest_policy_of_a_service_counts_and_the_others_are_named() {
        let web = [(TargetKind::Service, "web")];
        let mut engine = Engine::new("node-1");
        let mut step = |name: &str, policy: Option<TrafficPolicy>| {
            match policy {
                Some(policy) => engine.upsert(&key(name), Item::TrafficPolicy(policy.into())),
                None => engine.delete(&key(name)),
            }
            let state = engine.snapshot();
            assert_eq!(counts(&state, "other"), None, "a policy holds in its own namespace");
            let overruled =
                engine.overruled().map(|overruled| format!("{} by {}", overruled.policy.name, overruled.by));
            (counts(&state, "shop"), overruled.collect::<Vec<_>>().join(", "))
        };
        assert_eq!(step("ccc", Some(policy("ccc", Some(30), &web))), (Some(3), String::new()));
        assert_eq!(step("a", Some(policy("a", Some(40), &web))), (Some(3), "a by shop/ccc".into()));
        assert_eq!(step("bb", Some(policy("bb", Some(20), &web))), (Some(2), "ccc by shop/bb, a by shop/bb".into()));
        assert_eq!(step("a", Some(policy("a", Some(10), &web))), (Some(1), "bb by shop/a, ccc by shop/a".into()));
        assert_eq!(step("bb", Some(policy("bb", Some(20), &[]))), (Some(1), "ccc by shop/a".into()));
        assert_eq!(step("a", None), (Some(3), String::new()));
        assert_eq!(step("ccc", None), (None, String::new()));
    }

    #[test]
    fn service_and_route_are_put_together() {
        let mut engine = Engine::new("node-1");
        let targets = [(TargetKind::HttpRoute, "r")];
        engine.upsert(&key("route"), Item::TrafficPolicy(policy("route", None, &targets).into()));
        engine.upsert(&key("svc"), Item::TrafficPolicy(policy("svc", None, &[(TargetKind::Service, "web")]).into()));
        let state = engine.snapshot();
        let (shop, name): (Arc<str>, Arc<str>) = ("shop".into(), "r".into());
        let request = |kind| state.traffic(&service("shop", "web"), Some((kind, &shop, &name))).timeouts().request;
        assert_eq!(request(RouteKind::Http), Some(Duration::from_millis(5)));
        assert_eq!(request(RouteKind::Grpc), Some(Duration::from_millis(3)), "of another kind");
        assert_eq!(request(RouteKind::Tcp), Some(Duration::from_millis(3)), "no requests");
        let stamp = state.traffic_stamp().clone();
        assert!(*engine.snapshot().traffic_stamp() == stamp);
        engine.delete(&key("svc"));
        assert!(*engine.snapshot().traffic_stamp() != stamp);
    }

    proptest! {
        /// In whatever order policies come, change and go: what counts is what counts among those that are left.
        #[test]
        fn the_order_plays_no_part(steps in prop::collection::vec((0..5_usize, prop::option::of((prop::option::of(0..3_i64), 0..4_usize))), 0..40)) {
            const NAMES: [&str; 5] = ["a", "bb", "ccc", "dddd", "eeeee"];
            const TARGETS: [&[(TargetKind, &str)]; 4] = [
                &[],
                &[(TargetKind::Service, "web")],
                &[(TargetKind::Service, "web"), (TargetKind::HttpRoute, "r")],
                &[(TargetKind::HttpRoute, "r")],
            ];
            let mut engine = Engine::new("node-1");
            let mut left: HashMap<usize, TrafficPolicy> = HashMap::new();
            for (index, change) in steps {
                match change {
                    Some((created, targets)) => {
                        let policy = policy(NAMES[index], created, TARGETS[targets]);
                        engine.upsert(&key(NAMES[index]), Item::TrafficPolicy(policy.clone().into()));
                        left.insert(index, policy);
                    }
                    None => {
                        engine.delete(&key(NAMES[index]));
                        left.remove(&index);
                    }
                }
                let state = engine.snapshot();
                let web = Target { kind: TargetKind::Service, name: "web".into() };
                let on_web: Vec<&TrafficPolicy> = left.values().filter(|policy| policy.targets.contains(&web)).collect();
                let best = on_web.iter().copied().reduce(|one, other| if one.beats(other) { one } else { other });
                prop_assert_eq!(counts(&state, "shop"), best.map(|policy| policy.name.len() as u128));
                let overruled = engine.overruled().filter(|overruled| {
                    let policy = left.values().find(|policy| *policy.name == overruled.policy.name);
                    policy.is_some_and(|policy| policy.targets.get(overruled.target) == Some(&web))
                });
                prop_assert_eq!(overruled.count(), on_web.len().saturating_sub(1));
            }
        }
    }
}
