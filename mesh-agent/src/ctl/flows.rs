//! `meshctl flows` and `meshctl tap`: connections and requests as they end, of all agents together, in the order in which
//! they are heard. Agents filter; what does not fit into a listener's queue there is lost, and told.

use std::time::Duration;

use anyhow::Result;
use clap::Args;
use serde::Deserialize;
use serde_json::Value;
use tokio::sync::mpsc;

use super::args::{Output, some_time};
use super::reach::{Agents, Heard};
use super::table::{Breadth, Paint, Tone};
use super::{Screen, Verdict, words};

/// How many lines wait to be printed.
pub(super) const WAITING: usize = 1024;

/// What is heard.
#[derive(Args, Debug)]
pub struct Wanted {
    /// Those of pods or identities of a namespace, at either end
    #[arg(long, value_name = "NAME")]
    pub namespace: Option<String>,
    /// Those of a pod, at either end
    #[arg(long, value_name = "NAMESPACE/NAME", value_parser = a_name)]
    pub pod: Option<String>,
    /// Those to a Service
    #[arg(long, value_name = "NAMESPACE/NAME", value_parser = a_name)]
    pub service: Option<String>,
    /// Those that ended so: ok, denied, refused, failed, cut; failures is all but ok
    #[arg(long, value_name = "NAME", value_parser = ["ok", "denied", "refused", "failed", "cut", "failures"])]
    pub result: Option<String>,
    /// As the caller's agent tells them, or as that of the application; else both
    #[arg(long, value_name = "outbound|inbound", value_parser = ["outbound", "inbound"])]
    pub direction: Option<String>,
    /// Those that took longer
    #[arg(long, value_name = "DURATION", value_parser = some_time)]
    pub slower: Option<Duration>,
}

/// `meshctl flows`
#[derive(Args, Debug)]
pub struct FlowsArgs {
    /// What is heard.
    #[command(flatten)]
    pub wanted: Wanted,
    /// Connections or requests alone
    #[arg(long, value_name = "connection|request", value_parser = ["connection", "request"])]
    pub kind: Option<String>,
    /// Listen until Ctrl-C
    #[arg(short, long)]
    pub follow: bool,
    /// How long to listen without --follow
    #[arg(long = "for", value_name = "DURATION", default_value = "10s", value_parser = some_time)]
    pub length: Duration,
    /// What to print; JSON is a line each
    #[arg(short, long, value_enum, default_value_t = Output::Table)]
    pub output: Output,
}

/// `meshctl tap`
#[derive(Args, Debug)]
pub struct TapArgs {
    /// What is heard.
    #[command(flatten)]
    pub wanted: Wanted,
    /// Those with this method
    #[arg(long, value_name = "NAME")]
    pub method: Option<String>,
    /// Those whose path begins so
    #[arg(long, value_name = "PATH")]
    pub path: Option<String>,
    /// Those that were answered so: 503, or a class such as 5xx
    #[arg(long, value_name = "STATUS")]
    pub status: Option<String>,
    /// Their headers, too: names, and the values of those that are known to be harmless; all others are told as …
    #[arg(long)]
    pub headers: bool,
    /// How long to listen [default: until Ctrl-C]
    #[arg(long = "for", value_name = "DURATION", value_parser = some_time)]
    pub length: Option<Duration>,
    /// What to print; JSON is a line each
    #[arg(short, long, value_enum, default_value_t = Output::Table)]
    pub output: Output,
}

fn a_name(text: &str) -> Result<String, String> {
    let is_name = text.split_once('/').is_some_and(|(namespace, name)| !namespace.is_empty() && !name.is_empty());
    if is_name { Ok(text.to_string()) } else { Err("expected NAMESPACE/NAME".into()) }
}

/// `meshctl flows`
pub async fn flows(args: &FlowsArgs, agents: &Agents, screen: &mut Screen<'_>) -> Result<Verdict> {
    let mut query = args.wanted.query();
    query.extend(args.kind.as_ref().map(|kind| ("kind", kind.clone())));
    let length = (!args.follow).then_some(args.length);
    listen(&query, length, args.output, agents, screen).await
}

/// `meshctl tap`
pub async fn tap(args: &TapArgs, agents: &Agents, screen: &mut Screen<'_>) -> Result<Verdict> {
    let mut query = args.wanted.query();
    query.push(("kind", "request".to_string()));
    for (name, value) in [("method", &args.method), ("path", &args.path), ("status", &args.status)] {
        query.extend(value.as_ref().map(|value| (name, value.clone())));
    }
    query.extend(args.headers.then(|| ("headers", "redacted".to_string())));
    listen(&query, args.length, args.output, agents, screen).await
}

impl Wanted {
    /// As agents take it.
    fn query(&self) -> Vec<(&'static str, String)> {
        let Self { namespace, pod, service, result, direction, slower } = self;
        let mut words: Vec<String> = Vec::new();
        words.extend(namespace.as_ref().map(|name| format!("namespace={name}")));
        words.extend(pod.as_ref().map(|name| format!("pod={name}")));
        words.extend(
            result.as_ref().map(|name| if name == "failures" { name.clone() } else { format!("result={name}") }),
        );
        let mut query = Vec::new();
        query.extend((!words.is_empty()).then(|| ("filter", words.join(","))));
        query.extend(service.as_ref().map(|name| ("service", name.clone())));
        query.extend(direction.as_ref().map(|name| ("direction", name.clone())));
        query.extend(slower.map(|span| ("slower", humantime::format_duration(span).to_string())));
        query
    }
}

async fn listen(
    query: &[(&'static str, String)],
    length: Option<Duration>,
    output: Output,
    agents: &Agents,
    screen: &mut Screen<'_>,
) -> Result<Verdict> {
    let query = form_urlencoded::Serializer::new(String::new()).extend_pairs(query).finish();
    let path = if query.is_empty() { "/flows".to_string() } else { format!("/flows?{query}") };
    let (sender, mut heard) = mpsc::channel(WAITING);
    agents.follow(&path, &sender);
    drop(sender);
    let over = async {
        match length {
            Some(length) => tokio::time::sleep(length).await,
            None => std::future::pending().await,
        }
    };
    tokio::pin!(over);
    let mut silent = 0;
    loop {
        let heard = tokio::select! {
            heard = heard.recv() => heard,
            () = &mut over => None,
        };
        match heard {
            None => return Ok(Verdict::of(true, silent, agents)),
            Some(Heard { name, what: Ok(line) }) => {
                if !screen.show(&shown(&line, &name.node, output, screen.paint())?)? {
                    return Ok(Verdict::of(true, silent, agents));
                }
            }
            Some(Heard { name, what: Err(why) }) => {
                silent += 1;
                eprintln!("{}: is heard no more: {}", name.node, why.replace(char::is_control, " "));
            }
        }
    }
}

/// A line for people or machines.
fn shown(line: &str, node: &str, output: Output, paint: Paint) -> Result<String> {
    let Ok(mut raw) = serde_json::from_str::<Value>(line) else { return Ok(String::new()) };
    if let Some(fields) = raw.as_object_mut() {
        fields.insert("node".into(), node.into());
    }
    Ok(match output {
        Output::Json => format!("{raw}\n"),
        Output::Yaml => format!("---\n{}\n", serde_saphyr::to_string(&raw)?.trim_end()),
        Output::Table => {
            format!("{}\n", Flow::deserialize(&raw).unwrap_or_default().render(node, Breadth::Usual, paint))
        }
        Output::Wide => format!("{}\n", Flow::deserialize(&raw).unwrap_or_default().render(node, Breadth::Wide, paint)),
    })
}

/// What is read of a line; agents of other versions may say less.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Flow {
    kind: String,
    lost: u64,
    ended: f64,
    direction: String,
    transport: Option<String>,
    result: String,
    reason: Option<String>,
    method: Option<String>,
    host: Option<String>,
    path: Option<String>,
    status: Option<u16>,
    grpc_status: Option<u16>,
    route: Option<String>,
    policy: Option<String>,
    rule: Option<Value>,
    principal: Option<String>,
    retries: u32,
    source: Party,
    client: String,
    dialled: Option<String>,
    service: Option<String>,
    destination: Party,
    server: Option<String>,
    bytes_sent: u64,
    bytes_received: u64,
    duration_seconds: f64,
    rtt_seconds: Option<f64>,
    retransmits: Option<u64>,
    headers: Vec<Header>,
    headers_left_out: u64,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct Header {
    name: String,
    value: String,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct Party {
    pod: Option<String>,
    identity: Option<String>,
}

impl Flow {
    /// A line is printed as it comes: no column can be as broad as what is still to come.
    fn render(&self, node: &str, breadth: Breadth, paint: Paint) -> String {
        if self.kind == "lost" {
            let line = format!("{node}: {} lost: this listener is too slow, or asks for too much", self.lost);
            return paint.apply(&line, Tone::Doubtful);
        }
        let mut parts = vec![paint.apply(&time_of_day(self.ended), Tone::Faint)];
        let arrow = if self.direction == "inbound" { "<-" } else { "->" };
        // An identity is proved, an address only seen.
        let identity = self.source.identity.as_deref().map(words::identity);
        let from = self.source.pod.as_deref().or(identity).unwrap_or(&self.client);
        let (from, to) =
            if self.direction == "inbound" { (self.to(), from.to_string()) } else { (from.to_string(), self.to()) };
        parts.push(paint.apply(&format!("{from} {arrow} {to}"), Tone::Plain));
        let tone = match self.result.as_str() {
            "ok" => Tone::Good,
            _ => Tone::Bad,
        };
        if self.kind == "request" {
            let path = self.path.as_deref().unwrap_or("-");
            parts.push(paint.apply(&format!("{} {path}", self.method.as_deref().unwrap_or("-")), Tone::Plain));
            let status = self.status.map_or_else(|| "-".to_string(), |status| status.to_string());
            let tone = if self.status.is_some_and(|status| status >= 500) { Tone::Bad } else { tone };
            parts.push(paint.apply(&status, tone));
            parts.extend(self.grpc_status.map(|status| format!("grpc={status}")));
        } else {
            parts.push(paint.apply(self.transport.as_deref().unwrap_or("-"), Tone::Plain));
            let bytes = format!("{}/{}", words::bytes(self.bytes_sent), words::bytes(self.bytes_received));
            parts.push(paint.apply(&bytes, Tone::Plain));
        }
        parts.push(format!("{:.1}ms", self.duration_seconds * 1e3));
        match &self.reason {
            Some(reason) => parts.push(paint.apply(&format!("{}: {reason}", self.result), tone)),
            None if self.result != "ok" => parts.push(paint.apply(&self.result, tone)),
            None => {}
        }
        parts.extend(self.named(breadth, node).into_iter().map(|word| paint.apply(&word, Tone::Faint)));
        [parts.join("  ")].into_iter().chain(self.told_headers(paint)).collect::<Vec<_>>().join("\n")
    }

    /// A line each, below that of the request.
    fn told_headers(&self, paint: Paint) -> Vec<String> {
        let line = |Header { name, value }: &Header| paint.apply(&format!("    {name}: {value}"), Tone::Faint);
        let mut lines: Vec<String> = self.headers.iter().map(line).collect();
        let more = self.headers_left_out;
        lines.extend((more > 0).then(|| paint.apply(&format!("    and {more} more"), Tone::Faint)));
        lines
    }

    fn to(&self) -> String {
        let server = self.server.as_deref().or(self.dialled.as_deref());
        let pod = self.destination.pod.as_deref();
        match (self.service.as_deref(), pod, server) {
            (Some(service), _, _) => service.to_string(),
            (None, Some(pod), _) => pod.to_string(),
            (None, None, server) => server.unwrap_or("-").to_string(),
        }
    }

    /// Who decided, and who the parties are.
    fn named(&self, breadth: Breadth, node: &str) -> Vec<String> {
        let rule = self.rule.as_ref().map(|rule| rule.as_str().map_or_else(|| rule.to_string(), str::to_string));
        // Of a request the policy and its rule's number, of a connection the policy alone.
        let policy = match (&self.policy, rule) {
            (Some(policy), Some(number)) if number != "null" => Some(format!("{policy}#{number}")),
            (Some(policy), _) => Some(policy.clone()),
            (None, rule) => rule.filter(|rule| rule != "null"),
        };
        let identity = |party: &Party| party.identity.as_deref().map(words::identity).map(str::to_string);
        let mut named = vec![("route", self.route.clone()), ("policy", policy)];
        named.push(("principal", self.principal.clone()));
        named.push(("retries", (self.retries > 0).then(|| self.retries.to_string())));
        if breadth == Breadth::Wide {
            named.extend([
                ("from", identity(&self.source)),
                ("to", identity(&self.destination)),
                ("host", self.host.clone()),
                ("server", self.server.clone()),
                ("rtt", self.rtt_seconds.map(|seconds| format!("{:.1}ms", seconds * 1e3))),
                ("retransmits", self.retransmits.map(|segments| segments.to_string())),
                ("node", Some(node.to_string())),
            ]);
        }
        named.into_iter().filter_map(|(name, value)| Some(format!("{name}={}", value?))).collect()
    }
}

/// Of Unix time, in UTC.
fn time_of_day(seconds: f64) -> String {
    let of_day = seconds.rem_euclid(86_400.0);
    // A float that does not fit becomes the nearest that does.
    let (whole, millis) = (of_day as u64, (of_day.fract() * 1e3) as u64);
    format!("{:02}:{:02}:{:02}.{millis:03}", whole / 3600, whole / 60 % 60, whole % 60)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn lines_as_people_read_them() {
        let request = json!({
            "kind": "request", "ended": 1_790_000_000.25, "direction": "outbound", "result": "ok", "reason": null,
            "method": "GET", "host": "api", "path": "/items", "status": 200, "route": "shop/api", "policy": "shop/web-only",
            "rule": 0, "source": {"pod": "shop/web-0", "identity": "spiffe://cluster.local/ns/shop/sa/web"},
            "client": "10.0.0.1:1", "service": "shop/api", "destination": {"pod": "shop/api-1", "identity": null},
            "server": "10.0.0.2:80", "durationSeconds": 0.0032, "retries": 1,
        });
        let denied = json!({
            "kind": "connection", "ended": 1_790_000_000.0, "direction": "inbound", "transport": "tunnel", "result": "denied",
            "reason": "no-allow-rule", "rule": null, "source": {"pod": "shop/outsider-0", "identity": null},
            "client": "10.0.0.9:1", "destination": {"pod": "shop/api-1"}, "durationSeconds": 0.001, "bytesSent": 0,
            "bytesReceived": 2048,
        });
        let by_identity = json!({
            "kind": "connection", "ended": 1_790_000_000.0, "direction": "inbound", "transport": "tunnel", "result": "denied",
            "reason": "deny-rule", "rule": "shop/no-web", "source": {"pod": null, "identity": "spiffe://cluster.local/ns/shop/sa/web"},
            "client": "10.0.0.9:1", "destination": {"pod": "shop/api-1"}, "durationSeconds": 0.001,
        });
        let far = json!({
            "kind": "connection", "ended": 1_790_000_000.0, "direction": "outbound", "transport": "tunnel", "result": "ok",
            "source": {"pod": "shop/web-0"}, "client": "10.0.0.1:1", "service": "shop/db", "destination": {"pod": "shop/db-0"},
            "durationSeconds": 1.5, "bytesSent": 10, "bytesReceived": 2048, "rttSeconds": 0.0123, "retransmits": 4,
        });
        let with_headers = json!({
            "kind": "request", "ended": 1_790_000_000.0, "direction": "outbound", "result": "ok", "method": "GET", "path": "/",
            "status": 200, "source": {"pod": "shop/web-0"}, "client": "10.0.0.1:1", "service": "shop/api",
            "durationSeconds": 0.001, "headersLeftOut": 2,
            "headers": [{"name": "accept", "value": "*/*"}, {"name": "authorization", "value": "…"}],
        });
        let table = [
            (
                &by_identity,
                Output::Table,
                "14:13:20.000  shop/api-1 <- ns/shop/sa/web  tunnel  0/0  1.0ms  denied: deny-rule  policy=shop/no-web\n",
            ),
            (
                &far,
                Output::Wide,
                "14:13:20.000  shop/web-0 -> shop/db  tunnel  10/2.0Ki  1500.0ms  rtt=12.3ms  retransmits=4  node=n1\n",
            ),
            (
                &request,
                Output::Table,
                "14:13:20.250  shop/web-0 -> shop/api  GET /items  200  3.2ms  route=shop/api  policy=shop/web-only#0  retries=1\n",
            ),
            (
                &request,
                Output::Wide,
                "14:13:20.250  shop/web-0 -> shop/api  GET /items  200  3.2ms  route=shop/api  policy=shop/web-only#0  retries=1  \
                 from=ns/shop/sa/web  host=api  server=10.0.0.2:80  node=n1\n",
            ),
            (
                &denied,
                Output::Table,
                "14:13:20.000  shop/api-1 <- shop/outsider-0  tunnel  0/2.0Ki  1.0ms  denied: no-allow-rule\n",
            ),
            (
                &with_headers,
                Output::Table,
                "14:13:20.000  shop/web-0 -> shop/api  GET /  200  1.0ms\n    accept: */*\n    authorization: …\n    and 2 more\n",
            ),
            (
                &json!({"kind": "lost", "lost": 7}),
                Output::Table,
                "n1: 7 lost: this listener is too slow, or asks for too much\n",
            ),
            (&json!({"kind": "lost", "lost": 7}), Output::Json, "{\"kind\":\"lost\",\"lost\":7,\"node\":\"n1\"}\n"),
        ];
        for (line, output, expected) in table {
            assert_eq!(shown(&line.to_string(), "n1", output, Paint::Plain).unwrap(), expected);
        }
        assert_eq!(shown("no json", "n1", Output::Json, Paint::Plain).unwrap(), "");
    }
}
