//! Our CustomResourceDefinitions, as an API server takes them.

use std::fs;

use mesh_agent::discovery::validate;
use serde_json::{Value, json};

use super::world::{deny_web, namespace, samples};
use crate::apiserver_rig::{Hand, Plane, eventually};

fn object(kind: &str, spec: Value) -> Value {
    json!({"apiVersion": "nodemesh.dev/v1alpha1", "kind": kind,
        "metadata": {"namespace": "shop", "name": "one"}, "spec": spec})
}

/// A policy with one rule, or with what is said instead of it.
fn authz(changes: Value) -> Value {
    let mut spec =
        json!({"targetRefs": [{"kind": "Namespace"}], "action": "ALLOW", "rules": [{"sources": [{"type": "Any"}]}]});
    merge(&mut spec, changes);
    object("AuthorizationPolicy", spec)
}

fn rule(changes: Value) -> Value {
    let mut rule = json!({"sources": [{"type": "Any"}]});
    merge(&mut rule, changes);
    authz(json!({"rules": [rule]}))
}

fn traffic(changes: Value) -> Value {
    let mut spec = json!({"targetRefs": [{"kind": "Service", "name": "web"}]});
    merge(&mut spec, changes);
    object("TrafficPolicy", spec)
}

fn merge(into: &mut Value, changes: Value) {
    for (key, value) in changes.as_object().unwrap() {
        into[key] = value.clone();
    }
}

/// What `translate` refuses, and where: the API server refuses it too, and names the field.
fn refused() -> Vec<(Value, &'static str)> {
    let peer = |spec: Value| object("PeerAuthentication", spec);
    let jwt = |rules: Value| {
        object("RequestAuthentication", json!({"targetRefs": [{"kind": "Namespace"}], "jwtRules": rules}))
    };
    let authorizer = |changes: Value| {
        let mut spec = json!({"service": {"name": "opa", "port": 9191}, "protocol": "GRPC"});
        merge(&mut spec, changes);
        object("ExternalAuthorizer", spec)
    };
    let route = "gateway.networking.k8s.io";
    let hash = |balancing: Value| traffic(json!({"loadBalancing": balancing}));
    let limit = |changes: Value| {
        let mut limit = json!({"name": "a", "requests": 1});
        merge(&mut limit, changes);
        traffic(json!({"rateLimits": [limit]}))
    };
    let fault = |changes: Value| {
        let mut fault = json!({"name": "a"});
        merge(&mut fault, changes);
        traffic(json!({"faults": [fault]}))
    };
    vec![
        (authz(json!({"targetRefs": []})), "spec.targetRefs"),
        (authz(json!({"action": "ALOW"})), "spec.action"),
        (authz(json!({"action": "CUSTOM"})), "spec.provider"),
        (authz(json!({"provider": {"name": "opa"}})), "spec.provider"),
        (authz(json!({"action": "CUSTOM", "provider": {"name": "O*"}})), "spec.provider.name"),
        (authz(json!({"targetRefs": [{"kind": "Pod"}]})), "spec.targetRefs[0].selector"),
        (authz(json!({"targetRefs": [{"kind": "Pod", "name": "x", "selector": {}}]})), "spec.targetRefs[0].name"),
        (authz(json!({"targetRefs": [{"kind": "Service"}]})), "spec.targetRefs[0].name"),
        (authz(json!({"targetRefs": [{"kind": "Service", "name": "X*"}]})), "spec.targetRefs[0].name"),
        (authz(json!({"targetRefs": [{"kind": "Namespace", "selector": {}}]})), "spec.targetRefs[0].selector"),
        (authz(json!({"targetRefs": [{"kind": "Namespace", "group": "apps"}]})), "spec.targetRefs[0].group"),
        (
            authz(
                json!({"targetRefs": [{"kind": "Pod", "selector": {"matchExpressions": [{"key": "a", "operator": "In"}]}}]}),
            ),
            "spec.targetRefs[0].selector.matchExpressions[0].values",
        ),
        (authz(json!({"rules": [{"sources": []}]})), "spec.rules[0].sources"),
        (rule(json!({"ports": [0]})), "spec.rules[0].ports[0]"),
        (rule(json!({"sources": [{"type": "Any", "namespace": "x"}]})), "spec.rules[0].sources[0].namespace"),
        (rule(json!({"sources": [{"type": "SPIFFE"}]})), "spec.rules[0].sources[0].spiffe"),
        (
            rule(json!({"sources": [{"type": "ServiceAccount", "serviceAccount": {"name": "web*"}}]})),
            "spec.rules[0].sources[0].serviceAccount.name",
        ),
        (
            rule(json!({"sources": [{"type": "IPBlock", "ipBlock": {"cidr": "10.0.0.0/33"}}]})),
            "spec.rules[0].sources[0].ipBlock.cidr",
        ),
        (rule(json!({"requests": [{}]})), "spec.rules[0].requests[0]"),
        (rule(json!({"requests": [{"paths": []}]})), "spec.rules[0].requests[0].paths"),
        (rule(json!({"requests": [{"methods": ["get"]}]})), "spec.rules[0].requests[0].methods[0]"),
        (rule(json!({"requests": [{"grpc": [{}]}]})), "spec.rules[0].requests[0].grpc[0]"),
        (rule(json!({"when": [{"key": "request.auth.principal"}]})), "spec.rules[0].when[0]"),
        (rule(json!({"when": [{"key": "x", "values": ["a"]}]})), "spec.rules[0].when[0].key"),
        (peer(json!({"targetRefs": [{"kind": "Service", "name": "x"}], "mode": "STRICT"})), "spec.targetRefs"),
        (peer(json!({"targetRefs": [{"kind": "Namespace"}]})), "spec.mode"),
        (
            peer(json!({"targetRefs": [{"kind": "Namespace"}], "portOverrides": [{"port": 1, "mode": "STRICT"}]})),
            "spec.portOverrides",
        ),
        (jwt(json!([{"issuer": "a"}])), "spec.jwtRules[0].jwks"),
        (jwt(json!([{"issuer": "a", "jwksUri": "https://a/k", "jwks": "{}"}])), "spec.jwtRules[0].jwksUri"),
        (
            jwt(json!([{"issuer": "a", "jwksUri": "https://a/k"}, {"issuer": "a", "jwksUri": "https://b/k"}])),
            "spec.jwtRules",
        ),
        (authorizer(json!({"timeout": "11s"})), "spec.timeout"),
        (authorizer(json!({"pathPrefix": "/a"})), "spec.pathPrefix"),
        (authorizer(json!({"headersToUpstreamOnAllow": ["x-a"]})), "spec.headersToUpstreamOnAllow"),
        (authorizer(json!({"statusOnError": 200})), "spec.statusOnError"),
        (traffic(json!({"targetRefs": [{"kind": "HTTPRoute", "name": "a"}]})), "spec.targetRefs[0].group"),
        (
            traffic(json!({"targetRefs": [{"kind": "Service", "name": "a"}, {"kind": "Service", "name": "a"}]})),
            "spec.targetRefs",
        ),
        (
            traffic(json!({"targetRefs": [{"group": route, "kind": "HTTPRoute", "name": "a"}], "retryBudget": {}})),
            "spec.retryBudget",
        ),
        (hash(json!({"algorithm": "ConsistentHash"})), "spec.loadBalancing.consistentHash"),
        (hash(json!({"consistentHash": {"header": "x"}})), "spec.loadBalancing.consistentHash"),
        (
            hash(json!({"algorithm": "ConsistentHash", "consistentHash": {"header": "x", "cookie": "y"}})),
            "spec.loadBalancing.consistentHash",
        ),
        (hash(json!({"locality": {"mode": "Weighted"}})), "spec.loadBalancing.locality.weights"),
        (traffic(json!({"connectionLimits": {"endpoint": {"maxRetries": 1}}})), "spec.connectionLimits.endpoint"),
        (limit(json!({"per": "1ms"})), "spec.rateLimits[0].per"),
        (limit(json!({"key": {"type": "Header"}})), "spec.rateLimits[0].key.header"),
        (limit(json!({"fair": true, "key": {"type": "SourceIdentity"}})), "spec.rateLimits[0].fair"),
        (limit(json!({"when": {"paths": [{}]}})), "spec.rateLimits[0].when.paths[0]"),
        (fault(json!({})), "spec.faults[0]"),
        (fault(json!({"delay": {}})), "spec.faults[0].delay"),
        (fault(json!({"abort": {"httpStatus": 500, "grpcStatus": "UNAVAILABLE"}})), "spec.faults[0].abort"),
        (
            fault(json!({"abort": {"httpStatus": 500, "share": {"numerator": 101}}})),
            "spec.faults[0].abort.share.numerator",
        ),
        (
            traffic(json!({"sessionPersistence": {"sessionName": "a", "cookieLifetime": "Permanent"}})),
            "spec.sessionPersistence.absoluteTimeout",
        ),
    ]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_api_server_takes_the_samples_and_refuses_what_cannot_be_meant() {
    let Some(plane) = Plane::start("an_api_server_takes_the_samples").await else { return };
    let hand = Hand { client: plane.admin().await };
    hand.define().await;
    hand.create(&namespace("shop", json!({}))).await;
    hand.create(&namespace("nodemesh-system", json!({}))).await;

    let mut wrong = Vec::new();
    for (object, field) in refused() {
        let kind = object["kind"].as_str().unwrap();
        match hand.try_create(&object).await {
            Ok(()) => {
                wrong.push(format!("taken: {kind} {}: {field}", object["spec"]));
                hand.delete(&object).await;
            }
            Err(error) if error.to_string().contains(field) => {}
            Err(error) => wrong.push(format!("{field} is not named: {error}")),
        }
        // The same text in a file is refused too: the two say the same.
        let place = tempfile::tempdir().unwrap();
        fs::write(place.path().join("a.json"), object.to_string()).unwrap();
        if validate(place.path(), "cluster.local").unwrap().is_empty() {
            wrong.push(format!("a file is taken: {kind} {}", object["spec"]));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    let misspelt = authz(json!({"rulez": []}));
    let (ok, told) = plane.kubectl(&["create", "--validate=strict", "-f", "-"], &misspelt.to_string());
    assert!(!ok && told.contains("rulez"), "{told}");

    let mut taken = 0;
    for entry in fs::read_dir(samples()).unwrap() {
        let text = fs::read_to_string(entry.unwrap().path()).unwrap();
        for document in text.split("\n---") {
            let Ok(object) = serde_saphyr::from_str::<Value>(document) else { continue };
            if object["apiVersion"] == "nodemesh.dev/v1alpha1" {
                let home = object["metadata"]["namespace"].as_str().unwrap_or("default");
                // It may be there.
                let _ = hand.try_create(&namespace(home, json!({}))).await;
                hand.create(&object).await;
                taken += 1;
            }
        }
    }
    assert!(taken >= 5, "{taken} objects in the samples");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kubectl_explains_and_shows_them() {
    let Some(plane) = Plane::start("kubectl_explains_and_shows_them").await else { return };
    let hand = Hand { client: plane.admin().await };
    hand.define().await;
    hand.create(&namespace("shop", json!({}))).await;
    for (what, expected) in [
        ("authz", "Who may connect to workloads"),
        ("authorizationpolicies.spec.rules.sources.ipBlock.cidr", "10.0.0.0/8"),
        ("peerauth.spec.mode", "STRICT"),
        ("reqauth.spec.jwtRules.jwksUri", "https"),
        ("extauthz.spec.failOpen", "Absent: no"),
        ("traffic.spec.rateLimits.scope", "Absent: Node"),
        ("traffic.status.ancestors.conditions", "Accepted"),
    ] {
        // The API server tells of a definition a moment after it serves it.
        eventually(&format!("{what} to be explained by {expected:?}"), || async {
            let (ok, told) = plane.kubectl(&["explain", what], "");
            ok && told.contains(expected)
        })
        .await;
    }
    hand.create(&deny_web()).await;
    let condition = json!({"type": "Accepted", "status": "True", "reason": "Accepted", "message": "",
        "observedGeneration": 1, "lastTransitionTime": "2026-01-01T00:00:00Z"});
    let ancestor = json!({"ancestorRef": {"kind": "Namespace", "name": "shop"},
        "controllerName": "nodemesh.dev/controller", "conditions": [condition]});
    let patch = json!({"status": {"ancestors": [ancestor]}}).to_string();
    let (ok, told) = plane
        .kubectl(&["patch", "-n", "shop", "authz", "no-web", "--subresource=status", "--type=merge", "-p", &patch], "");
    assert!(ok, "{told}");
    let (ok, told) = plane.kubectl(&["get", "nodemesh", "-A"], "");
    assert!(ok && told.contains("no-web"), "{told}");
    let (_, told) = plane.kubectl(&["get", "authz", "-n", "shop"], "");
    let words: Vec<&str> = told.split_whitespace().collect();
    assert!(
        words.starts_with(&["NAME", "ACTION", "TARGETS", "ACCEPTED", "AGE", "no-web", "DENY", "Pod", "True"]),
        "{told}"
    );
}
