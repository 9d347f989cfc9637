//! What goes out of every text before it is written: keys, tokens, and the values of things that are named as such. No
//! object that holds secrets is asked for; this is for what somebody wrote where it does not belong.

use std::sync::LazyLock;

use regex::Regex;
use serde_json::Value;

/// What stands where something was taken out.
pub const REMOVED: &str = "[removed]";

/// Private keys, tokens of three or five parts as JSON has them, and what follows the words of a scheme that proves somebody.
static SECRETS: LazyLock<Regex> = LazyLock::new(|| {
    let key = r"-----BEGIN [A-Z ]*PRIVATE KEY-----[\s\S]*?(?:-----END [A-Z ]*PRIVATE KEY-----|\z)";
    let token = r"eyJ[A-Za-z0-9_-]{6,}(?:\.[A-Za-z0-9_-]*){2,4}";
    let scheme = r"(?i:\b(?:bearer|basic)\s+)[A-Za-z0-9+/._~=-]{8,}";
    Regex::new(&format!("{key}|{token}|{scheme}")).expect("the pattern above, which a test uses")
});

/// Fields of objects whose values nobody needs who looks at a mesh: they prove somebody, or are long and said elsewhere.
const FIELDS: [&str; 4] = ["jwks", "managedFields", "kubectl.kubernetes.io/last-applied-configuration", "annotations"];
/// Header fields that prove somebody, in routes and policies.
const HEADERS: [&str; 6] =
    ["authorization", "cookie", "proxy-authorization", "set-cookie", "x-api-key", "x-auth-token"];

/// A text without what is secret in it, and how many things went.
pub fn text(text: &str) -> (String, usize) {
    let count = SECRETS.find_iter(text).count();
    (SECRETS.replace_all(text, REMOVED).into_owned(), count)
}

/// The same for JSON, where fields have names.
pub fn json(value: &mut Value) -> usize {
    match value {
        Value::String(said) => {
            let (clean, count) = text(said);
            if count > 0 {
                *said = clean;
            }
            count
        }
        Value::Array(items) => items.iter_mut().map(json).sum(),
        Value::Object(fields) => {
            let mut count = 0;
            for field in FIELDS {
                // Metadata that is dropped is no secret that was found.
                if fields.remove(field).is_some() && field == "jwks" {
                    fields.insert(field.into(), REMOVED.into());
                    count += 1;
                }
            }
            let name = fields.get("name").and_then(Value::as_str).map(str::to_ascii_lowercase);
            let is_secret = name.is_some_and(|name| HEADERS.contains(&name.as_str()));
            for field in ["value", "values"] {
                if let (true, Some(value)) = (is_secret, fields.get_mut(field)) {
                    *value = REMOVED.into();
                    count += 1;
                }
            }
            count + fields.values_mut().map(json).sum::<usize>()
        }
        Value::Null | Value::Bool(_) | Value::Number(_) => 0,
    }
}

/// Takes the environment of a pod's containers out, but for what is the mesh's own to say.
pub fn environment(pod: &mut Value) {
    for list in ["containers", "initContainers", "ephemeralContainers"] {
        let containers = pod.pointer_mut(&format!("/spec/{list}")).and_then(Value::as_array_mut);
        for variable in containers.into_iter().flatten().filter_map(|one| one["env"].as_array_mut()).flatten() {
            let is_ours = variable["name"].as_str().is_some_and(|name| name.starts_with("NODEMESH_"));
            if let (false, Some(value)) = (is_ours, variable.get_mut("value")) {
                *value = REMOVED.into();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_is_secret_goes_and_the_rest_stays() {
        let key = "a\n-----BEGIN EC PRIVATE KEY-----\nMHcCAQEE\n-----END EC PRIVATE KEY-----\nb";
        let table = [
            (key, "a\n[removed]\nb", 1),
            ("-----BEGIN PRIVATE KEY-----\nMHcC", "[removed]", 1),
            ("-----BEGIN CERTIFICATE-----\nMII", "-----BEGIN CERTIFICATE-----\nMII", 0),
            ("token=eyJhbGciOiJSUzI1NiJ9.eyJzdWIiOiJhIn0.c2ln end", "token=[removed] end", 1),
            ("authorization: Bearer abcdefgh12345", "authorization: [removed]", 1),
            ("Basic dXNlcjpwYXNz, basic reasons", "[removed], basic reasons", 1),
            ("spiffe://cluster.local/ns/shop/sa/web", "spiffe://cluster.local/ns/shop/sa/web", 0),
        ];
        for (said, expected, count) in table {
            assert_eq!(text(said), (expected.to_string(), count));
        }
    }

    #[test]
    fn fields_by_their_names() {
        let mut route = json!({
            "metadata": {"name": "web", "managedFields": [1], "annotations": {"note": "x"}},
            "spec": {"jwks": "{\"keys\": []}", "set": [
                {"name": "Authorization", "value": "s3cret"}, {"name": "x-color", "value": "red"},
            ]},
        });
        assert_eq!(super::json(&mut route), 2);
        let expected = json!({
            "metadata": {"name": "web"},
            "spec": {"jwks": REMOVED, "set": [
                {"name": "Authorization", "value": REMOVED}, {"name": "x-color", "value": "red"},
            ]},
        });
        assert_eq!(route, expected);
        let mut pod = json!({"spec": {"containers": [{"env": [
            {"name": "NODEMESH_NODE", "value": "n1"}, {"name": "PASSWORD", "value": "x"}, {"name": "FROM", "valueFrom": {}},
        ]}]}});
        environment(&mut pod);
        let expected = json!({"spec": {"containers": [{"env": [
            {"name": "NODEMESH_NODE", "value": "n1"}, {"name": "PASSWORD", "value": REMOVED}, {"name": "FROM", "valueFrom": {}},
        ]}]}});
        assert_eq!(pod, expected);
    }
}
