//! What is installed: the files of manifests/, as they are in the clone that this program was built from, for a profile, a
//! namespace and an image. Overlays are laid over the base as kustomize does it; a test against kubectl holds that.

use anyhow::{Context as _, Result};
use clap::ValueEnum;
use serde_json::Value;

/// The namespace that the files name.
pub const NAMESPACE: &str = "nodemesh-system";
/// What the controller's objects are called, all of them.
pub const CONTROLLER: &str = "nodemesh-controller";
/// What the agents' objects are called.
pub const AGENTS: &str = "nodemesh-agent";

/// In the order in which they are applied. Without their definitions policies could not be read.
const BASE: [&str; 9] = [
    include_str!("../../../../manifests/base/namespace.yaml"),
    include_str!("../../../../manifests/crds/authorizationpolicies.yaml"),
    include_str!("../../../../manifests/crds/externalauthorizers.yaml"),
    include_str!("../../../../manifests/crds/peerauthentications.yaml"),
    include_str!("../../../../manifests/crds/requestauthentications.yaml"),
    include_str!("../../../../manifests/crds/trafficpolicies.yaml"),
    include_str!("../../../../manifests/base/rbac.yaml"),
    include_str!("../../../../manifests/base/controller.yaml"),
    include_str!("../../../../manifests/base/agent.yaml"),
];
const CNI: &str = include_str!("../../../../manifests/overlays/cni/agent.yaml");
const STANDALONE: &str = include_str!("../../../../manifests/overlays/standalone/agent.yaml");

/// A way to install the mesh.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Profile {
    /// Agents and a controller (manifests/base).
    #[default]
    Default,
    /// With the plugin of the container network: pods start captured (manifests/overlays/cni).
    Cni,
    /// For a cluster of one node: no controller (manifests/overlays/standalone).
    Standalone,
}

impl Profile {
    /// As it is typed.
    pub fn word(self) -> &'static str {
        match self {
            Self::Default => "default",
            Self::Cni => "cni",
            Self::Standalone => "standalone",
        }
    }
}

/// What is installed, and how it is called.
#[derive(Clone, Debug)]
pub struct Wanted<'a> {
    pub profile: Profile,
    pub namespace: &'a str,
    /// None: the one that the files name.
    pub image: Option<&'a str>,
}

impl Wanted<'_> {
    /// The objects, each after what it needs.
    pub fn objects(&self) -> Result<Vec<Value>> {
        let mut objects = Vec::new();
        for text in BASE {
            objects.extend(read(text)?);
        }
        match self.profile {
            Profile::Default => {}
            Profile::Cni => lay_over(&mut objects, CNI)?,
            Profile::Standalone => {
                objects.retain(|object| object["metadata"]["name"] != CONTROLLER);
                lay_over(&mut objects, STANDALONE)?;
            }
        }
        for object in &mut objects {
            // Definitions name no namespace of ours.
            if object["kind"] != "CustomResourceDefinition" && self.namespace != NAMESPACE {
                rename(object, self.namespace);
            }
            if let Some(image) = self.image {
                set_image(object, image);
            }
        }
        Ok(objects)
    }
}

fn read(text: &str) -> Result<Vec<Value>> {
    let documents = text.split("\n---\n").map(|text| serde_saphyr::from_str(text).context("a manifest of our own"));
    documents.collect()
}

fn lay_over(objects: &mut [Value], overlay: &str) -> Result<()> {
    for patch in read(overlay)? {
        let is_it = |object: &&mut Value| {
            object["kind"] == patch["kind"] && object["metadata"]["name"] == patch["metadata"]["name"]
        };
        let object = objects.iter_mut().find(is_it).context("an overlay over nothing")?;
        merge(object, patch);
    }
    Ok(())
}

/// Maps by their fields, lists of things with names by these, all else in place of what was there.
fn merge(into: &mut Value, patch: Value) {
    match (into, patch) {
        (Value::Object(into), Value::Object(patch)) => {
            for (field, value) in patch {
                match into.get_mut(&field) {
                    Some(there) => merge(there, value),
                    None => drop(into.insert(field, value)),
                }
            }
        }
        (Value::Array(into), Value::Array(patch)) => match key_of(&patch) {
            Some(key) => patch.into_iter().for_each(|item| merge_item(into, item, key)),
            None => *into = patch,
        },
        (into, patch) => *into = patch,
    }
}

fn merge_item(into: &mut Vec<Value>, item: Value, key: &str) {
    if item["$patch"] == "delete" {
        return into.retain(|there| there[key] != item[key]);
    }
    match into.iter_mut().find(|there| there[key] == item[key]) {
        Some(there) => merge(there, item),
        None => into.push(item),
    }
}

/// What tells the things of a list apart, as Kubernetes' types say it for those that our overlays touch.
fn key_of(items: &[Value]) -> Option<&'static str> {
    ["mountPath", "name"].into_iter().find(|key| items.iter().all(|item| item.get(key).is_some()))
}

/// Names of ours begin otherwise, so the namespace's is never a part of one.
fn rename(value: &mut Value, namespace: &str) {
    match value {
        Value::String(text) => *text = text.replace(NAMESPACE, namespace),
        Value::Array(items) => items.iter_mut().for_each(|item| rename(item, namespace)),
        Value::Object(fields) => fields.values_mut().for_each(|field| rename(field, namespace)),
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

fn set_image(object: &mut Value, image: &str) {
    let containers = object.pointer_mut("/spec/template/spec/containers").and_then(Value::as_array_mut);
    for container in containers.into_iter().flatten() {
        container["image"] = image.into();
    }
}

/// As people name an object.
pub fn name(object: &Value) -> String {
    let word = |field: &str| object["metadata"][field].as_str();
    let kind = object["kind"].as_str().unwrap_or_default();
    let name = word("name").unwrap_or_default();
    word("namespace").map_or_else(|| format!("{kind} {name}"), |namespace| format!("{kind} {namespace}/{name}"))
}

/// One YAML document after the other, for `kubectl apply` or a repository.
pub fn yaml(objects: &[Value]) -> Result<String> {
    let documents: Result<Vec<String>> =
        objects.iter().map(|object| Ok(serde_saphyr::to_string(object)?.trim_end().to_string())).collect();
    Ok(format!("{}\n", documents?.join("\n---\n")))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn all(profile: Profile, namespace: &str, image: Option<&str>) -> Vec<Value> {
        Wanted { profile, namespace, image }.objects().unwrap()
    }

    fn find<'a>(objects: &'a [Value], called: &str) -> &'a Value {
        objects.iter().find(|object| name(object) == called).unwrap_or_else(|| panic!("no {called}"))
    }

    #[test]
    fn each_profile_has_what_its_overlay_says() {
        let agent = "DaemonSet nodemesh-system/nodemesh-agent";
        let table = [
            (Profile::Default, "agent", true),
            (Profile::Cni, "agent cni", true),
            (Profile::Standalone, "agent", false),
        ];
        for (profile, containers, has_controller) in table {
            let objects = all(profile, NAMESPACE, None);
            let found = find(&objects, agent)["spec"]["template"]["spec"]["containers"].as_array().unwrap();
            let found: Vec<&str> = found.iter().map(|container| container["name"].as_str().unwrap()).collect();
            assert_eq!(found.join(" "), containers, "{profile:?}");
            let is_controller = |object: &Value| name(object).ends_with("nodemesh-controller");
            assert_eq!(objects.iter().any(is_controller), has_controller, "{profile:?}");
            assert_eq!(name(&objects[0]), "Namespace nodemesh-system");
            assert_eq!(objects.iter().filter(|object| object["kind"] == "CustomResourceDefinition").count(), 5);
        }
        let objects = all(Profile::Standalone, NAMESPACE, None);
        let container = &find(&objects, agent)["spec"]["template"]["spec"]["containers"][0];
        let text = container.to_string();
        assert!(text.contains("dir:/var/lib/nodemesh/ca"), "{text}");
        for gone in ["NODEMESH_CA_ROOTS", "NODEMESH_CA_TOKEN", "/etc/nodemesh/roots", "$patch"] {
            assert!(!text.contains(gone), "{gone}: {text}");
        }
    }

    #[test]
    fn another_namespace_and_image() {
        let objects = all(Profile::Cni, "mesh", Some("registry.example/nodemesh:1"));
        // What definitions say of it is about policies of the whole mesh, whose namespace is always that one.
        for object in objects.iter().filter(|object| object["kind"] != "CustomResourceDefinition") {
            assert!(!object.to_string().contains(NAMESPACE), "{object}");
            assert!(!object.to_string().contains("localhost/"), "{object}");
        }
        let text = find(&objects, "DaemonSet mesh/nodemesh-agent").to_string();
        for part in
            ["https://nodemesh-controller.mesh.svc:15012", "\"mesh/nodemesh-agent\"", "--daemonset=mesh/nodemesh-agent"]
        {
            assert!(text.contains(part), "{part}: {text}");
        }
        assert_eq!(text.matches("registry.example/nodemesh:1").count(), 2);
        assert_eq!(find(&objects, "Namespace mesh")["metadata"]["name"], "mesh");
    }

    #[test]
    fn patches() {
        let table = [
            (json!({"a": 1, "b": 2}), json!({"b": 3, "c": 4}), json!({"a": 1, "b": 3, "c": 4})),
            (json!({"l": [1, 2]}), json!({"l": [3]}), json!({"l": [3]})),
            (
                json!([{"name": "x", "v": 1}, {"name": "y"}]),
                json!([{"name": "z"}, {"name": "x", "v": 2}, {"name": "y", "$patch": "delete"}]),
                json!([{"name": "x", "v": 2}, {"name": "z"}]),
            ),
            (
                json!([{"name": "x", "mountPath": "/a"}, {"name": "x", "mountPath": "/b"}]),
                json!([{"mountPath": "/a", "$patch": "delete"}]),
                json!([{"name": "x", "mountPath": "/b"}]),
            ),
        ];
        for (mut into, patch, expected) in table {
            merge(&mut into, patch);
            assert_eq!(into, expected);
        }
    }

    #[test]
    fn what_is_rendered_is_what_is_applied() {
        for profile in [Profile::Default, Profile::Cni, Profile::Standalone] {
            let objects = all(profile, NAMESPACE, None);
            assert_eq!(read(&yaml(&objects).unwrap()).unwrap(), objects);
        }
    }
}
