//! `meshctl routes`: which requests and connections go where. Every agent knows every route; what is shown is of the first
//! that answers (`config diff` says whether the others see the same).

use anyhow::Result;
use clap::Args;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::args::Output;
use super::reach::{self, Agents, Unanswered};
use super::table::{Breadth, Cell, Paint, Table, Tone};
use super::{Screen, Verdict};
use crate::told::{Told, dump};

const PATH: &str = "/config_dump?sections=agent,routes";

/// `meshctl routes`
#[derive(Args, Debug)]
pub struct RoutesArgs {
    /// Those of Services of a namespace
    #[arg(long, value_name = "NAME")]
    pub namespace: Option<String>,
    /// Those of a Service
    #[arg(long, value_name = "[NAMESPACE/]NAME")]
    pub service: Option<String>,
    /// What to print
    #[arg(short, long, value_enum, default_value_t = Output::Table)]
    pub output: Output,
}

/// What an agent said. Its JSON is an interface.
#[derive(Debug, Serialize)]
struct Routes {
    /// Whose word it is.
    node: Option<String>,
    /// As the agent has them.
    routes: Vec<Value>,
    unanswered: Vec<Unanswered>,
    #[serde(skip)]
    read: Vec<Route>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct Route {
    kind: String,
    namespace: String,
    name: String,
    parents: Vec<Parent>,
    rules: Vec<Rule>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Parent {
    namespace: String,
    name: String,
    port: Option<u16>,
    section_name: Option<String>,
    conditions: Vec<Condition>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct Condition {
    #[serde(rename = "type")]
    condition: String,
    status: bool,
    reason: String,
    message: String,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Rule {
    name: Option<String>,
    matches: Vec<String>,
    filters: Vec<String>,
    backends: Vec<Backend>,
    request_timeout: Option<String>,
    backend_timeout: Option<String>,
    retries: bool,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct Backend {
    service: Option<String>,
    port: Option<u16>,
    weight: u32,
    endpoints: Option<usize>,
    trouble: Option<String>,
}

/// Asks and prints.
pub async fn run(args: &RoutesArgs, agents: &Agents, screen: &mut Screen<'_>) -> Result<Verdict> {
    let routes = Routes::new(agents.ask(PATH).await, args);
    match args.output {
        Output::Table => screen.print(&routes.render(Breadth::Usual, screen.paint()))?,
        Output::Wide => screen.print(&routes.render(Breadth::Wide, screen.paint()))?,
        Output::Json => screen.json(&routes)?,
        Output::Yaml => screen.yaml(&routes)?,
    }
    let is_well = routes.read.iter().all(|route| route.trouble().is_empty());
    Ok(Verdict::of(is_well, routes.unanswered.len(), agents))
}

impl Routes {
    fn new(told: Vec<Told>, args: &RoutesArgs) -> Self {
        let (read, unanswered) = reach::read(told, |_, answer| {
            let mut sections = dump::sections(answer)?;
            let node: dump::AgentSection = dump::section(&mut sections, "agent").unwrap_or_default();
            let all: Value = dump::section(&mut sections, "routes")?;
            let routes = all.get("routes").and_then(Value::as_array).cloned().unwrap_or_default();
            let one = |raw: Value| Ok((Route::deserialize(&raw).map_err(|error| format!("routes: {error}"))?, raw));
            Ok((node.node, routes.into_iter().map(one).collect::<Result<Vec<_>, String>>()?))
        });
        let Some((name, (node, all))) = read.into_iter().next() else {
            return Self { node: None, routes: Vec::new(), unanswered, read: Vec::new() };
        };
        let (read, routes) = all.into_iter().filter(|(route, _)| route.is_of(args)).unzip();
        Self { node: Some(if node.is_empty() { name.node } else { node }), routes, unanswered, read }
    }

    fn render(&self, breadth: Breadth, paint: Paint) -> String {
        let mut columns = vec!["SERVICE", "ROUTE", "MATCH", "BACKENDS"];
        if breadth == Breadth::Wide {
            columns.extend(["RULE", "FILTERS", "TIMEOUT", "RETRIES", "CONDITIONS"]);
        }
        let mut table = Table::new(&columns);
        let mut rows: Vec<(String, &Route, &Parent)> = self
            .read
            .iter()
            .flat_map(|route| route.parents.iter().map(move |parent| (parent.shown(), route, parent)))
            .collect();
        rows.sort_by(|one, other| one.0.cmp(&other.0));
        for (service, route, parent) in &rows {
            route.rows(service, parent, breadth).into_iter().for_each(|row| table.push(row));
        }
        let trouble: Vec<String> = self.read.iter().flat_map(Route::trouble).collect();
        let wrong: String = trouble.iter().map(|line| format!("{}\n", paint.apply(line, Tone::Bad))).collect();
        let unanswered = Unanswered::lines(&self.unanswered, paint);
        match (rows.is_empty(), wrong.is_empty()) {
            (true, _) => format!("no routes: requests go to the Service that was dialled\n{wrong}{unanswered}"),
            (false, true) => format!("{}{unanswered}", table.render(paint)),
            (false, false) => format!("{}\n{wrong}{unanswered}", table.render(paint)),
        }
    }
}

impl Route {
    fn is_of(&self, args: &RoutesArgs) -> bool {
        let is_wanted = |parent: &Parent| {
            let full = format!("{}/{}", parent.namespace, parent.name);
            args.namespace.as_ref().is_none_or(|wanted| parent.namespace == *wanted)
                && args.service.as_ref().is_none_or(|wanted| parent.name == *wanted || full == *wanted)
        };
        self.parents.iter().any(is_wanted)
    }

    fn shown(&self) -> String {
        format!("{} {}/{}", self.kind, self.namespace, self.name)
    }

    fn rows(&self, service: &str, parent: &Parent, breadth: Breadth) -> Vec<Vec<Cell>> {
        let is_accepted = parent.conditions.iter().all(|one| one.condition != "Accepted" || one.status);
        let tone = if is_accepted { Tone::Plain } else { Tone::Bad };
        let row = |(number, rule): (usize, &Rule)| {
            let total: u64 = rule.backends.iter().map(|backend| u64::from(backend.weight)).sum();
            let backends: Vec<String> = rule.backends.iter().map(|backend| backend.shown(total)).collect();
            let is_whole =
                rule.backends.iter().all(|backend| backend.weight == 0 || backend.endpoints.unwrap_or(0) > 0);
            let mut row = vec![
                Cell::plain(service),
                Cell::new(self.shown(), tone),
                Cell::plain(rule.matches.join(" | ")),
                Cell::new(backends.join(", "), if is_whole { Tone::Plain } else { Tone::Bad }),
            ];
            if breadth == Breadth::Wide {
                let timeouts = [&rule.request_timeout, &rule.backend_timeout].map(|one| one.as_deref().unwrap_or("-"));
                let conditions: Vec<String> =
                    parent.conditions.iter().map(|one| format!("{}={}", one.condition, one.status)).collect();
                row.extend([
                    Cell::plain(rule.name.clone().unwrap_or_else(|| number.to_string())),
                    Cell::plain(rule.filters.join(",")),
                    Cell::plain(if timeouts == ["-", "-"] { String::new() } else { timeouts.join("/") }),
                    Cell::plain(if rule.retries { "yes" } else { "" }),
                    Cell::plain(conditions.join(",")),
                ]);
            }
            row
        };
        self.rules.iter().enumerate().map(row).collect()
    }

    /// What its author did not mean, a line each.
    fn trouble(&self) -> Vec<String> {
        let bad = |one: &&Condition| one.status == (one.condition == "PartiallyInvalid");
        let conditions = self.parents.iter().flat_map(|parent| {
            let at = parent.shown();
            parent.conditions.iter().filter(bad).map(move |one| {
                let Condition { condition, status, reason, message } = one;
                format!("{} at {at}: {condition} is {status}: {reason}: {message}", self.shown())
            })
        });
        let backends = self.rules.iter().flat_map(|rule| &rule.backends);
        let empty = backends.filter(|backend| backend.weight > 0 && backend.endpoints == Some(0));
        let empty = empty.map(|backend| format!("{}: {} has no endpoint that is ready", self.shown(), backend.place()));
        conditions.chain(empty).collect()
    }
}

impl Parent {
    fn shown(&self) -> String {
        let Self { namespace, name, port, section_name, conditions: _ } = self;
        match (port, section_name) {
            (Some(port), _) => format!("{namespace}/{name}:{port}"),
            (None, Some(section)) => format!("{namespace}/{name}:{section}"),
            (None, None) => format!("{namespace}/{name}"),
        }
    }
}

impl Backend {
    fn place(&self) -> String {
        match (&self.service, self.port) {
            (Some(service), Some(port)) => format!("{service}:{port}"),
            (Some(service), None) => service.clone(),
            (None, _) => "nowhere".into(),
        }
    }

    fn shown(&self, total: u64) -> String {
        let share = match total {
            0 => " 0%".to_string(),
            total if total == u64::from(self.weight) => String::new(),
            total => format!(" {:.0}%", f64::from(self.weight) * 100.0 / total as f64),
        };
        let health = match (&self.trouble, self.endpoints) {
            (Some(trouble), _) => format!(" ({trouble})"),
            (None, Some(count)) => format!(" ({count} ready)"),
            (None, None) => String::new(),
        };
        format!("{}{share}{health}", self.place())
    }
}
