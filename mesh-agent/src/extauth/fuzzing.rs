//! Fuzz targets: whatever an authorizer may answer.

use http::{HeaderMap, HeaderValue, StatusCode};

use super::limits::{MAX_ANSWER_BYTES, MAX_CHANGES};
use super::{Change, Denied, Failed, Verdict, grpc};
use crate::routes::filters::is_changeable;

/// Any bytes as the body of a good answer by gRPC: nothing but a message that says so allows, and what is changed or told
/// says nothing of where a message ends.
pub fn answer(input: &[u8]) {
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", HeaderValue::from_static("0"));
    let of =
        |body: Option<&[u8]>, trailers: &HeaderMap| grpc::verdict(StatusCode::OK, &HeaderMap::new(), body, trailers);
    match of(Some(input), &trailers) {
        Ok(Verdict::Allow(allowed)) => {
            assert!(input.len() > 5, "nothing allows nothing");
            assert!(allowed.request.len() <= MAX_CHANGES && allowed.response.len() <= MAX_CHANGES);
            allowed.request.iter().chain(&allowed.response).for_each(check);
        }
        Ok(Verdict::Deny(Denied { status, headers, body })) => {
            assert!((200..600).contains(&status.as_u16()) && body.len() <= MAX_ANSWER_BYTES);
            assert!(headers.keys().all(is_changeable), "{headers:?}");
        }
        Err(failed) => assert_eq!(failed, Failed::Broken),
    }
    assert_eq!(of(Some(input), &HeaderMap::new()), Err(Failed::Broken), "without a status there is no answer");
    assert_eq!(of(None, &trailers), Err(Failed::Broken));
}

fn check(change: &Change) {
    let (Change::Set(name, _)
    | Change::Append(name, _)
    | Change::SetIfAbsent(name, _)
    | Change::SetIfPresent(name, _)
    | Change::Remove(name)) = change;
    assert!(is_changeable(name), "{name}");
}
