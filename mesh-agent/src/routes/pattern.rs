//! Regular expressions of routes: the syntax of the crate `regex` (close to RE2: no look-around, no back references), so
//! that the time of a match grows with the text alone, whatever an author writes.

use regex::{Regex, RegexBuilder};

use super::limits::PATTERN_BYTES;

/// Compiles a pattern that has to match the whole text. Called when an object is read, never for a request.
///
/// # Errors
/// What is wrong with the pattern, or that it is too large once compiled (`PATTERN_BYTES`).
pub fn anchored(pattern: &str) -> Result<Regex, regex::Error> {
    // Alone first: `a)|(?:b` must not become right by being put in parentheses.
    compile(pattern)?;
    compile(&format!(r"\A(?:{pattern})\z"))
}

fn compile(pattern: &str) -> Result<Regex, regex::Error> {
    RegexBuilder::new(pattern).size_limit(PATTERN_BYTES).dfa_size_limit(PATTERN_BYTES).build()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pattern_matches_all_of_a_text_or_nothing() {
        for (pattern, text, matches) in [
            ("/a", "/a", true),
            ("/a", "/ab", false),
            ("/a", "x/a", false),
            ("/a|/b", "/b", true),
            ("/a|/b", "/bc", false),
            ("^/a$", "/a", true),
            ("/a.*", "/a/b/c", true),
            ("", "", true),
            ("", "/", false),
            ("(?i)/a", "/A", true),
            ("/a", "/A", false),
            ("/a", "/a\n", false),
            ("(?x) /a # comment\n", "/a", true),
            (r"/users/[\w-]+/\d+/\S*", "/users/jane-d/7/x", true),
            (r"/v[0-9]{1,3}/(carts|orders|payments)/[^/]{1,64}(/items/[0-9a-f-]{36})?", "/v1/carts/7", true),
        ] {
            assert_eq!(anchored(pattern).unwrap().is_match(text), matches, "{pattern} {text:?}");
        }
    }

    #[test]
    fn what_is_no_pattern_or_too_large_is_an_error() {
        for pattern in ["(", "a)|(?:b", r"(a)\1", "(?=a)", "a{1000}{1000}", r"\w{500}", "(?x) a # comment"] {
            assert!(anchored(pattern).is_err(), "{pattern}");
        }
    }
}
