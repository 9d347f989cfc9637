//! `meshctl config diff`: where agents differ from each other, or from YAML that is meant to be in force.
//!
//! Compared is what routes, policies and authorizers were understood to mean, not their text: an object that says the same
//! in other words does not differ. What the API server adds (ages, generations) and what follows from the rest of the world
//! (conditions, endpoints) is left out.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use anyhow::Result;
use clap::Args;
use serde::Serialize;
use serde_json::Value;

use super::args::Output;
use super::reach::{self, Agents, Unanswered};
use super::table::{Paint, Tone};
use super::{Screen, Verdict};
use crate::commands;
use crate::told::{Told, dump};

const PATH: &str = "/config_dump?sections=agent,routes,policies,authorizers";
/// How many fields are named in which two objects differ.
pub(super) const SHOWN_FIELDS: usize = 8;

/// `meshctl config diff`
#[derive(Args, Debug)]
pub struct DiffArgs {
    /// A file or a directory of YAML that is meant to be in force [default: agents are compared with each other]
    #[arg(value_name = "PATH")]
    pub path: Option<PathBuf>,
    /// The trust domain that principals may name [default: cluster.local]
    #[arg(long, value_name = "NAME")]
    pub trust_domain: Option<String>,
    /// What to print
    #[arg(short, long, value_enum, default_value_t = Output::Table)]
    pub output: Output,
}

/// Where they differ. Its JSON is an interface.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Diff {
    /// What is taken as right: a path, or a node.
    right: Option<String>,
    /// How many objects were compared.
    objects: usize,
    /// Things wrong with the YAML.
    findings: usize,
    differences: Vec<Difference>,
    /// Objects that agents have and the YAML has not: it may be a part of all there is.
    elsewhere: usize,
    unanswered: Vec<Unanswered>,
}

#[derive(Debug, PartialEq, Serialize)]
struct Difference {
    node: String,
    object: String,
    #[serde(flatten)]
    what: What,
}

#[derive(Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase", tag = "what")]
enum What {
    /// The agent has not got it.
    Missing,
    /// The agent has it, and the one that is taken as right has not.
    Surplus,
    /// Both have it, and it means something else.
    Other {
        /// Where: field, what is right, what the agent has.
        fields: Vec<(String, Value, Value)>,
    },
}

/// Objects by kind and name.
type Objects = BTreeMap<String, Value>;

/// Asks and prints.
pub async fn run(args: &DiffArgs, agents: &Agents, screen: &mut Screen<'_>) -> Result<Verdict> {
    let meant = match &args.path {
        Some(path) => {
            let (dump, findings) = commands::objects_of(path, args.trust_domain.as_deref())?;
            Some((path.display().to_string(), objects(&dump), findings))
        }
        None => None,
    };
    let diff = Diff::new(agents.ask(PATH).await, meant);
    match args.output {
        Output::Table | Output::Wide => screen.print(&diff.render(screen.paint()))?,
        Output::Json => screen.json(&diff)?,
        Output::Yaml => screen.yaml(&diff)?,
    }
    let is_well = diff.differences.is_empty() && diff.findings == 0;
    Ok(Verdict::of(is_well, diff.unanswered.len(), agents))
}

impl Diff {
    fn new(told: Vec<Told>, meant: Option<(String, Objects, usize)>) -> Self {
        let (read, unanswered) = reach::read(told, |name, answer| {
            let sections = dump::sections(answer)?;
            for section in ["routes", "policies", "authorizers"] {
                if let Some(error) = sections[section]["error"].as_str() {
                    return Err(format!("{section}: {error}"));
                }
            }
            let node = sections["agent"]["node"].as_str().filter(|node| !node.is_empty());
            Ok((node.unwrap_or(&name.node).to_string(), objects(&sections)))
        });
        let agents: Vec<(String, Objects)> = read.into_iter().map(|(_, agent)| agent).collect();
        match meant {
            Some((right, objects, findings)) => {
                let differences = agents.iter().flat_map(|(node, has)| differences(node, &objects, has));
                let differences = differences.filter(|one| one.what != What::Surplus).collect();
                let known: BTreeSet<&String> = agents.iter().flat_map(|(_, has)| has.keys()).collect();
                let elsewhere = known.iter().filter(|object| !objects.contains_key(**object)).count();
                Self { right: Some(right), objects: objects.len(), findings, differences, elsewhere, unanswered }
            }
            None => {
                let right = commonest(&agents);
                let objects = right.map_or(0, |(_, objects)| objects.len());
                let differences = right
                    .into_iter()
                    .flat_map(|(_, right)| agents.iter().flat_map(|(node, has)| differences(node, right, has)))
                    .collect();
                let right = right.map(|(node, _)| node.clone());
                Self { right, objects, findings: 0, differences, elsewhere: 0, unanswered }
            }
        }
    }

    fn render(&self, paint: Paint) -> String {
        let Self { right, objects, findings, differences, elsewhere, unanswered } = self;
        let mut text = String::new();
        let right = right.as_deref().unwrap_or("nobody");
        for Difference { node, object, what } in differences {
            let line = match what {
                What::Missing => format!("{node}: {object} is not in force; {right} has it"),
                What::Surplus => format!("{node}: {object} is in force; {right} has it not"),
                What::Other { .. } => format!("{node}: {object} is in force in another form than {right} has"),
            };
            text.push_str(&format!("{}\n", paint.apply(&line, Tone::Bad)));
            if let What::Other { fields } = what {
                for (field, is, has) in fields {
                    text.push_str(&format!(
                        "  {}\n",
                        paint.apply(&format!("{field}: {right} {is}, {node} {has}"), Tone::Plain)
                    ));
                }
            }
        }
        if *findings > 0 {
            let line = format!("findings about {right}: {findings}; meshctl config validate names them");
            text.push_str(&format!("{}\n", paint.apply(&line, Tone::Bad)));
        }
        if differences.is_empty() {
            let line = format!("no difference in {objects} objects");
            text.push_str(&format!("{}\n", paint.apply(&line, Tone::Good)));
        }
        if *elsewhere > 0 {
            text.push_str(&format!("note: agents have {elsewhere} objects that are not in {right}\n"));
        }
        text.push_str(&Unanswered::lines(unanswered, paint));
        text
    }
}

/// The agent whose view most share; of several the first.
fn commonest(agents: &[(String, Objects)]) -> Option<&(String, Objects)> {
    let share = |view: &Objects| agents.iter().filter(|(_, other)| other == view).count();
    // max_by_key takes the last of equals.
    agents.iter().rev().max_by_key(|(_, view)| share(view))
}

fn differences(node: &str, right: &Objects, has: &Objects) -> Vec<Difference> {
    let difference = |object: &String, what| Difference { node: node.to_string(), object: object.clone(), what };
    let names: BTreeSet<&String> = right.keys().chain(has.keys()).collect();
    let judge = |object: &&String| match (right.get(*object), has.get(*object)) {
        (Some(_), None) => Some(difference(object, What::Missing)),
        (None, Some(_)) => Some(difference(object, What::Surplus)),
        (Some(is), Some(has)) if is != has => {
            let mut fields = Vec::new();
            compare("", is, has, &mut fields);
            Some(difference(object, What::Other { fields }))
        }
        (Some(_), Some(_)) | (None, None) => None,
    };
    names.iter().filter_map(judge).collect()
}

/// The fields in which two values differ.
fn compare(at: &str, is: &Value, has: &Value, fields: &mut Vec<(String, Value, Value)>) {
    if is == has || fields.len() >= SHOWN_FIELDS {
        return;
    }
    let null = Value::Null;
    match (is, has) {
        (Value::Object(one), Value::Object(other)) => {
            let names: BTreeSet<&String> = one.keys().chain(other.keys()).collect();
            for name in names {
                let at = if at.is_empty() { name.clone() } else { format!("{at}.{name}") };
                compare(&at, one.get(name).unwrap_or(&null), other.get(name).unwrap_or(&null), fields);
            }
        }
        (Value::Array(one), Value::Array(other)) if one.len() == other.len() => {
            for (number, (one, other)) in one.iter().zip(other).enumerate() {
                compare(&format!("{at}[{number}]"), one, other, fields);
            }
        }
        (is, has) => fields.push((at.to_string(), is.clone(), has.clone())),
    }
}

/// Every object of these sections, without what others than its author say of it.
fn objects(sections: &Value) -> Objects {
    let mut objects = Objects::new();
    for route in sections["routes"]["routes"].as_array().into_iter().flatten() {
        let mut route = route.clone();
        let word = |field: &str| route[field].as_str().unwrap_or_default();
        let name = format!("{} {}/{}", word("kind"), word("namespace"), word("name"));
        forget(&mut route, &["generation", "conditions", "endpoints", "trouble"]);
        objects.insert(name, route);
    }
    let kinds = [
        ("PeerAuthentication", &sections["policies"]["peerAuthentications"]),
        ("AuthorizationPolicy", &sections["policies"]["authorizationPolicies"]),
        ("RequestAuthentication", &sections["policies"]["requestAuthentications"]),
        ("unreadable policy", &sections["policies"]["unreadable"]),
        ("ExternalAuthorizer", &sections["authorizers"]),
    ];
    for (kind, all) in kinds {
        for object in all.as_array().into_iter().flatten() {
            let mut object = object.clone();
            let name = format!("{kind} {}", object["id"].as_str().unwrap_or_default());
            forget(&mut object, &["created"]);
            objects.insert(name, object);
        }
    }
    objects
}

/// Takes fields out, wherever they are.
fn forget(value: &mut Value, names: &[&str]) {
    match value {
        Value::Object(fields) => {
            fields.retain(|name, _| !names.contains(&name.as_str()));
            fields.values_mut().for_each(|value| forget(value, names));
        }
        Value::Array(all) => all.iter_mut().for_each(|value| forget(value, names)),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}
