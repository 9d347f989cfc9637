//! What is said of a route or a policy in its status. Pure: objects come as JSON, conditions from the state, and the time
//! is handed in.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use crate::discovery::{Effect, Judgement};
use crate::state::{ConditionType, Kind, MeshState, ParentStatus, RouteStatus};

/// Whose word it is.
pub const CONTROLLER: &str = "nodemesh.dev/controller";

/// Longest message of a condition, in characters: the API's own bound.
const LONGEST_MESSAGE: usize = 32_768;
/// Most targets of a policy that are spoken of: the API's own bound.
const MOST_ANCESTORS: usize = 16;

/// One condition, before it is known since when it holds.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Said {
    condition: &'static str,
    status: bool,
    reason: &'static str,
    message: String,
}

/// An object, as a watch tells of it.
#[derive(Clone, Copy, Debug)]
pub struct Object<'a> {
    /// metadata.namespace
    pub namespace: &'a str,
    /// metadata.generation
    pub generation: i64,
    /// spec
    pub spec: &'a Value,
    /// status
    pub status: &'a Value,
}

/// A route's `status.parents` as it should be; None where it is so already, or where it is not known yet.
pub fn route(object: Object<'_>, judged: &Judgement, known: Option<&RouteStatus>, now: &str) -> Option<Value> {
    let references: Vec<&Value> = list(object.spec, "parentRefs").iter().filter(|one| is_service(one)).collect();
    let known = known.filter(|known| known.generation == Some(object.generation));
    let conditions: Vec<Vec<Said>> = match (known, &judged.refused) {
        (Some(known), _) if known.parents.len() == references.len() => known.parents.iter().map(of_parent).collect(),
        // Another version is in force, or none: this one is not.
        (_, Some((field, reason))) => {
            let refused = said("Accepted", false, "UnsupportedValue", format!("{field}: {reason}"));
            references.iter().map(|_| vec![refused.clone()]).collect()
        }
        (_, None) if references.is_empty() => Vec::new(),
        // The state is on its way.
        (_, None) => return None,
    };
    let entries = references.iter().zip(conditions).map(|(reference, said)| ((*reference).clone(), said));
    replaced(object, "parents", "parentRef", entries.collect(), now)
}

/// What a policy that can be read lacks to be in force.
#[derive(Debug, Default)]
pub struct Lacks {
    /// Who should be asked and is not there.
    pub provider: Option<String>,
    /// Why it is not in force at a target, by the target's place in `targetRefs`.
    pub targets: BTreeMap<usize, Lost>,
}

/// Why a policy is not in force at a target.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Lost {
    /// The target is not there.
    NotFound(String),
    /// Another policy counts there.
    Conflicted(String),
}

/// The targets of a policy that are not there, by their places. Those that select are never missing: what they select may
/// come at any time.
pub fn missing(namespace: &str, spec: &Value, state: &MeshState) -> BTreeMap<usize, Lost> {
    let targets = list(spec, "targetRefs").iter().enumerate();
    let missing = targets.filter_map(|(place, target)| {
        let (kind, name) = (target["kind"].as_str()?, target["name"].as_str()?);
        let (namespace, known) = (namespace.into(), name.into());
        let is_there = match kind {
            "Service" => state.service(&namespace, &known).is_some(),
            "HTTPRoute" => state.has_route(Kind::HttpRoute, &namespace, &known),
            "GRPCRoute" => state.has_route(Kind::GrpcRoute, &namespace, &known),
            _ => true,
        };
        (!is_there).then(|| (place, Lost::NotFound(format!("there is no {kind} {namespace}/{name}"))))
    });
    missing.collect()
}

/// A policy's `status.ancestors` as it should be; None where it is so already.
pub fn policy(object: Object<'_>, judged: &Judgement, lacks: &Lacks, now: &str) -> Option<Value> {
    let mut entries: Vec<(Value, Vec<Said>)> = Vec::new();
    for (place, target) in list(object.spec, "targetRefs").iter().enumerate() {
        let reference = ancestor(object.namespace, target);
        if entries.iter().all(|(known, _)| *known != reference) && entries.len() < MOST_ANCESTORS {
            entries.push((reference, of_policy(judged, lacks.provider.as_deref(), lacks.targets.get(&place))));
        }
    }
    replaced(object, "ancestors", "ancestorRef", entries, now)
}

/// The `status.conditions` of an object that has no targets; None where it is so already.
pub fn plain(object: Object<'_>, judged: &Judgement, now: &str) -> Option<Value> {
    let before = list(object.status, "conditions");
    let conditions = written(&of_policy(judged, None, None), before, object.generation, now);
    (conditions != before).then(|| json!({ "conditions": conditions }))
}

/// A refusal in one line, for an event; None where all is well.
pub fn refusal(judged: &Judgement) -> Option<String> {
    let (field, reason) = judged.refused.as_ref()?;
    Some(format!("{field}: {reason}"))
}

fn of_parent(parent: &ParentStatus) -> Vec<Said> {
    let one = |condition: &crate::state::Condition| {
        let name = match condition.condition {
            ConditionType::Accepted => "Accepted",
            ConditionType::ResolvedRefs => "ResolvedRefs",
            ConditionType::PartiallyInvalid => "PartiallyInvalid",
        };
        said(name, condition.status, condition.reason, condition.message.clone())
    };
    parent.conditions.iter().map(one).collect()
}

fn of_policy(judged: &Judgement, unanswered: Option<&str>, lost: Option<&Lost>) -> Vec<Said> {
    if let Some((field, reason)) = &judged.refused {
        let message = format!("{field}: {reason}");
        let follows = "the version before it stays in force; without one its targets refuse";
        return vec![
            said("Accepted", false, "Invalid", message),
            said("Programmed", false, "Invalid", follows.to_string()),
        ];
    }
    let notes: Vec<String> = judged
        .problems
        .iter()
        .map(|(effect, field, reason): &(Effect, String, String)| format!("{field}: {reason} ({effect})"))
        .collect();
    let resolved = match unanswered {
        None => said("ResolvedRefs", true, "ResolvedRefs", String::new()),
        Some(why) => said("ResolvedRefs", false, "RefNotFound", why.to_string()),
    };
    let (accepted, programmed) = match lost {
        None => {
            let programmed = "every agent makes it of the same object".to_string();
            let programmed = said("Programmed", true, "Programmed", programmed);
            (said("Accepted", true, "Accepted", notes.join("; ")), programmed)
        }
        Some(Lost::NotFound(why)) => {
            let follows = "it is in force once its target is there".to_string();
            let programmed = said("Programmed", false, "TargetNotFound", follows);
            (said("Accepted", false, "TargetNotFound", why.clone()), programmed)
        }
        Some(Lost::Conflicted(why)) => {
            let follows = "of two policies on one target the older counts there".to_string();
            let programmed = said("Programmed", false, "Conflicted", follows);
            (said("Accepted", false, "Conflicted", why.clone()), programmed)
        }
    };
    vec![accepted, resolved, programmed]
}

fn said(condition: &'static str, status: bool, reason: &'static str, message: String) -> Said {
    Said { condition, status, reason, message }
}

/// The whole list with our entries replaced; None where it is as it should be.
fn replaced(
    object: Object<'_>,
    list_name: &str,
    reference_name: &str,
    entries: Vec<(Value, Vec<Said>)>,
    now: &str,
) -> Option<Value> {
    let before = list(object.status, list_name);
    let (ours, others): (Vec<&Value>, Vec<&Value>) =
        before.iter().partition(|entry| entry["controllerName"].as_str() == Some(CONTROLLER));
    let entry = |(reference, said): (Value, Vec<Said>)| {
        let earlier = ours.iter().find(|entry| entry[reference_name] == reference);
        let earlier = earlier.map_or(&[][..], |entry| list(entry, "conditions"));
        let conditions = written(&said, earlier, object.generation, now);
        let mut entry = Map::new();
        entry.insert(reference_name.to_string(), reference);
        entry.insert("controllerName".to_string(), CONTROLLER.into());
        entry.insert("conditions".to_string(), conditions.into());
        Value::Object(entry)
    };
    let entries: Vec<Value> = entries.into_iter().map(entry).collect();
    if ours.iter().copied().eq(entries.iter()) {
        return None;
    }
    let all: Vec<Value> = others.into_iter().cloned().chain(entries).collect();
    let mut status = Map::new();
    status.insert(list_name.to_string(), all.into());
    Some(Value::Object(status))
}

/// Conditions with the time since which each has its status.
fn written(said: &[Said], before: &[Value], generation: i64, now: &str) -> Vec<Value> {
    let one = |Said { condition, status, reason, message }: &Said| {
        let status = if *status { "True" } else { "False" };
        let earlier = before.iter().find(|one| one["type"] == *condition && one["status"] == status);
        let since = earlier.and_then(|one| one["lastTransitionTime"].as_str()).unwrap_or(now);
        let message: String = message.chars().take(LONGEST_MESSAGE).collect();
        json!({
            "type": condition, "status": status, "reason": reason, "message": message,
            "observedGeneration": generation, "lastTransitionTime": since,
        })
    };
    said.iter().map(one).collect()
}

/// A target as Gateway API writes references.
fn ancestor(namespace: &str, target: &Value) -> Value {
    let kind = target["kind"].as_str().unwrap_or_default();
    let name = target["name"].as_str().unwrap_or(if kind == "Namespace" { namespace } else { "" });
    let group = target["group"].as_str().unwrap_or_default();
    json!({ "group": group, "kind": kind, "namespace": namespace, "name": name })
}

fn is_service(reference: &Value) -> bool {
    reference["kind"].as_str() == Some("Service") && reference["group"].as_str().is_some_and(str::is_empty)
}

fn list<'a>(value: &'a Value, name: &str) -> &'a [Value] {
    value.get(name).and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::discovery;
    use crate::state::Condition;

    fn route_spec() -> Value {
        json!({ "parentRefs": [
            { "group": "", "kind": "Service", "name": "web", "port": 80 },
            { "group": "gateway.networking.k8s.io", "kind": "Gateway", "name": "edge" },
        ] })
    }

    fn known(generation: i64, accepted: bool) -> RouteStatus {
        let condition = |condition, status, reason| Condition { condition, status, reason, message: String::new() };
        let conditions = vec![
            condition(ConditionType::Accepted, accepted, if accepted { "Accepted" } else { "NoMatchingParent" }),
            condition(ConditionType::ResolvedRefs, true, "ResolvedRefs"),
        ];
        let parent = ParentStatus {
            namespace: "shop".into(),
            name: "web".into(),
            port: Some(80),
            section_name: None,
            conditions,
        };
        RouteStatus {
            kind: Kind::HttpRoute,
            namespace: "shop".into(),
            name: "r".into(),
            generation: Some(generation),
            parents: vec![parent],
        }
    }

    fn of_route(spec: &Value, status: &Value, judged: &Judgement, known: &RouteStatus, now: &str) -> Option<Value> {
        let object = Object { namespace: "shop", generation: 3, spec, status };
        route(object, judged, Some(known), now)
    }

    #[test]
    fn a_route_hears_of_its_services_and_others_keep_their_word() {
        let (spec, fine) = (route_spec(), Judgement::default());
        let foreign =
            json!({ "parentRef": { "name": "edge" }, "controllerName": "example.com/other", "conditions": [] });
        let status = json!({ "parents": [foreign] });
        let first = of_route(&spec, &status, &fine, &known(3, true), "then").unwrap();
        let parents = first["parents"].as_array().unwrap();
        assert_eq!(parents.len(), 2);
        assert_eq!(parents[0], foreign);
        assert_eq!(parents[1]["parentRef"], spec["parentRefs"][0], "not as it is written");
        assert_eq!(parents[1]["controllerName"], CONTROLLER);
        let expected = json!({
            "type": "Accepted", "status": "True", "reason": "Accepted", "message": "",
            "observedGeneration": 3, "lastTransitionTime": "then",
        });
        assert_eq!(parents[1]["conditions"][0], expected);
        // Nothing changed: nothing is written.
        assert_eq!(of_route(&spec, &first, &fine, &known(3, true), "later"), None);
        // What changes has a new time, what stays has not.
        let next = of_route(&spec, &first, &fine, &known(3, false), "later").unwrap();
        let conditions = &next["parents"][1]["conditions"];
        assert_eq!(conditions[0]["lastTransitionTime"], "later");
        assert_eq!(conditions[1]["lastTransitionTime"], "then");
        // It is a Gateway's alone now: our word goes.
        let elsewhere = json!({ "parentRefs": [spec["parentRefs"][1]] });
        let gone = of_route(&elsewhere, &next, &fine, &known(2, true), "later").unwrap();
        assert_eq!(gone["parents"].as_array().unwrap().len(), 1);
    }

    #[test]
    fn a_version_that_is_not_in_force_is_not_spoken_for() {
        let (spec, fine) = (route_spec(), Judgement::default());
        assert_eq!(of_route(&spec, &Value::Null, &fine, &known(2, true), "now"), None);
        let refused = Judgement { refused: Some(("spec.rules[0]".into(), "no".into())), problems: Vec::new() };
        let status = of_route(&spec, &Value::Null, &refused, &known(2, true), "now").unwrap();
        let condition = &status["parents"][0]["conditions"][0];
        assert_eq!((condition["status"].as_str(), condition["observedGeneration"].as_i64()), (Some("False"), Some(3)));
        assert_eq!(condition["message"], "spec.rules[0]: no");
    }

    #[test]
    fn a_policy_hears_of_each_target() {
        let spec = json!({ "targetRefs": [
            { "kind": "Service", "name": "web" }, { "kind": "Namespace" }, { "kind": "Pod", "selector": {} },
            { "kind": "Service", "name": "web" },
        ] });
        let object = Object { namespace: "shop", generation: 1, spec: &spec, status: &Value::Null };
        let status = policy(object, &Judgement::default(), &Lacks::default(), "now").unwrap();
        let names = |status: &Value| -> Vec<(String, String)> {
            let text = |value: &Value| value.as_str().unwrap().to_string();
            let one = |entry: &Value| (text(&entry["ancestorRef"]["kind"]), text(&entry["ancestorRef"]["name"]));
            status["ancestors"].as_array().unwrap().iter().map(one).collect()
        };
        let expected = [("Service", "web"), ("Namespace", "shop"), ("Pod", "")];
        assert_eq!(names(&status), expected.map(|(kind, name)| (kind.to_string(), name.to_string())));
        let object = Object { status: &status, ..object };
        assert_eq!(policy(object, &Judgement::default(), &Lacks::default(), "later"), None);
        let refused = Judgement { refused: Some(("spec.action".into(), "no such".into())), problems: Vec::new() };
        let status = policy(object, &refused, &Lacks::default(), "later").unwrap();
        let conditions = status["ancestors"][0]["conditions"].as_array().unwrap();
        let words: Vec<_> = conditions.iter().map(|one| (one["type"].as_str(), one["status"].as_str())).collect();
        assert_eq!(words, [(Some("Accepted"), Some("False")), (Some("Programmed"), Some("False"))]);
        let unanswered = Lacks { provider: Some("there is no ExternalAuthorizer x".into()), targets: BTreeMap::new() };
        let status = policy(object, &Judgement::default(), &unanswered, "later").unwrap();
        assert_eq!(status["ancestors"][0]["conditions"][1]["reason"], "RefNotFound");
    }

    /// By the reasons of Gateway API for policies (GEP-713): a target that is not there, one where another policy counts.
    #[test]
    fn a_policy_says_at_which_targets_it_is_not_in_force() {
        let world = tempfile::tempdir().unwrap();
        let objects = "
{apiVersion: v1, kind: Service, metadata: {namespace: shop, name: web},
 spec: {clusterIP: 10.96.0.7, clusterIPs: [10.96.0.7], ports: [{port: 80}]}}
---
{apiVersion: gateway.networking.k8s.io/v1, kind: HTTPRoute, metadata: {namespace: shop, name: r},
 spec: {parentRefs: [{group: '', kind: Service, name: web}], rules: [{}]}}
";
        std::fs::write(world.path().join("world.yaml"), objects).unwrap();
        let config = discovery::Config { node: "node".into(), trust_domain: "cluster.local".into() };
        let (state, findings) = discovery::load(world.path(), &config).unwrap();
        assert!(findings.is_empty(), "{findings:?}");
        let named = |kind: &str, name: &str| json!({ "kind": kind, "name": name });
        let conflict = Lost::Conflicted("is a target of shop/first too".into());
        // (the target, in which namespace, what else is known of it, the reason, the beginning of the message)
        let table = [
            (named("Service", "web"), "shop", None, "Accepted", ""),
            (named("Service", "none"), "shop", None, "TargetNotFound", "there is no Service shop/none"),
            (named("Service", "web"), "bank", None, "TargetNotFound", "there is no Service bank/web"),
            (named("HTTPRoute", "r"), "shop", None, "Accepted", ""),
            (named("HTTPRoute", "q"), "shop", None, "TargetNotFound", "there is no HTTPRoute shop/q"),
            (named("GRPCRoute", "r"), "shop", None, "TargetNotFound", "there is no GRPCRoute shop/r"),
            (json!({ "kind": "Namespace" }), "bank", None, "Accepted", ""),
            (json!({ "kind": "Pod", "selector": { "matchLabels": { "app": "none" } } }), "shop", None, "Accepted", ""),
            (named("Service", "web"), "shop", Some(conflict), "Conflicted", "is a target of shop/first too"),
        ];
        for (target, namespace, known, reason, message) in table {
            // Each target for itself.
            let spec = json!({ "targetRefs": [{ "kind": "Namespace" }, target] });
            let mut targets = missing(namespace, &spec, &state);
            targets.extend(known.map(|lost| (1, lost)));
            let object = Object { namespace, generation: 1, spec: &spec, status: &Value::Null };
            let lacks = Lacks { provider: None, targets };
            let status = policy(object, &Judgement::default(), &lacks, "now").unwrap();
            let said = |place: usize, condition: usize| {
                let said = &status["ancestors"][place]["conditions"][condition];
                [&said["type"], &said["status"], &said["reason"]].map(|word| word.as_str().unwrap().to_string())
            };
            let is_good = reason == "Accepted";
            let word = if is_good { "True" } else { "False" };
            let programmed = if is_good { "Programmed" } else { reason };
            if status["ancestors"].as_array().unwrap().len() == 2 {
                assert_eq!(said(0, 0), ["Accepted", "True", "Accepted"], "{spec}");
                assert_eq!(said(1, 0), ["Accepted", word, reason], "{spec}");
                assert_eq!(said(1, 2), ["Programmed", word, programmed], "{spec}");
                assert_eq!(status["ancestors"][1]["conditions"][0]["message"], message, "{spec}");
            } else {
                assert_eq!((said(0, 0), is_good), (["Accepted", "True", "Accepted"].map(String::from), true), "{spec}");
            }
        }
    }
}
