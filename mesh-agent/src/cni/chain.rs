//! The plugin in a network's configuration: put in and taken out, as pure functions over JSON.

use serde_json::{Value, json};

use super::TYPE;

/// What the installer writes into the chain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Where the agent answers.
    pub socket: String,
    /// How the API server is asked where no agent answers.
    pub kubeconfig: Option<String>,
}

impl Entry {
    fn to_json(&self) -> Value {
        let mut entry = json!({"type": TYPE, "socket": self.socket});
        if let Some(kubeconfig) = &self.kubeconfig {
            entry["kubeconfig"] = kubeconfig.as_str().into();
        }
        entry
    }
}

/// A list (`.conflist`) with the plugin at its end, once: it is to see what all others made. None where it is so already.
///
/// # Errors
/// It is no list of plugins.
pub fn insert(list: &Value, entry: &Entry) -> Result<Option<Value>, String> {
    let plugins = plugins(list)?;
    let others = plugins.iter().filter(|plugin| !is_ours(plugin)).cloned();
    let wanted: Vec<Value> = others.chain([entry.to_json()]).collect();
    if wanted == *plugins {
        return Ok(None);
    }
    let mut changed = list.clone();
    changed["plugins"] = wanted.into();
    Ok(Some(changed))
}

/// A list without the plugin. None where it is not in it.
pub fn remove(list: &Value) -> Option<Value> {
    let plugins = plugins(list).ok()?;
    let others: Vec<Value> = plugins.iter().filter(|plugin| !is_ours(plugin)).cloned().collect();
    if others.len() == plugins.len() {
        return None;
    }
    let mut changed = list.clone();
    changed["plugins"] = others.into();
    Some(changed)
}

/// A list of a single plugin's configuration (`.conf`), as runtimes themselves read one.
///
/// # Errors
/// It is no configuration of a plugin.
pub fn list_of(conf: &Value) -> Result<Value, String> {
    if conf["type"].as_str().unwrap_or_default().is_empty() {
        return Err("it has no type".into());
    }
    let mut list = json!({"name": conf["name"], "plugins": [conf]});
    if let Some(version) = conf.get("cniVersion") {
        list["cniVersion"] = version.clone();
    }
    Ok(list)
}

fn plugins(list: &Value) -> Result<&Vec<Value>, String> {
    let plugins = list.get("plugins").and_then(Value::as_array).ok_or("it has no list of plugins")?;
    if plugins.is_empty() { Err("its list of plugins is empty".into()) } else { Ok(plugins) }
}

fn is_ours(plugin: &Value) -> bool {
    plugin["type"] == TYPE
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn entry() -> Entry {
        Entry { socket: "/run/nodemesh/cni.sock".into(), kubeconfig: Some("/etc/cni/net.d/nodemesh-kubeconfig".into()) }
    }

    /// As their installers write them, shortened where nothing depends on it.
    const LISTS: [(&str, &str); 6] = [
        (
            "calico",
            r#"{"name":"k8s-pod-network","cniVersion":"0.3.1","plugins":[{"type":"calico","log_level":"info","datastore_type":"kubernetes","mtu":0,"ipam":{"type":"calico-ipam"},"policy":{"type":"k8s"},"kubernetes":{"kubeconfig":"/etc/cni/net.d/calico-kubeconfig"}},{"type":"portmap","snat":true,"capabilities":{"portMappings":true}},{"type":"bandwidth","capabilities":{"bandwidth":true}}]}"#,
        ),
        (
            "flannel",
            r#"{"name":"cbr0","cniVersion":"0.3.1","plugins":[{"type":"flannel","delegate":{"hairpinMode":true,"isDefaultGateway":true}},{"type":"portmap","capabilities":{"portMappings":true}}]}"#,
        ),
        (
            "cilium",
            r#"{"cniVersion":"0.3.1","name":"cilium","plugins":[{"type":"cilium-cni","enable-debug":false,"log-file":"/var/run/cilium/cilium-cni.log"}]}"#,
        ),
        (
            "aws",
            r#"{"cniVersion":"1.0.0","name":"aws-cni","disableCheck":true,"plugins":[{"name":"aws-cni","type":"aws-cni","vethPrefix":"eni","mtu":"9001","podSGEnforcingMode":"strict"},{"name":"egress-cni","type":"egress-cni","enabled":"false","ipam":{"type":"host-local","ranges":[[{"subnet":"fd00::ac:00/118"}]]}},{"type":"portmap","capabilities":{"portMappings":true},"snat":true}]}"#,
        ),
        (
            "kindnet",
            r#"{"cniVersion":"0.3.1","name":"kindnet","plugins":[{"type":"ptp","ipMasq":false,"ipam":{"type":"host-local","dataDir":"/run/cni-ipam-state","routes":[{"dst":"0.0.0.0/0"}],"ranges":[[{"subnet":"10.244.0.0/24"}]]},"mtu":1500},{"type":"portmap","capabilities":{"portMappings":true}}]}"#,
        ),
        (
            "with istio's own",
            r#"{"cniVersion":"0.3.1","name":"x","plugins":[{"type":"ptp"},{"type":"istio-cni","plugin_log_level":"info"}]}"#,
        ),
    ];

    #[test]
    fn real_lists_get_it_last_and_lose_it_again() {
        for (what, text) in LISTS {
            let list: Value = serde_json::from_str(text).unwrap();
            let with = insert(&list, &entry()).unwrap().unwrap_or_else(|| panic!("{what}: nothing to do"));
            let types: Vec<&str> =
                with["plugins"].as_array().unwrap().iter().filter_map(|p| p["type"].as_str()).collect();
            assert_eq!(types.last(), Some(&TYPE), "{what}");
            assert_eq!(types.len(), list["plugins"].as_array().unwrap().len() + 1, "{what}");
            assert_eq!(insert(&with, &entry()), Ok(None), "{what}: once more changes nothing");
            assert_eq!(remove(&with), Some(list.clone()), "{what}");
            assert_eq!(remove(&list), None, "{what}");
            // Parameters of another version, and another plugin that was put behind it.
            let mut stale = with.clone();
            let last = types.len() - 1;
            stale["plugins"][last]["socket"] = "/elsewhere".into();
            assert_eq!(insert(&stale, &entry()), Ok(Some(with.clone())), "{what}");
            let mut behind = with.clone();
            behind["plugins"].as_array_mut().unwrap().push(json!({"type": "tuning"}));
            let moved = insert(&behind, &entry()).unwrap().unwrap();
            assert_eq!(moved["plugins"][last + 1]["type"], TYPE, "{what}");
        }
    }

    #[test]
    fn a_single_plugin_becomes_a_list() {
        let conf = json!({"cniVersion": "0.3.1", "name": "net", "type": "bridge", "ipam": {"type": "host-local"}});
        let list = list_of(&conf).unwrap();
        assert_eq!(list, json!({"cniVersion": "0.3.1", "name": "net", "plugins": [conf]}));
        assert!(list_of(&json!({"name": "net"})).is_err());
    }

    #[test]
    fn what_is_no_list_is_left_alone() {
        for text in ["null", "[]", "{}", r#"{"plugins": 3}"#, r#"{"plugins": []}"#] {
            let list: Value = serde_json::from_str(text).unwrap();
            assert!(insert(&list, &entry()).is_err(), "{text}");
            assert_eq!(remove(&list), None, "{text}");
        }
    }

    fn any_plugin() -> impl Strategy<Value = Value> {
        let field = prop_oneof![
            any::<bool>().prop_map(Value::from),
            any::<i32>().prop_map(Value::from),
            "[a-z]{0,8}".prop_map(Value::from)
        ];
        let fields = proptest::collection::btree_map("[a-z]{1,6}", field, 0..4);
        ("[a-z-]{1,12}", fields).prop_map(|(kind, fields)| {
            let mut plugin: Value = fields.into_iter().collect();
            plugin["type"] = kind.into();
            plugin
        })
    }

    proptest! {
        #[test]
        fn insert_then_remove_gives_the_original(plugins in proptest::collection::vec(any_plugin(), 1..5), name in "[a-z]{1,8}") {
            prop_assume!(plugins.iter().all(|plugin| plugin["type"] != TYPE));
            let list = json!({"cniVersion": "1.0.0", "name": name, "plugins": plugins});
            let with = insert(&list, &entry()).unwrap().unwrap();
            prop_assert_eq!(remove(&with), Some(list));
        }
    }
}
