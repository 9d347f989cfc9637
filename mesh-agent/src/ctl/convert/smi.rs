//! SMI's TrafficSplit, TrafficTarget and HTTPRouteGroup.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use super::fields::Fields;
use super::{Converted, Effect, Object, Problem, World, labels, made};

const GATEWAY: &str = "gateway.networking.k8s.io/v1";
const OURS: &str = "nodemesh.dev/v1alpha1";

/// What regular expressions are made of. A pattern without any of it is a text.
const SPECIAL: &str = "\\^$.|?*+()[]{}";

/// Everything of SMI's.
pub fn convert(world: &World, converted: &mut Converted) {
    for object in &world.objects {
        let came = match (object.group.as_str(), object.kind.as_str()) {
            ("split.smi-spec.io", "TrafficSplit") => split(world, object),
            ("access.smi-spec.io", "TrafficTarget") => target(world, object, converted),
            // These are read where they are named.
            ("specs.smi-spec.io", "HTTPRouteGroup" | "TCPRoute") => continue,
            (group, _) if group.ends_with("smi-spec.io") => {
                Err(vec![(String::new(), "nothing of this mesh is like this kind".to_string())])
            }
            (_, _) => continue,
        };
        converted.take(object, came);
    }
}

/// An HTTPRouteGroup's matches by name.
fn group<'a>(world: &'a World, namespace: &str, name: &str) -> Option<Vec<&'a Value>> {
    let is_it = |object: &&Object| {
        object.group == "specs.smi-spec.io"
            && object.kind == "HTTPRouteGroup"
            && object.namespace == namespace
            && object.name == name
    };
    let found = world.objects.iter().find(is_it)?;
    Some(found.value["spec"]["matches"].as_array().or(found.value["matches"].as_array())?.iter().collect())
}

fn split(world: &World, object: &Object) -> Result<Vec<Value>, Vec<Problem>> {
    let mut spec = Fields::of("spec", &object.value["spec"]);
    let mut problems = Vec::new();
    let root = spec.text("service").unwrap_or_default();
    let root = root.split('.').next().unwrap_or_default().to_string();
    let mut backends = Vec::new();
    for (at, backend) in spec.list("backends") {
        let mut backend = Fields::of(at, &backend);
        match (backend.text("service"), backend.number("weight")) {
            (Some(service), Some(weight)) => backends.push((service, weight)),
            _ => problems.push((backend.place("weight"), "a backend is a Service and a whole number".into())),
        }
        problems.extend(backend.rest());
    }
    let mut matches = Vec::new();
    for (at, reference) in spec.list("matches") {
        let name = reference["name"].as_str().unwrap_or_default();
        match group(world, &object.namespace, name) {
            Some(all) if reference["kind"] == "HTTPRouteGroup" => {
                for one in all {
                    match route_matches(&format!("HTTPRouteGroup {name}"), one) {
                        Ok(more) => matches.extend(more),
                        Err(more) => problems.extend(more),
                    }
                }
            }
            _ => problems.push((at, format!("there is no HTTPRouteGroup {name} among what was given"))),
        }
    }
    problems.extend(spec.rest());
    let Some(ports) = world.ports(&object.namespace, &root) else {
        problems.push(("spec.service".into(), format!("its ports are not known: give the Service {root}, too")));
        return Err(problems);
    };
    for (service, _) in &backends {
        if world.ports(&object.namespace, service).is_some_and(|has| ports.iter().any(|port| !has.contains(port))) {
            problems.push(("spec.backends".into(), format!("Service {service} has not every port of {root}")));
        }
    }
    if !problems.is_empty() {
        return Err(problems);
    }
    let route = |port: &u64| {
        let references: Vec<Value> =
            backends.iter().map(|(name, weight)| json!({"name": name, "port": port, "weight": weight})).collect();
        let mut rule = Map::from_iter([("backendRefs".to_string(), Value::from(references))]);
        let mut rules = Vec::new();
        if !matches.is_empty() {
            rule.insert("matches".into(), matches.clone().into());
            // What does not match goes where it was going.
            rules.push(json!({"backendRefs": [{"name": root, "port": port}]}));
        }
        rules.insert(0, rule.into());
        let name = if ports.len() > 1 { format!("{}-{port}", object.name) } else { object.name.clone() };
        let spec =
            json!({"parentRefs": [{"group": "", "kind": "Service", "name": root, "port": port}], "rules": rules});
        made(GATEWAY, "HTTPRoute", &object.namespace, &name, spec)
    };
    Ok(ports.iter().map(route).collect())
}

/// A match of an HTTPRouteGroup as those of an HTTPRoute: one for each method.
fn route_matches(at: &str, one: &Value) -> Result<Vec<Value>, Vec<Problem>> {
    let Match { path, methods, headers } = Match::read(at, one)?;
    let mut made = Map::new();
    if let Some(path) = path {
        made.insert("path".into(), json!({"type": "RegularExpression", "value": path}));
    }
    if !headers.is_empty() {
        let one =
            |(name, value): (&String, &String)| json!({"name": name, "type": "RegularExpression", "value": value});
        made.insert("headers".into(), headers.iter().map(one).collect());
    }
    if methods.is_empty() {
        return Ok(vec![made.into()]);
    }
    let with = |method: String| {
        let mut made = made.clone();
        made.insert("method".into(), method.into());
        Value::from(made)
    };
    Ok(methods.into_iter().map(with).collect())
}

/// A match of an HTTPRouteGroup.
struct Match {
    /// A regular expression.
    path: Option<String>,
    /// None: any.
    methods: Vec<String>,
    /// By name; regular expressions.
    headers: BTreeMap<String, String>,
}

impl Match {
    fn read(at: &str, one: &Value) -> Result<Self, Vec<Problem>> {
        let mut fields = Fields::of(at, one);
        // It is named elsewhere.
        let _ = fields.take("name");
        let path = fields.text("pathRegex").filter(|path| path != ".*");
        let mut methods = fields.texts("methods");
        if methods.iter().any(|method| method == "*") {
            methods.clear();
        }
        let mut headers = BTreeMap::new();
        match fields.take("headers") {
            Some(Value::Array(all)) => headers.extend(all.iter().flat_map(labels)),
            Some(other) => headers.extend(labels(&other)),
            None => {}
        }
        let left = fields.rest();
        if left.is_empty() { Ok(Self { path, methods, headers }) } else { Err(left) }
    }
}

fn target(world: &World, object: &Object, notes: &mut Converted) -> Result<Vec<Value>, Vec<Problem>> {
    let mut spec =
        Fields::of("spec", if object.value["spec"].is_null() { &object.value } else { &object.value["spec"] });
    for name in ["apiVersion", "kind", "metadata"] {
        let _ = spec.take(name);
    }
    let mut problems = Vec::new();
    let destination = spec.take("destination").unwrap_or_default();
    let account = destination["name"].as_str().unwrap_or_default().to_string();
    let namespace = destination["namespace"].as_str().unwrap_or(&object.namespace).to_string();
    if destination["kind"] != "ServiceAccount" {
        problems.push(("spec.destination.kind".into(), "callers are told by service accounts".into()));
    }
    let mut sources = Vec::new();
    for (at, source) in spec.list("sources") {
        let place = source["namespace"].as_str().unwrap_or(&object.namespace);
        match (source["kind"].as_str(), source["name"].as_str()) {
            (Some("ServiceAccount"), Some(name)) => {
                sources.push(json!({"type": "ServiceAccount", "serviceAccount": {"name": name, "namespace": place}}));
            }
            _ => problems.push((at, "callers are told by service accounts".into())),
        }
    }
    let port = destination["port"].as_u64();
    let mut rules = Vec::new();
    for (at, rule) in spec.list("rules") {
        rules.extend(allowed(world, object, &at, &rule, &sources, port, notes));
    }
    problems.extend(spec.rest());
    let target_refs = pods_of(world, &namespace, &account);
    if target_refs.is_empty() {
        let said = format!(
            "which pods run as {namespace}/{account} is not known: give the Deployments, StatefulSets or DaemonSets that do, too"
        );
        problems.push(("spec.destination".into(), said));
    }
    if !problems.is_empty() {
        return Err(problems);
    }
    let spec = json!({"targetRefs": target_refs, "action": "ALLOW", "rules": rules});
    Ok(vec![made(OURS, "AuthorizationPolicy", &namespace, &object.name, spec)])
}

/// What one of `rules` allows. What cannot be said exactly is not allowed.
fn allowed(
    world: &World,
    object: &Object,
    at: &str,
    rule: &Value,
    sources: &[Value],
    port: Option<u64>,
    notes: &mut Converted,
) -> Option<Value> {
    let name = rule["name"].as_str().unwrap_or_default();
    let mut made = Map::from_iter([("sources".to_string(), Value::from(sources.to_vec()))]);
    made.extend(port.map(|port| ("ports".to_string(), json!([port]))));
    if rule["kind"] == "TCPRoute" {
        return Some(made.into());
    }
    let refuse = |notes: &mut Converted, said: String| {
        notes.note(object, at, format!("{said}; it is left out, so less is allowed"), Effect::Stricter);
    };
    let Some(all) = group(world, &object.namespace, name).filter(|_| rule["kind"] == "HTTPRouteGroup") else {
        refuse(notes, format!("there is no HTTPRouteGroup {name} among what was given"));
        return None;
    };
    let wanted: Vec<&str> = rule["matches"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    let mut requests = Vec::new();
    for one in all {
        let of = one["name"].as_str().unwrap_or_default();
        if !wanted.is_empty() && !wanted.contains(&of) {
            continue;
        }
        match Match::read(&format!("HTTPRouteGroup {name}"), one).map_err(|left| left.into_iter().next()) {
            Err(problem) => {
                refuse(notes, problem.map_or_else(String::new, |(field, said)| format!("{of}: {field}: {said}")))
            }
            Ok(Match { headers, .. }) if !headers.is_empty() => {
                refuse(notes, format!("{of}: headers are matched by regular expressions"))
            }
            Ok(Match { path, methods, .. }) => match path.as_deref().map(plain_path) {
                Some(None) => refuse(notes, format!("{of}: pathRegex is no plain path and no prefix")),
                path => requests.push(request(path.flatten(), methods)),
            },
        }
    }
    if requests.is_empty() {
        return None;
    }
    if !requests.contains(&json!({})) {
        made.insert("requests".into(), requests.into());
    }
    Some(made.into())
}

fn request(path: Option<String>, methods: Vec<String>) -> Value {
    let mut made = Map::new();
    made.extend(path.map(|path| ("paths".to_string(), json!([path]))));
    if !methods.is_empty() {
        made.insert("methods".into(), methods.into());
    }
    made.into()
}

/// A regular expression that is a path, or a path with `.*` behind it, as policies say it.
fn plain_path(pattern: &str) -> Option<String> {
    let pattern = pattern.strip_prefix('^').unwrap_or(pattern);
    let pattern = pattern.strip_suffix('$').unwrap_or(pattern);
    let (text, end) = pattern.strip_suffix(".*").map_or((pattern, ""), |text| (text, "*"));
    let is_plain = text.starts_with('/') && !text.contains(|c| SPECIAL.contains(c));
    is_plain.then(|| format!("{text}{end}"))
}

/// The pods of a service account, by what makes them.
fn pods_of(world: &World, namespace: &str, account: &str) -> Vec<Value> {
    let makers = ["Deployment", "StatefulSet", "DaemonSet", "ReplicaSet"];
    let is_of = |object: &&Object| {
        let runs_as = object.value["spec"]["template"]["spec"]["serviceAccountName"].as_str().unwrap_or("default");
        object.group == "apps"
            && makers.contains(&object.kind.as_str())
            && object.namespace == namespace
            && runs_as == account
    };
    let selected =
        world.objects.iter().filter(is_of).map(|object| labels(&object.value["spec"]["selector"]["matchLabels"]));
    selected
        .filter(|labels| !labels.is_empty())
        .map(|labels| json!({"kind": "Pod", "selector": {"matchLabels": labels}}))
        .collect()
}
