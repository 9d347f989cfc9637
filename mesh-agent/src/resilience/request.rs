//! What this room sees of a request, and whether something is about it.

use std::net::IpAddr;

use http::{HeaderMap, HeaderName, Method};

use super::policy::{HeaderMatch, PathMatch, RequestMatch, SourceMatch};
use crate::spiffe::SpiffeId;

/// A request, as far as decisions here look at it.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    /// Its method.
    pub method: &'a Method,
    /// Its path after normalisation, without the query.
    pub path: &'a str,
    /// Its headers.
    pub headers: &'a HeaderMap,
    /// Who sent it, by the connection; None: no identity.
    pub source: Option<&'a SpiffeId>,
    /// The IP of the client's pod.
    pub source_ip: IpAddr,
}

impl<'a> Request<'a> {
    /// The first value of a header.
    pub fn header(&self, name: &HeaderName) -> Option<&'a [u8]> {
        self.headers.get(name).map(|value| value.as_bytes())
    }

    /// The first cookie of this name, as RFC 6265 section 4.2.1 writes it.
    pub fn cookie(&self, name: &str) -> Option<&'a str> {
        let lines = self.headers.get_all(http::header::COOKIE).iter().filter_map(|line| line.to_str().ok());
        let mut pairs = lines.flat_map(|line| line.split(';')).filter_map(|pair| pair.trim().split_once('='));
        pairs.find(|(key, _)| *key == name).map(|(_, value)| value)
    }
}

impl RequestMatch {
    /// Whether all that is given holds for the request.
    pub fn is_about(&self, request: &Request<'_>) -> bool {
        let RequestMatch { methods, paths, headers, sources } = self;
        (methods.is_empty() || methods.contains(request.method))
            && (paths.is_empty() || paths.iter().any(|path| path.matches(request.path)))
            && headers.iter().all(|(name, wanted)| wanted.matches(request.headers, name))
            && (sources.is_empty() || sources.iter().any(|source| source.matches(request.source)))
    }
}

impl PathMatch {
    fn matches(&self, path: &str) -> bool {
        match self {
            PathMatch::Exact(exact) => path == &**exact,
            PathMatch::Prefix(prefix) => {
                let prefix = prefix.trim_end_matches('/');
                path.strip_prefix(prefix).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
            }
        }
    }
}

impl HeaderMatch {
    fn matches(&self, headers: &HeaderMap, name: &HeaderName) -> bool {
        match self {
            HeaderMatch::Exact(value) => headers.get_all(name).iter().any(|candidate| candidate == value),
            HeaderMatch::Present => headers.contains_key(name),
        }
    }
}

impl SourceMatch {
    fn matches(&self, source: Option<&SpiffeId>) -> bool {
        source.is_some_and(|id| {
            id.namespace() == &*self.namespace
                && self.service_account.as_ref().is_none_or(|account| id.service_account() == &**account)
        })
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::net::Ipv4Addr;

    use http::HeaderValue;

    use super::*;

    /// A GET of a path by nobody, with headers.
    pub(in crate::resilience) fn get<'a>(path: &'a str, headers: &'a HeaderMap) -> Request<'a> {
        Request { method: &Method::GET, path, headers, source: None, source_ip: Ipv4Addr::LOCALHOST.into() }
    }

    #[test]
    fn all_that_is_given_must_hold() {
        let headers = HeaderMap::from_iter([(HeaderName::from_static("x-tier"), HeaderValue::from_static("gold"))]);
        let web = SpiffeId::new("cluster.local", "shop", "web").unwrap();
        let request = Request { source: Some(&web), ..get("/cart/items", &headers) };
        let prefix = |text: &str| RequestMatch { paths: vec![PathMatch::Prefix(text.into())], ..Default::default() };
        let header = |name, wanted| RequestMatch {
            headers: vec![(HeaderName::from_static(name), wanted)],
            ..Default::default()
        };
        let source = |namespace: &str, account: Option<&str>| RequestMatch {
            sources: vec![SourceMatch { namespace: namespace.into(), service_account: account.map(Into::into) }],
            ..Default::default()
        };
        let table = [
            (RequestMatch::default(), true),
            (RequestMatch { methods: vec![Method::POST, Method::GET], ..Default::default() }, true),
            (RequestMatch { methods: vec![Method::POST], ..Default::default() }, false),
            (RequestMatch { paths: vec![PathMatch::Exact("/cart/items".into())], ..Default::default() }, true),
            (RequestMatch { paths: vec![PathMatch::Exact("/cart".into())], ..Default::default() }, false),
            (prefix("/cart"), true),
            (prefix("/cart/"), true),
            (prefix("/"), true),
            (prefix("/car"), false),
            (header("x-tier", HeaderMatch::Present), true),
            (header("x-tier", HeaderMatch::Exact(HeaderValue::from_static("gold"))), true),
            (header("x-tier", HeaderMatch::Exact(HeaderValue::from_static("Gold"))), false),
            (header("x-none", HeaderMatch::Present), false),
            (source("shop", None), true),
            (source("shop", Some("web")), true),
            (source("shop", Some("db")), false),
            (source("bank", None), false),
            (RequestMatch { methods: vec![Method::GET], ..prefix("/other") }, false),
        ];
        for (wanted, holds) in table {
            assert_eq!(wanted.is_about(&request), holds, "{wanted:?}");
        }
        assert!(!source("shop", None).is_about(&get("/", &headers)), "nobody has no namespace");
    }

    #[test]
    fn cookies_are_found_among_others() {
        let mut headers = HeaderMap::new();
        headers.append("cookie", HeaderValue::from_static("a=1; session=x=y;b=2"));
        headers.append("cookie", HeaderValue::from_static("c=3"));
        let request = get("/", &headers);
        for (name, value) in [("a", Some("1")), ("session", Some("x=y")), ("c", Some("3")), ("d", None), ("", None)] {
            assert_eq!(request.cookie(name), value, "{name}");
        }
    }
}
