//! Ways to install the mesh that come to the same.

use std::collections::BTreeMap;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::support::{Kube, in_cluster};

/// Objects by kind, namespace and name, as kubectl reads them.
fn objects(kube: &Kube, yaml: &str) -> Result<BTreeMap<String, Value>> {
    let arguments = ["create", "--dry-run=client", "--validate=false", "-o", "json", "-f", "-"];
    let json = xtask::cluster::kubectl(&kube.parts, &arguments, Some(yaml))?;
    let mut objects = BTreeMap::new();
    for object in serde_json::Deserializer::from_str(&json).into_iter::<Value>() {
        let object = object.context("kubectl's JSON")?;
        let list = object.get("items").and_then(Value::as_array).cloned();
        for mut object in list.unwrap_or_else(|| vec![object]) {
            let word = |path: &str| object.pointer(path).and_then(Value::as_str).unwrap_or_default().to_string();
            let name = format!("{} {}/{}", word("/kind"), word("/metadata/namespace"), word("/metadata/name"));
            // The namespace is Helm's to make, and CRDs are a folder of the chart, compared by another test.
            if !name.starts_with("Namespace ") && !name.starts_with("CustomResourceDefinition ") {
                if let Some(metadata) = object.get_mut("metadata").and_then(Value::as_object_mut) {
                    metadata.remove("creationTimestamp");
                }
                objects.insert(name, object);
            }
        }
    }
    Ok(objects)
}

#[test]
fn helm_renders_what_the_base_says() {
    in_cluster("helm_renders_what_the_base_says", |kube| {
        let manifests = xtask::build::root().join("manifests");
        let base = kube.kubectl(&["kustomize", &manifests.join("base").display().to_string()])?;
        let output = Command::new(kube.parts.program("helm"))
            .args(["template", "nodemesh"])
            .arg(manifests.join("helm/nodemesh"))
            .args(["--namespace", "nodemesh-system", "--kube-version", xtask::cluster::parts::KUBERNETES])
            .env("HOME", xtask::cluster::layout::work())
            .output()
            .context("starting helm")?;
        ensure!(output.status.success(), "helm: {}", String::from_utf8_lossy(&output.stderr));
        let (base, chart) = (objects(kube, &base)?, objects(kube, &String::from_utf8_lossy(&output.stdout))?);
        ensure!(base.len() > 10, "{} objects", base.len());
        let (names, others): (Vec<_>, Vec<_>) = (base.keys().collect(), chart.keys().collect());
        ensure!(names == others, "{names:?}\n{others:?}");
        for (name, object) in &base {
            ensure!(chart.get(name) == Some(object), "{name}: {object}\n{:?}", chart.get(name));
        }
        Ok(())
    });
}
