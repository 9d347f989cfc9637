//! What is asked, in the words of the protocol, and what answers mean.

use http::{Method, Request};
use prost::Message;

use super::grpc::{
    CheckRequest, CheckResponse, DeniedResponse, Flag, Header, HeaderOption, HttpStatus, OkResponse, Status,
};
use super::*;
use crate::policy::HttpCheck;

fn head(method: &str, target: &str, headers: &[(&str, &str)]) -> request::Parts {
    let mut builder = Request::builder().method(method).uri(target).header("host", "web.shop");
    for (name, value) in headers {
        builder = builder.header(*name, *value);
    }
    builder.body(()).unwrap().into_parts().0
}

fn with_question<T>(head: &request::Parts, body: Option<Shown>, ask: impl FnOnce(&Question<'_>) -> T) -> T {
    let source = SpiffeId::new("cluster.local", "shop", "client").unwrap();
    let destination = SpiffeId::new("cluster.local", "shop", "server").unwrap();
    ask(&Question {
        head,
        is_http2: false,
        source: Some(&source),
        client: "10.0.0.1:4000".parse().unwrap(),
        destination: &destination,
        server: "10.0.1.1:8080".parse().unwrap(),
        body,
        time: SystemTime::UNIX_EPOCH + std::time::Duration::from_millis(1500),
    })
}

/// What Envoy says in its places, and the identity of the tunnel's certificate in the principal's.
#[test]
fn a_check_by_grpc_says_what_envoy_says() {
    let head = head(
        "POST",
        "/a/b?q=1",
        &[
            ("x-one", "1"),
            ("x-one", "2"),
            ("cookie", "a=1"),
            ("cookie", "b=2"),
            ("content-length", "5"),
            ("x-request-id", "id"),
            ("x-envoy-auth-partial-body", "forged"),
            ("traceparent", "00-1-2-01"),
        ],
    );
    let body = Some(Shown { bytes: "hello".into(), is_whole: true });
    let (asked, message) = with_question(&head, body, |question| {
        grpc::question(question, "opa.auth.svc:9191", std::time::Duration::from_millis(500))
    });
    assert_eq!((asked.method, asked.uri.path()), (Method::POST, "/envoy.service.auth.v3.Authorization/Check"));
    for (name, value) in [
        ("host", "opa.auth.svc:9191"),
        ("content-type", "application/grpc"),
        ("grpc-timeout", "500m"),
        ("traceparent", "00-1-2-01"),
    ] {
        assert_eq!(asked.headers.get(name).unwrap(), value);
    }
    let mut prefix = vec![0];
    prefix.extend_from_slice(&u32::try_from(message.len() - 5).unwrap().to_be_bytes());
    assert_eq!(message[..5], prefix);
    let attributes = CheckRequest::decode(&message[5..]).unwrap().attributes.unwrap();
    let (source, destination) = (attributes.source.unwrap(), attributes.destination.unwrap());
    assert_eq!(source.principal, "spiffe://cluster.local/ns/shop/sa/client");
    assert_eq!(destination.principal, "spiffe://cluster.local/ns/shop/sa/server");
    let address = source.address.unwrap().socket.unwrap();
    assert_eq!((address.address.as_str(), address.port), ("10.0.0.1", 4000));
    let request = attributes.request.unwrap();
    let time = request.time.unwrap();
    assert_eq!((time.seconds, time.nanos), (1, 500_000_000));
    let http = request.http.unwrap();
    assert_eq!((http.method.as_str(), http.path.as_str(), http.host.as_str()), ("POST", "/a/b?q=1", "web.shop"));
    assert_eq!(
        (http.id.as_str(), http.size, http.protocol.as_str(), http.body.as_str()),
        ("id", 5, "HTTP/1.1", "hello")
    );
    for (name, value) in [
        ("x-one", Some("1, 2")),
        ("cookie", Some("a=1; b=2")),
        (":path", Some("/a/b?q=1")),
        (":method", Some("POST")),
        (":authority", Some("web.shop")),
        ("x-envoy-auth-partial-body", Some("false")),
        ("host", None),
    ] {
        assert_eq!(http.headers.get(name).map(String::as_str), value, "{name}");
    }
    let body = Some(Shown { bytes: Bytes::from_static(&[0xff, 0]), is_whole: false });
    let (_, message) = with_question(&head, body, |question| grpc::question(question, "o", std::time::Duration::ZERO));
    let http = CheckRequest::decode(&message[5..]).unwrap().attributes.unwrap().request.unwrap().http.unwrap();
    assert_eq!((http.body.as_str(), &http.raw_body[..]), ("", &[0xff, 0][..]));
    assert_eq!(http.headers["x-envoy-auth-partial-body"], "true");
}

fn option(name: &str, value: &str, append: Option<bool>, append_action: i32) -> HeaderOption {
    HeaderOption {
        header: Some(Header { key: name.into(), value: value.into(), raw_value: Vec::new() }),
        append: append.map(|value| Flag { value }),
        append_action,
    }
}

fn answered(response: &CheckResponse) -> Result<Verdict, Failed> {
    let message = response.encode_to_vec();
    let mut body = vec![0];
    body.extend_from_slice(&(message.len() as u32).to_be_bytes());
    body.extend_from_slice(&message);
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", HeaderValue::from_static("0"));
    grpc::verdict(StatusCode::OK, &HeaderMap::new(), Some(&body), &trailers)
}

#[test]
fn answers_by_grpc() {
    let status = |code| Some(Status { code });
    let ok = || Some(OkResponse::default());
    let denied = |code| Some(DeniedResponse { status: Some(HttpStatus { code }), headers: vec![], body: "no".into() });
    let allow = Ok(None);
    let deny = |status: u16, body: &'static str| Ok(Some((status, body)));
    for (what, response, expected) in [
        ("ok", CheckResponse { status: status(0), denied: None, ok: ok() }, allow),
        ("ok without more", CheckResponse { status: status(0), denied: None, ok: None }, allow),
        ("ok without a status", CheckResponse { status: None, denied: None, ok: ok() }, allow),
        ("nothing", CheckResponse { status: None, denied: None, ok: None }, Err(Failed::Broken)),
        ("both", CheckResponse { status: status(0), denied: denied(401), ok: None }, Err(Failed::Broken)),
        ("both without a status", CheckResponse { status: None, denied: denied(401), ok: ok() }, Err(Failed::Broken)),
        ("no", CheckResponse { status: status(7), denied: None, ok: None }, deny(403, "")),
        ("no, although ok", CheckResponse { status: status(7), denied: None, ok: ok() }, deny(403, "")),
        ("no, in words", CheckResponse { status: status(16), denied: denied(401), ok: None }, deny(401, "no")),
        ("no, without a status", CheckResponse { status: None, denied: denied(302), ok: None }, deny(302, "no")),
        ("no, with none", CheckResponse { status: status(7), denied: denied(0), ok: None }, deny(403, "no")),
        ("no, with 101", CheckResponse { status: status(7), denied: denied(101), ok: None }, deny(403, "no")),
        ("no, with 1000", CheckResponse { status: status(7), denied: denied(1000), ok: None }, deny(403, "no")),
    ] {
        let seen = answered(&response).map(|verdict| match verdict {
            Verdict::Allow(_) => None,
            Verdict::Deny(Denied { status, body, .. }) => Some((status.as_u16(), body)),
        });
        let expected = expected.map(|told| told.map(|(status, body)| (status, Bytes::from(body))));
        assert_eq!(seen, expected, "{what}");
    }
}

/// Another answer than a good one with one message is none.
#[test]
fn what_is_no_answer_is_none() {
    let good = b"\0\0\0\0\x02\x0a\0";
    let trailers = |status: Option<&'static str>| {
        let mut trailers = HeaderMap::new();
        status.map(|status| trailers.insert("grpc-status", HeaderValue::from_static(status)));
        trailers
    };
    let none = HeaderMap::new();
    let allowed = Ok(Verdict::Allow(Allowed::default()));
    assert_eq!(grpc::verdict(StatusCode::OK, &none, Some(good), &trailers(Some("0"))), allowed);
    assert_eq!(grpc::verdict(StatusCode::OK, &trailers(Some("0")), Some(good), &none), allowed);
    for (status, body, code) in [
        (StatusCode::OK, Some(&good[..]), None),
        (StatusCode::OK, Some(good), Some("14")),
        (StatusCode::OK, Some(good), Some("00")),
        (StatusCode::SERVICE_UNAVAILABLE, Some(good), Some("0")),
        (StatusCode::OK, None, Some("0")),
        (StatusCode::OK, Some(b""), Some("0")),
        (StatusCode::OK, Some(b"\x01\0\0\0\x02\x0a\0"), Some("0")),
        (StatusCode::OK, Some(b"\0\0\0\0\x03\x0a\0"), Some("0")),
        (StatusCode::OK, Some(b"\0\0\0\0\x02\x0a\0\0"), Some("0")),
        (StatusCode::OK, Some(b"\0\0\0\0\x02\x0a\x05"), Some("0")),
        (StatusCode::OK, Some(b"\0\xff\xff\xff\xff\x0a\0"), Some("0")),
    ] {
        let seen = grpc::verdict(status, &none, body, &trailers(code));
        assert_eq!(seen, Err(Failed::Broken), "{status} {body:?} {code:?}");
    }
}

/// What an authorizer changes of the request that goes on, and what it may not.
#[test]
fn changes_of_headers() {
    let ok = OkResponse {
        headers: vec![
            option("X-User", "alice", None, 0),
            option("x-group", "ops", Some(true), 0),
            option("x-team", "a", Some(false), 0),
            option("x-absent", "1", None, 1),
            option("x-there", "2", None, 1),
            option("x-gone", "3", None, 3),
            option("transfer-encoding", "chunked", None, 0),
            option("content-length", "3", None, 0),
            option("host", "other", None, 0),
            option(":path", "/other", None, 0),
            option("x bad", "1", None, 0),
            option("x-bad", "a\nb", None, 0),
        ],
        headers_to_remove: ["authorization", "x-user", "host", ":method"].map(String::from).to_vec(),
        response_headers_to_add: vec![option("set-cookie", "a=1", None, 0), option("connection", "close", None, 0)],
    };
    let verdict = answered(&CheckResponse { status: Some(Status { code: 0 }), denied: None, ok: Some(ok) });
    let Ok(Verdict::Allow(allowed)) = verdict else { panic!("{verdict:?}") };
    let before = [
        ("authorization", "Bearer x"),
        ("x-user", "forged"),
        ("x_user", "another"),
        ("x-group", "dev"),
        ("x-team", "b"),
        ("x-team", "c"),
        ("x-there", "0"),
    ];
    let mut head = head("GET", "/", &before);
    allowed.change_request(&mut head.headers);
    let mut seen: Vec<(&str, &str)> =
        head.headers.iter().map(|(name, value)| (name.as_str(), value.to_str().unwrap())).collect();
    seen.sort_unstable();
    let mut expected = vec![
        ("host", "web.shop"),
        ("x-absent", "1"),
        ("x-group", "dev"),
        ("x-group", "ops"),
        ("x-team", "a"),
        ("x-there", "0"),
        ("x-user", "alice"),
    ];
    expected.sort_unstable();
    assert_eq!(seen, expected);
    let cookie = Change::Append(HeaderName::from_static("set-cookie"), HeaderValue::from_static("a=1"));
    assert_eq!(allowed.response, [cookie]);
    let many =
        OkResponse { headers: vec![option("a", "b", None, 0); limits::MAX_CHANGES + 1], ..OkResponse::default() };
    let response = CheckResponse { status: Some(Status { code: 0 }), denied: None, ok: Some(many) };
    assert_eq!(answered(&response), Err(Failed::Broken));
}

fn check() -> HttpCheck {
    HttpCheck {
        path_prefix: "/check".into(),
        shown: vec![HeaderName::from_static("x-team"), HeaderName::from_static("x-nodemesh-source-principal")],
        added: vec![(HeaderName::from_static("x-by"), HeaderValue::from_static("mesh"))],
        to_application: vec![HeaderName::from_static("x-user")],
        to_caller: None,
    }
}

#[test]
fn a_check_by_http_says_the_requests_own_head() {
    let head = head(
        "PUT",
        "/a?q=1",
        &[
            ("authorization", "Bearer x"),
            ("x-team", "a"),
            ("x-team", "b"),
            ("x-other", "c"),
            ("x-nodemesh-source-principal", "forged"),
            ("content-type", "text/plain"),
            ("transfer-encoding", "chunked"),
        ],
    );
    let (asked, body) = with_question(&head, None, |question| web::question(&check(), question)).unwrap();
    assert_eq!((asked.method.as_str(), asked.uri.to_string().as_str(), body.len()), ("PUT", "/check/a?q=1", 0));
    let mut seen: Vec<(&str, &str)> =
        asked.headers.iter().map(|(name, value)| (name.as_str(), value.to_str().unwrap())).collect();
    seen.sort_unstable();
    assert_eq!(
        seen,
        [
            ("authorization", "Bearer x"),
            ("content-length", "0"),
            ("host", "web.shop"),
            ("x-by", "mesh"),
            ("x-nodemesh-source-principal", "spiffe://cluster.local/ns/shop/sa/client"),
            ("x-team", "a, b"),
        ]
    );
    let body = Some(Shown { bytes: "hel".into(), is_whole: false });
    let (asked, body) = with_question(&head, body, |question| web::question(&check(), question)).unwrap();
    assert_eq!(&body[..], b"hel");
    for (name, value) in
        [("content-length", "3"), ("content-type", "text/plain"), ("x-envoy-auth-partial-body", "true")]
    {
        assert_eq!(asked.headers.get(name).unwrap(), value);
    }
}

#[test]
fn answers_by_http() {
    let told = || {
        let mut headers = HeaderMap::new();
        for (name, value) in
            [("x-user", "alice"), ("location", "/login"), ("content-length", "2"), ("connection", "close")]
        {
            headers.insert(name, HeaderValue::from_static(value));
        }
        headers
    };
    let answered = |check: &HttpCheck, status: u16, body: Option<&'static str>| {
        web::verdict(check, StatusCode::from_u16(status).unwrap(), told(), body.map(Bytes::from))
    };
    let Ok(Verdict::Allow(allowed)) = answered(&check(), 200, Some("")) else { panic!("200 allows") };
    for has_answer in [true, false] {
        let mut head = head("GET", "/", &[("x-user", "forged"), ("location", "kept")]);
        let allowed = match has_answer {
            true => allowed.clone(),
            false => match web::verdict(&check(), StatusCode::OK, HeaderMap::new(), None) {
                Ok(Verdict::Allow(allowed)) => allowed,
                other => panic!("{other:?}"),
            },
        };
        allowed.change_request(&mut head.headers);
        let user = head.headers.get_all("x-user").iter().map(|user| user.to_str().unwrap()).collect::<Vec<_>>();
        assert_eq!(user, if has_answer { vec!["alice"] } else { vec![] });
        assert_eq!(head.headers.get("location").unwrap(), "kept");
    }
    for (status, is_denied) in
        [(201, true), (204, true), (302, true), (401, true), (403, true), (500, false), (503, false)]
    {
        match answered(&check(), status, Some("no")) {
            Ok(Verdict::Deny(denied)) if is_denied => {
                assert_eq!((denied.status.as_u16(), &denied.body[..]), (status, &b"no"[..]));
                let mut names: Vec<&str> = denied.headers.keys().map(HeaderName::as_str).collect();
                names.sort_unstable();
                assert_eq!(names, ["location", "x-user"], "all but what frames the message");
            }
            Err(Failed::Broken) if !is_denied => {}
            other => panic!("{status}: {other:?}"),
        }
    }
    let some = HttpCheck { to_caller: Some(vec![HeaderName::from_static("location")]), ..check() };
    let Ok(Verdict::Deny(denied)) = answered(&some, 302, None) else { panic!("302 refuses") };
    assert_eq!(denied.headers.keys().map(HeaderName::as_str).collect::<Vec<_>>(), ["location"]);
    assert!(denied.body.is_empty(), "a body that is too long is left out");
}
