//! Policy by kubectl, and what it says of itself.

use anyhow::{Context, Result, ensure};
use xtask::cluster::{control, node};
use xtask::testbed::eventually;

use crate::support::{ENABLED, PATIENCE, STRICT, in_cluster, only_shop};

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
        let namespace = kube.shop("policies", &[("shop", "n2"), ("thief", "n2")])?;
        namespace.apply(&only_shop("policies"))?;
        namespace.eventually_refuses("thief", "http://web/")?;
        namespace.eventually_answers("shop", "http://web/", "web to ")?;
        let accepted = ".status.ancestors[0].conditions[?(@.type=='Accepted')].status";
        namespace.eventually_says("authorizationpolicy/only-shop", accepted, "True")?;
        namespace.kubectl(&["delete", "authorizationpolicy", "only-shop"])?;
        namespace.eventually_answers("thief", "http://web/", "web to ")
    });
}

#[test]
fn a_route_holds_and_says_so() {
    in_cluster("a_route_holds_and_says_so", |kube| {
        let namespace = kube.shop("routes", &[("shop", "n2")])?;
        namespace.apply(ROUTE)?;
        for (condition, status) in [("Accepted", "True"), ("ResolvedRefs", "True")] {
            let path = format!(".status.parents[0].conditions[?(@.type=='{condition}')].status");
            namespace.eventually_says("httproute/web", &path, status)?;
        }
        let generation = namespace.field("httproute/web", ".metadata.generation")?;
        let observed = namespace.field("httproute/web", ".status.parents[0].conditions[0].observedGeneration")?;
        ensure!(generation == observed, "{generation}, observed {observed}");
        let script = "curl -sS -o /dev/null -w '%{http_code} %{redirect_url}' http://web/gone/1";
        eventually(PATIENCE, "the redirect", || {
            let (_, said) = namespace.run("shop", &["sh", "-c", script])?;
            Ok((said == "302 http://web/there").then_some(()))
        })?;
        namespace.apply(&ROUTE.replace("[{name: web, port: 80}]", "[{name: nowhere, port: 80}]"))?;
        let path = ".status.parents[0].conditions[?(@.type=='ResolvedRefs')].reason";
        namespace.eventually_says("httproute/web", path, "BackendNotFound")
    });
}

#[test]
fn what_cannot_be_meant_is_refused_at_once() {
    in_cluster("what_cannot_be_meant_is_refused_at_once", |kube| {
        let namespace = kube.namespace("mistakes", ENABLED)?;
        let refused = namespace.apply(&only_shop("policies").replace("ALLOW", "PERHAPS"));
        let said = refused.err().map(|error| format!("{error:#}")).unwrap_or_default();
        ensure!(said.contains("spec.action"), "an action that there is not: {said:?}");
        let refused = namespace.apply(&only_shop("policies").replace("targetRefs", "targetRef"));
        let said = refused.err().map(|error| format!("{error:#}")).unwrap_or_default();
        ensure!(said.contains("targetRef"), "a field that there is not: {said:?}");
        for kind in [
            "authorizationpolicy",
            "peerauthentication",
            "requestauthentication",
            "trafficpolicy",
            "externalauthorizer",
        ] {
            // What is told of a kind comes a while after the kind.
            eventually(PATIENCE, &format!("{kind} to be explained"), || {
                let explained = kube.kubectl(&["explain", &format!("{kind}.spec")])?;
                ensure!(explained.contains("FIELDS:"), "{explained}");
                Ok(Some(()))
            })?;
        }
        Ok(())
    });
}

/// One port is for who has no identity, as docs/kubernetes.md says it of webhooks and of Prometheus.
pub const OPENED: &str = "
apiVersion: nodemesh.dev/v1alpha1
kind: PeerAuthentication
metadata: {name: webhook}
spec:
  targetRefs: [{kind: Pod, selector: {matchLabels: {app: webhook}}}]
  mode: STRICT
  portOverrides: [{port: 8443, mode: PERMISSIVE}]
";

#[test]
fn a_port_can_be_opened_to_the_api_server_and_to_prometheus() {
    in_cluster("a_port_can_be_opened_to_the_api_server_and_to_prometheus", |kube| {
        let namespace = kube.namespace("opened", ENABLED)?;
        let strangers = kube.strangers("opened-prometheus")?;
        namespace.apply(STRICT)?;
        namespace.pod("webhook", "n1", "command: [sh, -c, 'httpd -p 8443 -h /etc/nginx; exec nginx']")?;
        namespace.wait_ready()?;
        // A refusal says nothing of the mesh as long as its servers still start.
        namespace.wait_captured()?;
        let address = namespace.field("pod/webhook", ".status.podIP")?;
        let url = |port: u16| format!("http://{address}:{port}/nginx.conf");
        // The API server runs beside the nodes, others of a control plane on one.
        let answers = |place: &str, port: u16| -> Result<bool> {
            let url = url(port);
            let argv = ["curl", "-sS", "--max-time", "5", "-o", "/dev/null", &url];
            let output = match place {
                "" => control::place()?.command(&argv)?.output(),
                node => node::command(node, &kube.parts, &argv)?.output(),
            };
            Ok(output.context("starting curl")?.status.success())
        };
        strangers.eventually_refuses("stranger", &url(8443))?;
        namespace.apply(OPENED)?;
        strangers.eventually_answers("stranger", &url(8443), "daemon off")?;
        for place in ["", "n1", "n2"] {
            eventually(PATIENCE, &format!("{place:?} to reach the port that is open"), || {
                Ok(answers(place, 8443)?.then_some(()))
            })?;
            ensure!(!answers(place, 8080)?, "{place:?} reaches a port that is not open");
        }
        ensure!(strangers.is_refused("stranger", &url(8080))?, "a stranger reaches a port that is not open");
        Ok(())
    });
}
