//! `cargo xtask manifests`: the Helm chart, made from `manifests/base`.
//!
//! There is one source. The chart's templates are the base's files with the values that people change in their place;
//! tests hold that the committed chart is what is made here, and that Helm renders from it what the base says.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

use crate::build::root;

/// Write the Helm chart anew from manifests/base
#[derive(clap::Args)]
pub struct Manifests {}

/// The files of the base that the chart has as templates. The namespace is Helm's to make.
const TEMPLATES: [&str; 3] = ["rbac.yaml", "controller.yaml", "agent.yaml"];

/// What of a base's file is a value of the chart: the text, and what stands for it. Each has to be there.
const VALUES: [(&str, &str, &str); 6] = [
    ("controller.yaml", "  replicas: 2\n", "  replicas: {{ .Values.controller.replicas }}\n"),
    (
        "controller.yaml",
        "        resources:\n          requests:\n            cpu: 50m\n            memory: 64Mi\n          limits:\n            memory: 1Gi\n",
        "        resources:\n          {{- toYaml .Values.controller.resources | nindent 10 }}\n",
    ),
    (
        "agent.yaml",
        "        resources:\n          requests:\n            cpu: 100m\n            memory: 128Mi\n          limits:\n            memory: 2Gi\n",
        "        resources:\n          {{- toYaml .Values.agent.resources | nindent 10 }}\n",
    ),
    ("agent.yaml", "          value: 10m\n", "          value: {{ .Values.agent.drainWindow | quote }}\n"),
    (
        "agent.yaml",
        "      terminationGracePeriodSeconds: 660\n",
        "      terminationGracePeriodSeconds: {{ .Values.agent.terminationGracePeriodSeconds }}\n",
    ),
    (
        "agent.yaml",
        "      nodeSelector:\n        kubernetes.io/os: linux\n",
        "      nodeSelector:\n        {{- toYaml .Values.agent.nodeSelector | nindent 8 }}\n",
    ),
];

/// The same in every file: image and namespace.
const EVERYWHERE: [(&str, &str); 3] = [
    (
        "image: localhost/nodemesh:0.1.0\n",
        "image: \"{{ .Values.image.name }}:{{ .Values.image.tag | default .Chart.AppVersion }}\"\n",
    ),
    ("imagePullPolicy: IfNotPresent\n", "imagePullPolicy: {{ .Values.image.pullPolicy }}\n"),
    ("namespace: nodemesh-system\n", "namespace: {{ .Release.Namespace }}\n"),
];

impl Manifests {
    /// Writes what is not as it should be.
    pub fn run(self) -> Result<()> {
        for (path, text) in chart()? {
            let file = root().join(&path);
            if fs::read_to_string(&file).is_ok_and(|there| there == text) {
                continue;
            }
            let directory = file.parent().context("a file in a directory")?;
            fs::create_dir_all(directory).with_context(|| format!("making {}", directory.display()))?;
            fs::write(&file, text).with_context(|| format!("writing {}", file.display()))?;
            println!("{}", path.display());
        }
        Ok(())
    }
}

/// Every file of the chart that is made.
pub fn chart() -> Result<Vec<(PathBuf, String)>> {
    let chart = Path::new("manifests/helm/nodemesh");
    let mut files = Vec::new();
    for name in TEMPLATES {
        files.push((chart.join("templates").join(name), template(name)?));
    }
    let crds = Path::new("manifests/crds");
    for entry in fs::read_dir(root().join(crds)).context("reading manifests/crds")? {
        let name = entry?.file_name();
        if name != "kustomization.yaml" {
            let text = fs::read_to_string(root().join(crds).join(&name))?;
            files.push((chart.join("crds").join(&name), text));
        }
    }
    files.sort();
    Ok(files)
}

fn template(name: &str) -> Result<String> {
    let base = root().join("manifests/base").join(name);
    let mut text = fs::read_to_string(&base).with_context(|| format!("reading {}", base.display()))?;
    for (_, is, becomes) in VALUES.iter().filter(|(file, _, _)| *file == name) {
        ensure!(text.contains(is), "{} does not say {is:?}, which is a value of the chart", base.display());
        text = text.replace(is, becomes);
    }
    for (is, becomes) in EVERYWHERE {
        text = text.replace(is, becomes);
    }
    // Where the namespace is part of a longer text.
    text = text.replace("nodemesh-controller.nodemesh-system.svc", "nodemesh-controller.{{ .Release.Namespace }}.svc");
    text = text.replace("value: nodemesh-system/nodemesh-agent", "value: \"{{ .Release.Namespace }}/nodemesh-agent\"");
    Ok(format!("# Made from manifests/base/{name} by cargo xtask manifests; do not edit.\n{text}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_chart_is_what_the_base_says() {
        for (path, text) in chart().unwrap() {
            let there = fs::read_to_string(root().join(&path)).unwrap_or_default();
            assert!(there == text, "{} is not as manifests/base has it: cargo xtask manifests", path.display());
        }
    }

    #[test]
    fn nobody_may_do_everything() {
        let text = fs::read_to_string(root().join("manifests/base/rbac.yaml")).unwrap();
        assert!(!text.lines().any(|line| !line.trim_start().starts_with('#') && line.contains('*')), "a wildcard");
        for rules in text.split("\nrules:\n").skip(1) {
            assert!(rules.contains("apiGroups"), "{rules}");
        }
    }
}
