//! Writes a JSON value as the block YAML that people write.

use serde_json::Value;

/// One YAML document, with a newline at its end.
pub fn document(value: &Value) -> String {
    let mut text = String::new();
    block(value, 0, &mut text);
    text
}

fn block(value: &Value, indent: usize, text: &mut String) {
    match value {
        Value::Object(fields) if !fields.is_empty() => {
            for (name, value) in fields {
                pad(indent, text);
                text.push_str(&scalar(name));
                text.push(':');
                nested(value, indent + 2, text);
            }
        }
        Value::Array(items) if !items.is_empty() => {
            for item in items {
                pad(indent, text);
                text.push('-');
                item_of_list(item, indent + 2, text);
            }
        }
        other => {
            pad(indent, text);
            text.push_str(&inline(other));
            text.push('\n');
        }
    }
}

fn nested(value: &Value, indent: usize, text: &mut String) {
    if is_block(value) {
        text.push('\n');
        block(value, indent, text);
    } else {
        text.push_str(&format!(" {}\n", inline(value)));
    }
}

fn item_of_list(item: &Value, indent: usize, text: &mut String) {
    // The first line of the item stands beside the dash.
    let mut lines = String::new();
    block(item, indent, &mut lines);
    text.push(' ');
    text.push_str(&lines[indent..]);
}

fn is_block(value: &Value) -> bool {
    match value {
        Value::Object(fields) => !fields.is_empty(),
        Value::Array(items) => !items.is_empty(),
        _ => false,
    }
}

fn inline(value: &Value) -> String {
    match value {
        Value::String(text) => scalar(text),
        other => other.to_string(),
    }
}

/// Plain where no YAML reader could take it for something else, quoted as in JSON otherwise.
fn scalar(text: &str) -> String {
    let first_is_letter = text.starts_with(|c: char| c.is_ascii_alphabetic());
    let plain = text.chars().all(|c| c.is_ascii_alphanumeric() || "-_./".contains(c));
    let word = ["true", "false", "yes", "no", "on", "off", "null", "y", "n"].contains(&text.to_lowercase().as_str());
    if first_is_letter && plain && !word { text.to_string() } else { Value::from(text).to_string() }
}

fn pad(indent: usize, text: &mut String) {
    text.extend(std::iter::repeat_n(' ', indent));
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::document;

    #[test]
    fn reads_as_people_write() {
        let value = json!({
            "kind": "Pod",
            "labels": {"app": "web", "nodemesh.dev/mesh": "enabled", "on": "true"},
            "empty": {},
            "ips": [{"ip": "10.0.0.1", "tags": ["a", "1"]}, {"ip": "fd00::1"}],
            "port": 80,
        });
        let expected = "\
empty: {}
ips:
  - ip: \"10.0.0.1\"
    tags:
      - a
      - \"1\"
  - ip: \"fd00::1\"
kind: Pod
labels:
  app: web
  nodemesh.dev/mesh: enabled
  \"on\": \"true\"
port: 80
";
        assert_eq!(document(&value), expected);
    }
}
