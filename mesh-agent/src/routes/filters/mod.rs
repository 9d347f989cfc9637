//! What a rule does to a request on its way, or instead of it, and to its answer. Pure functions over heads; bodies are
//! never looked at.
//!
//! ```text
//! Origin::of ─► request(rule) ─► CompiledRule::backend ─► request(backend) ─► … ─► response(rule), response(backend)
//!                 └► an answer: a preflight's, a redirect           └► None: 500
//! ```
//! Filters work in the order in which they are written, the rule's before the backend's, on requests and answers alike:
//! the backend's, which say more, have the last word. One exception: a preflight is answered before anything else, as it
//! is about the request and not the request itself.

mod cors;
mod headers;
mod path;
mod redirect;

use http::header::ORIGIN;
use http::{HeaderValue, StatusCode, request, response};

pub use headers::is_changeable;

use super::chance::Seed;
use super::object::{Filter, Mirror};

/// What filters need to know of a request beyond its head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Around<'a> {
    /// `http`, or `https` where the agent has ended the client's TLS.
    pub scheme: &'a str,
    /// Host or `:authority` as the client sent it.
    pub host: &'a str,
    /// The port that the client dialled, the Service's.
    pub port: u16,
    /// `Found::matched_prefix`
    pub matched_prefix: Option<&'a str>,
}

/// What comes after the filters of a request.
#[derive(Debug)]
pub enum Step {
    /// The request goes on.
    Forward,
    /// The request ends here, with this head and no body; `response` has still to be applied, unless it is a preflight's.
    Answer(Box<response::Parts>, Answer),
}

/// What a filter answered with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// CORS: complete as it is.
    Preflight,
    /// RequestRedirect
    Redirect,
    /// The filter cannot do to this request what it says. "The filter must not be skipped."
    Impossible,
}

/// Where a browser says that a request comes from, kept for the answer, since filters may change the request.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Origin(Option<HeaderValue>);

impl Origin {
    /// Of a request as the client sent it.
    pub fn of(request: &request::Parts) -> Self {
        Self(request.headers.get(ORIGIN).cloned())
    }
}

/// Applies a rule's filters or a backend's to a request. After an answer the request is of no use any more.
pub fn request(filters: &[Filter], around: &Around<'_>, request: &mut request::Parts) -> Step {
    if let Some(head) = filters.iter().find_map(|filter| preflight(filter, request)) {
        return Step::Answer(Box::new(head), Answer::Preflight);
    }
    for filter in filters {
        match filter {
            Filter::RequestHeaders(change) => headers::change(change, &mut request.headers),
            Filter::Redirect(redirect) => {
                return match redirect::head_of(redirect, around, request) {
                    Some(head) => Step::Answer(Box::new(head), Answer::Redirect),
                    None => impossible(),
                };
            }
            Filter::Rewrite(rewrite) => {
                if path::rewrite(rewrite, around.matched_prefix, request).is_none() {
                    return impossible();
                }
            }
            Filter::ResponseHeaders(_) | Filter::Mirror(_) | Filter::Cors(_) => {}
        }
    }
    Step::Forward
}

/// Applies a rule's filters or a backend's to an answer, whoever made it: an application, a redirect, or the agent with
/// an error, which a browser's script could not read otherwise.
pub fn response(filters: &[Filter], origin: &Origin, response: &mut response::Parts) {
    for filter in filters {
        match filter {
            Filter::ResponseHeaders(change) => headers::change(change, &mut response.headers),
            Filter::Cors(cors) => cors::respond(cors, origin.0.as_ref(), &mut response.headers),
            Filter::RequestHeaders(_) | Filter::Redirect(_) | Filter::Rewrite(_) | Filter::Mirror(_) => {}
        }
    }
}

/// Where copies of this request go. A copy is of the request as the rule's filters leave it, before a backend's.
pub fn mirrors(filters: &[Filter], seed: Seed) -> impl Iterator<Item = &Mirror> {
    filters.iter().enumerate().filter_map(move |(place, filter)| match filter {
        Filter::Mirror(mirror) if seed.takes(place, mirror.share) => Some(mirror),
        _ => None,
    })
}

fn preflight(filter: &Filter, request: &request::Parts) -> Option<response::Parts> {
    match filter {
        Filter::Cors(cors) => cors::preflight(cors, request),
        Filter::RequestHeaders(_)
        | Filter::ResponseHeaders(_)
        | Filter::Redirect(_)
        | Filter::Rewrite(_)
        | Filter::Mirror(_) => None,
    }
}

fn impossible() -> Step {
    Step::Answer(Box::new(head(StatusCode::INTERNAL_SERVER_ERROR)), Answer::Impossible)
}

/// An answer's head with nothing in it.
pub(super) fn head(status: StatusCode) -> response::Parts {
    let (mut parts, ()) = http::Response::new(()).into_parts();
    parts.status = status;
    parts
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use http::header::LOCATION;

    use super::super::build::{self, change};
    use super::super::object::{Cors, Fraction, PathRewrite, Redirect, UrlRewrite};
    use super::*;

    const AROUND: Around<'static> = Around { scheme: "http", host: "web", port: 80, matched_prefix: Some("/foo") };

    fn request_of(uri: &str, headers: &[(&str, &str)]) -> request::Parts {
        let builder = headers
            .iter()
            .fold(http::Request::builder().uri(uri), |builder, (name, value)| builder.header(*name, *value));
        builder.body(()).unwrap().into_parts().0
    }

    fn rewrite(prefix: &str) -> Filter {
        Filter::Rewrite(UrlRewrite { hostname: None, path: Some(PathRewrite::Prefix(prefix.into())) })
    }

    fn cors() -> Filter {
        Filter::Cors(Cors { allow_origins: vec!["*".into()], max_age: Duration::from_secs(5), ..Cors::default() })
    }

    #[test]
    fn a_request_goes_on_changed() {
        let filters = [rewrite("/bar"), Filter::RequestHeaders(change(&[("x", "1")], &[], &["y"])), cors()];
        let mut parts = request_of("/foo/a?q", &[("y", "1")]);
        assert!(matches!(request(&filters, &AROUND, &mut parts), Step::Forward));
        assert_eq!((parts.uri.to_string().as_str(), parts.headers.len()), ("/bar/a?q", 1));
        assert_eq!(parts.headers["x"], "1");
    }

    #[test]
    fn a_request_ends_with_an_answer() {
        let redirect = Filter::Redirect(Redirect { hostname: Some("example.org".into()), ..build::redirect() });
        let nowhere = [rewrite("/a b")];
        for (filters, method, kind, status, location) in [
            (&[redirect.clone(), cors()][..], "GET", Answer::Redirect, 302, Some("http://example.org/foo")),
            (&[redirect, cors()][..], "OPTIONS", Answer::Preflight, 204, None),
            (&nowhere[..], "GET", Answer::Impossible, 500, None),
        ] {
            let mut parts =
                request_of("/foo", &[("origin", "https://a.com"), ("access-control-request-method", "GET")]);
            parts.method = method.parse().unwrap();
            let Step::Answer(head, answer) = request(filters, &AROUND, &mut parts) else { panic!("went on") };
            assert_eq!((answer, head.status.as_u16()), (kind, status));
            assert_eq!(head.headers.get(LOCATION).map(|value| value.to_str().unwrap()), location);
        }
    }

    #[test]
    fn answers_are_changed_by_the_rule_then_by_the_backend() {
        let origin = Origin::of(&request_of("/", &[("origin", "https://a.com")]));
        let mut head = head(StatusCode::OK);
        response(
            &[cors(), Filter::ResponseHeaders(change(&[("x", "rule"), ("y", "rule")], &[], &[]))],
            &origin,
            &mut head,
        );
        response(&[Filter::ResponseHeaders(change(&[("x", "backend")], &[], &[]))], &origin, &mut head);
        assert_eq!((&head.headers["x"], &head.headers["y"]), (&"backend".parse().unwrap(), &"rule".parse().unwrap()));
        assert_eq!(head.headers["access-control-allow-origin"], "*");
    }

    #[test]
    fn each_mirror_takes_its_share() {
        let mirror = |name: &str, numerator| {
            let share = Fraction { numerator, denominator: 100 };
            Filter::Mirror(Mirror { backend: build::backend(name).target, share })
        };
        let filters = [mirror("all", 100), rewrite("/x"), mirror("none", 0), mirror("all too", 100)];
        let taken: Vec<&Mirror> = mirrors(&filters, Seed::new(7)).collect();
        let wanted: Vec<_> = ["all", "all too"].map(|name| build::backend(name).target).into();
        assert_eq!(taken.iter().map(|mirror| mirror.backend.clone()).collect::<Vec<_>>(), wanted);
    }
}
