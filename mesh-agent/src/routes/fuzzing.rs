//! Fuzz targets: the lookup against the reference, filters on heads from the network, and a TLS client's first message.

use std::sync::LazyLock;
use std::time::Duration;

use http::header::{CONTENT_LENGTH, HOST, LOCATION, TRANSFER_ENCODING};
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Uri};
use regex::Regex;

use super::reference::wanted;
use super::*;

/// Routes and a request of the input's making: the table finds what the standard's text says.
pub fn table(input: &[u8]) {
    let mut input = Choices(input);
    let kind = if input.below(4) == 0 { RouteKind::Grpc } else { RouteKind::Http };
    let routes: Vec<Route> = (0..input.below(5)).map(|at| route(&mut input, kind, at)).collect();
    let table = Table::compile(&routes);
    for _ in 0..4 {
        let method = method(&mut input);
        let (path, query) = (path(&mut input), query(&mut input));
        let host = input.of(VALUES);
        let mut headers = HeaderMap::new();
        for _ in 0..input.below(6) {
            let value = HeaderValue::from_bytes(input.of(VALUES).as_bytes()).unwrap_or(HeaderValue::from_static(""));
            headers.append(HeaderName::from_static(input.of(NAMES)), value);
        }
        let head = Head { method: &method, host, path: &path, query: query.as_deref(), headers: &headers };
        let found = table.find(&head).map(|found| (&*found.rule.route, found.rule.index));
        assert_eq!(found, wanted(&routes, &head), "{head:?}");
    }
}

const SEGMENTS: &[&str] = &["", "a", "b", "ab", "%2F", "..", "*"];
const NAMES: &[&str] = &["x", "y", "host", "cookie"];
const VALUES: &[&str] = &["1", "2", "12", "1,2", "1; 2", "", "\u{e9}", "\u{0}\u{ff}"];

static PATTERNS: LazyLock<Vec<Regex>> = LazyLock::new(|| {
    let patterns = ["[12]", ".*", "1.2", "/a.*", ".*b", "/[ab]*/?", ""];
    patterns.map(|pattern| anchored(pattern).expect("a pattern")).into()
});

fn route(input: &mut Choices<'_>, kind: RouteKind, at: usize) -> Route {
    let rules = (0..input.below(4)).map(|_| {
        let matches = (0..=input.below(3)).map(|_| asked(input, kind)).collect();
        build::rule("x", matches)
    });
    let rules = rules.collect();
    let route = build::http(input.of(&["n", "n-m"]), &format!("r{at}"), rules);
    Route { kind, created: i64::try_from(input.below(2)).unwrap_or_default(), ..route }
}

fn asked(input: &mut Choices<'_>, kind: RouteKind) -> Match {
    let path = match (kind, input.below(5)) {
        (_, 0) => None,
        (RouteKind::Grpc, choice) => {
            let (service, method) =
                (grpc::Name::Exact(input.of(&["a", "b", "ab"])), grpc::Name::Exact(input.of(&["a", "b"])));
            Some(grpc::call(Some(service), (choice > 2).then_some(method)).expect("names are no patterns"))
        }
        (_, 1) => Some(PathMatch::Exact(path(input).into())),
        // Only a prefix that the standard allows means the same to both readers: with a slash in front and one at most
        // at the end.
        (_, 2 | 3) => Some(PathMatch::Prefix(prefix(input).into())),
        _ => Some(PathMatch::Regex(pattern(input))),
    };
    let headers = (0..input.below(4)).map(|_| (HeaderName::from_static(input.of(NAMES)), text(input))).collect();
    let mut asked = Match { path, method: None, headers, query: vec![] };
    if kind == RouteKind::Http {
        asked.method = (input.below(3) == 0).then(|| method(input));
        asked.query = (0..input.below(3)).map(|_| (input.of(&["p", "q"]).into(), text(input))).collect();
    }
    asked
}

fn text(input: &mut Choices<'_>) -> Text {
    if input.below(4) == 0 { Text::Regex(pattern(input)) } else { Text::Exact(input.of(VALUES).into()) }
}

fn pattern(input: &mut Choices<'_>) -> Regex {
    PATTERNS[input.below(PATTERNS.len())].clone()
}

fn path(input: &mut Choices<'_>) -> String {
    (0..=input.below(4)).map(|_| format!("/{}", input.of(SEGMENTS))).collect()
}

fn prefix(input: &mut Choices<'_>) -> String {
    let segments: String = (0..input.below(4)).map(|_| format!("/{}", input.of(&SEGMENTS[1..]))).collect();
    if segments.is_empty() || input.below(4) == 0 { segments + "/" } else { segments }
}

fn query(input: &mut Choices<'_>) -> Option<String> {
    let pairs: Vec<String> = (0..input.below(4))
        .map(|_| format!("{}={}", input.of(&["p", "q", "r"]), input.of(&["1", "2", "12", ""])))
        .collect();
    (!pairs.is_empty()).then(|| pairs.join("&"))
}

fn method(input: &mut Choices<'_>) -> Method {
    if input.below(2) == 0 { Method::GET } else { Method::POST }
}

/// A request's head and an answer's from the input, through every filter: nothing frames a message that did not before,
/// queries stay, Locations are URLs.
pub fn heads(input: &[u8]) {
    let mut lines = input.split(|byte| *byte == b'\n').map(String::from_utf8_lossy);
    let mut line = || lines.next().unwrap_or_default().into_owned();
    let (uri, host, matched) = (line(), line(), line());
    let (replacement, hostname, origin) = (line(), line(), line());
    let Ok(uri) = uri.parse::<Uri>() else { return };
    let mut headers = HeaderMap::new();
    for line in lines.take(64) {
        let Some((name, value)) = line.split_once(':') else { continue };
        if let (Ok(name), Ok(value)) = (name.parse::<HeaderName>(), value.parse::<HeaderValue>()) {
            headers.append(name, value);
        }
    }
    let around = filters::Around { scheme: "http", host: &host, port: 8080, matched_prefix: Some(&matched) };
    for filter in all(&replacement, &hostname, &origin, &headers) {
        for method in [Method::GET, Method::OPTIONS] {
            one_filter(&filter, &around, method, &uri, &headers);
        }
    }
}

fn all(replacement: &str, hostname: &str, origin: &str, headers: &HeaderMap) -> Vec<Filter> {
    let pairs = || headers.iter().map(|(name, value)| NameValue { name: name.clone(), value: value.clone() });
    let change = HeaderChange {
        set: pairs().step_by(3).collect(),
        add: pairs().skip(1).step_by(3).collect(),
        remove: headers.keys().skip(2).step_by(3).cloned().collect(),
    };
    let mut filters = vec![Filter::RequestHeaders(change.clone()), Filter::ResponseHeaders(change)];
    for path in [None, Some(PathRewrite::Full(replacement.into())), Some(PathRewrite::Prefix(replacement.into()))] {
        for hostname in [None, Some(hostname.into())] {
            filters.push(Filter::Rewrite(UrlRewrite { hostname: hostname.clone(), path: path.clone() }));
            filters.push(Filter::Redirect(Redirect { hostname, path: path.clone(), ..build::redirect() }));
        }
    }
    for allow_credentials in [false, true] {
        for origin in [origin, "*"] {
            let list = vec![origin.into()];
            filters.push(Filter::Cors(Cors {
                allow_origins: list.clone(),
                allow_credentials,
                allow_methods: list.clone(),
                allow_headers: list.clone(),
                expose_headers: list,
                max_age: Duration::from_secs(5),
            }));
        }
    }
    filters
}

fn one_filter(filter: &Filter, around: &filters::Around<'_>, method: Method, uri: &Uri, headers: &HeaderMap) {
    let (mut request, ()) = http::Request::new(()).into_parts();
    request.method = method;
    request.uri = uri.clone();
    request.headers = headers.clone();
    let origin = filters::Origin::of(&request);
    let filters = std::slice::from_ref(filter);
    match filters::request(filters, around, &mut request) {
        filters::Step::Forward => {
            assert_eq!(request.uri.query(), uri.query(), "a query has changed");
            assert_eq!(request.uri.path().starts_with('/'), uri.path().starts_with('/'));
            assert!(request.uri.to_string().parse::<Uri>().is_ok());
        }
        filters::Step::Answer(head, filters::Answer::Redirect) => {
            let location: Uri = head.headers[LOCATION].to_str().expect("text").parse().expect("a URL");
            assert_eq!(location.scheme_str(), Some("http"));
            assert_eq!(location.query().is_some(), uri.query().is_some());
        }
        filters::Step::Answer(head, filters::Answer::Preflight) => {
            assert_eq!(head.status, StatusCode::NO_CONTENT);
            says_no_wildcard_to_credentials(&head.headers);
        }
        filters::Step::Answer(head, filters::Answer::Impossible) => {
            assert_eq!(head.status, StatusCode::INTERNAL_SERVER_ERROR);
        }
    }
    for name in [CONTENT_LENGTH, TRANSFER_ENCODING] {
        assert!(request.headers.get_all(&name).iter().eq(headers.get_all(&name)), "{name} has changed");
    }
    if !matches!(filter, Filter::Rewrite(_)) {
        assert!(request.headers.get_all(HOST).iter().eq(headers.get_all(HOST)), "the host has changed");
    }
    let (mut answer, ()) = http::Response::new(()).into_parts();
    answer.headers = headers.clone();
    filters::response(filters, &origin, &mut answer);
    if matches!(filter, Filter::Cors(_)) {
        says_no_wildcard_to_credentials(&answer.headers);
    }
}

fn says_no_wildcard_to_credentials(headers: &HeaderMap) {
    if headers.contains_key("access-control-allow-credentials") {
        assert_ne!(headers["access-control-allow-origin"], "*");
    }
}

/// What has come so far decides, and what comes later changes nothing.
pub fn client_hello(input: &[u8]) {
    let whole = ClientHello::read(input);
    if let ClientHello::Named(name) = &whole {
        assert!(name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-_.".contains(&byte)));
        assert!(!name.is_empty() && name.len() <= limits::SERVER_NAME_BYTES);
    }
    if whole == ClientHello::Incomplete {
        assert!(input.len() < 2 * limits::CLIENT_HELLO_BYTES, "more is asked for than may be held");
    }
    // All beginnings of a short input, some of a long one.
    for end in (0..input.len()).step_by(input.len() / 64 + 1) {
        let sooner = ClientHello::read(&input[..end]);
        assert!(sooner == ClientHello::Incomplete || sooner == whole, "{sooner:?} of {end}, then {whole:?}");
    }
}

/// Choices that the input makes.
struct Choices<'a>(&'a [u8]);

impl Choices<'_> {
    /// Zero where the input has ended.
    fn below(&mut self, bound: usize) -> usize {
        let Some((first, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        usize::from(*first) % bound
    }

    fn of<'v>(&mut self, values: &[&'v str]) -> &'v str {
        values[self.below(values.len())]
    }
}
