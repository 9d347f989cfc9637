//! What a request says about where it comes from: claims of its sender, of which the mesh reads none and passes on only
//! those that it knows to be true, or that somebody answers for.
//!
//! | a request of | at the client's node | at the application's, where requests are judged |
//! |---|---|---|
//! | a pod of the mesh | all claims go, ours are put in their place | who asks is put right; what was asked for stays, as the client's node or its routes left it |
//! | one whose owner says `nodemesh.dev/forwarded: append` | passed on; the pod's address is appended | the same |
//! | a caller outside the mesh | – | all claims go, ours are put in their place |
//!
//! Ours are `x-forwarded-for` with the caller's address, and `x-forwarded-proto: http`.

use std::borrow::Cow;
use std::net::IpAddr;

use http::header::{self, HeaderMap, HeaderName, HeaderValue};

use crate::fields;

const FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");

/// Fields that say who asks: an address, a certificate, a workload. In the order of the alphabet.
const WHO: [&str; 16] = [
    "cf-connecting-ip",
    "forwarded",
    "l5d-client-id",
    "true-client-ip",
    "x-client-ip",
    "x-cluster-client-ip",
    "x-envoy-downstream-service-cluster",
    "x-envoy-downstream-service-node",
    "x-envoy-external-address",
    "x-envoy-internal",
    "x-envoy-peer-metadata",
    "x-envoy-peer-metadata-id",
    "x-forwarded-client-cert",
    "x-forwarded-for",
    "x-original-forwarded-for",
    "x-real-ip",
];

/// Fields that say what was asked for before somebody passed it on, beside `x-forwarded-…`.
const WHAT: [&str; 3] = ["x-envoy-original-host", "x-envoy-original-path", "x-original-host"];

/// What becomes of a caller's claims.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Claims {
    /// They go.
    Dropped,
    /// Those about who asks go.
    OfOthersDropped,
    /// They stay, and the caller's address is appended: its owner answers for them.
    PassedOn,
}

/// Who calls, as the connection says it.
#[derive(Clone, Debug)]
pub struct Caller {
    /// Its address.
    pub ip: IpAddr,
    /// The address as a field's value, made once for all its requests.
    value: HeaderValue,
    claims: Claims,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Claim {
    Who,
    What,
}

impl Caller {
    /// A caller whose claims are treated so.
    pub fn new(ip: IpAddr, claims: Claims) -> Self {
        // An address has no character that a field may not have.
        let value = HeaderValue::try_from(ip.to_string()).unwrap_or_else(|_| HeaderValue::from_static("unknown"));
        Self { ip, value, claims }
    }

    /// Leaves in a request's head what may be said of where it comes from.
    pub fn settle(&self, headers: &mut HeaderMap) {
        match self.claims {
            Claims::Dropped => {
                remove(headers, |_| true);
                headers.insert(FOR, self.value.clone());
                headers.insert(PROTO, HeaderValue::from_static("http"));
            }
            Claims::OfOthersDropped => {
                remove(headers, |claim| claim == Claim::Who);
                headers.insert(FOR, self.value.clone());
                headers.entry(PROTO).or_insert(HeaderValue::from_static("http"));
            }
            Claims::PassedOn => {
                append(headers, &FOR, self.value.clone());
                if headers.contains_key(header::FORWARDED) {
                    let element = match self.ip {
                        IpAddr::V4(ip) => format!("for={ip}"),
                        IpAddr::V6(ip) => format!("for=\"[{ip}]\""),
                    };
                    if let Ok(element) = HeaderValue::try_from(element) {
                        append(headers, &header::FORWARDED, element);
                    }
                }
                headers.entry(PROTO).or_insert(HeaderValue::from_static("http"));
            }
        }
    }
}

/// Removes claims from trailers too: a recipient may merge them into the head.
pub fn remove_all(headers: &mut HeaderMap) {
    remove(headers, |_| true);
}

fn remove(headers: &mut HeaderMap, goes: impl Fn(Claim) -> bool) {
    fields::remove(headers, |name| claim(name.as_str()).is_some_and(&goes));
}

/// What kind of claim a field is. Applications that take fields as CGI does read `_` and `-` alike, and so do we.
fn claim(name: &str) -> Option<Claim> {
    if !matches!(name.as_bytes().first(), Some(b'c' | b'f' | b'l' | b't' | b'x')) {
        return None;
    }
    let name = if name.contains('_') { Cow::Owned(name.replace('_', "-")) } else { Cow::Borrowed(name) };
    if WHO.contains(&&*name) {
        return Some(Claim::Who);
    }
    (name.starts_with("x-forwarded-") || WHAT.contains(&&*name)).then_some(Claim::What)
}

/// Adds an element to a list, in a line of its own behind the others: the lines of a list are one list. Not where it
/// stands there already: the agents of both nodes may have read the request.
fn append(headers: &mut HeaderMap, name: &HeaderName, element: HeaderValue) {
    let last = headers.get_all(name).iter().next_back().and_then(|line| line.to_str().ok());
    let is_there = last.and_then(|line| line.rsplit(',').next()).is_some_and(|last| last.trim() == element);
    if !is_there {
        headers.append(name, element);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const V4: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 7));

    fn settled(claims: Claims, ip: IpAddr, fields: &[(&str, &str)]) -> Vec<String> {
        let mut headers = HeaderMap::new();
        for (name, value) in fields {
            headers.append(HeaderName::try_from(*name).unwrap(), HeaderValue::from_str(value).unwrap());
        }
        Caller::new(ip, claims).settle(&mut headers);
        let mut lines: Vec<String> =
            headers.iter().map(|(name, value)| format!("{name}: {}", value.to_str().unwrap())).collect();
        lines.sort();
        lines
    }

    /// D15
    #[test]
    fn who_asks_is_who_is_connected() {
        let ours = ["x-forwarded-for: 10.0.0.7", "x-forwarded-proto: http"];
        for claims in [Claims::Dropped, Claims::OfOthersDropped] {
            assert_eq!(settled(claims, V4, &[]), ours);
            for name in WHO {
                let underscored = name.replace('-', "_");
                for name in [name, &underscored, &name.to_uppercase()] {
                    assert_eq!(settled(claims, V4, &[(name, "1.2.3.4"), (name, "5.6.7.8")]), ours, "{name}");
                }
            }
        }
        let v6 = settled(Claims::Dropped, "fd00::7".parse().unwrap(), &[("x-forwarded-for", "10.0.0.1")]);
        assert_eq!(v6, ["x-forwarded-for: fd00::7", "x-forwarded-proto: http"]);
    }

    #[test]
    fn what_was_asked_for_is_the_clients_nodes_to_say() {
        for name in ["x-forwarded-host", "X-Forwarded-Port", "x_forwarded_prefix", "x-envoy-original-path"] {
            let dropped = settled(Claims::Dropped, V4, &[(name, "claimed")]);
            assert_eq!(dropped, ["x-forwarded-for: 10.0.0.7", "x-forwarded-proto: http"], "{name}");
            assert!(
                settled(Claims::OfOthersDropped, V4, &[(name, "of a route")])
                    .iter()
                    .any(|line| line.contains("of a route"))
            );
        }
        let proto = [("x-forwarded-proto", "https")];
        assert_eq!(settled(Claims::Dropped, V4, &proto)[1], "x-forwarded-proto: http");
        assert_eq!(settled(Claims::OfOthersDropped, V4, &proto)[1], "x-forwarded-proto: https");
    }

    #[test]
    fn an_ingress_answers_for_what_it_passes_on() {
        type Row = (&'static [(&'static str, &'static str)], &'static [&'static str]);
        let table: &[Row] = &[
            (&[], &["x-forwarded-for: 10.0.0.7", "x-forwarded-proto: http"]),
            (
                &[("x-forwarded-for", "1.2.3.4"), ("x-forwarded-proto", "https"), ("x-real-ip", "1.2.3.4")],
                &[
                    "x-forwarded-for: 1.2.3.4",
                    "x-forwarded-for: 10.0.0.7",
                    "x-forwarded-proto: https",
                    "x-real-ip: 1.2.3.4",
                ],
            ),
            // The agents of both nodes see it.
            (
                &[("x-forwarded-for", "1.2.3.4, 10.0.0.7"), ("x-forwarded-proto", "https")],
                &["x-forwarded-for: 1.2.3.4, 10.0.0.7", "x-forwarded-proto: https"],
            ),
            (
                &[("forwarded", "for=x;proto=https"), ("x-forwarded-proto", "https")],
                &[
                    "forwarded: for=10.0.0.7",
                    "forwarded: for=x;proto=https",
                    "x-forwarded-for: 10.0.0.7",
                    "x-forwarded-proto: https",
                ],
            ),
            (
                &[("x-forwarded-client-cert", "URI=spiffe://partner"), ("x-forwarded-proto", "https")],
                &[
                    "x-forwarded-client-cert: URI=spiffe://partner",
                    "x-forwarded-for: 10.0.0.7",
                    "x-forwarded-proto: https",
                ],
            ),
        ];
        for (fields, expected) in table {
            assert_eq!(settled(Claims::PassedOn, V4, fields), *expected, "{fields:?}");
        }
        let v6 = settled(Claims::PassedOn, "fd00::7".parse().unwrap(), &[("forwarded", "for=x")]);
        assert_eq!(v6[0], "forwarded: for=\"[fd00::7]\"");
    }

    #[test]
    fn other_fields_are_no_claims() {
        for name in ["x-request-id", "x-forwarded", "host", "cookie", "traceparent", "x-tenant", "forwarded-x"] {
            assert!(
                settled(Claims::Dropped, V4, &[(name, "kept")]).iter().any(|line| line.ends_with("kept")),
                "{name}"
            );
        }
    }
}
