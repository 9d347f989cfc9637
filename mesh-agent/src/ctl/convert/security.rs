//! Istio's PeerAuthentication, AuthorizationPolicy and RequestAuthentication.

use serde_json::{Map, Value, json};

use super::fields::Fields;
use super::{Converted, Effect, Object, Problem, World, labels, made};

const OURS: &str = "nodemesh.dev/v1alpha1";

/// What a policy applies to.
fn targets(spec: &mut Fields, may_be_services: bool) -> Result<Vec<Value>, Problem> {
    let selector = spec.within("selector");
    let mut references = spec.list("targetRefs");
    let place = spec.place("targetRef");
    references.extend(spec.take("targetRef").map(|reference| (place, reference)));
    if let Some(mut selector) = selector {
        let place = selector.place("matchLabels");
        let chosen = labels(&selector.take("matchLabels").unwrap_or_default());
        if let Some((field, _)) = selector.rest().into_iter().next() {
            return Err((field, "pods are chosen by matchLabels alone".into()));
        }
        if chosen.is_empty() {
            return Err((place, "it chooses no pod by a label".into()));
        }
        return Ok(vec![json!({"kind": "Pod", "selector": {"matchLabels": chosen}})]);
    }
    let service = |(place, reference): &(String, Value)| {
        let is_service = reference["kind"] == "Service" && reference["group"].as_str().unwrap_or_default().is_empty();
        match (is_service && may_be_services, reference["name"].as_str()) {
            (true, Some(name)) => Ok(json!({"kind": "Service", "name": name})),
            _ => Err((place.clone(), "it is attached to a gateway or a waypoint, which there is none of".to_string())),
        }
    };
    match references.is_empty() {
        true => Ok(vec![json!({"kind": "Namespace"})]),
        false => references.iter().map(service).collect(),
    }
}

fn problems(problem: Problem) -> Vec<Problem> {
    vec![problem]
}

/// `security.istio.io` PeerAuthentication
pub fn peer(world: &World, object: &Object) -> Result<Vec<Value>, Vec<Problem>> {
    let mut spec = Fields::of("spec", &object.value["spec"]);
    let target_refs = targets(&mut spec, false).map_err(problems)?;
    let mut made_spec = Map::new();
    made_spec.insert("targetRefs".into(), target_refs.into());
    if let Some(mtls) = spec.within("mtls") {
        made_spec.extend(mode(mtls)?.map(|mode| ("mode".to_string(), mode.into())));
    }
    let mut overrides = Vec::new();
    if let Some(mut ports) = spec.within("portLevelMtls") {
        for port in ports.names() {
            let place = ports.place(&port);
            let number: u16 = port.parse().map_err(|_| vec![(place, "it is no port".to_string())])?;
            if let Some(chosen) = ports.within(&port) {
                // UNSET is what holds for the other ports: no word of its own.
                overrides.extend(mode(chosen)?.map(|mode| json!({"port": number, "mode": mode})));
            }
        }
    }
    let left = spec.rest();
    if !left.is_empty() {
        return Err(left);
    }
    if !overrides.is_empty() {
        made_spec.insert("portOverrides".into(), overrides.into());
    }
    Ok(vec![made(OURS, "PeerAuthentication", world.place(&object.namespace), &object.name, made_spec.into())])
}

/// `mode`; None: UNSET.
fn mode(mut mtls: Fields) -> Result<Option<&'static str>, Vec<Problem>> {
    let place = mtls.place("mode");
    let mode = match mtls.text("mode").as_deref() {
        None | Some("UNSET") => None,
        Some("STRICT") => Some("STRICT"),
        Some("PERMISSIVE") => Some("PERMISSIVE"),
        Some("DISABLE") => Some("DISABLE"),
        Some(other) => return Err(vec![(place, format!("{other} is no mode"))]),
    };
    let left = mtls.rest();
    if left.is_empty() { Ok(mode) } else { Err(left) }
}

/// `security.istio.io` RequestAuthentication
pub fn request(world: &World, object: &Object) -> Result<Vec<Value>, Vec<Problem>> {
    let mut spec = Fields::of("spec", &object.value["spec"]);
    let target_refs = targets(&mut spec, true).map_err(problems)?;
    let mut rules = Vec::new();
    let mut left = Vec::new();
    for (at, rule) in spec.list("jwtRules") {
        let mut rule = Fields::of(at, &rule);
        let mut made_rule = Map::new();
        // The same words mean the same.
        let same = [
            "issuer",
            "audiences",
            "jwks",
            "jwksUri",
            "fromHeaders",
            "fromCookies",
            "fromParams",
            "forwardOriginalToken",
        ];
        made_rule.extend(same.into_iter().filter_map(|name| Some((name.to_string(), rule.take(name)?))));
        let outputs = rule.list("outputClaimToHeaders");
        if !outputs.is_empty() {
            let outputs: Vec<Value> = outputs.into_iter().map(|(_, output)| output).collect();
            made_rule.insert("outputClaimToHeaders".into(), outputs.into());
        }
        if !made_rule.contains_key("jwks") && !made_rule.contains_key("jwksUri") {
            left.push((rule.place("jwksUri"), "where the issuer's keys are must be said: jwksUri".to_string()));
        }
        left.extend(rule.rest());
        rules.push(Value::from(made_rule));
    }
    left.extend(spec.rest());
    if rules.is_empty() {
        left.push(("spec.jwtRules".into(), "no issuer is believed: it says nothing".into()));
    }
    if !left.is_empty() {
        return Err(left);
    }
    let spec = json!({"targetRefs": target_refs, "jwtRules": rules});
    Ok(vec![made(OURS, "RequestAuthentication", world.place(&object.namespace), &object.name, spec)])
}

/// `security.istio.io` AuthorizationPolicy
pub fn authorization(world: &World, object: &Object, notes: &mut Converted) -> Result<Vec<Value>, Vec<Problem>> {
    let mut spec = Fields::of("spec", &object.value["spec"]);
    let action = spec.text("action").unwrap_or_else(|| "ALLOW".into());
    let target_refs = targets(&mut spec, true).map_err(problems)?;
    if !matches!(action.as_str(), "ALLOW" | "DENY" | "AUDIT") {
        let said = "who is asked stands in Istio's own configuration: write an ExternalAuthorizer and an AuthorizationPolicy of \
                    action CUSTOM (docs/authorization.md); until then nobody is asked";
        return Err(vec![("spec.action".into(), said.into())]);
    }
    if object.value["metadata"]["annotations"]["istio.io/dry-run"] == "true" {
        return Err(vec![("metadata.annotations".into(), "it is a dry run: in force it would decide".into())]);
    }
    let listed = spec.list("rules");
    let left = spec.rest();
    if !left.is_empty() {
        return Err(left);
    }
    if listed.is_empty() && action != "ALLOW" {
        notes.note(object, "spec.rules", "without a rule it means nobody: there is nothing to write", Effect::Nearly);
        return Ok(Vec::new());
    }
    let mut rules = Vec::new();
    for (at, rule) in listed {
        let read = rule_of(&at, &rule);
        let exact = read.lost.is_empty();
        for (field, said) in &read.lost {
            let (follows, effect) = match action.as_str() {
                "ALLOW" => ("the rule is left out, so less is allowed", Effect::Stricter),
                "DENY" => ("the rule does without it, so more is denied", Effect::Stricter),
                _ => ("the rule is left out", Effect::LeftOut),
            };
            notes.note(object, field.clone(), format!("{said}; {follows}"), effect);
        }
        match (exact, action.as_str()) {
            (true, _) | (false, "DENY") => rules.extend(read.rules),
            (false, _) => {}
        }
    }
    if rules.is_empty() && action == "AUDIT" {
        return Ok(Vec::new());
    }
    let spec = json!({"targetRefs": target_refs, "action": action, "rules": rules});
    Ok(vec![made(OURS, "AuthorizationPolicy", world.place(&object.namespace), &object.name, spec)])
}

/// A rule of Istio's as ours.
struct ReadRule {
    /// Together they mean what it meant, or more, where something was lost.
    rules: Vec<Value>,
    /// What cannot be said.
    lost: Vec<Problem>,
}

/// One of `from`, one of `to` and all of `when` make one of our rules: ours know one list of each.
fn rule_of(at: &str, rule: &Value) -> ReadRule {
    let mut fields = Fields::of(at, rule);
    let mut lost = Vec::new();
    let anyone = || vec![Map::from_iter([("sources".to_string(), json!([{"type": "Any"}]))])];
    let from = fields.list("from");
    let mut callers: Vec<Map<String, Value>> = from.iter().map(|(at, one)| caller(at, one, &mut lost)).collect();
    if callers.is_empty() {
        callers = anyone();
    }
    let to = fields.list("to");
    let mut asked: Vec<Map<String, Value>> = to.iter().map(|(at, one)| operation(at, one, &mut lost)).collect();
    if asked.is_empty() {
        asked = vec![Map::new()];
    }
    let when: Vec<Value> = fields.list("when").iter().filter_map(|(at, one)| condition(at, one, &mut lost)).collect();
    lost.extend(fields.rest());
    let mut rules = Vec::new();
    for caller in &callers {
        for operation in &asked {
            let mut made = caller.clone();
            made.extend(operation.clone());
            if !when.is_empty() {
                made.insert("when".into(), when.clone().into());
            }
            rules.push(Value::from(made));
        }
    }
    ReadRule { rules, lost }
}

/// A word of Istio's as a source of ours.
type Say = fn(&str) -> Value;

/// One of `from`: who calls.
fn caller(at: &str, from: &Value, lost: &mut Vec<Problem>) -> Map<String, Value> {
    let mut outer = Fields::of(at, from);
    let mut source = outer.within("source").unwrap_or_else(|| Fields::of(format!("{at}.source"), &Value::Null));
    let kinds: [(&str, &str, Say); 4] = [
        ("principals", "notPrincipals", principal),
        ("serviceAccounts", "notServiceAccounts", service_account),
        ("namespaces", "notNamespaces", |name| json!({"type": "Namespace", "namespace": name})),
        ("ipBlocks", "notIpBlocks", |range| json!({"type": "IPBlock", "ipBlock": {"cidr": network(range)}})),
    ];
    if source.names().is_empty() {
        lost.push((at.to_string(), "it says of nobody who calls".into()));
    }
    let mut sources: Option<(&str, Vec<Value>)> = None;
    let mut not_sources = Vec::new();
    for (name, not, one) in kinds {
        let values = source.texts(name);
        let negated = source.texts(not);
        if name == "namespaces" && values.iter().chain(&negated).any(|value| value.contains('*')) {
            lost.push((source.place(name), "a namespace is named in full here".into()));
            continue;
        }
        not_sources.extend(negated.iter().map(|value| one(value)));
        if values.is_empty() {
            continue;
        }
        match &sources {
            None => sources = Some((name, values.iter().map(|value| one(value)).collect())),
            Some((first, _)) => {
                let said = format!("who is meant by {first} and by {name} at once cannot be said");
                lost.push((source.place(name), said));
            }
        }
    }
    let mut made = Map::new();
    made.insert("sources".into(), sources.map_or_else(|| json!([{"type": "Any"}]), |(_, all)| all.into()));
    if !not_sources.is_empty() {
        made.insert("notSources".into(), not_sources.into());
    }
    for name in ["requestPrincipals", "notRequestPrincipals"] {
        let values = source.texts(name);
        if !values.is_empty() {
            made.insert(name.into(), values.into());
        }
    }
    lost.extend(source.rest());
    lost.extend(outer.rest());
    made
}

/// Istio's principals are ids without their scheme.
fn principal(name: &str) -> Value {
    let is_pattern = name.starts_with('*');
    json!({"type": "SPIFFE", "spiffe": if is_pattern { name.to_string() } else { format!("spiffe://{name}") }})
}

fn service_account(name: &str) -> Value {
    match name.split_once('/') {
        Some((namespace, name)) => {
            json!({"type": "ServiceAccount", "serviceAccount": {"name": name, "namespace": namespace}})
        }
        None => json!({"type": "ServiceAccount", "serviceAccount": {"name": name}}),
    }
}

/// An address is a range of one.
fn network(range: &str) -> String {
    match (range.contains('/'), range.contains(':')) {
        (true, _) => range.to_string(),
        (false, true) => format!("{range}/128"),
        (false, false) => format!("{range}/32"),
    }
}

/// One of `to`: what is asked for.
fn operation(at: &str, to: &Value, lost: &mut Vec<Problem>) -> Map<String, Value> {
    let mut outer = Fields::of(at, to);
    let mut operation =
        outer.within("operation").unwrap_or_else(|| Fields::of(format!("{at}.operation"), &Value::Null));
    if operation.names().is_empty() {
        lost.push((at.to_string(), "it says of nothing what is asked for".into()));
    }
    let mut made = Map::new();
    let place = operation.place("ports");
    let ports = operation.texts("ports");
    let numbers: Vec<u16> = ports.iter().filter_map(|port| port.parse().ok()).collect();
    if numbers.len() < ports.len() {
        lost.push((place, "a port is no number".into()));
    }
    if !numbers.is_empty() {
        made.insert("ports".into(), numbers.into());
    }
    let mut request = Map::new();
    for name in ["hosts", "notHosts", "methods", "notMethods", "paths", "notPaths"] {
        let values = operation.texts(name);
        let place = operation.place(name);
        // A value that names a port is of no host here.
        if name.ends_with("osts") && values.iter().any(|host| host.contains(':')) {
            lost.push((place, "a host is compared without its port".into()));
        } else if !values.is_empty() {
            request.insert(name.into(), values.into());
        }
    }
    if !request.is_empty() {
        made.insert("requests".into(), json!([request]));
    }
    lost.extend(operation.rest());
    lost.extend(outer.rest());
    made
}

/// One of `when`.
fn condition(at: &str, when: &Value, lost: &mut Vec<Problem>) -> Option<Value> {
    let mut fields = Fields::of(at, when);
    let place = fields.place("key");
    let key = fields.text("key").unwrap_or_default();
    let (values, not_values) = (fields.texts("values"), fields.texts("notValues"));
    lost.extend(fields.rest());
    let is_known = key.starts_with("request.headers[")
        || key.starts_with("request.auth.claims[")
        || matches!(key.as_str(), "request.auth.principal" | "request.auth.audiences");
    if !is_known {
        lost.push((place, format!("{key} is no condition that is looked at")));
        return None;
    }
    let mut made = Map::from_iter([("key".to_string(), Value::from(key))]);
    for (name, values) in [("values", values), ("notValues", not_values)] {
        if !values.is_empty() {
            made.insert(name.into(), values.into());
        }
    }
    Some(made.into())
}
