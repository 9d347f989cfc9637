//! `meshctl policy explain`: which policies select a pod, as the agent of its node has them in force, and what each says.

use anyhow::{Result, ensure};
use clap::Args;
use serde::Serialize;
use serde_json::Value;

use super::args::Output;
use super::reach::{self, Agents, Unanswered};
use super::table::{Paint, Tone};
use super::{Screen, Verdict};
use crate::told::{Told, dump};

const PATH: &str = "/config_dump?sections=agent,workloads,policies,discovery";

/// `meshctl policy explain`
#[derive(Args, Debug)]
pub struct ExplainArgs {
    /// The pod that is called
    #[arg(value_name = "NAMESPACE/POD")]
    pub pod: String,
    /// What to print
    #[arg(short, long, value_enum, default_value_t = Output::Table)]
    pub output: Output,
}

/// What stands before one pod. Its JSON is an interface.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Explained {
    pod: String,
    node: Option<String>,
    identity: Option<String>,
    enrolled: bool,
    /// Whether plaintext is taken, by port, and by whose word.
    modes: Vec<Mode>,
    /// In the order in which they are asked.
    policies: Vec<Policy>,
    /// What holds for those whom no policy names.
    otherwise: &'static str,
    /// What is wrong with objects of its namespace.
    findings: Vec<dump::FindingEntry>,
    unanswered: Vec<Unanswered>,
}

#[derive(Debug, Serialize)]
struct Mode {
    /// None: every port that is not named.
    port: Option<String>,
    mode: String,
    /// The PeerAuthentication that says so; None: nobody does.
    rule: Option<String>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Policy {
    /// `unreadable`, `custom`, `deny`, `allow`, `audit` or `tokens`.
    action: &'static str,
    /// `<namespace>/<name>`
    id: String,
    /// Ports of the pod that it covers; empty: all.
    ports: Vec<u64>,
    /// Whom and what each rule means.
    rules: Vec<String>,
}

/// In the order in which they are asked.
const ACTIONS: [(&str, &str); 6] = [
    ("unreadable", "unreadable"),
    ("custom", "authorizationPolicies"),
    ("deny", "authorizationPolicies"),
    ("allow", "authorizationPolicies"),
    ("audit", "authorizationPolicies"),
    ("tokens", "requestAuthentications"),
];

/// Asks and prints.
pub async fn run(args: &ExplainArgs, agents: &Agents, screen: &mut Screen<'_>) -> Result<Verdict> {
    let pod = args.pod.as_str();
    let is_name = pod.split_once('/').is_some_and(|(namespace, name)| !namespace.is_empty() && !name.is_empty());
    ensure!(is_name, "{pod:?} is no pod: expected NAMESPACE/POD, as in meshctl policy explain shop/api-0");
    let explained = Explained::new(agents.ask(PATH).await, pod);
    match args.output {
        Output::Table | Output::Wide => screen.print(&explained.render(screen.paint()))?,
        Output::Json => screen.json(&explained)?,
        Output::Yaml => screen.yaml(&explained)?,
    }
    let is_well = explained.node.is_some() && !explained.policies.iter().any(|policy| policy.action == "unreadable");
    Ok(Verdict::of(is_well, explained.unanswered.len(), agents))
}

impl Explained {
    fn new(told: Vec<Told>, pod: &str) -> Self {
        let (read, unanswered) = reach::read(told, |name, answer| {
            let mut sections = dump::sections(answer)?;
            let workloads: Vec<Value> = dump::section(&mut sections, "workloads")?;
            let is_pod = |one: &&Value| format!("{}/{}", word(one, "namespace"), word(one, "name")) == pod;
            let Some(workload) = workloads.iter().find(is_pod) else { return Ok(None) };
            let policies: Value = dump::section(&mut sections, "policies")?;
            let own: dump::AgentSection = dump::section(&mut sections, "agent").unwrap_or_default();
            let node = if own.node.is_empty() { name.node.clone() } else { own.node };
            let discovery: dump::DiscoverySection = dump::section(&mut sections, "discovery").unwrap_or_default();
            Ok(Some((node, workload.clone(), policies, discovery.health.findings)))
        });
        let blank = Self {
            pod: pod.to_string(),
            node: None,
            identity: None,
            enrolled: false,
            modes: Vec::new(),
            policies: Vec::new(),
            otherwise: "no agent that answered has this pod",
            findings: Vec::new(),
            unanswered,
        };
        match read.into_iter().find_map(|(_, found)| found) {
            Some((node, workload, policies, findings)) => blank.filled(node, &workload, &policies, findings),
            None => blank,
        }
    }

    fn filled(self, node: String, workload: &Value, objects: &Value, findings: Vec<dump::FindingEntry>) -> Self {
        let policy = &workload["policy"];
        let policies: Vec<Policy> = ACTIONS
            .into_iter()
            .flat_map(|(action, kind)| {
                let statements = policy[action].as_array().into_iter().flatten();
                statements.map(move |statement| Policy::new(action, statement, &objects[kind]))
            })
            .collect();
        let has = |action: &str| policies.iter().any(|policy| policy.action == action);
        let enrolled = workload["enrolled"].as_bool().unwrap_or(false);
        let otherwise = match (enrolled, has("unreadable"), has("allow")) {
            (false, _, _) => "the pod is not in the mesh: nobody asks these policies",
            (true, true, _) => "nobody may connect where a policy cannot be read",
            (true, false, true) => "nobody else may: an ALLOW policy selects the pod",
            (true, false, false) => "everybody else may: no ALLOW policy selects the pod",
        };
        let namespace = word(workload, "namespace").to_string();
        let is_of_pod = |finding: &dump::FindingEntry| {
            finding.object.split_once('/').is_none_or(|(of, _)| of == namespace)
                && ["AuthorizationPolicy", "PeerAuthentication", "RequestAuthentication"]
                    .contains(&finding.kind.as_str())
        };
        Self {
            node: Some(node),
            identity: workload["identity"].as_str().map(str::to_string),
            enrolled,
            modes: modes(&policy["modes"]),
            policies,
            otherwise,
            findings: findings.into_iter().filter(is_of_pod).collect(),
            ..self
        }
    }

    fn render(&self, paint: Paint) -> String {
        let unanswered = Unanswered::lines(&self.unanswered, paint);
        let Some(node) = &self.node else {
            let line = format!("no agent that answered has {}: kubectl get pod has its node and labels", self.pod);
            return format!("{}\n{unanswered}", paint.apply(&line, Tone::Bad));
        };
        let mut lines: Vec<(String, String)> = vec![
            ("pod".into(), paint.apply(&format!("{} on {node}", self.pod), Tone::Plain)),
            ("identity".into(), paint.apply(self.identity.as_deref().unwrap_or("-"), Tone::Plain)),
        ];
        for Mode { port, mode, rule } in &self.modes {
            let by = rule.as_ref().map_or_else(|| " by default".to_string(), |rule| format!(" by {rule}"));
            let at = port.as_ref().map_or_else(String::new, |port| format!("port {port}: "));
            let tone = if mode == "strict" { Tone::Good } else { Tone::Doubtful };
            lines.push(("plaintext".into(), paint.apply(&format!("{at}{}{by}", mode_words(mode)), tone)));
        }
        for policy in &self.policies {
            let ports: Vec<String> = policy.ports.iter().map(u64::to_string).collect();
            let ports = if ports.is_empty() { String::new() } else { format!(" at ports {}", ports.join(", ")) };
            let tone = if policy.action == "unreadable" { Tone::Bad } else { Tone::Plain };
            lines.push((policy.action.into(), paint.apply(&format!("{}{ports}", policy.id), tone)));
            let indented =
                policy.rules.iter().map(|rule| (String::new(), paint.apply(&format!("  {rule}"), Tone::Plain)));
            lines.extend(indented);
        }
        lines.push(("otherwise".into(), paint.apply(self.otherwise, Tone::Plain)));
        for dump::FindingEntry { kind, object, field, reason } in &self.findings {
            lines.push(("trouble".into(), paint.apply(&format!("{kind} {object}: {field}: {reason}"), Tone::Bad)));
        }
        let text: String = lines.iter().map(|(name, text)| format!("{name:<12}{text}\n")).collect();
        format!("{text}{unanswered}")
    }
}

impl Policy {
    fn new(action: &'static str, statement: &Value, objects: &Value) -> Self {
        let id = word(statement, "id").to_string();
        let ports = statement["ports"]["only"].as_array().into_iter().flatten().filter_map(Value::as_u64).collect();
        let object = objects.as_array().into_iter().flatten().find(|object| word(object, "id") == id);
        let rules = match (action, object) {
            ("unreadable", _) => vec!["it cannot be read: everything is refused here until it can".to_string()],
            (_, None) => Vec::new(),
            ("tokens", Some(object)) => {
                list(object, "issuers").iter().map(|issuer| format!("tokens of {}", word(issuer, "issuer"))).collect()
            }
            (_, Some(object)) => {
                let rules = list(object, "rules");
                let told: Vec<String> = rules
                    .iter()
                    .enumerate()
                    .map(|(number, rule)| format!("rule {number}: {}", rule_words(rule)))
                    .collect();
                if told.is_empty() { vec!["no rule: it means nobody".to_string()] } else { told }
            }
        };
        Self { action, id, ports, rules }
    }
}

fn modes(modes: &Value) -> Vec<Mode> {
    let one = |port: Option<&String>, chosen: &Value| Mode {
        port: port.cloned(),
        mode: word(chosen, "mode").to_string(),
        rule: chosen["rule"].as_str().map(str::to_string),
    };
    let ports = modes["ports"].as_object().into_iter().flatten();
    let rest = modes.get("rest").map(|rest| one(None, rest));
    rest.into_iter().chain(ports.map(|(port, chosen)| one(Some(port), chosen))).collect()
}

fn mode_words(mode: &str) -> &str {
    match mode {
        "strict" => "refused (STRICT)",
        "permissive" => "taken (PERMISSIVE); pods of the mesh come by mutual TLS",
        "disable" => "taken, of pods of the mesh too (DISABLE)",
        other => other,
    }
}

/// A rule as a sentence: who, where, what.
fn rule_words(rule: &Value) -> String {
    let mut words = Vec::new();
    let sources = texts(rule, "sources");
    words.push(if sources.is_empty() { "anyone".to_string() } else { sources.join(" or ") });
    let not = texts(rule, "notSources");
    if !not.is_empty() {
        words.push(format!("but not {}", not.join(" nor ")));
    }
    let ports: Vec<String> = list(rule, "ports").iter().map(Value::to_string).collect();
    if !ports.is_empty() {
        words.push(format!("at port {}", ports.join(", ")));
    }
    let operations: Vec<String> = list(rule, "operations").iter().map(operation_words).collect();
    if !operations.is_empty() {
        words.push(format!("asking for {}", operations.join("; or ")));
    }
    for condition in list(rule, "conditions") {
        let key = word(condition, "key");
        let values = texts(condition, "values");
        let not = texts(condition, "notValues");
        if !values.is_empty() {
            words.push(format!("with {key} {}", values.join(" or ")));
        }
        if !not.is_empty() {
            words.push(format!("with {key} not {}", not.join(" nor ")));
        }
    }
    words.join(" ")
}

fn operation_words(operation: &Value) -> String {
    let parts = [
        ("methods", ""),
        ("notMethods", "not "),
        ("hosts", "host "),
        ("notHosts", "not host "),
        ("paths", ""),
        ("notPaths", "not "),
    ];
    let told = parts.into_iter().map(|(field, before)| (before, texts(operation, field)));
    let told: Vec<String> =
        told.filter(|(_, all)| !all.is_empty()).map(|(before, all)| format!("{before}{}", all.join(","))).collect();
    told.join(" ")
}

fn word<'a>(value: &'a Value, field: &str) -> &'a str {
    value[field].as_str().unwrap_or_default()
}

fn list<'a>(value: &'a Value, field: &str) -> &'a [Value] {
    value[field].as_array().map_or(&[], Vec::as_slice)
}

fn texts(value: &Value, field: &str) -> Vec<String> {
    list(value, field).iter().map(|one| one.as_str().map_or_else(|| one.to_string(), str::to_string)).collect()
}
