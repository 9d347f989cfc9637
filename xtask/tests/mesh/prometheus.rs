//! A real Prometheus scrapes the agents of two nodes: its queries answer, its rules hold for what agents expose, and
//! dashboards name nothing that is not there.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use xtask::build::root;
use xtask::rings::can_use_kernel;
use xtask::testbed::{
    AgentOptions, Family, PodSpec, Process, ServiceSpec, Testbed, eventually, start_nginx, start_redis,
};

const PATIENCE: Duration = Duration::from_secs(60);

/// The shop: a client of `web` (requests) and `cache` (bytes), somebody whom `web` refuses, and `api`, where requests are
/// judged.
const POLICY: &str = "apiVersion: nodemesh.dev/v1alpha1
kind: AuthorizationPolicy
metadata: {name: no-outsider, namespace: shop}
spec:
  targetRefs: [{kind: Service, name: web}]
  action: DENY
  rules: [{sources: [{type: ServiceAccount, serviceAccount: {name: outsider}}]}]
---
apiVersion: nodemesh.dev/v1alpha1
kind: AuthorizationPolicy
metadata: {name: who-reads, namespace: shop}
spec:
  targetRefs: [{kind: Service, name: api}]
  action: AUDIT
  rules: [{sources: [{type: Any}], requests: [{methods: [GET]}]}]
---
apiVersion: nodemesh.dev/v1alpha1
kind: AuthorizationPolicy
metadata: {name: readers, namespace: shop}
spec:
  targetRefs: [{kind: Service, name: api}]
  action: ALLOW
  rules: [{sources: [{type: Any}], requests: [{methods: [GET]}]}]
";

/// What is asked of Prometheus, and the least and the most that it may answer.
const QUERIES: [(&str, f64, f64); 16] = [
    ("sum(up{job=\"nodemesh-agent\"})", 2.0, 2.0),
    ("min(nodemesh_ready)", 1.0, 1.0),
    // Requests a second of one edge, by the caller's node and by nobody else.
    (
        "sum(rate(nodemesh_http_client_request_duration_seconds_count{source_service_account=\"client\",\
         destination_service_account=\"web\",server_address=\"shop/web\"}[15s]))",
        0.01,
        1e4,
    ),
    // A third of them were for what is not there.
    (
        "sum(increase(nodemesh_http_client_request_duration_seconds_count{http_response_status_code=\"2xx\"}[1m])) / \
         sum(increase(nodemesh_http_client_request_duration_seconds_count{source_service_account=\"client\"}[1m]))",
        0.5,
        0.8,
    ),
    (
        "histogram_quantile(0.99, sum by (le) \
         (rate(nodemesh_http_client_request_duration_seconds_bucket{source_service_account=\"client\"}[1m])))",
        0.0,
        10.0,
    ),
    ("sum(nodemesh_sent_bytes_total{source_service_account=\"client\",transport=\"tunnel\"})", 1.0, 1e9),
    // How the network was, of the connections that have ended: the mean round trip of one edge.
    (
        "sum(nodemesh_tcp_rtt_seconds_total{direction=\"outbound\",destination_service_account=\"cache\"}) / \
         sum(nodemesh_tcp_rtt_measurements_total{direction=\"outbound\",destination_service_account=\"cache\"})",
        1e-6,
        1.0,
    ),
    (
        "sum(nodemesh_denials_total{direction=\"inbound\",reason=\"deny-rule\",destination_service_account=\"web\"})",
        1.0,
        1e4,
    ),
    ("sum(nodemesh_audit_matches_total{policy=\"shop/who-reads\"})", 1.0, 1e4),
    ("min(nodemesh_certificate_expiry_seconds)", 7200.0, 14_400.0),
    ("min(nodemesh_root_expiry_timestamp_seconds{signs=\"true\"}) - time()", 86_400.0, 1e9),
    ("max(nodemesh_config_age_seconds)", 0.0, 60.0),
    (
        "sum(istio_requests_total{reporter=\"source\",source_workload=\"client\",source_app=\"client-app\",\
         destination_service=\"web.shop.svc.cluster.local\",destination_workload=\"web\",response_code=\"404\",\
         request_protocol=\"http\",source_principal=\"spiffe://cluster.local/ns/shop/sa/client\"})",
        1.0,
        1e4,
    ),
    (
        "histogram_quantile(0.5, sum by (le) (istio_request_duration_milliseconds_bucket{reporter=\"source\"}))",
        0.0,
        10_000.0,
    ),
    (
        "sum(istio_tcp_sent_bytes_total{reporter=\"destination\",connection_security_policy=\"mutual_tls\",\
         source_workload=\"client\",destination_workload=\"cache\"})",
        5.0,
        1e6,
    ),
    ("sum(istio_tcp_connections_closed_total{reporter=\"source\",destination_service_name=\"cache\"})", 1.0, 1e4),
];

#[test]
fn a_real_prometheus_has_answers() -> Result<()> {
    if !can_use_kernel("a real Prometheus") {
        return Ok(());
    }
    let mut bed = Testbed::of_two_nodes("shop")?;
    let mut client = PodSpec::new("shop", "client", "n1");
    client.labels.insert("app".to_string(), "client-app".to_string());
    bed.add_pod(client)?;
    bed.add_pod(PodSpec::new("shop", "outsider", "n1"))?;
    bed.add_pod(PodSpec::new("shop", "web", "n2"))?;
    bed.add_pod(PodSpec::new("shop", "cache", "n2"))?;
    bed.add_service(ServiceSpec::new("shop", "web").port("http", 80, 80).port("bytes", 81, 8080))?;
    bed.add_service(ServiceSpec::new("shop", "cache").port("redis", 6379, 6379))?;
    bed.add_pod(PodSpec::new("shop", "api", "n2"))?;
    bed.add_service(ServiceSpec::new("shop", "api").port("http", 80, 80))?;
    bed.world.apply("policies", POLICY)?;
    start_nginx(bed.pod("web"))?;
    start_nginx(bed.pod("api"))?;
    start_redis(bed.pod("cache"))?;
    bed.start_agents(&AgentOptions::with([
        "--metrics=[::]:15020",
        "--istio-metrics=true",
        // Nobody is there: every request has a trace, and its span is lost.
        "--otlp=http://127.0.0.1:9",
        "--trace-sampling=100",
    ]))?;
    let _prometheus = start_prometheus(&bed)?;
    asked(&bed).map_err(|error| bed.explain(error))
}

fn asked(bed: &Testbed) -> Result<()> {
    for (query, least, most) in QUERIES {
        let mut last = None;
        let answered = eventually(PATIENCE, query, || {
            traffic(bed)?;
            last = number(&ask(bed, "query", query)?);
            Ok(last.filter(|value| (least..=most).contains(value)))
        });
        answered.with_context(|| format!("{query}: {last:?}, not {least} to {most}"))?;
    }
    let name = "nodemesh_http_client_request_duration_seconds_bucket";
    let exemplars = eventually(PATIENCE, "exemplars", || {
        let all = ask(bed, "query_exemplars", name)?;
        Ok(all["data"].as_array().filter(|all| !all.is_empty()).cloned())
    })?;
    let trace = exemplars[0]["exemplars"][0]["labels"]["trace_id"].as_str().unwrap_or_default();
    ensure!(trace.len() == 32, "{exemplars:?}");
    rules_are_well(bed)?;
    let exposed = exposed(bed)?;
    for (from, expression) in expressions()? {
        nothing_is_invented(&exposed, &expression).with_context(|| format!("{from}: {expression}"))?;
    }
    // And that this would be seen.
    for wrong in ["rate(nodemesh_denials_totals[5m])", "nodemesh_denials_total{namespace=\"x\"}", "sum by (pods) (up)"]
    {
        ensure!(nothing_is_invented(&exposed, wrong).is_err(), "{wrong} passed");
    }
    Ok(())
}

/// What there is to be seen: good and bad requests, bytes, a denial.
fn traffic(bed: &Testbed) -> Result<()> {
    let at = |port: u16| format!("http://{}/", bed.service("web").socket(Family::V4, port));
    let curl = |url: &str| {
        ["curl", "-s", "-o", "/dev/null", "--max-time", "20"]
            .map(str::to_string)
            .into_iter()
            .chain([url.to_string()])
            .collect::<Vec<_>>()
    };
    let run = |pod: &str, argv: Vec<String>| {
        let argv: Vec<&str> = argv.iter().map(String::as_str).collect();
        bed.pod(pod).run(&argv, PATIENCE)
    };
    run("client", curl(&at(80)))?.expect_ok("curl")?;
    run("client", curl(&format!("{}missing", at(80))))?.expect_ok("curl")?;
    run("client", curl(&format!("http://{}/", bed.service("api").socket(Family::V4, 80))))?.expect_ok("curl")?;
    let cache = bed.service("cache").socket(Family::V4, 6379);
    let ping = format!("redis://{cache}");
    run("client", ["redis-cli", "-u", &ping, "PING"].map(str::to_string).to_vec())?.expect_ok("redis-cli")?;
    ensure!(!run("outsider", curl(&at(81)))?.ok(), "the outsider was served");
    Ok(())
}

/// Prometheus in the first node's network, with our rules, looking every second.
fn start_prometheus(bed: &Testbed) -> Result<Process> {
    let dir = bed.dir().join("prometheus");
    std::fs::create_dir_all(&dir)?;
    let targets: Vec<String> =
        bed.nodes().iter().map(|node| format!("'{}'", node.ips.socket(Family::V4, 15020))).collect();
    let config = format!(
        "global: {{scrape_interval: 1s, evaluation_interval: 1s}}\nrule_files: ['{}']\nscrape_configs:\n\
         - job_name: nodemesh-agent\n  static_configs: [{{targets: [{}]}}]\n",
        root().join("manifests/monitoring/rules.yaml").display(),
        targets.join(", "),
    );
    let file = dir.join("prometheus.yaml");
    std::fs::write(&file, config)?;
    bed.node("n1").tool_place().spawn(
        "prometheus",
        &[
            "prometheus",
            &format!("--config.file={}", file.display()),
            &format!("--storage.tsdb.path={}", dir.join("data").display()),
            "--web.listen-address=127.0.0.1:9090",
            "--enable-feature=exemplar-storage",
        ],
    )
}

fn api(bed: &Testbed, path: &str, more: &[&str]) -> Result<Value> {
    let url = format!("http://127.0.0.1:9090/api/v1/{path}");
    let argv = [&["curl", "-sS", "--max-time", "10", "--get", &url][..], more].concat();
    let said = bed.node("n1").tool_place().run(&argv, PATIENCE)?.expect_ok("asking Prometheus")?;
    let answer: Value = serde_json::from_str(&said).with_context(|| said.clone())?;
    ensure!(answer["status"] == "success", "{path} {more:?}: {answer}");
    Ok(answer)
}

fn ask(bed: &Testbed, path: &str, query: &str) -> Result<Value> {
    api(bed, path, &["--data-urlencode", &format!("query={query}")])
}

/// The one number that a query answers with; none yet where there is no sample.
fn number(answer: &Value) -> Option<f64> {
    answer["data"]["result"][0]["value"][1].as_str()?.parse().ok().filter(|value: &f64| value.is_finite())
}

fn rules_are_well(bed: &Testbed) -> Result<()> {
    let rules = api(bed, "rules", &[])?;
    let all: Vec<&Value> = rules["data"]["groups"]
        .as_array()
        .into_iter()
        .flatten()
        .flat_map(|group| group["rules"].as_array().into_iter().flatten())
        .collect();
    ensure!(all.len() >= 18, "{rules}");
    for rule in all {
        ensure!(rule["health"] == "ok", "{rule}");
        // Spans are lost here, and that is told after ten minutes; nothing else is wrong in this mesh.
        ensure!(rule["state"] != "firing", "{rule}");
    }
    Ok(())
}

/// Names of labels by the name of a series; of a family that has no series here, none.
type Exposed = BTreeMap<String, BTreeSet<String>>;

/// What agents expose where this mesh gives no reason to: the controller's, and what needs an issuer, somebody who is over
/// a budget, or something broken.
const NOT_HERE: [(&str, &[&str]); 7] = [
    ("nodemesh_controller_leads", &[]),
    ("nodemesh_ca_certificates_total", &["result"]),
    ("nodemesh_jwks_in_force", &["uri"]),
    ("nodemesh_workload_over_budget_total", &["namespace", "pod", "budget"]),
    ("nodemesh_connection_faults_total", &["direction", "result", "reason"]),
    ("nodemesh_build_info", &["version"]),
    ("up", &["job"]),
];

fn exposed(bed: &Testbed) -> Result<Exposed> {
    let mut exposed = Exposed::new();
    for agent in bed.agents() {
        let (_, scrape) = agent.get("/metrics")?;
        for line in scrape.lines().filter(|line| !line.starts_with('#')) {
            let (name, rest) = line.split_at(line.find(['{', ' ']).unwrap_or(line.len()));
            let labels = exposed.entry(name.to_string()).or_default();
            // Up to the first exemplar, whose labels are its own.
            let rest = rest.split(" # ").next().unwrap_or_default();
            labels.extend(names_before(rest, &["=\""]));
        }
    }
    for (name, labels) in NOT_HERE {
        exposed.entry(name.to_string()).or_default().extend(labels.iter().map(ToString::to_string));
    }
    Ok(exposed)
}

/// Every PromQL expression that we ship, and where.
fn expressions() -> Result<Vec<(String, String)>> {
    let folder = root().join("manifests/monitoring");
    let mut all = Vec::new();
    for entry in std::fs::read_dir(folder.join("dashboards"))? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let dashboard: Value = serde_json::from_str(&std::fs::read_to_string(&path)?).with_context(|| name.clone())?;
        for panel in dashboard["panels"].as_array().context("no panels")? {
            for target in panel["targets"].as_array().into_iter().flatten() {
                let expression = target["expr"].as_str().context("no expression")?;
                // What a legend names has to be among the labels that are left.
                let legend = target["legendFormat"].as_str().unwrap_or_default();
                for label in legend.split("{{").skip(1).filter_map(|rest| rest.split("}}").next()) {
                    let is_left =
                        expression.contains(&format!("{label},")) || expression.contains(&format!("{label})"));
                    let all_are_left = !expression.contains(" by ") && !expression.starts_with("sum");
                    ensure!(is_left || all_are_left, "{name}: {{{{{label}}}}} is not in {expression}");
                }
                all.push((name.clone(), expression.to_string()));
            }
        }
        for variable in dashboard["templating"]["list"].as_array().context("no variables")? {
            if let Some(definition) = variable["definition"].as_str() {
                let inner = definition.trim_start_matches("label_values(").trim_end_matches(')');
                let (metric, label) = inner.split_once(", ").context("label_values")?;
                all.push((name.clone(), format!("sum by ({label}) ({metric})")));
            }
        }
    }
    ensure!(all.len() > 30, "{} expressions in dashboards", all.len());
    let rules = std::fs::read_to_string(folder.join("rules.yaml"))?;
    for rule in rules.split("  - alert: ").skip(1) {
        let (name, rest) = rule.split_once('\n').context("a name")?;
        let from = rest.find("    expr: ").context("an expression")? + "    expr: ".len();
        let expression: Vec<&str> = rest[from..]
            .lines()
            .take_while(|line| !["    for:", "    labels:"].iter().any(|key| line.starts_with(key)))
            .filter(|line| *line != "|")
            .collect();
        all.push((name.to_string(), expression.join(" ")));
    }
    Ok(all)
}

/// Every series that an expression names is exposed, and so is every label, by one of them.
fn nothing_is_invented(exposed: &Exposed, expression: &str) -> Result<()> {
    let unquoted = without_strings(expression);
    let is_word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let words = unquoted.split(|c: char| !is_word(c));
    let series: Vec<&str> =
        words.filter(|word| ["nodemesh_", "istio_"].iter().any(|of| word.starts_with(of)) || *word == "up").collect();
    ensure!(!series.is_empty(), "names no series");
    let mut labels: BTreeSet<&str> = ["instance", "job", "le"].into();
    for name in series {
        let known = exposed.get(name).with_context(|| format!("no agent exposes {name}"))?;
        labels.extend(known.iter().map(String::as_str));
    }
    let mut asked = names_before(&unquoted, &["=\"", "!=\"", "=~\"", "!~\""]);
    for group in unquoted.split(" by (").skip(1) {
        let group = group.split(')').next().unwrap_or_default();
        asked.extend(group.split(", ").map(str::to_string));
    }
    for label in asked {
        ensure!(labels.contains(label.as_str()), "no agent exposes the label {label} there");
    }
    Ok(())
}

/// The words right before one of these signs.
fn names_before(text: &str, signs: &[&str]) -> Vec<String> {
    let mut names = Vec::new();
    for sign in signs {
        for (at, _) in text.match_indices(sign) {
            let name = text[..at].rsplit(|c: char| !c.is_ascii_alphanumeric() && c != '_').next().unwrap_or_default();
            if !name.is_empty() {
                names.push(name.to_string());
            }
        }
    }
    names
}

/// What is between quotes is no name.
fn without_strings(text: &str) -> String {
    text.split('"')
        .enumerate()
        .filter(|(index, _)| index % 2 == 0)
        .map(|(_, part)| part)
        .collect::<Vec<_>>()
        .join("\"\"")
}

#[test]
fn the_rules_raise_what_they_say() -> Result<()> {
    if !can_use_kernel("promtool") {
        return Ok(());
    }
    let promtool = |arguments: &[&str]| -> Result<(bool, String)> {
        let output = Command::new("promtool").args(arguments).current_dir(root().join("manifests/monitoring")).output();
        let output = output.context("starting promtool")?;
        let said = [output.stdout, output.stderr].concat();
        Ok((output.status.success(), String::from_utf8_lossy(&said).into_owned()))
    };
    for arguments in [["check", "rules", "rules.yaml"], ["test", "rules", "rules_test.yaml"]] {
        let (is_ok, said) = promtool(&arguments)?;
        ensure!(is_ok, "promtool {}: {said}", arguments.join(" "));
    }
    let folder = root().join("manifests/monitoring");
    let [rules, tests] = ["rules.yaml", "rules_test.yaml"].map(|name| std::fs::read_to_string(folder.join(name)));
    let (rules, tests) = (rules?, tests?);
    for alert in rules.lines().filter_map(|line| line.strip_prefix("  - alert: ")) {
        ensure!(tests.contains(&format!("- name: {alert}\n")), "{alert} has no test");
    }
    Ok(())
}
