//! Requests between two nodes: real clients, real servers, routes as YAML.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use xtask::rings::can_use_kernel;
use xtask::testbed::{
    AgentOptions, Family, PodSpec, Recording, ServiceSpec, Testbed, eventually, python, start_nginx, start_reflector,
    start_websocket, websocket_client,
};

const PATIENCE: Duration = Duration::from_secs(60);

/// The ports of the Service `web`: nginx, its other server, the reflector, the WebSocket server.
const NGINX: u16 = 80;
const OTHER: u16 = 81;
const REFLECTOR: u16 = 82;
const WEBSOCKET: u16 = 83;

/// A client on one node, servers of HTTP on the other; None if this machine cannot.
fn bed(test: &str) -> Result<Option<Testbed>> {
    if !can_use_kernel(test) {
        return Ok(None);
    }
    let mut bed = Testbed::of_two_nodes("shop")?;
    bed.add_pod(PodSpec::new("shop", "client", "n1"))?;
    bed.add_pod(PodSpec::new("shop", "web", "n2"))?;
    let web = ServiceSpec::new("shop", "web").port("http", NGINX, 80).port("http-other", OTHER, 8080);
    bed.add_service(web.port("http-reflector", REFLECTOR, 8082).port("http-websocket", WEBSOCKET, 8083))?;
    bed.add_service(ServiceSpec::new("shop", "nobody").port("http", 80, 80))?;
    bed.start_agents(&AgentOptions::default())?;
    Ok(Some(bed))
}

fn in_both_families(test: &str, run: impl Fn(&Testbed, Family) -> Result<()>) -> Result<()> {
    let Some(bed) = bed(test)? else { return Ok(()) };
    for family in Family::BOTH {
        run(&bed, family).with_context(|| format!("over {family}")).map_err(|error| bed.explain(error))?;
    }
    Ok(())
}

fn url(bed: &Testbed, family: Family, port: u16, path: &str) -> String {
    format!("http://{}{path}", bed.service("web").socket(family, port))
}

/// What curl says of a request: `-w` is `arguments`' to choose.
fn curl(bed: &Testbed, arguments: &[&str]) -> Result<String> {
    let fixed = ["curl", "-sS", "--max-time", "20"];
    bed.pod("client").run(&[&fixed[..], arguments].concat(), PATIENCE)?.expect_ok("curl")
}

/// The status of an answer.
fn status(bed: &Testbed, arguments: &[&str]) -> Result<String> {
    curl(bed, &[&["-o", "/dev/null", "-w", "%{http_code}"][..], arguments].concat())
}

const PROTOCOLS: [&str; 2] = ["--http1.1", "--http2-prior-knowledge"];

#[test]
fn curl_speaks_to_nginx_in_either_protocol() -> Result<()> {
    let Some(bed) = bed("curl and nginx")? else { return Ok(()) };
    let log = start_nginx(bed.pod("web"))?;
    for family in Family::BOTH {
        for protocol in PROTOCOLS {
            let at = |path: &str| url(&bed, family, NGINX, path);
            let said = curl(&bed, &[protocol, &at("/")])?;
            ensure!(said == "hello from web\n", "{family} {protocol}: {said:?}");
            let size = curl(&bed, &[protocol, "-o", "/dev/null", "-w", "%{size_download}", &at("/big")])?;
            ensure!(size == (1 << 20).to_string(), "{family} {protocol}: {size} bytes arrived");
            let head = curl(&bed, &[protocol, "-I", &at("/big")])?;
            ensure!(head.to_lowercase().contains("content-length: 1048576"), "{family} {protocol}: {head}");
            let missing = status(&bed, &[protocol, &at("/missing")])?;
            ensure!(missing == "404", "{family} {protocol}: {missing}");
        }
        let client = bed.pod("client").ips.ip(family).to_string();
        let log = std::fs::read_to_string(&log)?;
        ensure!(log.lines().any(|line| line.starts_with(&format!("{client} "))), "nginx did not see {client}: {log}");
    }
    // The server's agent knows the client by its certificate.
    let client = bed.pod("client").identity();
    let agent = bed.agent("n2");
    let connections = agent.get_json("/connections")?;
    let open = connections.as_array().into_iter().flatten().map(|one| &one["source"]["identity"]);
    let lines = agent.access_log();
    let mut seen = lines.iter().map(|line| &line["source_identity"]).chain(open);
    ensure!(seen.any(|identity| identity.as_str() == Some(&*client)), "n2 knows nobody as {client}");
    Ok(())
}

#[test]
fn applications_see_what_was_asked_and_clients_what_was_answered() -> Result<()> {
    let Some(bed) = bed("reflector")? else { return Ok(()) };
    start_reflector(bed.pod("web"), 8082)?;
    let upload = bed.pod("client").dir.join("upload");
    std::fs::write(&upload, vec![b'u'; 3 << 20])?;
    let upload = format!("@{}", upload.display());
    for family in Family::BOTH {
        for protocol in PROTOCOLS {
            let at = |path: &str| url(&bed, family, REFLECTOR, path);
            // More than a megabyte: curl asks first whether it may send.
            let body = ["--data-binary", &upload, "-H", "Expect: 100-continue", "-H", "X-Own: own"];
            let said = curl(&bed, &[&[protocol][..], &body, &[&at("/up?a=%20b")]].concat())?;
            let seen: Value = serde_json::from_str(&said).with_context(|| said.clone())?;
            ensure!(seen["method"] == "POST" && seen["path"] == "/up?a=%20b" && seen["body"] == 3 << 20, "{said}");
            ensure!(seen["fields"]["x-own"][0] == "own", "{said}");
            for gone in ["connection", "expect", "upgrade"] {
                ensure!(seen["fields"][gone].is_null(), "{gone}: {said}");
            }
            let peer = bed.pod("client").ips.ip(family).to_string();
            ensure!(seen["peer"].as_str().is_some_and(|seen| seen.ends_with(&peer)), "not {peer}: {said}");
            for expected in ["404", "500", "503"] {
                let seen = status(&bed, &[protocol, &at(&format!("/status/{expected}"))])?;
                ensure!(seen == expected, "{family} {protocol}: {seen} for {expected}");
            }
        }
    }
    Ok(())
}

#[test]
fn h2load_has_every_request_answered_over_few_connections() -> Result<()> {
    let Some(bed) = bed("h2load")? else { return Ok(()) };
    start_nginx(bed.pod("web"))?;
    for family in Family::BOTH {
        // A name in the URL: h2load would write an IPv6 address without its brackets, and be refused for it.
        let server = format!("--connect-to={}", bed.service("web").socket(family, NGINX));
        for protocol in [&["--h1"][..], &[]] {
            let load = ["h2load", "-n", "3000", "-c", "6", "-m", "5", "-t", "1", &server, "http://web.shop/"];
            let said = bed.pod("client").run(&[&load[..], protocol].concat(), Duration::from_secs(90))?;
            let said = said.expect_ok("h2load")?;
            ensure!(said.contains("3000 succeeded, 0 failed, 0 errored, 0 timeout"), "{family} {protocol:?}: {said}");
        }
    }
    let (_, metrics) = bed.agent("n1").get("/metrics")?;
    let reused = metrics.lines().find(|line| line.starts_with("nodemesh_http_upstream_reuses_total"));
    let reused: Option<f64> = reused.and_then(|line| line.split_whitespace().last()?.parse().ok());
    ensure!(reused.is_some_and(|reused| reused > 11_000.0), "{reused:?} of 12000 requests went by kept connections");
    Ok(())
}

#[test]
fn a_websocket_carries_messages_both_ways() -> Result<()> {
    in_both_families("WebSocket", |bed, family| {
        if family == Family::V4 {
            start_websocket(bed.pod("web"), 8083)?;
        }
        let said = websocket_client(bed.pod("client"), bed.service("web").socket(family, WEBSOCKET))?;
        let said = said.expect_ok("the WebSocket client")?;
        ensure!(said.contains("4 messages came back"), "{said}");
        Ok(())
    })
}

const ROUTE: &str = "apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: web, namespace: shop}
spec:
  parentRefs: [{group: '', kind: Service, name: web, port: 80}]
  rules:
  - matches: [{path: {type: PathPrefix, value: /split}}]
    filters: [{type: URLRewrite, urlRewrite: {path: {type: ReplacePrefixMatch, replacePrefixMatch: /}}}]
    backendRefs: [{name: web, port: 80, weight: 1}, {name: web, port: 81, weight: 1}]
  - matches: [{path: {type: PathPrefix, value: /reflect}, headers: [{name: x-tenant, value: blue}]}]
    filters: [{type: RequestHeaderModifier, requestHeaderModifier: {set: [{name: x-set, value: by the route}], remove: [x-tenant]}}]
    backendRefs: [{name: web, port: 82}]
  - matches: [{path: {type: Exact, value: /moved}}]
    filters: [{type: RequestRedirect, requestRedirect: {hostname: example.com, statusCode: 302}}]
  - matches: [{path: {type: Exact, value: /nowhere}}]
    backendRefs: [{name: nothing, port: 80}]
  - matches: [{path: {type: Exact, value: /nobody}}]
    backendRefs: [{name: nobody, port: 80}]
";

#[test]
fn a_route_that_is_applied_leads_requests() -> Result<()> {
    let Some(bed) = bed("HTTPRoute")? else { return Ok(()) };
    start_nginx(bed.pod("web"))?;
    start_reflector(bed.pod("web"), 8082)?;
    bed.world.apply("route", ROUTE)?;
    for family in Family::BOTH {
        let at = |path: &str| url(&bed, family, NGINX, path);
        eventually(PATIENCE, "the route to hold", || Ok((status(&bed, &[&at("/")])? == "404").then_some(())))?;
        // A fair coin of 40 throws shows one side alone once in 10^12.
        let config: String = (0..40).map(|_| format!("url = \"{}\"\n", at("/split/"))).collect();
        let file = bed.pod("client").dir.join("urls");
        std::fs::write(&file, config)?;
        let said = curl(&bed, &["--config", &file.to_string_lossy()])?;
        let [first, second] = ["hello from web\n", "the other port\n"].map(|answer| said.matches(answer).count());
        ensure!(first + second == 40 && first > 0 && second > 0, "{family}: {first} and {second} of 40: {said}");

        let said = curl(&bed, &["-H", "X-Tenant: blue", &at("/reflect/x")])?;
        let seen: Value = serde_json::from_str(&said).with_context(|| said.clone())?;
        ensure!(seen["path"] == "/reflect/x" && seen["fields"]["x-set"][0] == "by the route", "{family}: {said}");
        ensure!(seen["fields"]["x-tenant"].is_null(), "{family}: {said}");
        let moved = ["-o", "/dev/null", "-w", "%{http_code} %{redirect_url}"];
        let seen = curl(&bed, &[&moved[..], &[&at("/moved")]].concat())?;
        ensure!(seen.starts_with("302 http://example.com"), "{family}: {seen}");
        for (path, expected) in [("/reflect", "404"), ("/nowhere", "500"), ("/nobody", "503")] {
            let seen = status(&bed, &[&at(path)])?;
            ensure!(seen == expected, "{family} {path}: {seen}");
        }
    }
    let told = |line: &Value| line["message"] == "request" && line["route"] == "shop/web";
    let lines = bed.agent("n1").access_log();
    ensure!(lines.iter().any(told), "no request is told with its route: {:?}", lines.last());
    bed.world.delete("route")?;
    let at = url(&bed, Family::V4, NGINX, "/");
    eventually(PATIENCE, "the Service to be reached without routes", || {
        Ok((status(&bed, &[&at])? == "200").then_some(()))
    })
}

/// Says bytes and prints all that comes back until the end.
const SAY: &str = "
import socket, sys
with socket.create_connection((sys.argv[1], int(sys.argv[2])), 20) as s:
    s.settimeout(20)
    s.sendall(sys.argv[3].encode().decode('unicode_escape').encode('latin1'))
    heard = b''
    while part := s.recv(65536): heard += part
print(heard.decode('latin1'))
";

#[test]
fn a_request_that_can_be_read_in_two_ways_goes_nowhere() -> Result<()> {
    let Some(bed) = bed("ambiguous")? else { return Ok(()) };
    let log = start_nginx(bed.pod("web"))?;
    for family in Family::BOTH {
        let address = bed.service("web").socket(family, NGINX);
        for (name, request) in [
            (
                "CL.TE",
                r"POST /x HTTP/1.1\r\nHost: w\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            ),
            ("two lengths", r"POST /x HTTP/1.1\r\nHost: w\r\nContent-Length: 3\r\nContent-Length: 3\r\n\r\nabc"),
            ("bare LF", r"GET /x HTTP/1.1\nHost: w\n\n"),
        ] {
            let smuggled = format!(r"{request}GET /smuggled HTTP/1.1\r\nHost: w\r\n\r\n");
            let arguments = [&*address.ip().to_string(), &address.port().to_string(), &smuggled];
            let heard = python(bed.pod("client"), SAY, &arguments)?.expect_ok("saying bytes")?;
            ensure!(heard.starts_with("HTTP/1.1 400 "), "{family} {name}: {heard:?}");
            ensure!(heard.matches("HTTP/1.1 ").count() == 1, "{family} {name}: {heard:?}");
        }
    }
    let log = std::fs::read_to_string(&log)?;
    ensure!(log.is_empty(), "nginx heard: {log}");
    Ok(())
}

/// A request each, until told to stop.
const LOAD: &str = r#"while [ ! -e "$1" ]; do
    curl -s -o /dev/null --max-time 3 -w '%{http_code}\n' "$0" || echo failed
done"#;

/// What each request says: it must never be seen between the nodes.
const WORD: &str = "a-word-of-the-request";

#[test]
fn agents_killed_under_requests_leave_no_plaintext() -> Result<()> {
    let Some(mut bed) = bed("kill -9 under requests")? else { return Ok(()) };
    start_reflector(bed.pod("web"), 8082)?;
    let node = bed.node("n1");
    let recording = Recording::start(&node.tool_place(), &node.link_to("n2"), &bed.dir().join("requests.pcap"))?;
    let stop = bed.dir().join("stop-requests").to_string_lossy().into_owned();
    let mut load = Vec::new();
    for family in Family::BOTH {
        let url = url(&bed, family, REFLECTOR, &format!("/{WORD}"));
        load.push(bed.pod("client").spawn(&format!("load-{family}"), &["sh", "-c", LOAD, &url, &stop])?);
    }
    for kill in 0..4 {
        let node = ["n1", "n2"][kill % 2];
        for load in &load {
            let served = |log: &str| log.lines().filter(|line| *line == "200").count();
            let before = served(&load.log());
            eventually(PATIENCE, "requests to be served", || Ok((served(&load.log()) > before + 5).then_some(())))
                .with_context(|| format!("before kill {}", kill + 1))
                .map_err(|error| bed.explain(error))?;
        }
        bed.agent_mut(node).kill()?;
        bed.start_agent(node, &AgentOptions::default())?;
    }
    std::fs::write(&stop, "")?;
    let packets = recording.stop()?;
    ensure!(packets.containing(WORD) == 0, "{} packets carried plaintext", packets.containing(WORD));
    ensure!(!packets.tcp().is_empty(), "the recording has nothing, so it is no witness");
    Ok(())
}

/// What nobody who is not marked as an ingress is believed.
const CLAIMS: [(&str, &str); 5] = [
    ("x-forwarded-for", "6.6.6.6"),
    ("x-forwarded-host", "forged"),
    ("x-real-ip", "6.6.6.6"),
    ("forwarded", "for=6.6.6.6"),
    ("x-forwarded-client-cert", "URI=spiffe://forged"),
];

#[test]
fn claims_are_settled_on_both_nodes() -> Result<()> {
    if !can_use_kernel("claims of callers") {
        return Ok(());
    }
    let mut bed = Testbed::of_two_nodes("shop")?;
    bed.add_namespace("outside", &[])?;
    bed.add_pod(PodSpec::new("shop", "client", "n1"))?;
    bed.add_pod(PodSpec::new("shop", "ingress", "n1").annotation("nodemesh.dev/forwarded", "append"))?;
    bed.add_pod(PodSpec::new("outside", "outsider", "n1"))?;
    bed.add_pod(PodSpec::new("shop", "web", "n2"))?;
    bed.add_service(ServiceSpec::new("shop", "web").port("http", REFLECTOR, 8082))?;
    start_reflector(bed.pod("web"), 8082)?;
    // The application's node reads requests as well.
    let policy = "apiVersion: nodemesh.dev/v1alpha1
kind: AuthorizationPolicy
metadata: {name: reads, namespace: shop}
spec:
  targetRefs: [{kind: Pod, selector: {matchLabels: {app: web}}}]
  action: ALLOW
  rules: [{sources: [{type: Any}], requests: [{methods: [GET]}]}]
";
    bed.world.apply("policy", policy)?;
    bed.start_agents(&AgentOptions::default())?;
    let fields: Vec<String> = CLAIMS.iter().map(|(name, value)| format!("{name}: {value}")).collect();
    for family in Family::BOTH {
        let service = bed.service("web").socket(family, REFLECTOR);
        let direct = bed.pod("web").ips.socket(family, 8082);
        // (who asks, where: the pod's own address is bytes for the client's node; whether each claim stays)
        for (pod, at, stays) in [
            ("client", service, [false; 5]),
            // What was asked for is left to the client's node, which did not look.
            ("client", direct, [false, true, false, false, false]),
            ("ingress", service, [true; 5]),
            ("ingress", direct, [true; 5]),
            ("outsider", direct, [false; 5]),
        ] {
            let mut command = vec!["curl", "-sS", "--max-time", "20"];
            fields.iter().for_each(|field| command.extend(["-H", &**field]));
            let url = format!("http://{at}/");
            command.push(&url);
            let said = bed.pod(pod).run(&command, PATIENCE)?.expect_ok("curl").map_err(|error| bed.explain(error))?;
            let seen: Value = serde_json::from_str(&said).with_context(|| said.clone())?;
            let of = |name: &str| -> Vec<&str> {
                seen["fields"][name].as_array().into_iter().flatten().filter_map(Value::as_str).collect()
            };
            let ip = bed.pod(pod).ips.ip(family).to_string();
            for ((name, value), stays) in CLAIMS.iter().zip(stays) {
                ensure!(of(name).contains(value) == stays, "{pod} to {at}, {name}: {said}");
            }
            ensure!(of("x-forwarded-for").last() == Some(&&*ip), "{pod} to {at} has {ip}: {said}");
            ensure!(of("x-forwarded-proto") == ["http"], "{pod} to {at}: {said}");
        }
    }
    Ok(())
}
