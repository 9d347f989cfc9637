//! What a request says, as a match looks at it.

use std::borrow::Cow;

use http::HeaderName;
use http::header::{COOKIE, HOST};

use super::table::Head;

/// A header's value: of a header that comes several times all, joined as RFC 9110, section 5.3 has it, cookies as RFC
/// 9113, section 8.2.3.
pub(super) fn header<'a>(head: &Head<'a>, name: &HeaderName) -> Option<Cow<'a, [u8]>> {
    if *name == HOST {
        return Some(Cow::Borrowed(head.host.as_bytes()));
    }
    let mut values = head.headers.get_all(name).into_iter();
    let first = values.next()?.as_bytes();
    let separator: &[u8] = if *name == COOKIE { b"; " } else { b"," };
    Some(values.fold(Cow::Borrowed(first), |mut joined, value| {
        joined.to_mut().extend_from_slice(separator);
        joined.to_mut().extend_from_slice(value.as_bytes());
        joined
    }))
}

/// The query's parameters in their order, decoded as HTML forms encode them.
pub(super) fn parameters<'a>(head: &Head<'a>) -> impl Iterator<Item = (Cow<'a, str>, Cow<'a, str>)> {
    form_urlencoded::parse(head.query.unwrap_or_default().as_bytes())
}
