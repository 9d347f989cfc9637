//! Names of header fields as applications read them. Whoever takes fields as CGI does (RFC 3875 4.1.18) sees `x_user` and
//! `x-user` as one; what is decided about a field must hold for all of its spellings.

use http::header::{HeaderMap, HeaderName};

/// Whether an application may take one for the other.
pub fn are_alike(one: &HeaderName, other: &HeaderName) -> bool {
    let plain = |byte: &u8| if *byte == b'_' { b'-' } else { *byte };
    let (one, other) = (one.as_str().as_bytes(), other.as_str().as_bytes());
    one.len() == other.len() && one.iter().map(plain).eq(other.iter().map(plain))
}

/// Removes a field in all of its spellings.
pub fn remove_alike(headers: &mut HeaderMap, name: &HeaderName) {
    remove(headers, |have| are_alike(have, name));
}

/// Removes the other spellings of a field, and leaves its own.
pub fn remove_other_spellings(headers: &mut HeaderMap, name: &HeaderName) {
    remove(headers, |have| have != name && are_alike(have, name));
}

/// Removes the fields whose names are meant.
pub fn remove(headers: &mut HeaderMap, goes: impl Fn(&HeaderName) -> bool) {
    // Mostly there are none, and nothing is allocated.
    let gone: Vec<HeaderName> = headers.keys().filter(|have| goes(have)).cloned().collect();
    gone.into_iter().for_each(|name| drop(headers.remove(name)));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spellings_of_one_field() {
        for (one, other, alike) in [
            ("x-user", "x-user", true),
            ("x-user", "x_user", true),
            ("x_a-b", "x-a_b", true),
            ("x-user", "x-users", false),
            ("x-user", "xxuser", false),
        ] {
            let [one, other] = [one, other].map(HeaderName::from_static);
            assert_eq!((are_alike(&one, &other), are_alike(&other, &one)), (alike, alike), "{one} {other}");
        }
        let all = ["x-user", "x_user", "x-other"].map(|name| (HeaderName::from_static(name), "v".parse().unwrap()));
        let left = |remove: fn(&mut HeaderMap, &HeaderName)| {
            let mut headers = HeaderMap::from_iter(all.clone());
            remove(&mut headers, &HeaderName::from_static("x-user"));
            let mut left: Vec<String> = headers.keys().map(ToString::to_string).collect();
            left.sort();
            left
        };
        assert_eq!(left(remove_alike), ["x-other"]);
        assert_eq!(left(remove_other_spellings), ["x-other", "x-user"]);
    }
}
