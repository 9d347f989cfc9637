//! `cargo xtask manifests`: the Helm chart, made from `manifests/base`, and the rules of `manifests/monitoring` as an object.
//!
//! There is one source. The chart's templates are the base's files with the values that people change in their place, and
//! with what `manifests/overlays` add where that is switched on; tests hold that the committed chart is what is made
//! here, and that Helm renders from it what base and overlay say.

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
const EVERYWHERE: [(&str, &str); 7] = [
    (
        "image: localhost/nodemesh:0.1.0\n",
        "image: \"{{ .Values.image.name }}:{{ .Values.image.tag | default .Chart.AppVersion }}\"\n",
    ),
    ("imagePullPolicy: IfNotPresent\n", "imagePullPolicy: {{ .Values.image.pullPolicy }}\n"),
    ("namespace: nodemesh-system\n", "namespace: {{ .Release.Namespace }}\n"),
    // Where it is part of a longer text.
    ("nodemesh-controller.nodemesh-system.svc", "nodemesh-controller.{{ .Release.Namespace }}.svc"),
    ("value: nodemesh-system/nodemesh-agent\n", "value: \"{{ .Release.Namespace }}/nodemesh-agent\"\n"),
    ("--daemonset=nodemesh-system/", "--daemonset={{ .Release.Namespace }}/"),
    ("    - nodemesh-system\n", "    - {{ .Release.Namespace }}\n"),
];

/// The parts of the overlay's agent.yaml: behind which line of it each begins and at which it ends, and the line of the
/// base's agent.yaml that it comes after, or before. Kustomize puts them there.
const PLUGIN: [(&str, &str, Side); 4] = [
    ("        env:\n", "        volumeMounts:\n", Side::After("        env:\n")),
    ("        volumeMounts:\n", "      # Apart from the agent", Side::After("        volumeMounts:\n")),
    ("          mountPath: /run/nodemesh/cni\n", "      volumes:\n", Side::Before("      volumes:\n")),
    ("      volumes:\n", "", Side::After("      volumes:\n")),
];

/// Where in the base.
enum Side {
    After(&'static str),
    Before(&'static str),
}

/// What of the overlay is a value of the chart.
const PLUGIN_VALUES: [(&str, &str); 4] = [
    ("--conf-dir=/etc/cni/net.d\n", "--conf-dir={{ .Values.cni.confDir }}\n"),
    ("--bin-dir=/opt/cni/bin\n", "--bin-dir={{ .Values.cni.binDir }}\n"),
    ("ath: /etc/cni/net.d\n", "ath: {{ .Values.cni.confDir }}\n"),
    ("ath: /opt/cni/bin\n", "ath: {{ .Values.cni.binDir }}\n"),
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

/// Every file that is made.
pub fn chart() -> Result<Vec<(PathBuf, String)>> {
    let chart = Path::new("manifests/helm/nodemesh");
    let mut files = Vec::new();
    for name in TEMPLATES {
        files.push((chart.join("templates").join(name), template(name)?));
    }
    files.push((chart.join("templates/monitoring.yaml"), monitoring()?));
    let rule = prometheus_rule()?;
    files.push((chart.join("templates/rules.yaml"), rules_of_chart(&rule)));
    files.push(("manifests/overlays/monitoring/rules.yaml".into(), format!("{}{rule}", made_from(RULES))));
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
    if name == "agent.yaml" {
        text = with_plugin(text)?;
    }
    Ok(of_chart(&format!("manifests/base/{name}"), text))
}

/// The overlay's objects, where they are switched on.
fn monitoring() -> Result<String> {
    let name = "manifests/overlays/monitoring/monitoring.yaml";
    let text = fs::read_to_string(root().join(name)).with_context(|| format!("reading {name}"))?;
    Ok(of_chart(name, format!("{{{{- if .Values.serviceMonitor.enabled }}}}\n{text}{{{{- end }}}}\n")))
}

/// What a Prometheus reads.
const RULES: &str = "manifests/monitoring/rules.yaml";

/// The same for the Prometheus operator.
fn prometheus_rule() -> Result<String> {
    let text = fs::read_to_string(root().join(RULES)).with_context(|| format!("reading {RULES}"))?;
    let (_, groups) = text.split_once("\ngroups:\n").with_context(|| format!("{RULES} has no groups"))?;
    let groups = groups.lines().fold(String::new(), |all, line| all + "  " + line + "\n");
    Ok(format!(
        "apiVersion: monitoring.coreos.com/v1\nkind: PrometheusRule\nmetadata:\n  name: nodemesh\n  \
         namespace: nodemesh-system\nspec:\n  groups:\n{groups}"
    ))
}

/// Alerts have templates of their own, which Helm is to leave alone.
fn rules_of_chart(rule: &str) -> String {
    let kept = rule.replace("{{", "\0").replace("}}", "{{ \"}}\" }}").replace('\0', "{{ \"{{\" }}");
    of_chart(RULES, format!("{{{{- if .Values.serviceMonitor.enabled }}}}\n{kept}{{{{- end }}}}\n"))
}

fn made_from(source: &str) -> String {
    format!("# Made from {source} by cargo xtask manifests; do not edit.\n")
}

/// With the image and the namespace that the chart is given.
fn of_chart(source: &str, mut text: String) -> String {
    for (is, becomes) in EVERYWHERE {
        text = text.replace(is, becomes);
    }
    format!("{}{text}", made_from(source))
}

/// The agents' template with what the overlay adds, where that is switched on.
fn with_plugin(mut template: String) -> Result<String> {
    let file = root().join("manifests/overlays/cni/agent.yaml");
    let mut overlay = fs::read_to_string(&file).with_context(|| format!("reading {}", file.display()))?;
    for (is, becomes) in PLUGIN_VALUES {
        ensure!(overlay.contains(is), "{} does not say {is:?}, which is a value of the chart", file.display());
        overlay = overlay.replace(is, becomes);
    }
    for (begin, end, side) in PLUGIN {
        let (_, rest) = overlay.split_once(begin).with_context(|| format!("{} has no {begin:?}", file.display()))?;
        let part = if end.is_empty() { Some(rest) } else { rest.split_once(end).map(|(part, _)| part) };
        let part = part.with_context(|| format!("{} has no {end:?}", file.display()))?;
        let (Side::After(line) | Side::Before(line)) = side;
        let indent = " ".repeat(line.len() - line.trim_start().len());
        let part = format!("{indent}{{{{- if .Values.cni.enabled }}}}\n{part}{indent}{{{{- end }}}}\n");
        ensure!(template.matches(line).count() == 1, "{line:?} is not once in the template of the agents");
        let with = if matches!(side, Side::After(_)) { format!("{line}{part}") } else { format!("{part}{line}") };
        template = template.replace(line, &with);
    }
    Ok(template)
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
