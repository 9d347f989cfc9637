//! An object as the API server sends it, without what nobody here reads.

use std::borrow::Cow;

use kube::Resource;
use kube::api::{ApiResource, DynamicObject, ObjectMeta};
use serde::{Deserialize, Deserializer};
use serde_json::{Map, Value};

use crate::discovery::{crd, gateway};
use crate::state::{Key, Kind};

/// An object, pruned while it is read.
#[derive(Clone, Debug)]
pub struct Watched {
    /// Name, namespace, resourceVersion, generation and no more.
    metadata: ObjectMeta,
    value: Map<String, Value>,
}

impl<'de> Deserialize<'de> for Watched {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let mut value = Map::deserialize(deserializer)?;
        let text = |value: &Map<String, Value>, key: &str| {
            let text = value.get("metadata").and_then(|metadata| metadata.get(key)).and_then(Value::as_str);
            text.map(str::to_string)
        };
        let metadata = ObjectMeta {
            name: text(&value, "name"),
            namespace: text(&value, "namespace"),
            resource_version: text(&value, "resourceVersion"),
            generation: value.get("metadata").and_then(|metadata| metadata.get("generation")).and_then(Value::as_i64),
            ..ObjectMeta::default()
        };
        prune(&mut value);
        Ok(Self { metadata, value })
    }
}

impl Watched {
    /// How it is told from all others, if it has a name.
    pub fn key(&self, kind: Kind) -> Option<Key> {
        let name = self.metadata.name.clone().filter(|name| !name.is_empty())?;
        Some(Key { kind, namespace: self.metadata.namespace.clone().unwrap_or_default(), name })
    }

    /// metadata.generation
    pub fn generation(&self) -> Option<i64> {
        self.metadata.generation
    }

    /// The object. In a list it may not say what it is, which is known.
    pub fn into_value(mut self, resource: &ApiResource) -> Value {
        // What the mesh itself, or a gateway, says of routes and policies.
        if [gateway::GROUP, crd::GROUP].contains(&resource.group.as_str()) {
            self.value.remove("status");
        }
        self.value.insert("apiVersion".to_string(), resource.api_version.clone().into());
        self.value.insert("kind".to_string(), resource.kind.clone().into());
        Value::Object(self.value)
    }
}

/// Takes out what changes often and means nothing here, and what is large and means nothing here. What is left is
/// translated, and only what comes of that is kept.
pub fn prune(object: &mut Map<String, Value>) {
    if let Some(Value::Object(metadata)) = object.get_mut("metadata") {
        for field in ["managedFields", "resourceVersion", "ownerReferences", "finalizers"] {
            metadata.remove(field);
        }
    }
    if let Some(Value::Object(spec)) = object.get_mut("spec").filter(|spec| spec.get("containers").is_some()) {
        prune_pod_spec(spec);
    }
    if let Some(Value::Object(status)) = object.get_mut("status") {
        for field in [
            "containerStatuses",
            "initContainerStatuses",
            "ephemeralContainerStatuses",
            "resourceClaimStatuses",
            "images",
            "nodeInfo",
            "allocatable",
            "capacity",
            "volumesAttached",
            "volumesInUse",
        ] {
            status.remove(field);
        }
        let is_ready = |condition: &Value| condition.get("type").and_then(Value::as_str) == Some("Ready");
        if let Some(Value::Array(conditions)) = status.get_mut("conditions") {
            conditions.retain(is_ready);
            for condition in conditions.iter_mut().filter_map(Value::as_object_mut) {
                // A node's kubelet tells every few minutes that it still is.
                condition.retain(|field, _| field == "type" || field == "status");
            }
        }
    }
}

fn prune_pod_spec(spec: &mut Map<String, Value>) {
    for containers in ["containers", "initContainers"] {
        let Some(Value::Array(containers)) = spec.get_mut(containers) else { continue };
        for container in containers.iter_mut().filter_map(Value::as_object_mut) {
            for field in ["args", "command", "env", "envFrom", "image", "resources", "volumeMounts", "volumeDevices"] {
                container.remove(field);
            }
        }
    }
    for field in ["volumes", "affinity", "tolerations", "topologySpreadConstraints", "ephemeralContainers"] {
        spec.remove(field);
    }
}

impl Resource for Watched {
    type DynamicType = ApiResource;
    type Scope = <DynamicObject as Resource>::Scope;

    fn kind(resource: &ApiResource) -> Cow<'_, str> {
        DynamicObject::kind(resource)
    }

    fn group(resource: &ApiResource) -> Cow<'_, str> {
        DynamicObject::group(resource)
    }

    fn version(resource: &ApiResource) -> Cow<'_, str> {
        DynamicObject::version(resource)
    }

    fn plural(resource: &ApiResource) -> Cow<'_, str> {
        DynamicObject::plural(resource)
    }

    fn meta(&self) -> &ObjectMeta {
        &self.metadata
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.metadata
    }
}
