//! Istio's VirtualService and DestinationRule, and which object is whose.

use std::time::Duration;

use serde_json::{Map, Value, json};

use super::fields::Fields;
use super::{Converted, Effect, Object, Problem, World, made, security};

const GATEWAY: &str = "gateway.networking.k8s.io/v1";
const OURS: &str = "nodemesh.dev/v1alpha1";

/// Everything of Istio's.
pub fn convert(world: &World, converted: &mut Converted) {
    for object in &world.objects {
        let came = match (object.group.as_str(), object.kind.as_str()) {
            ("security.istio.io", "PeerAuthentication") => security::peer(world, object),
            ("security.istio.io", "RequestAuthentication") => security::request(world, object),
            ("security.istio.io", "AuthorizationPolicy") => security::authorization(world, object, converted),
            ("networking.istio.io", "VirtualService") => virtual_service(world, object, converted),
            ("networking.istio.io", "DestinationRule") => destination_rule(object, converted),
            (group, _) if group.ends_with("istio.io") => {
                Err(vec![(String::new(), "nothing of this mesh is like this kind".to_string())])
            }
            // Services and the like are there to be looked at.
            (_, _) => continue,
        };
        converted.take(object, came);
    }
}

/// A Service of the cluster, by one of the names that it has: namespace and name.
fn service(host: &str, namespace: &str) -> Option<(String, String)> {
    let host = host.strip_suffix(".svc.cluster.local").or_else(|| host.strip_suffix(".svc")).unwrap_or(host);
    match host.split('.').collect::<Vec<_>>().as_slice() {
        [name] if *name != "*" && !name.is_empty() => Some((namespace.to_string(), (*name).to_string())),
        [name, namespace] if *name != "*" => Some(((*namespace).to_string(), (*name).to_string())),
        _ => None,
    }
}

fn virtual_service(world: &World, object: &Object, notes: &mut Converted) -> Result<Vec<Value>, Vec<Problem>> {
    let mut spec = Fields::of("spec", &object.value["spec"]);
    let hosts = spec.texts("hosts");
    let gateways = spec.texts("gateways");
    let exported = spec.texts("exportTo");
    let mut problems = Vec::new();
    if !gateways.iter().all(|gateway| gateway == "mesh") {
        problems.push((
            "spec.gateways".into(),
            "it is (also) for a gateway: this mesh leads calls within the cluster alone".into(),
        ));
    }
    if !exported.iter().all(|to| to == "*") {
        problems.push(("spec.exportTo".into(), "who sees a route follows from its namespace (docs/routes.md)".into()));
    }
    let mut services = Vec::new();
    for host in &hosts {
        match service(host, &object.namespace) {
            Some(service) => services.push(service),
            None => problems.push(("spec.hosts".into(), format!("{host} is no Service of the cluster"))),
        }
    }
    let listed = spec.list("http");
    let mut rules = Vec::new();
    for (at, rule) in &listed {
        match http_rule(world, object, at, rule, notes) {
            Ok(rule) => rules.push(rule),
            Err(more) => problems.extend(more),
        }
    }
    problems.extend(spec.rest());
    if rules.is_empty() && problems.is_empty() {
        problems.push(("spec.http".into(), "it has no route".into()));
    }
    if !problems.is_empty() {
        return Err(problems);
    }
    if rules.len() > 1 {
        let said = "the first rule that matches was taken; of a route it is the most specific (docs/routes.md): see that they agree";
        notes.note(object, "spec.http", said, Effect::Nearly);
    }
    let many = services.len() > 1;
    let route = |(namespace, service): (String, String)| {
        let name = if many { format!("{}-{service}", object.name) } else { object.name.clone() };
        if namespace != object.namespace {
            let said =
                format!("the route belongs beside its Service, to namespace {namespace}, where every client sees it");
            notes.note(object, "metadata.namespace", said, Effect::Nearly);
        }
        let spec = json!({"parentRefs": [{"group": "", "kind": "Service", "name": service}], "rules": rules});
        made(GATEWAY, "HTTPRoute", &namespace, &name, spec)
    };
    Ok(services.into_iter().map(route).collect())
}

fn http_rule(
    world: &World,
    object: &Object,
    at: &str,
    rule: &Value,
    notes: &mut Converted,
) -> Result<Value, Vec<Problem>> {
    let mut rule = Fields::of(at, rule);
    let mut problems = Vec::new();
    let mut made = Map::new();
    made.extend(rule.text("name").map(|name| ("name".to_string(), name.into())));
    // A prefix that is replaced must be one of whole segments.
    let rewrite = rule.within("rewrite");
    let by_segments = rewrite.is_some();
    let mut matches = Vec::new();
    let mut prefixes = 0;
    for (at, one) in rule.list("match") {
        match http_match(&at, &one, by_segments) {
            Ok((made, is_prefix)) => {
                prefixes += usize::from(is_prefix);
                matches.push(made);
            }
            Err(more) => problems.extend(more),
        }
    }
    let mut filters = Vec::new();
    if let Some(rewrite) = rewrite {
        let all_prefixes = prefixes == matches.len() && !matches.is_empty();
        match url_rewrite(rewrite, all_prefixes, prefixes == 0 && !matches.is_empty()) {
            Ok(filter) => filters.push(filter),
            Err(more) => problems.extend(more),
        }
        if all_prefixes {
            let said = "a prefix means whole segments here: /api, /api/x, and not /apix";
            notes.note(object, rule.place("match"), said, Effect::Nearly);
        }
    }
    if let Some(headers) = rule.within("headers") {
        match header_filters(headers) {
            Ok(more) => filters.extend(more),
            Err(more) => problems.extend(more),
        }
    }
    if let Some(redirect) = rule.within("redirect") {
        match request_redirect(redirect) {
            Ok(filter) => filters.push(filter),
            Err(more) => problems.extend(more),
        }
    }
    if let Some(mirror) = rule.within("mirror") {
        match backend(world, object, mirror) {
            Ok(backend) => {
                let mut filter = json!({"type": "RequestMirror", "requestMirror": {"backendRef": backend}});
                if let Some(percentage) = rule.take("mirrorPercentage") {
                    let share = (percentage["value"].as_f64().unwrap_or(100.0) * 1000.0).round();
                    filter["requestMirror"]["fraction"] = json!({"numerator": share as u64, "denominator": 100_000});
                }
                filters.push(filter);
            }
            Err(more) => problems.extend(more),
        }
    }
    let mut backends = Vec::new();
    for (at, route) in rule.list("route") {
        let mut route = Fields::of(at, &route);
        let weight = route.number("weight");
        let headers = route.within("headers").map(header_filters);
        match route.within("destination").map(|destination| backend(world, object, destination)) {
            Some(Ok(mut backend)) => {
                if let Some(weight) = weight {
                    backend["weight"] = weight.into();
                }
                match headers {
                    Some(Ok(filters)) if !filters.is_empty() => backend["filters"] = filters.into(),
                    Some(Err(more)) => problems.extend(more),
                    Some(Ok(_)) | None => {}
                }
                backends.push(backend);
            }
            Some(Err(more)) => problems.extend(more),
            None => problems.push((route.place("destination"), "it is missing".into())),
        }
        problems.extend(route.rest());
    }
    let mut timeouts = Map::new();
    duration_into(&mut timeouts, "request", rule.text("timeout"), &rule.place("timeout"), &mut problems);
    if let Some(retries) = rule.within("retries") {
        retry(retries, object, &mut made, &mut timeouts, notes, &mut problems);
    }
    problems.extend(rule.rest());
    if !problems.is_empty() {
        return Err(problems);
    }
    for (name, values) in [("matches", matches), ("filters", filters), ("backendRefs", backends)] {
        if !values.is_empty() {
            made.insert(name.into(), values.into());
        }
    }
    if !timeouts.is_empty() {
        made.insert("timeouts".into(), timeouts.into());
    }
    Ok(made.into())
}

/// One of `match`, and whether its path is a prefix by segments.
fn http_match(at: &str, one: &Value, by_segments: bool) -> Result<(Value, bool), Vec<Problem>> {
    let mut one = Fields::of(at, one);
    let mut problems = Vec::new();
    let mut made = Map::new();
    let mut is_prefix = false;
    // It is for people.
    let _ = one.take("name");
    let _ = one.take("ignoreUriCase").filter(|value| *value != Value::Bool(false)).map(|_| {
        problems.push((one.place("ignoreUriCase"), "paths are compared with case".to_string()));
    });
    if let Some(uri) = one.take("uri") {
        let place = one.place("uri");
        match string_match(&uri) {
            Some(Matched::Exact(path)) => {
                made.insert("path".into(), json!({"type": "Exact", "value": path}));
            }
            Some(Matched::Prefix(path)) if path == "/" || by_segments => {
                is_prefix = true;
                made.insert("path".into(), json!({"type": "PathPrefix", "value": path}));
            }
            // Istio's prefix /api means /apix, too.
            Some(Matched::Prefix(path)) => {
                made.insert(
                    "path".into(),
                    json!({"type": "RegularExpression", "value": format!("{}.*", regex::escape(&path))}),
                );
            }
            Some(Matched::Regex(path)) => {
                made.insert("path".into(), json!({"type": "RegularExpression", "value": path}));
            }
            None => problems.push((place, "it is neither exact, prefix nor regex".into())),
        }
    }
    if let Some(method) = one.take("method") {
        match string_match(&method) {
            Some(Matched::Exact(method)) => {
                made.insert("method".into(), method.into());
            }
            _ => problems.push((one.place("method"), "a method is named in full".into())),
        }
    }
    for (from, to) in [("headers", "headers"), ("queryParams", "queryParams")] {
        let Some(mut named) = one.within(from) else { continue };
        let mut all = Vec::new();
        for name in named.names() {
            let place = named.place(&name);
            let value = named.take(&name).unwrap_or_else(|| json!({}));
            all.push(match string_match(&value) {
                Some(Matched::Exact(text)) => json!({"name": name, "value": text}),
                Some(Matched::Prefix(text)) => {
                    json!({"name": name, "type": "RegularExpression", "value": format!("{}.*", regex::escape(&text))})
                }
                Some(Matched::Regex(text)) => json!({"name": name, "type": "RegularExpression", "value": text}),
                // Nothing asked of it: that it is there.
                None if value == json!({}) => json!({"name": name, "type": "RegularExpression", "value": ".*"}),
                None => {
                    problems.push((place, "it is neither exact, prefix nor regex".into()));
                    continue;
                }
            });
        }
        made.insert(to.into(), all.into());
    }
    problems.extend(one.rest());
    if problems.is_empty() { Ok((made.into(), is_prefix)) } else { Err(problems) }
}

enum Matched {
    Exact(String),
    Prefix(String),
    Regex(String),
}

fn string_match(value: &Value) -> Option<Matched> {
    let fields = value.as_object()?;
    let (name, text) = fields.iter().next().filter(|_| fields.len() == 1)?;
    let text = text.as_str()?.to_string();
    match name.as_str() {
        "exact" => Some(Matched::Exact(text)),
        "prefix" => Some(Matched::Prefix(text)),
        "regex" => Some(Matched::Regex(text)),
        _ => None,
    }
}

/// `destination` and `mirror`
fn backend(world: &World, object: &Object, mut destination: Fields) -> Result<Value, Vec<Problem>> {
    let mut problems = Vec::new();
    let place = destination.place("host");
    let host = destination.text("host").unwrap_or_default();
    if destination.take("subset").is_some() {
        let said = "a subset needs a Service of its own here: make one that selects its pods, and name it as host";
        problems.push((destination.place("subset"), said.into()));
    }
    let port = destination.within("port").and_then(|mut port| port.number("number"));
    let port_place = destination.place("port");
    problems.extend(destination.rest());
    let Some((namespace, name)) = service(&host, &object.namespace) else {
        problems.push((place, format!("{host} is no Service of the cluster")));
        return Err(problems);
    };
    let port = match (port, world.ports(&namespace, &name).as_deref()) {
        (Some(port), _) => port,
        (None, Some([only])) => *only,
        (None, _) => {
            problems
                .push((port_place, format!("the port must be said, or the Service {namespace}/{name} be given, too")));
            return Err(problems);
        }
    };
    if !problems.is_empty() {
        return Err(problems);
    }
    let mut backend = json!({"name": name, "port": port});
    if namespace != object.namespace {
        backend["namespace"] = namespace.into();
    }
    Ok(backend)
}

fn url_rewrite(mut rewrite: Fields, prefixes: bool, exact: bool) -> Result<Value, Vec<Problem>> {
    let mut made = Map::new();
    let place = rewrite.place("uri");
    let mut problems = Vec::new();
    made.extend(rewrite.text("authority").map(|host| ("hostname".to_string(), host.into())));
    if let Some(uri) = rewrite.text("uri") {
        match (prefixes, exact) {
            (true, _) => {
                made.insert("path".into(), json!({"type": "ReplacePrefixMatch", "replacePrefixMatch": uri}));
            }
            (false, true) => {
                made.insert("path".into(), json!({"type": "ReplaceFullPath", "replaceFullPath": uri}));
            }
            (false, false) => {
                let said =
                    "a rewrite of the path needs matches that are all by prefix, or all exact: make a rule of each";
                problems.push((place, said.to_string()));
            }
        }
    }
    problems.extend(rewrite.rest());
    if problems.is_empty() { Ok(json!({"type": "URLRewrite", "urlRewrite": made})) } else { Err(problems) }
}

fn request_redirect(mut redirect: Fields) -> Result<Value, Vec<Problem>> {
    let mut made = Map::new();
    made.extend(redirect.text("scheme").map(|scheme| ("scheme".to_string(), scheme.into())));
    made.extend(redirect.text("authority").map(|host| ("hostname".to_string(), host.into())));
    made.extend(redirect.number("port").map(|port| ("port".to_string(), port.into())));
    if let Some(uri) = redirect.text("uri") {
        made.insert("path".into(), json!({"type": "ReplaceFullPath", "replaceFullPath": uri}));
    }
    made.insert("statusCode".into(), redirect.number("redirectCode").unwrap_or(301).into());
    let problems = redirect.rest();
    if problems.is_empty() { Ok(json!({"type": "RequestRedirect", "requestRedirect": made})) } else { Err(problems) }
}

/// `headers`
fn header_filters(mut headers: Fields) -> Result<Vec<Value>, Vec<Problem>> {
    let mut filters = Vec::new();
    let mut problems = Vec::new();
    let kinds = [
        ("request", "RequestHeaderModifier", "requestHeaderModifier"),
        ("response", "ResponseHeaderModifier", "responseHeaderModifier"),
    ];
    for (name, kind, field) in kinds {
        let Some(mut change) = headers.within(name) else { continue };
        let mut made = Map::new();
        for how in ["set", "add"] {
            if let Some(values) = change.take(how) {
                let all: Vec<Value> = super::labels(&values)
                    .into_iter()
                    .map(|(name, value)| json!({"name": name, "value": value}))
                    .collect();
                made.insert(how.into(), all.into());
            }
        }
        let removed = change.texts("remove");
        if !removed.is_empty() {
            made.insert("remove".into(), removed.into());
        }
        problems.extend(change.rest());
        filters.push(json!({"type": kind, field: made}));
    }
    problems.extend(headers.rest());
    if problems.is_empty() { Ok(filters) } else { Err(problems) }
}

/// `retries`
fn retry(
    mut retries: Fields,
    object: &Object,
    rule: &mut Map<String, Value>,
    timeouts: &mut Map<String, Value>,
    notes: &mut Converted,
    problems: &mut Vec<Problem>,
) {
    let place = retries.place("perTryTimeout");
    duration_into(timeouts, "backendRequest", retries.text("perTryTimeout"), &place, problems);
    let attempts = retries.number("attempts").unwrap_or(2);
    let place = retries.place("retryOn");
    let on = retries.text("retryOn").unwrap_or_default();
    problems.extend(retries.rest());
    if attempts == 0 {
        return;
    }
    let mut codes = std::collections::BTreeSet::new();
    for word in on.split(',').map(str::trim).filter(|word| !word.is_empty()) {
        match word {
            "5xx" => codes.extend([500, 502, 503, 504]),
            "gateway-error" => codes.extend([502, 503, 504]),
            // Failures without an answer are tried again in any case.
            "connect-failure" | "refused-stream" | "reset" | "reset-before-request" => {}
            word => match word.parse::<u16>() {
                Ok(code) => {
                    codes.insert(code);
                }
                Err(_) => {
                    notes.note(object, place.clone(), format!("{word}: there is no such word here"), Effect::LeftOut)
                }
            },
        }
    }
    let mut made = Map::from_iter([("attempts".to_string(), Value::from(attempts))]);
    if !codes.is_empty() {
        made.insert("codes".into(), codes.into_iter().collect());
    }
    rule.insert("retry".into(), made.into());
}

/// A duration as Gateway API has it (GEP-2257).
fn duration_into(
    into: &mut Map<String, Value>,
    name: &str,
    text: Option<String>,
    place: &str,
    problems: &mut Vec<Problem>,
) {
    let Some(text) = text else { return };
    match duration(&text) {
        Some(span) => {
            into.insert(name.into(), span.into());
        }
        None => problems.push((place.to_string(), format!("{text} is no time"))),
    }
}

/// `1.5s` as `1500ms`.
fn duration(text: &str) -> Option<String> {
    let units = [("ms", 1e-3), ("h", 3600.0), ("m", 60.0), ("s", 1.0)];
    let (number, unit) = units.into_iter().find_map(|(word, unit)| Some((text.strip_suffix(word)?, unit)))?;
    let seconds = number.parse::<f64>().ok()? * unit;
    let span = Duration::try_from_secs_f64(seconds).ok()?;
    let millis = span.as_millis();
    Some(if millis.is_multiple_of(1000) { format!("{}s", millis / 1000) } else { format!("{millis}ms") })
}

fn destination_rule(object: &Object, notes: &mut Converted) -> Result<Vec<Value>, Vec<Problem>> {
    let mut spec = Fields::of("spec", &object.value["spec"]);
    let host = spec.text("host").unwrap_or_default();
    let mut problems = Vec::new();
    let Some((namespace, name)) = service(&host, &object.namespace) else {
        return Err(vec![("spec.host".into(), format!("{host} is no Service of the cluster"))]);
    };
    for (at, subset) in spec.list("subsets") {
        let said = format!(
            "subset {} needs a Service of its own that selects its pods",
            subset["name"].as_str().unwrap_or_default()
        );
        notes.note(object, at, said, Effect::LeftOut);
    }
    let _ = spec.take("exportTo").filter(|to| *to != json!(["*"])).map(|_| {
        problems.push(("spec.exportTo".to_string(), "a TrafficPolicy is for every client".to_string()));
    });
    let mut made_spec = Map::new();
    if let Some(mut policy) = spec.within("trafficPolicy") {
        if let Some(balancing) = policy.within("loadBalancer") {
            balancing_of(balancing, &mut made_spec, &mut problems);
        }
        if let Some(outliers) = policy.within("outlierDetection") {
            outliers_of(outliers, &mut made_spec, &mut problems);
        }
        if let Some(pool) = policy.within("connectionPool") {
            let said = "limits are of a node here, not of each calling pod";
            notes.note(object, "spec.trafficPolicy.connectionPool", said, Effect::Nearly);
            pool_of(pool, &mut made_spec, &mut problems);
        }
        if let Some(mut tls) = policy.within("tls") {
            if tls.text("mode").as_deref() != Some("ISTIO_MUTUAL") {
                problems
                    .push((tls.place("mode"), "the mesh itself says what is encrypted (PeerAuthentication)".into()));
            }
            problems.extend(tls.rest());
        }
        problems.extend(policy.rest());
    }
    problems.extend(spec.rest());
    if !problems.is_empty() {
        return Err(problems);
    }
    if made_spec.is_empty() {
        return Ok(Vec::new());
    }
    made_spec.insert("targetRefs".into(), json!([{"group": "", "kind": "Service", "name": name}]));
    Ok(vec![made(OURS, "TrafficPolicy", &namespace, &object.name, made_spec.into())])
}

fn balancing_of(mut balancing: Fields, spec: &mut Map<String, Value>, problems: &mut Vec<Problem>) {
    let place = balancing.place("simple");
    match balancing.text("simple").as_deref() {
        None | Some("UNSPECIFIED") => {}
        Some("LEAST_REQUEST" | "LEAST_CONN") => {
            spec.insert("loadBalancing".into(), json!({"algorithm": "LeastRequest"}));
        }
        Some("ROUND_ROBIN") => {
            spec.insert("loadBalancing".into(), json!({"algorithm": "RoundRobin"}));
        }
        Some("RANDOM") => {
            spec.insert("loadBalancing".into(), json!({"algorithm": "Random"}));
        }
        Some(other) => problems.push((place, format!("{other} has nothing like it"))),
    }
    if let Some(mut hash) = balancing.within("consistentHash") {
        let cookie = hash.within("httpCookie").and_then(|mut cookie| cookie.text("name"));
        let by_source = hash.take("useSourceIp") == Some(Value::Bool(true));
        let made = match (hash.text("httpHeaderName"), cookie, by_source) {
            (Some(header), None, false) => Some(json!({"header": header})),
            (None, Some(cookie), false) => Some(json!({"cookie": cookie})),
            (None, None, true) => Some(json!({"source": "IP"})),
            _ => None,
        };
        match made {
            Some(made) => {
                let balancing = json!({"algorithm": "ConsistentHash", "consistentHash": made});
                spec.insert("loadBalancing".into(), balancing);
            }
            None => {
                problems.push((hash.place("httpHeaderName"), "a header, a cookie or the source IP is hashed".into()))
            }
        }
        problems.extend(hash.rest());
    }
    problems.extend(balancing.rest());
}

fn outliers_of(mut outliers: Fields, spec: &mut Map<String, Value>, problems: &mut Vec<Problem>) {
    let mut made = Map::new();
    let numbers = [
        ("consecutive5xxErrors", "consecutive5xx"),
        ("consecutiveGatewayErrors", "consecutiveGatewayErrors"),
        ("maxEjectionPercent", "maxEjectionPercent"),
    ];
    for (from, to) in numbers {
        made.extend(outliers.number(from).map(|number| (to.to_string(), number.into())));
    }
    // Istio's count of 5xx is 5 where it is not said.
    made.entry("consecutive5xx").or_insert_with(|| 5.into());
    for name in ["interval", "baseEjectionTime"] {
        let place = outliers.place(name);
        duration_into(&mut made, name, outliers.text(name), &place, problems);
    }
    problems.extend(outliers.rest());
    spec.insert("outlierDetection".into(), made.into());
}

fn pool_of(mut pool: Fields, spec: &mut Map<String, Value>, problems: &mut Vec<Problem>) {
    let mut limits = Map::new();
    if let Some(mut tcp) = pool.within("tcp") {
        limits.extend(tcp.number("maxConnections").map(|number| ("maxConnections".to_string(), number.into())));
        let mut timeouts = Map::new();
        let place = tcp.place("connectTimeout");
        duration_into(&mut timeouts, "connect", tcp.text("connectTimeout"), &place, problems);
        if !timeouts.is_empty() {
            spec.insert("timeouts".into(), timeouts.into());
        }
        problems.extend(tcp.rest());
    }
    if let Some(mut http) = pool.within("http") {
        let numbers = [
            ("http1MaxPendingRequests", "maxPending"),
            ("http2MaxRequests", "maxRequests"),
            ("maxRetries", "maxRetries"),
        ];
        for (from, to) in numbers {
            limits.extend(http.number(from).map(|number| (to.to_string(), number.into())));
        }
        problems.extend(http.rest());
    }
    problems.extend(pool.rest());
    if !limits.is_empty() {
        spec.insert("connectionLimits".into(), json!({"service": limits}));
    }
}
