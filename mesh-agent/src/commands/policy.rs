//! `mesh-agent policy test`: may A call GET /x on B, and by which rule. The answer comes from the code that decides.

use std::fmt::{self, Display};
use std::net::IpAddr;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context, bail, ensure};
use http::{HeaderMap, HeaderName, HeaderValue, Method};
use serde::Serialize;

use super::{print_json, print_lines};
use crate::cli::{OutputFormat, PolicyTestArgs};
use crate::extauth::AUTHORIZER_UNKNOWN;
use crate::path::{self, NormalPath};
use crate::policy::{self, Admission, Denial, Facts, Permit, Request};
use crate::spiffe::SpiffeId;
use crate::state::{MeshState, Service, Workload};
use crate::tokens::Token;
use crate::{config, discovery};

/// The question cannot be answered: as clap's own refusals.
const UNANSWERED: u8 = 2;

/// `mesh-agent policy test PATH`
pub fn test(args: PolicyTestArgs) -> anyhow::Result<ExitCode> {
    let output = args.output;
    match answer(&args) {
        Ok(answer) => {
            match output {
                OutputFormat::Json => print_json(&answer)?,
                OutputFormat::Text => print_lines(&[&answer])?,
            }
            Ok(ExitCode::from(u8::from(!answer.allowed)))
        }
        Err(error) => {
            eprintln!("error: {error:#}");
            Ok(ExitCode::from(UNANSWERED))
        }
    }
}

/// What there is to say.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Answer {
    /// Whether every pod that may be reached allows it.
    allowed: bool,
    /// Who asks, in words.
    caller: String,
    /// What is asked; None: a connection.
    request: Option<Asked>,
    /// One for each pod that the destination may lead to.
    pods: Vec<Verdict>,
    /// How many things are wrong with the YAML: what cannot be read may say something else.
    findings: usize,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Asked {
    method: String,
    host: String,
    /// As it is judged, and sent on.
    path: String,
}

/// One pod's decision.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Verdict {
    /// `<namespace>/<name>`
    pod: String,
    port: u16,
    allowed: bool,
    /// Why not.
    reason: Option<&'static str>,
    /// The policy that decided, as `<namespace>/<name>`; none where nothing but the absence of policies did.
    policy: Option<Arc<str>>,
    /// The number of its rule, from 0.
    rule: Option<usize>,
    /// Whether the caller counts by its certificate.
    authenticated: bool,
    /// Whether each of this caller's requests is judged by itself, and bytes that are none are refused.
    requests_are_read: bool,
    /// AUDIT policies that record it.
    audited: Vec<Arc<str>>,
    /// Who is asked first; what is said here holds if all of them let it pass.
    asks: Vec<Asks>,
}

/// Somebody who would be asked.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Asks {
    /// The CUSTOM policy that wants it.
    policy: Arc<str>,
    rule: Option<usize>,
    /// The ExternalAuthorizer; None: there is none, and the request is refused.
    authorizer: Option<Arc<str>>,
}

impl Asks {
    fn new(state: &MeshState, referral: &policy::Referral<'_>) -> Self {
        let authorizer = referral.provider.and_then(|provider| state.authorizer(provider));
        Self {
            policy: referral.policy.clone(),
            rule: referral.rule,
            authorizer: authorizer.map(|authorizer| authorizer.id.clone()),
        }
    }
}

/// Who asks.
enum Caller {
    Pod(Arc<Workload>),
    Identity(SpiffeId),
    Outside(IpAddr),
}

/// What is asked, as it was typed.
struct Typed {
    method: Method,
    host: String,
    path: String,
    headers: HeaderMap,
    token: Option<Token>,
}

fn answer(args: &PolicyTestArgs) -> anyhow::Result<Answer> {
    std::fs::metadata(&args.directory).with_context(|| args.directory.display().to_string())?;
    let trust_domain = args.trust_domain.as_deref().unwrap_or(config::default::TRUST_DOMAIN);
    let load = |node: &str| {
        let config = discovery::Config { node: node.to_string(), trust_domain: trust_domain.to_string() };
        discovery::load(&args.directory, &config)
    };
    let (world, findings) = load("")?;
    let caller = caller(&world, &args.from)?;
    let typed = typed(args)?;
    let places = places(&world, &args.to, args.port)?;
    let mut loaded = None;
    let mut request = None;
    let mut pods = Vec::new();
    for (workload, port) in &places {
        // A node's agent compiles the policies of its own pods.
        let state = match loaded.take_if(|state: &mut MeshState| *state.node == *workload.node) {
            Some(state) => state,
            None => load(&workload.node)?.0,
        };
        ensure!(workload.enrolled, "{} is not in the mesh: no policy is asked there", name(workload));
        ensure!(
            !workload.exclusions.inbound_ports.contains(port),
            "port {port} of {} is excluded from the mesh by annotation: no policy is asked there",
            name(workload)
        );
        let verdict = verdict(&state, &caller, typed.as_ref(), workload, *port, &mut request)?;
        pods.push(verdict);
        loaded = Some(state);
    }
    let allowed = pods.iter().all(|verdict| verdict.allowed);
    Ok(Answer { allowed, caller: caller.to_string(), request, pods, findings: findings.len() })
}

fn verdict(
    state: &MeshState,
    caller: &Caller,
    typed: Option<&Typed>,
    workload: &Workload,
    port: u16,
    asked: &mut Option<Asked>,
) -> anyhow::Result<Verdict> {
    let compiled = state.inbound_policy(&workload.uid).context("the pod is on no node")?;
    let destination_ip = *workload.ips.first().context("the pod has no address")?;
    let (source, source_ip) = match caller {
        // A caller of the mesh brings its certificate wherever it is met by a tunnel.
        Caller::Pod(pod) => {
            let ip = pod.ips.iter().find(|ip| ip.is_ipv4() == destination_ip.is_ipv4()).or(pod.ips.first());
            let has_tunnel = pod.enrolled && state.tunnels_to(workload, port);
            (has_tunnel.then(|| pod.identity.clone()), *ip.context("the caller has no address")?)
        }
        Caller::Identity(id) => (Some(id.clone()), IpAddr::from([0, 0, 0, 0])),
        Caller::Outside(ip) => (None, *ip),
    };
    // On one node the kernel's word stands for a certificate, unless a certificate is asked for: then one is brought.
    let facts = Facts { source, is_same_node: false, source_ip, destination_ip, destination_port: port };
    let admission = policy::admit(compiled, &facts);
    let requests_are_read = matches!(admission, Ok(Admission::Requests(_)));
    let mut asks = Vec::new();
    let (decision, audited) = match typed {
        None => (admission.map(Admission::into_permit), policy::audited(compiled, &facts)),
        Some(typed) => typed.judged(|request| {
            *asked = Some(Asked {
                method: request.method.to_string(),
                host: request.host.to_string(),
                path: request.path.as_str().to_string(),
            });
            let referrals = policy::referrals(compiled, &facts, request);
            asks = referrals.iter().map(|referral| Asks::new(state, referral)).collect();
            // What is decided if all of them let it pass.
            let answered: Vec<Arc<str>> = referrals.iter().map(|referral| referral.policy.clone()).collect();
            let decision = policy::authorize_request(compiled, &facts, request, &answered);
            (decision, policy::audited_request(compiled, &facts, request))
        })?,
    };
    let mut verdict = Verdict::new(workload, &facts, decision, requests_are_read, audited);
    if let Some(nobody) = asks.iter().find(|asks| asks.authorizer.is_none()).filter(|_| verdict.allowed) {
        verdict.allowed = false;
        (verdict.reason, verdict.policy, verdict.rule) =
            (Some(AUTHORIZER_UNKNOWN), Some(nobody.policy.clone()), nobody.rule);
    }
    Ok(Verdict { asks, ..verdict })
}

impl Verdict {
    fn new(
        workload: &Workload,
        facts: &Facts,
        decision: Result<Permit, Denial>,
        requests_are_read: bool,
        audited: Vec<Arc<str>>,
    ) -> Self {
        let (reason, policy, rule) = match &decision {
            Ok(permit) => (None, permit.rule().cloned(), permit.number()),
            Err(denial) => (Some(denial.reason.label()), denial.rule.clone(), denial.number),
        };
        Self {
            pod: name(workload),
            port: facts.destination_port,
            allowed: decision.is_ok(),
            reason,
            policy,
            rule,
            authenticated: facts.source.is_some(),
            requests_are_read,
            audited,
            asks: Vec::new(),
        }
    }
}

impl Typed {
    /// As the agent would bring it into the one form.
    fn judged<T>(&self, judge: impl FnOnce(&Request<'_>) -> T) -> anyhow::Result<T> {
        let host = policy::normal_host(&self.host).with_context(|| format!("--host {:?} is no host", self.host))?;
        let path: NormalPath<'_> = path::normalise(&self.path).map_err(|why| {
            anyhow::anyhow!(
                "--path {:?} can be read in two ways, and is answered with 400 ({})",
                self.path,
                why.label()
            )
        })?;
        let token = self.token.as_ref();
        Ok(judge(&Request { method: &self.method, host: &host, path: &path, headers: &self.headers, token }))
    }
}

fn caller(world: &MeshState, text: &str) -> anyhow::Result<Caller> {
    if text.starts_with("spiffe://") {
        return Ok(Caller::Identity(SpiffeId::parse(text).with_context(|| format!("--from {text}"))?));
    }
    if let Ok(ip) = text.parse::<IpAddr>() {
        let pod = world.workload_by_ip(ip).cloned();
        return Ok(pod.map_or(Caller::Outside(ip), Caller::Pod));
    }
    let pod = pod(world, text.strip_prefix("pod/").unwrap_or(text));
    let expected = "expected <namespace>/<pod>, spiffe://… or an IP address";
    pod.map(|pod| Caller::Pod(pod.clone())).with_context(|| format!("--from {text}: no such pod; {expected}"))
}

fn pod<'a>(world: &'a MeshState, text: &str) -> Option<&'a Arc<Workload>> {
    let (namespace, name) = text.split_once('/')?;
    world.workloads().find(|pod| &*pod.namespace == namespace && &*pod.name == name)
}

fn service<'a>(world: &'a MeshState, text: &str) -> Option<&'a Arc<Service>> {
    let (namespace, name) = text.split_once('/')?;
    world.services().find(|service| &*service.namespace == namespace && &*service.name == name)
}

/// The pods that are meant, each with the application's port.
fn places(world: &MeshState, text: &str, port: Option<u16>) -> anyhow::Result<Vec<(Arc<Workload>, u16)>> {
    let (found_pod, found_service) = match text.split_once('/') {
        Some(("pod", rest)) => (pod(world, rest), None),
        Some(("service", rest)) => (None, service(world, rest)),
        _ => (pod(world, text), service(world, text)),
    };
    match (found_pod, found_service) {
        (Some(_), Some(_)) => bail!("--to {text}: a pod and a Service are called so; say pod/{text} or service/{text}"),
        (Some(pod), None) => {
            let port = port.with_context(|| format!("--port is needed: the port of the application in {text}"))?;
            Ok(vec![(pod.clone(), port)])
        }
        (None, Some(service)) => behind(service, port),
        (None, None) => {
            bail!("--to {text}: neither a pod nor a Service is called so; expected <namespace>/<name>")
        }
    }
}

fn behind(service: &Service, port: Option<u16>) -> anyhow::Result<Vec<(Arc<Workload>, u16)>> {
    let known: Vec<String> = service.ports.iter().map(|port| port.port.to_string()).collect();
    let known = known.join(", ");
    let port = match (port, service.ports.as_slice()) {
        (Some(port), _) => {
            service.port(port).with_context(|| format!("the Service has no port {port}, but {known}"))?
        }
        (None, [only]) => only,
        (None, _) => bail!("--port is needed: the Service has the ports {known}"),
    };
    let pods = port.endpoints.iter().filter_map(|endpoint| Some((endpoint.workload.clone()?, endpoint.port)));
    let mut pods: Vec<_> = pods.collect();
    ensure!(!pods.is_empty(), "no ready pod is behind port {} of the Service", port.port);
    pods.sort_by_key(|(pod, port)| (pod.name.clone(), *port));
    pods.dedup_by_key(|(pod, port)| (pod.uid.clone(), *port));
    Ok(pods)
}

/// None: nothing was said of a request, so it is the connection that is asked about.
fn typed(args: &PolicyTestArgs) -> anyhow::Result<Option<Typed>> {
    let PolicyTestArgs { method, path, host, headers, principal, audiences, claims, .. } = args;
    let has_token = principal.is_some() || !audiences.is_empty() || !claims.is_empty();
    if method.is_none() && path.is_none() && host.is_none() && headers.is_empty() && !has_token {
        return Ok(None);
    }
    let method = method.as_deref().unwrap_or("GET");
    let method = Method::from_bytes(method.as_bytes()).with_context(|| format!("--method {method:?} is no method"))?;
    let path = path.as_deref().unwrap_or("/");
    let mut map = HeaderMap::new();
    for header in headers {
        let (name, value) =
            header.split_once(':').with_context(|| format!("--header {header:?}: expected 'name: value'"))?;
        let parsed = HeaderName::try_from(name.trim()).ok().zip(HeaderValue::try_from(value.trim()).ok());
        let (name, value) = parsed.with_context(|| format!("--header {header:?} is no header"))?;
        ensure!(name != http::header::HOST, "--header {header:?}: say --host");
        map.append(name, value);
    }
    Ok(Some(Typed {
        method,
        host: host.clone().unwrap_or_else(|| default_host(&args.to)),
        path: path.split('?').next().unwrap_or_default().to_string(),
        headers: map,
        token: if has_token { Some(token(principal.as_deref(), audiences, claims)?) } else { None },
    }))
}

/// A Service is called by its name and namespace.
fn default_host(to: &str) -> String {
    let place = to.strip_prefix("service/").or_else(|| to.strip_prefix("pod/")).unwrap_or(to);
    place.split_once('/').map_or_else(|| place.to_string(), |(namespace, name)| format!("{name}.{namespace}"))
}

fn token(principal: Option<&str>, audiences: &[String], claims: &[String]) -> anyhow::Result<Token> {
    let mut token = Token {
        principal: principal.unwrap_or_default().to_string(),
        audiences: audiences.to_vec(),
        ..Token::default()
    };
    for claim in claims {
        let (name, value) = claim.split_once('=').with_context(|| format!("--claim {claim:?}: expected name=value"))?;
        // JSON where it is JSON, such as a list; else a text.
        let value = serde_json::from_str(value).unwrap_or_else(|_| value.into());
        token.claims.insert(name.to_string(), value);
    }
    Ok(token)
}

fn name(workload: &Workload) -> String {
    format!("{}/{}", workload.namespace, workload.name)
}

impl Display for Caller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Caller::Pod(pod) => write!(f, "{} ({})", name(pod), pod.identity),
            Caller::Identity(id) => id.fmt(f),
            Caller::Outside(ip) => write!(f, "{ip} (outside the mesh)"),
        }
    }
}

impl Display for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { allowed, caller, request, pods, findings } = self;
        let asked = match request {
            Some(Asked { method, host, path }) => format!("{method} {path} of {host}"),
            None => "a connection".to_string(),
        };
        write!(f, "{} {asked}, by {caller}", if *allowed { "ALLOWED" } else { "REFUSED" })?;
        pods.iter().try_for_each(|verdict| write!(f, "\n  {verdict}"))?;
        if *findings > 0 {
            write!(f, "\n  {findings} findings in the YAML, which may change the answer: see mesh-agent validate")?;
        }
        Ok(())
    }
}

impl Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { pod, port, reason, policy, rule, authenticated, requests_are_read, audited, asks, .. } = self;
        write!(f, "{pod} port {port}: {}", reason.map_or("allowed", |_| "refused"))?;
        match (policy, rule) {
            (Some(policy), Some(rule)) => write!(f, " by {policy}, rule {rule}")?,
            (Some(policy), None) => write!(f, " by {policy}")?,
            (None, _) if reason.is_none() && *requests_are_read => write!(f, "; each request is judged by itself")?,
            (None, _) if reason.is_none() => write!(f, ": no policy is against it")?,
            (None, _) => {}
        }
        if let Some(reason) = reason {
            write!(f, " ({reason})")?;
        }
        for Asks { policy, rule, authorizer } in asks {
            let Some(authorizer) = authorizer else { continue };
            let rule = rule.map(|rule| format!(", rule {rule}")).unwrap_or_default();
            write!(f, "; if {authorizer} lets it pass, which is asked first ({policy}{rule})")?;
        }
        if !authenticated {
            write!(f, "; the caller has no identity there")?;
        }
        if !audited.is_empty() {
            write!(f, "; recorded by {}", audited.join(", "))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::cli::{Cli, Command, PolicyCommand};

    const WORLD: &str = "
apiVersion: v1
kind: Pod
metadata: {name: web, namespace: shop, uid: u1, labels: {app: web, nodemesh.dev/mesh: enabled}}
spec: {nodeName: n1, serviceAccountName: web, containers: [{name: main, image: none}]}
status: {phase: Running, podIP: 10.0.0.1, podIPs: [{ip: 10.0.0.1}], conditions: [{type: Ready, status: 'True'}]}
---
apiVersion: v1
kind: Pod
metadata: {name: api, namespace: shop, uid: u2, labels: {app: api, nodemesh.dev/mesh: enabled}}
spec: {nodeName: n2, serviceAccountName: api, containers: [{name: main, image: none}]}
status: {phase: Running, podIP: 10.0.1.1, podIPs: [{ip: 10.0.1.1}], conditions: [{type: Ready, status: 'True'}]}
---
apiVersion: v1
kind: Pod
metadata: {name: old, namespace: shop, uid: u3, labels: {app: old}}
spec: {nodeName: n2, serviceAccountName: old, containers: [{name: main, image: none}]}
status: {phase: Running, podIP: 10.0.1.2, podIPs: [{ip: 10.0.1.2}], conditions: [{type: Ready, status: 'True'}]}
---
apiVersion: v1
kind: Service
metadata: {name: api, namespace: shop}
spec: {clusterIP: 10.96.0.1, selector: {app: api}, ports: [{port: 80, targetPort: 8080}]}
---
apiVersion: nodemesh.dev/v1alpha1
kind: AuthorizationPolicy
metadata: {name: readers, namespace: shop}
spec:
  targetRefs: [{kind: Service, name: api}]
  action: ALLOW
  rules:
    - sources: [{type: ServiceAccount, serviceAccount: {name: other}}]
    - sources: [{type: ServiceAccount, serviceAccount: {name: web}}]
      requests: [{methods: [GET], paths: ['/items/{*}']}]
    - sources: [{type: Any}]
      requests: [{paths: [/admin]}]
      when: [{key: 'request.auth.claims[groups]', values: [ops]}]
---
apiVersion: nodemesh.dev/v1alpha1
kind: AuthorizationPolicy
metadata: {name: watch, namespace: shop}
spec: {targetRefs: [{kind: Namespace}], action: AUDIT, rules: [{sources: [{type: Any}], requests: [{paths: ['/items/*']}]}]}
---
apiVersion: nodemesh.dev/v1alpha1
kind: AuthorizationPolicy
metadata: {name: asked, namespace: shop}
spec:
  targetRefs: [{kind: Service, name: api}]
  action: CUSTOM
  provider: {name: opa}
  rules: [{sources: [{type: Any}], requests: [{paths: ['/items/asked']}]}]
---
apiVersion: nodemesh.dev/v1alpha1
kind: ExternalAuthorizer
metadata: {name: opa, namespace: nodemesh-system}
spec: {service: {name: opa, port: 9191}, protocol: GRPC}
---
apiVersion: nodemesh.dev/v1alpha1
kind: AuthorizationPolicy
metadata: {name: unanswered, namespace: shop}
spec:
  targetRefs: [{kind: Service, name: api}]
  action: CUSTOM
  provider: {name: nobody}
  rules: [{sources: [{type: Any}], requests: [{paths: ['/items/unanswered']}]}]
";

    /// The answer as text, or why there is none; and the exit status.
    fn ask(line: &str) -> (String, bool) {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("world.yaml"), WORLD).unwrap();
        let path = directory.path().display().to_string();
        let words = ["mesh-agent", "policy", "test", &path].into_iter().map(String::from);
        let words = words.chain(line.split('|').map(str::to_string));
        match Cli::try_parse_from(words) {
            Ok(Cli { command: Command::Policy(PolicyCommand::Test(args)) }) => match answer(&args) {
                Ok(answer) => (answer.to_string(), answer.allowed),
                Err(error) => (format!("{error:#}"), false),
            },
            Ok(_) => panic!("another command"),
            Err(error) => (error.to_string(), false),
        }
    }

    #[test]
    fn who_may_what_and_by_which_rule() {
        for (line, is_allowed, said) in [
            ("--from|shop/web|--to|service/shop/api|--path|/items/7", true, "shop/readers, rule 1"),
            ("--from|shop/web|--to|service/shop/api|--path|//items/./7?q", true, "GET /items/7 of api.shop"),
            ("--from|shop/web|--to|service/shop/api|--path|/items/7", true, "recorded by shop/watch"),
            ("--from|shop/web|--to|service/shop/api|--path|/items/7|--method|PUT", false, "no-allow-rule"),
            ("--from|shop/web|--to|service/shop/api|--path|/admin", false, "refused by shop/readers"),
            ("--from|10.9.9.9|--to|pod/shop/api|--port|8080|--path|/admin|--claim|groups=[\"ops\"]", true, "rule 2"),
            ("--from|10.9.9.9|--to|pod/shop/api|--port|8080|--path|/items/7", false, "no identity there"),
            ("--from|10.0.0.1|--to|pod/shop/api|--port|8080|--path|/items/7", true, "shop/web (spiffe"),
            ("--from|spiffe://cluster.local/ns/shop/sa/other|--to|service/shop/api", true, "rule 0"),
            ("--from|shop/web|--to|service/shop/api", true, "each request is judged by itself"),
            ("--from|shop/web|--to|pod/shop/api|--port|9090", true, "no policy is against it"),
            ("--from|shop/web|--to|service/shop/api|--path|/items/asked", true, "if nodemesh-system/opa lets it pass"),
            ("--from|shop/web|--to|service/shop/api|--path|/items/asked", true, "(shop/asked, rule 0)"),
            ("--from|shop/web|--to|service/shop/api|--path|/items/asked|--method|PUT", false, "no-allow-rule"),
            ("--from|shop/web|--to|service/shop/api|--path|/items/unanswered", false, "(authorizer-unknown)"),
        ] {
            let (text, allowed) = ask(line);
            assert_eq!(allowed, is_allowed, "{line}: {text}");
            assert!(text.contains(said), "{line}: {text}");
        }
    }

    #[test]
    fn what_cannot_be_answered_is_said() {
        for (line, said) in [
            ("--from|shop/nobody|--to|service/shop/api", "no such pod; expected <namespace>/<pod>"),
            ("--from|shop/web|--to|shop/api", "say pod/shop/api or service/shop/api"),
            ("--from|shop/web|--to|shop/none", "neither a pod nor a Service"),
            ("--from|shop/web|--to|pod/shop/api", "--port is needed"),
            ("--from|shop/web|--to|service/shop/api|--port|81", "no port 81, but 80"),
            ("--from|shop/web|--to|pod/shop/old|--port|80", "not in the mesh"),
            ("--from|shop/web|--to|service/shop/api|--path|/a%2f..%2fb", "answered with 400 (path-hidden-dots)"),
            ("--from|shop/web|--to|service/shop/api|--method|G T", "is no method"),
            ("--from|shop/web|--to|service/shop/api|--header|x", "expected 'name: value'"),
            ("--from|shop/web|--to|service/shop/api|--claim|x", "expected name=value"),
            ("--from|shop/web|--to|service/shop/api|--pth|/a", "--path"),
            ("--from|shop/web", "--to"),
            ("--from|shop/web|--to|service/shop/api|-o|yaml", "possible values: text, json"),
        ] {
            let (text, allowed) = ask(line);
            assert!(!allowed && text.contains(said), "{line}: {text}");
        }
    }
}
