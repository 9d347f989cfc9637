//! RequestHeaderModifier and ResponseHeaderModifier.

use http::header::{CONNECTION, CONTENT_LENGTH, HOST, TE, TRAILER, TRANSFER_ENCODING, UPGRADE};
use http::{HeaderMap, HeaderName};

use super::super::object::{HeaderChange, NameValue};
use crate::fields;

/// Whether a filter may touch a header. It may not touch what says where a message ends or belongs to one connection
/// (RFC 9110, section 7.6.1; RFC 9112, section 6): the agent makes these for each side, and a wrong one lets a request
/// be taken for two. Nor the host: URLRewrite changes it, for `:authority` and Host together.
pub fn is_changeable(name: &HeaderName) -> bool {
    const FRAMING: [HeaderName; 7] = [CONNECTION, CONTENT_LENGTH, HOST, TE, TRAILER, TRANSFER_ENCODING, UPGRADE];
    !FRAMING.contains(name) && !["keep-alive", "proxy-connection"].contains(&name.as_str())
}

/// Set, then add, then remove; what is set or removed has no other spelling beside it. Changes of headers that are not
/// changeable do not happen.
pub(super) fn change(change: &HeaderChange, headers: &mut HeaderMap) {
    let HeaderChange { set, add, remove } = change;
    for NameValue { name, value } in set.iter().filter(|pair| is_changeable(&pair.name)) {
        fields::remove_other_spellings(headers, name);
        headers.insert(name, value.clone());
    }
    // As a line of its own, which means the same as a comma (RFC 9110, section 5.3) and is right for Set-Cookie too.
    for NameValue { name, value } in add.iter().filter(|pair| is_changeable(&pair.name)) {
        headers.append(name, value.clone());
    }
    for name in remove.iter().filter(|name| is_changeable(name)) {
        fields::remove_alike(headers, name);
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::build::change as changed;
    use super::*;

    fn after(change_: &HeaderChange, before: &[(&str, &str)]) -> Vec<String> {
        let mut headers = HeaderMap::new();
        for (name, value) in before {
            headers.append(name.parse::<HeaderName>().unwrap(), value.parse().unwrap());
        }
        change(change_, &mut headers);
        let mut lines: Vec<String> =
            headers.iter().map(|(name, value)| format!("{name}: {}", value.to_str().unwrap())).collect();
        lines.sort();
        lines
    }

    #[test]
    fn set_add_remove() {
        for (change, before, wanted) in [
            (changed(&[("X", "1")], &[], &[]), vec![], vec!["x: 1"]),
            (changed(&[("X", "1")], &[], &[]), vec![("x", "0"), ("x", "00"), ("y", "0")], vec!["x: 1", "y: 0"]),
            (changed(&[], &[("X", "1")], &[]), vec![("x", "0")], vec!["x: 0", "x: 1"]),
            (changed(&[], &[("X", "1")], &[]), vec![], vec!["x: 1"]),
            (changed(&[], &[], &["X"]), vec![("x", "0"), ("x", "1"), ("y", "0")], vec!["y: 0"]),
            (
                changed(&[("X-A", "1")], &[], &["X-B"]),
                vec![("x_a", "0"), ("x_b", "0"), ("y_b", "0")],
                vec!["x-a: 1", "y_b: 0"],
            ),
            (
                changed(&[("A", "1")], &[("b", "1")], &["C"]),
                vec![("a", "0"), ("b", "0"), ("c", "0")],
                vec!["a: 1", "b: 0", "b: 1"],
            ),
        ] {
            assert_eq!(after(&change, &before), wanted, "{change:?}");
        }
    }

    #[test]
    fn framing_and_host_stay_as_they_are() {
        for name in [
            "connection",
            "content-length",
            "host",
            "keep-alive",
            "proxy-connection",
            "te",
            "trailer",
            "transfer-encoding",
            "upgrade",
        ] {
            for change in
                [changed(&[(name, "x")], &[], &[]), changed(&[], &[(name, "x")], &[]), changed(&[], &[], &[name])]
            {
                assert_eq!(after(&change, &[(name, "1")]), [format!("{name}: 1")], "{change:?}");
            }
        }
    }
}
