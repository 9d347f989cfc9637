//! Routes of whole connections between two nodes: TCPRoute, and TLSRoute by server name.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use xtask::rings::can_use_kernel;
use xtask::testbed::{
    AgentOptions, Family, Finished, PodSpec, ServiceSpec, Testbed, eventually, start_nginx, start_tls_reflector,
};

const PATIENCE: Duration = Duration::from_secs(30);

/// Ports 443 and 90 of the Service `front` lead nowhere but by these.
const ROUTES: &str = "apiVersion: gateway.networking.k8s.io/v1
kind: TLSRoute
metadata: {name: blue, namespace: shop}
spec:
  parentRefs: [{group: '', kind: Service, name: front, port: 443}]
  hostnames: [blue.example.com]
  rules: [{backendRefs: [{name: web, port: 8443}]}]
---
apiVersion: gateway.networking.k8s.io/v1
kind: TLSRoute
metadata: {name: green, namespace: shop}
spec:
  parentRefs: [{group: '', kind: Service, name: front, port: 443}]
  hostnames: ['*.example.org']
  rules: [{backendRefs: [{name: web, port: 9443}]}]
---
apiVersion: gateway.networking.k8s.io/v1
kind: TCPRoute
metadata: {name: plain, namespace: shop}
spec:
  parentRefs: [{group: '', kind: Service, name: front, port: 90}]
  rules: [{backendRefs: [{name: web, port: 80}]}]
";

#[test]
fn connections_go_where_their_route_leads() -> Result<()> {
    if !can_use_kernel("TCPRoute and TLSRoute") {
        return Ok(());
    }
    let mut bed = Testbed::of_two_nodes("shop")?;
    bed.add_pod(PodSpec::new("shop", "client", "n1"))?;
    bed.add_pod(PodSpec::new("shop", "web", "n2"))?;
    let web = ServiceSpec::new("shop", "web").port("tcp-plain", 80, 80);
    bed.add_service(web.port("tls-blue", 8443, 8443).port("tls-green", 9443, 9443))?;
    bed.add_service(ServiceSpec::new("shop", "front").port("tls", 443, 443).port("tcp", 90, 90))?;
    bed.world.apply("routes", ROUTES)?;
    start_nginx(bed.pod("web"))?;
    let blue = start_tls_reflector(bed.pod("web"), 8443, "blue.example.com")?;
    let green = start_tls_reflector(bed.pod("web"), 9443, "green.example.org")?;
    bed.start_agents(&AgentOptions::default())?;

    for family in Family::BOTH {
        let [secure, plain] = [443, 90].map(|port| bed.service("front").socket(family, port));
        let curl = |arguments: &[&str]| {
            bed.pod("client").run(&[&["curl", "-sS", "--fail", "--max-time", "20"][..], arguments].concat(), PATIENCE)
        };
        let ask = |name: &str, certificate: &std::path::Path| -> Result<Finished> {
            let resolve = format!("{name}:443:{}", secure.to_string().trim_end_matches(":443"));
            curl(&["--resolve", &resolve, "--cacert", &certificate.to_string_lossy(), &format!("https://{name}/x")])
        };
        let plain = format!("http://{plain}/");
        eventually(PATIENCE, "the TCPRoute to lead", || {
            let answer = curl(&[&plain])?;
            Ok((answer.ok() && answer.stdout == "hello from web\n").then_some(()))
        })
        .with_context(|| family.to_string())
        .map_err(|error| bed.explain(error))?;
        // Each server has a certificate of its own, so an answer is the right server's.
        for (name, certificate) in [("blue.example.com", &blue), ("green.example.org", &green)] {
            let answer = ask(name, certificate)?;
            ensure!(answer.ok() && answer.stdout.contains("\"path\": \"/x\""), "{family}, {name}: {answer}");
        }
        let answer = ask("other.example.com", &blue)?;
        ensure!(!answer.ok() && answer.stdout.is_empty(), "{family}, a name that no route has: {answer}");
    }
    eventually(PATIENCE, "the refusal to be told", || {
        let lines = bed.agent("n1").access_log();
        let is_told = lines.iter().any(|line| line["reason"] == "no-route");
        ensure!(is_told, "the refusal is not told: {:?}", lines.last());
        Ok(Some(()))
    })
}
