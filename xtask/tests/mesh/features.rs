//! What routes and policies can say of requests, with real clients and servers: mirrors, other origins, hosts, headers,
//! methods of gRPC, and where tokens are looked for.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use xtask::rings::can_use_kernel;
use xtask::testbed::{
    AgentOptions, Family, PodSpec, ServiceSpec, Testbed, eventually, grpc_calls, start_grpc_echo, start_reflector,
    start_web, web_requests,
};

use crate::external::add_issuer;

const PATIENCE: Duration = Duration::from_secs(30);
/// A mirror of half of them: how many are asked, and how many may be off, six standard deviations.
const MANY: usize = 400;
const MOST_OFF: usize = 60;

const ROUTE: &str = "apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: web, namespace: shop}
spec:
  parentRefs: [{group: '', kind: Service, name: web, port: 80}]
  rules:
    - matches: [{path: {type: PathPrefix, value: /mirrored}}]
      filters: [{type: RequestMirror, requestMirror: {backendRef: {name: whole, port: 80}}}]
      backendRefs: [{name: web, port: 80}]
    - matches: [{path: {type: PathPrefix, value: /half}}]
      filters: [{type: RequestMirror, requestMirror: {backendRef: {name: half, port: 80}, percent: 50}}]
      backendRefs: [{name: web, port: 80}]
    - matches: [{path: {type: PathPrefix, value: /shared}}]
      filters:
        - type: CORS
          cors: {allowOrigins: ['https://shop.example'], allowMethods: [GET, PUT], allowHeaders: [x-cart], maxAge: 60}
      backendRefs: [{name: web, port: 80}]
    - backendRefs: [{name: web, port: 80}]
";

const POLICIES: &str = "apiVersion: nodemesh.dev/v1alpha1
kind: RequestAuthentication
metadata: {name: tokens, namespace: shop}
spec:
  targetRefs: [{kind: Service, name: web}]
  jwtRules:
    - issuer: https://issuer.example
      jwksUri: https://issuer.auth.svc:8443/keys
      fromHeaders: [{name: x-ticket, prefix: 'ticket '}]
      fromCookies: [session]
      fromParams: [token]
      outputClaimToHeaders: [{header: x-who, claim: sub}]
---
apiVersion: nodemesh.dev/v1alpha1
kind: AuthorizationPolicy
metadata: {name: wants-a-token, namespace: shop}
spec:
  targetRefs: [{kind: Service, name: web}]
  action: DENY
  rules:
    - sources: [{type: Any}]
      requests: [{paths: ['/token/{**}']}]
      notRequestPrincipals: ['https://issuer.example/alice']
---
apiVersion: nodemesh.dev/v1alpha1
kind: AuthorizationPolicy
metadata: {name: by-host, namespace: shop}
spec:
  targetRefs: [{kind: Service, name: web}]
  action: DENY
  rules:
    - sources: [{type: Any}]
      requests: [{paths: ['/host/{**}'], notHosts: [shop.example, '*.shop.example']}]
---
apiVersion: nodemesh.dev/v1alpha1
kind: AuthorizationPolicy
metadata: {name: by-header, namespace: shop}
spec:
  targetRefs: [{kind: Service, name: web}]
  action: DENY
  rules:
    - sources: [{type: Any}]
      requests: [{paths: ['/header/{**}']}]
      when: [{key: 'request.headers[x-stage]', values: [test, 'dev-*']}]
---
apiVersion: nodemesh.dev/v1alpha1
kind: AuthorizationPolicy
metadata: {name: by-method, namespace: shop}
spec:
  targetRefs: [{kind: Service, name: calls}]
  action: ALLOW
  rules:
    - sources: [{type: ServiceAccount, serviceAccount: {name: client}}]
      requests: [{grpc: [{service: shop.Cart, method: Read}, {service: shop.Prices}]}]
";

/// Their bed: `web` and what is mirrored to on one node, whoever asks on the other.
fn bed(test: &str) -> Result<Option<Testbed>> {
    if !can_use_kernel(test) {
        return Ok(None);
    }
    let mut bed = Testbed::of_two_nodes("shop")?;
    bed.add_pod(PodSpec::new("shop", "client", "n1"))?;
    for pod in ["web", "whole", "half", "calls"] {
        bed.add_pod(PodSpec::new("shop", pod, "n2"))?;
    }
    for service in ["web", "whole", "half"] {
        bed.add_service(ServiceSpec::new("shop", service).port("http", 80, 8080))?;
    }
    bed.add_service(ServiceSpec::new("shop", "calls").port("grpc", 7070, 7070))?;
    start_reflector(bed.pod("web"), 8080)?;
    for pod in ["whole", "half"] {
        start_web(bed.pod(pod), 8080, 200, 0)?;
    }
    start_grpc_echo(bed.pod("calls"), 7070)?;
    Ok(Some(bed))
}

/// Asks by curl: the status, the answer's head in small letters, its body.
fn curl(bed: &Testbed, family: Family, path: &str, more: &[&str]) -> Result<(String, String, String)> {
    let url = format!("http://{}{path}", bed.service("web").socket(family, 80));
    let command = [&["curl", "-sS", "--max-time", "20", "-D", "-", "-w", "\n%{http_code}", &url], more].concat();
    let said = bed.pod("client").run(&command, PATIENCE)?.expect_ok("curl")?;
    let (said, status) = said.rsplit_once('\n').context("a status")?;
    let (head, body) = said.split_once("\r\n\r\n").with_context(|| said.to_string())?;
    Ok((status.to_string(), head.to_lowercase(), body.to_string()))
}

#[test]
fn routes_mirror_requests_and_answer_other_origins() -> Result<()> {
    let Some(mut bed) = bed("mirrors and origins")? else { return Ok(()) };
    bed.world.apply("route", ROUTE)?;
    bed.start_agents(&AgentOptions::default())?;
    for family in Family::BOTH {
        mirrors(&bed, family).and_then(|()| origins(&bed, family)).map_err(|error| bed.explain(error))?;
    }
    Ok(())
}

fn mirrors(bed: &Testbed, family: Family) -> Result<()> {
    let came = |pod: &str| web_requests(bed.pod(pod));
    let before = [came("whole")?, came("half")?];
    // Once: a copy comes when it comes, and one more of it would be taken for what is not to be mirrored.
    let (_, _, body) = curl(bed, family, "/mirrored/a", &[])?;
    let answer: Value = serde_json::from_str(&body)?;
    ensure!(answer["pod"] == "web" && answer["path"] == "/mirrored/a", "{body}");
    let whole = before[0] + 1;
    eventually(PATIENCE, "a mirrored request", || Ok((came("whole")? == whole).then_some(())))?;
    curl(bed, family, "/elsewhere", &[])?;
    // A name in the URL: of an IPv6 address h2load makes a Host without its brackets.
    let server = format!("--connect-to={}", bed.service("web").socket(family, 80));
    let load = ["h2load", "--h1", "-n", &MANY.to_string(), "-c", "4", &server, "http://web.shop/half"];
    let said = bed.pod("client").run(&load, PATIENCE)?.expect_ok("h2load")?;
    ensure!(said.contains(&format!("{MANY} 2xx")), "{said}");
    let expected = MANY / 2 - MOST_OFF..=MANY / 2 + MOST_OFF;
    eventually(PATIENCE, "half of the requests to be mirrored", || {
        Ok((came("half")? - before[1] >= *expected.start()).then_some(()))
    })?;
    // Those that are still on their way count too.
    std::thread::sleep(Duration::from_secs(1));
    let half = came("half")? - before[1];
    ensure!(expected.contains(&half), "{half} of {MANY} were mirrored, not {expected:?}");
    ensure!(came("whole")? == whole, "what is not to be mirrored was");
    Ok(())
}

fn origins(bed: &Testbed, family: Family) -> Result<()> {
    let asks = |method: &'static str, origin: &str| -> Result<(String, String, String)> {
        let origin = format!("Origin: {origin}");
        let before = ["-X", "OPTIONS", "-H", &origin, "-H", "Access-Control-Request-Method: PUT"];
        let plain = ["-H", &origin];
        curl(bed, family, "/shared/a", if method == "OPTIONS" { &before } else { &plain })
    };
    // (method, origin, whether it may, whether the application is asked)
    let table = [
        ("OPTIONS", "https://shop.example", true, false),
        ("GET", "https://shop.example", true, true),
        ("GET", "https://other.example", false, true),
    ];
    for (method, origin, may, is_asked) in table {
        let (status, head, body) = asks(method, origin)?;
        let what = format!("{family} {method} from {origin}: {status} {head} {body}");
        ensure!(status.starts_with('2'), "{what}");
        ensure!(head.contains(&format!("access-control-allow-origin: {origin}")) == may, "{what}");
        ensure!(body.contains("\"pod\": \"web\"") == is_asked, "{what}");
        let preflight = ["access-control-allow-methods: ", "access-control-max-age: 60"];
        ensure!(preflight.iter().all(|field| head.contains(field)) == (method == "OPTIONS"), "{what}");
    }
    let (_, head, _) = asks("OPTIONS", "https://other.example")?;
    ensure!(!head.contains("access-control-allow-origin"), "another origin may: {head}");
    Ok(())
}

#[test]
fn policies_mean_what_requests_say() -> Result<()> {
    let Some(mut bed) = bed("attributes of requests")? else { return Ok(()) };
    bed.add_namespace("auth", &[])?;
    let (certificate, token) = add_issuer(&mut bed)?;
    bed.world.apply("policies", POLICIES)?;
    bed.start_agents(&AgentOptions::with([format!("--jwks-ca={}", certificate.display())]))?;
    for family in Family::BOTH {
        asked_by_curl(&bed, family, &token).map_err(|error| bed.explain(error))?;
        called_by_grpc(&bed, family).map_err(|error| bed.explain(error))?;
    }
    Ok(())
}

fn asked_by_curl(bed: &Testbed, family: Family, token: &str) -> Result<()> {
    let (ticket, cookie) = (format!("X-Ticket: ticket {token}"), format!("Cookie: a=b; session={token}"));
    let (bearer, by_query) = (format!("Authorization: Bearer {token}"), format!("/token/a?token={token}"));
    let alice = "\"x-who\": [\"alice\"]";
    // (path, a header, the status, what is in the answer)
    let table: [(&str, &str, &str, &str); 13] = [
        ("/token/a", "x-who: alice", "403", "deny-rule"),
        ("/token/a", &ticket, "200", alice),
        ("/token/a", &cookie, "200", alice),
        (&by_query, "x-who: mallory", "200", alice),
        // Its issuer has it looked for elsewhere.
        ("/token/a", &bearer, "403", "deny-rule"),
        ("/host/a", "Host: shop.example", "200", "/host/a"),
        ("/host/a", "Host: WWW.shop.example:80", "200", "/host/a"),
        ("/host/a", "Host: shop.example.org", "403", "deny-rule"),
        ("/header/a", "x-stage: production", "200", "/header/a"),
        ("/header/a", "x-stage: test", "403", "deny-rule"),
        ("/header/a", "x-stage: dev-7", "403", "deny-rule"),
        ("/header/a", "x_stage: test", "403", "deny-rule"),
        ("/elsewhere", "x-stage: test", "200", "/elsewhere"),
    ];
    for (path, header, status, said) in table {
        let mut seen = None;
        eventually(PATIENCE, &format!("{family} {path} with {header} to be answered with {status}"), || {
            let (got, _, body) = curl(bed, family, path, &["-H", header])?;
            let is_so = got == status && body.contains(said);
            seen = Some(format!("{got} {body}"));
            Ok(is_so.then_some(()))
        })
        .with_context(|| format!("{seen:?}"))?;
    }
    Ok(())
}

fn called_by_grpc(bed: &Testbed, family: Family) -> Result<()> {
    let server = bed.service("calls").socket(family, 7070);
    let table = [
        ("/shop.Cart/Read", "OK"),
        ("/shop.Cart/Write", "PERMISSION_DENIED"),
        ("/shop.Prices/Any", "OK"),
        ("/shop.Cart2/Read", "PERMISSION_DENIED"),
    ];
    for (method, code) in table {
        let said = grpc_calls(bed.pod("client"), server, method, &[], 2)?;
        ensure!(said.len() == 2 && said.iter().all(|call| call["code"] == code), "{family} {method}: {said:?}");
    }
    Ok(())
}
