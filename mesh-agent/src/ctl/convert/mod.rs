//! `meshctl convert`: objects of Istio and SMI as those of the Gateway API and of ours.
//!
//! Nothing is left out without a word: every field is taken out of its object by whoever understands it (`fields`), and what
//! is left makes a note. An authorization is never widened. A rule of an ALLOW policy that cannot be said exactly is left
//! out, one of a DENY policy means more than it did; where not even that can be done the object is not converted, and it is
//! said that it is not. What comes out is read by our own discovery before it is printed.

mod fields;
mod istio;
mod security;
mod smi;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::{Context as _, Result, ensure};
use clap::{Args, Subcommand, ValueEnum};
use serde::Serialize;
use serde_json::{Value, json};

use super::Verdict;
use crate::{commands, discovery};

/// Where principals of another mesh are to be of ours.
const TRUST_DOMAIN: &str = "cluster.local";

const AFTER_HELP: &str = "\
Give everything that belongs together at once: a split of traffic needs the Services that it names, a TrafficTarget the
Deployments of the service account that it means.

YAML goes to standard output, notes to standard error.

Exit status: 0 all was converted exactly, 1 something was not (it is said what), 2 nothing can be read.

Example:
  meshctl convert istio old/ > new.yaml && meshctl config validate new.yaml";

/// `meshctl convert`
#[derive(Debug, Subcommand)]
#[command(after_help = AFTER_HELP)]
pub enum ConvertCommand {
    /// VirtualService, DestinationRule, AuthorizationPolicy, PeerAuthentication, RequestAuthentication
    #[command(after_help = AFTER_HELP)]
    Istio(ConvertArgs),
    /// TrafficSplit, TrafficTarget, HTTPRouteGroup
    #[command(after_help = AFTER_HELP)]
    Smi(ConvertArgs),
}

/// What is converted.
#[derive(Args, Debug)]
pub struct ConvertArgs {
    /// A YAML file, or a directory of them
    pub path: PathBuf,
    /// The namespace whose policies mean all of Istio's mesh
    #[arg(long, value_name = "NAME", default_value = "istio-system")]
    pub root_namespace: String,
    /// What to print
    #[arg(short, long, value_enum, default_value_t = ConvertOutput::Yaml)]
    pub output: ConvertOutput,
}

/// What is printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ConvertOutput {
    /// Objects to apply; notes go to standard error.
    Yaml,
    /// Objects and notes.
    Json,
}

/// What came of it. Its JSON is an interface.
#[derive(Debug, Default, Serialize)]
pub struct Converted {
    /// To apply.
    pub objects: Vec<Value>,
    /// What is not as it was.
    pub notes: Vec<Note>,
}

/// Something that is not as it was.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Note {
    /// `<Kind> <namespace>/<name>`
    pub object: String,
    /// Where in it; empty: all of it.
    pub field: String,
    /// What is so.
    pub said: String,
    /// What follows.
    pub effect: Effect,
}

/// What follows from a note.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Effect {
    /// The object is not in what came out.
    NotConverted,
    /// What came out lets less pass.
    Stricter,
    /// What came out does without it.
    LeftOut,
    /// It means nearly the same.
    Nearly,
}

impl Effect {
    fn word(self) -> &'static str {
        match self {
            Effect::NotConverted => "NOT CONVERTED",
            Effect::Stricter => "stricter",
            Effect::LeftOut => "left out",
            Effect::Nearly => "nearly",
        }
    }
}

/// An object of the YAML.
pub struct Object {
    /// Its API group.
    pub group: String,
    /// Its kind.
    pub kind: String,
    /// Its namespace; `default` where it says none.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// All of it.
    pub value: Value,
}

/// Everything there is, and where things of the mesh as a whole belong.
pub struct World {
    /// The objects.
    pub objects: Vec<Object>,
    /// Istio's root namespace.
    pub root: String,
    /// Ours.
    pub mesh: String,
}

/// Why an object cannot be converted: the field, and what is so.
pub type Problem = (String, String);

/// `meshctl convert`
pub fn run(command: &ConvertCommand, mesh_namespace: &str) -> Result<Verdict> {
    let (args, convert): (_, fn(&World, &mut Converted)) = match command {
        ConvertCommand::Istio(args) => (args, istio::convert),
        ConvertCommand::Smi(args) => (args, smi::convert),
    };
    let read = discovery::raw(&args.path).with_context(|| args.path.display().to_string())?;
    let mut objects = Vec::new();
    for document in read {
        let value = document.map_err(anyhow::Error::msg)?;
        objects.extend(Object::all(value));
    }
    ensure!(!objects.is_empty(), "{}: there is no object of Kubernetes in there", args.path.display());
    let world = World { objects, root: args.root_namespace.clone(), mesh: mesh_namespace.to_string() };
    let converted = world.converted(convert)?;
    match args.output {
        ConvertOutput::Json => commands::print_json(&converted)?,
        ConvertOutput::Yaml => {
            commands::print_lines(&[converted.yaml()?])?;
            converted.notes.iter().for_each(|note| eprintln!("{}", note.line()));
        }
    }
    let is_exact = converted.notes.iter().all(|note| note.effect == Effect::Nearly);
    Ok(if is_exact { Verdict::Well } else { Verdict::Wrong })
}

impl World {
    fn converted(&self, convert: impl Fn(&World, &mut Converted)) -> Result<Converted> {
        let mut converted = Converted::default();
        convert(self, &mut converted);
        converted.without_refused()?;
        converted.notes.sort_by(|one, other| (one.effect, &one.object).cmp(&(other.effect, &other.object)));
        Ok(converted)
    }

    /// Where an object belongs that was in a namespace.
    pub fn place<'a>(&'a self, namespace: &'a str) -> &'a str {
        if namespace == self.root { &self.mesh } else { namespace }
    }

    /// The ports of a Service, where it is among the objects.
    pub fn ports(&self, namespace: &str, name: &str) -> Option<Vec<u64>> {
        let is_it = |object: &&Object| {
            object.group.is_empty() && object.kind == "Service" && object.namespace == namespace && object.name == name
        };
        let service = self.objects.iter().find(is_it)?;
        let ports = service.value["spec"]["ports"].as_array()?;
        Some(ports.iter().filter_map(|port| port["port"].as_u64()).collect())
    }
}

impl Object {
    /// Those of a document: itself, or what a List has.
    fn all(value: Value) -> Vec<Self> {
        if let (Some("List"), Some(items)) = (value["kind"].as_str(), value["items"].as_array()) {
            return items.iter().cloned().flat_map(Self::all).collect();
        }
        let word = |value: &Value| value.as_str().unwrap_or_default().to_string();
        let version = word(&value["apiVersion"]);
        let kind = word(&value["kind"]);
        if kind.is_empty() {
            return Vec::new();
        }
        let namespace = value["metadata"]["namespace"].as_str().unwrap_or("default").to_string();
        let group = version.split_once('/').map_or("", |(group, _)| group).to_string();
        vec![Self { group, kind, namespace, name: word(&value["metadata"]["name"]), value }]
    }

    /// For notes.
    pub fn shown(&self) -> String {
        format!("{} {}/{}", self.kind, self.namespace, self.name)
    }
}

impl Converted {
    /// Notes something about an object.
    pub fn note(&mut self, object: &Object, field: impl Into<String>, said: impl Into<String>, effect: Effect) {
        self.notes.push(Note { object: object.shown(), field: field.into(), said: said.into(), effect });
    }

    /// Takes what came of an object, or notes why nothing did.
    pub fn take(&mut self, object: &Object, came: Result<Vec<Value>, Vec<Problem>>) {
        match came {
            Ok(objects) => self.objects.extend(objects),
            Err(problems) => {
                for (field, said) in problems {
                    self.note(object, field, said, Effect::NotConverted);
                }
            }
        }
    }

    /// Leaves out what our own discovery does not take, and notes why.
    fn without_refused(&mut self) -> Result<()> {
        for finding in discovery::validate_text(&self.yaml()?, TRUST_DOMAIN) {
            let is_it = |object: &Value| {
                let word = |field: &str| object["metadata"][field].as_str().unwrap_or_default();
                object["kind"] == *finding.kind && format!("{}/{}", word("namespace"), word("name")) == finding.object
            };
            self.objects.retain(|object| !is_it(object));
            let said = format!("what it would become is refused: {}", finding.reason);
            let object = format!("{} {}", finding.kind, finding.object);
            self.notes.push(Note { object, field: finding.field, said, effect: Effect::NotConverted });
        }
        Ok(())
    }

    fn yaml(&self) -> Result<String> {
        let documents: Result<Vec<String>> =
            self.objects.iter().map(|object| Ok(serde_saphyr::to_string(object)?.trim_end().to_string())).collect();
        Ok(documents?.join("\n---\n"))
    }
}

impl Note {
    fn line(&self) -> String {
        let Self { object, field, said, effect } = self;
        let at = if field.is_empty() { String::new() } else { format!(" {field}") };
        format!("{}: {object}{at}: {said}", effect.word()).replace(char::is_control, " ")
    }
}

/// An object to apply.
pub fn made(api_version: &str, kind: &str, namespace: &str, name: &str, spec: Value) -> Value {
    json!({"apiVersion": api_version, "kind": kind, "metadata": {"name": name, "namespace": namespace}, "spec": spec})
}

/// Labels in the order of their names.
pub fn labels(value: &Value) -> BTreeMap<String, String> {
    let fields = value.as_object().into_iter().flatten();
    fields.filter_map(|(name, value)| Some((name.clone(), value.as_str()?.to_string()))).collect()
}
