//! Whether the agents are set up with the plugin still. Who takes the overlay back replaces them like any upgrade does.

use k8s_openapi::api::apps::v1::DaemonSet;

/// Whether the agents of a DaemonSet answer the plugin, or have it installed beside them.
pub fn has_plugin(agents: &DaemonSet) -> bool {
    agents.spec.template.spec.iter().flat_map(|pod| &pod.containers).any(|container| {
        let words = container.command.iter().chain(&container.args).flatten();
        let words: Vec<&str> = words.map(String::as_str).collect();
        words.windows(2).any(|pair| pair == ["cni", "install"])
            || words.iter().any(|word| word.starts_with("--cni-socket"))
            || container.env.iter().flatten().any(|variable| variable.name == "NODEMESH_CNI_SOCKET")
    })
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn a_set_up_without_socket_and_installer_has_no_plugin() {
        let agents = |container: Value| {
            let template = json!({"spec": {"containers": [{"name": "other"}, container]}});
            json!({"metadata": {"name": "agents"}, "spec": {"selector": {}, "template": template}})
        };
        for (agents, has) in [
            (agents(json!({"name": "cni", "args": ["cni", "install", "--conf-dir=/c"]})), true),
            (agents(json!({"name": "cni", "command": ["/mesh-agent", "cni", "install"]})), true),
            // The installer is elsewhere.
            (agents(json!({"name": "agent", "args": ["run", "--cni-socket=/run/s"]})), true),
            (agents(json!({"name": "agent", "env": [{"name": "NODEMESH_CNI_SOCKET", "value": "/run/s"}]})), true),
            (agents(json!({"name": "agent", "args": ["run"]})), false),
        ] {
            assert_eq!(has_plugin(&serde_json::from_value(agents.clone()).unwrap()), has, "{agents}");
        }
    }
}
