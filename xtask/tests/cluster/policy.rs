//! Policy by kubectl, and what it says of itself.

use anyhow::{Context, Result, ensure};
use xtask::testbed::eventually;

use crate::enrolment::STRICT;
use crate::support::{ENABLED, Namespace, PATIENCE, in_cluster};

const ONLY_SHOP: &str = "
apiVersion: nodemesh.dev/v1alpha1
kind: AuthorizationPolicy
metadata: {name: only-shop}
spec:
  targetRefs: [{kind: Service, name: web}]
  action: ALLOW
  rules:
  - sources: [{type: ServiceAccount, serviceAccount: {namespace: policies, name: shop}}]
";

const ROUTE: &str = "
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: web}
spec:
  parentRefs: [{group: '', kind: Service, name: web, port: 80}]
  rules:
  - matches: [{path: {type: PathPrefix, value: /gone}}]
    filters: [{type: RequestRedirect, requestRedirect: {path: {type: ReplaceFullPath, replaceFullPath: /there}}}]
  - backendRefs: [{name: web, port: 80}]
";

#[test]
fn a_policy_holds_and_says_so() {
    in_cluster("a_policy_holds_and_says_so", |kube| {
        let namespace = kube.namespace("policies", ENABLED)?;
        namespace.web("web", "n1")?;
        namespace.client("shop", "n2")?;
        namespace.client("thief", "n2")?;
        namespace.wait_ready()?;
        namespace.apply(STRICT)?;
        for client in ["shop", "thief"] {
            namespace.eventually_answers(client, "http://web/", "web to ")?;
        }
        namespace.apply(ONLY_SHOP)?;
        namespace.eventually_refuses("thief", "http://web/")?;
        namespace.eventually_answers("shop", "http://web/", "web to ")?;
        let accepted = "{.status.ancestors[0].conditions[?(@.type=='Accepted')].status}";
        eventually_says(&namespace, "authorizationpolicy/only-shop", accepted, "True")?;
        namespace.kubectl(&["delete", "authorizationpolicy", "only-shop"])?;
        namespace.eventually_answers("thief", "http://web/", "web to ")
    });
}

#[test]
fn a_route_holds_and_says_so() {
    in_cluster("a_route_holds_and_says_so", |kube| {
        let namespace = kube.namespace("routes", ENABLED)?;
        namespace.web("web", "n1")?;
        namespace.client("shop", "n2")?;
        namespace.wait_ready()?;
        namespace.apply(ROUTE)?;
        for (condition, status) in [("Accepted", "True"), ("ResolvedRefs", "True")] {
            let path = format!("{{.status.parents[0].conditions[?(@.type=='{condition}')].status}}");
            eventually_says(&namespace, "httproute/web", &path, status)?;
        }
        let observed = namespace.kubectl(&[
            "get",
            "httproute/web",
            "-o",
            "jsonpath={.metadata.generation} {.status.parents[0].conditions[0].observedGeneration}",
        ])?;
        let (generation, seen) = observed.split_once(' ').context("two numbers")?;
        ensure!(generation == seen, "{observed}");
        let script = "curl -sS -o /dev/null -w '%{http_code} %{redirect_url}' http://web/gone/1";
        eventually(PATIENCE, "the redirect", || {
            let (_, said) = namespace.run("shop", &["sh", "-c", script])?;
            Ok((said == "302 http://web/there").then_some(()))
        })?;
        namespace.apply(&ROUTE.replace("[{name: web, port: 80}]", "[{name: nowhere, port: 80}]"))?;
        let path = "{.status.parents[0].conditions[?(@.type=='ResolvedRefs')].reason}";
        eventually_says(&namespace, "httproute/web", path, "BackendNotFound")
    });
}

#[test]
fn what_cannot_be_meant_is_refused_at_once() {
    in_cluster("what_cannot_be_meant_is_refused_at_once", |kube| {
        let namespace = kube.namespace("mistakes", ENABLED)?;
        let refused = namespace.apply(&ONLY_SHOP.replace("ALLOW", "PERHAPS"));
        let said = refused.err().map(|error| format!("{error:#}")).unwrap_or_default();
        ensure!(said.contains("spec.action"), "an action that there is not: {said:?}");
        let refused = namespace.apply(&ONLY_SHOP.replace("targetRefs", "targetRef"));
        let said = refused.err().map(|error| format!("{error:#}")).unwrap_or_default();
        ensure!(said.contains("targetRef"), "a field that there is not: {said:?}");
        for kind in [
            "authorizationpolicy",
            "peerauthentication",
            "requestauthentication",
            "trafficpolicy",
            "externalauthorizer",
        ] {
            let explained = kube.kubectl(&["explain", &format!("{kind}.spec")])?;
            ensure!(explained.contains("FIELDS:"), "{explained}");
        }
        Ok(())
    });
}

fn eventually_says(namespace: &Namespace<'_>, object: &str, path: &str, expected: &str) -> Result<()> {
    let output = format!("jsonpath={path}");
    eventually(PATIENCE, &format!("{object} to say {expected}"), || {
        let said = namespace.kubectl(&["get", object, "-o", &output])?;
        Ok((said == expected).then_some(()))
    })
}
