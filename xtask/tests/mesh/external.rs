//! Who is asked outside of policy: authorizers by gRPC and by HTTP that are pods of the mesh, and an issuer whose keys the
//! agent fetches.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use xtask::rings::can_use_kernel;
use xtask::testbed::{
    AgentOptions, Family, PodSpec, ServiceSpec, Testbed, authorizer_checks, eventually, make_certificate,
    start_authorizer, start_issuer, start_reflector,
};

const PATIENCE: Duration = Duration::from_secs(30);

/// `/by-grpc` and `/by-http` are asked about; `/by-token` wants one.
const POLICIES: &str = "apiVersion: nodemesh.dev/v1alpha1
kind: ExternalAuthorizer
metadata: {name: by-grpc, namespace: nodemesh-system}
spec: {service: {namespace: auth, name: authorizer, port: 9191}, protocol: GRPC, timeout: 5s}
---
apiVersion: nodemesh.dev/v1alpha1
kind: ExternalAuthorizer
metadata: {name: by-http, namespace: shop}
spec:
  service: {namespace: auth, name: authorizer, port: 9192}
  protocol: HTTP
  timeout: 5s
  headersToUpstreamOnAllow: [x-let-in-by]
---
apiVersion: nodemesh.dev/v1alpha1
kind: AuthorizationPolicy
metadata: {name: ask-by-grpc, namespace: shop}
spec:
  targetRefs: [{kind: Service, name: web}]
  action: CUSTOM
  provider: {name: by-grpc}
  rules: [{sources: [{type: Any}], requests: [{paths: ['/by-grpc/{**}']}]}]
---
apiVersion: nodemesh.dev/v1alpha1
kind: AuthorizationPolicy
metadata: {name: ask-by-http, namespace: shop}
spec:
  targetRefs: [{kind: Service, name: web}]
  action: CUSTOM
  provider: {name: by-http}
  rules: [{sources: [{type: Any}], requests: [{paths: ['/by-http/{**}']}]}]
---
apiVersion: nodemesh.dev/v1alpha1
kind: RequestAuthentication
metadata: {name: tokens, namespace: shop}
spec:
  targetRefs: [{kind: Service, name: web}]
  jwtRules: [{issuer: 'https://issuer.example', jwksUri: 'https://issuer.auth.svc:8443/keys'}]
---
apiVersion: nodemesh.dev/v1alpha1
kind: AuthorizationPolicy
metadata: {name: wants-a-token, namespace: shop}
spec:
  targetRefs: [{kind: Service, name: web}]
  action: DENY
  rules:
    - sources: [{type: Any}]
      requests: [{paths: ['/by-token/{**}']}]
      notRequestPrincipals: ['https://issuer.example/alice']
";

/// An issuer in a namespace `auth` that is there, whom `https://issuer.auth.svc:8443` leads to: what vouches for it, and a
/// token of alice's.
pub fn add_issuer(bed: &mut Testbed) -> Result<(PathBuf, String)> {
    bed.add_pod(PodSpec::new("auth", "issuer", "n2"))?;
    bed.add_service(ServiceSpec::new("auth", "issuer").port("tls", 8443, 8443))?;
    let (with_key, certificate) = make_certificate(bed.pod("issuer"), "issuer.auth.svc")?;
    let token = start_issuer(bed.pod("issuer"), 8443, &with_key)?;
    Ok((certificate, token.trim().to_string()))
}

#[test]
fn authorizers_and_issuers_outside_are_asked() -> Result<()> {
    if !can_use_kernel("external authorization") {
        return Ok(());
    }
    let mut bed = Testbed::of_two_nodes("shop")?;
    bed.add_namespace("auth", &[("nodemesh.dev/mesh", "enabled")])?;
    bed.add_pod(PodSpec::new("shop", "client", "n1"))?;
    bed.add_pod(PodSpec::new("shop", "web", "n2"))?;
    bed.add_pod(PodSpec::new("auth", "authorizer", "n1"))?;
    bed.add_service(ServiceSpec::new("shop", "web").port("http", 80, 8082))?;
    bed.add_service(ServiceSpec::new("auth", "authorizer").port("grpc", 9191, 9191).port("http", 9192, 9192))?;
    let (certificate, token) = add_issuer(&mut bed)?;
    start_reflector(bed.pod("web"), 8082)?;
    start_authorizer(bed.pod("authorizer"), 9191)?;
    bed.world.apply("policies", POLICIES)?;
    bed.start_agents(&AgentOptions::with([format!("--jwks-ca={}", certificate.display())]))?;
    let bearer = format!("Authorization: Bearer {token}");
    let forged = format!("{bearer}A");
    for family in Family::BOTH {
        let ask = |path: &str, arguments: &[&str]| -> Result<(String, String)> {
            let url = format!("http://{}{path}", bed.service("web").socket(family, 80));
            let curl = ["curl", "-sS", "--max-time", "20", "-w", "\n%{http_code}", &url];
            let said = bed.pod("client").run(&[&curl[..], arguments].concat(), PATIENCE)?.stdout;
            let (body, status) = said.rsplit_once('\n').context("a status")?;
            Ok((status.to_string(), body.to_string()))
        };
        // (path, more for curl, the status, what is in the answer)
        let cases: [(&str, &[&str], &str, &str); 9] = [
            ("/open", &[], "200", "\"path\": \"/open\""),
            ("/by-grpc/a", &["-H", "x-let-in-by: forged"], "200", "\"x-let-in-by\": [\"grpc\"]"),
            ("/by-grpc/secret", &[], "403", "refused by grpc"),
            ("/by-http/a", &["-H", "x-let-in-by: forged"], "200", "\"x-let-in-by\": [\"http\"]"),
            ("/by-http/secret", &["-X", "POST"], "401", "refused by http"),
            ("/by-token/a", &[], "403", "deny-rule"),
            ("/by-token/a", &["-H", &bearer], "200", "\"path\": \"/by-token/a\""),
            ("/open", &["-H", &forged], "401", "token-"),
            ("/by-token//x/../a", &["--path-as-is"], "403", "deny-rule"),
        ];
        for (path, arguments, status, said) in cases {
            eventually(PATIENCE, &format!("{family} {path} {arguments:?} to be answered with {status}"), || {
                let seen = ask(path, arguments)?;
                Ok((seen.0 == status && seen.1.contains(said)).then_some(()))
            })
            .with_context(|| format!("{:?}", ask(path, arguments)))
            .map_err(|error| bed.explain(error))?;
        }
    }
    let checks = authorizer_checks(bed.pod("authorizer"))?;
    for protocol in ["grpc", "http"] {
        let line = format!("{protocol} by-client");
        ensure!(checks.contains(&line), "nobody asked by {protocol} about the client: {checks:?}");
    }
    ensure!(checks.iter().all(|line| line.ends_with("by-client")), "{checks:?}");
    let agent = bed.agent("n2");
    let told = |line: &serde_json::Value| line["authorizer"] == "shop/by-http" && line["authorizer_said"] == "denied";
    eventually(PATIENCE, "a refusal in the access log", || Ok(agent.access_log().iter().any(told).then_some(())))
        .map_err(|error| bed.explain(error))?;
    let keys = &agent.get_json("/config_dump")?["issuers"][0];
    ensure!(keys["inForce"] == true && keys["uri"] == "https://issuer.auth.svc:8443/keys", "{keys}");
    // The authorizer is asked by the tunnel of the pod that it is asked for.
    let (server, lines) = (bed.pod("web").identity(), bed.agent("n1").get_json("/connections")?);
    let mut open = lines.as_array().into_iter().flatten().map(|one| &one["source"]["identity"]);
    ensure!(open.any(|identity| identity.as_str() == Some(&*server)), "n1 knows nobody as {server}: {lines}");
    Ok(())
}
