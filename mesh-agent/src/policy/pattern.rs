//! What a rule compares a request's words with.

use std::fmt;
use std::sync::Arc;

use serde::{Serialize, Serializer};

/// Words that an attribute may have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Pattern {
    /// `*`: any, as long as there is one.
    Any,
    /// The whole word.
    Exact(Arc<str>),
    /// `word*`
    Prefix(Arc<str>),
    /// `*word`
    Suffix(Arc<str>),
}

/// Paths that a request may have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PathPattern {
    /// As any other word: `*`, `/a`, `/a/*`, `*/b`.
    Plain(Pattern),
    /// Segments, some of which are `{*}`, and perhaps `{**}`.
    Template(Arc<[Segment]>),
}

/// One segment of a template.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Segment {
    /// This one.
    Literal(Arc<str>),
    /// `{*}`: any one, not empty.
    One,
    /// `{**}`: any number, none too. At most once, and behind it literals alone.
    Rest,
}

/// Why a text is no pattern.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PatternError {
    /// Nothing is not what anybody means.
    #[error("empty: it would match nothing")]
    Empty,
    /// A wildcard is elsewhere than at one end.
    #[error("`*` may stand alone, at the end or at the beginning, once")]
    Wildcard,
    /// Templates and wildcards in one.
    #[error("`{{*}}` and `{{**}}` are whole segments, and do not go with a bare `*`")]
    Template,
    /// More than one `{**}`, or something open behind it.
    #[error("`{{**}}` may come once, with nothing but plain segments behind it")]
    Rest,
    /// A path that no request has once it is normalised.
    #[error("no request has this path once it is normalised; see docs/authorization.md")]
    NotNormal,
}

impl Pattern {
    /// Reads `*`, `word`, `word*` or `*word`.
    pub fn parse(text: &str) -> Result<Self, PatternError> {
        let plain = |text: &str| match text {
            "" => Err(PatternError::Empty),
            text if text.contains('*') => Err(PatternError::Wildcard),
            text => Ok(Arc::from(text)),
        };
        match (text.strip_prefix('*'), text.strip_suffix('*')) {
            (Some(""), _) => Ok(Pattern::Any),
            (Some(suffix), None) => plain(suffix).map(Pattern::Suffix),
            (None, Some(prefix)) => plain(prefix).map(Pattern::Prefix),
            (None, None) => plain(text).map(Pattern::Exact),
            (Some(_), Some(_)) => Err(PatternError::Wildcard),
        }
    }

    /// Whether a word is meant. No word has nothing in it.
    pub fn matches(&self, word: &str) -> bool {
        match self {
            Pattern::Any => !word.is_empty(),
            Pattern::Exact(exact) => **exact == *word,
            Pattern::Prefix(prefix) => word.starts_with(&**prefix),
            Pattern::Suffix(suffix) => word.ends_with(&**suffix),
        }
    }

    /// Whether a word is meant, in whatever case it is written.
    pub fn matches_any_case(&self, word: &str) -> bool {
        let ends = |part: Option<&str>, literal: &str| part.is_some_and(|part| part.eq_ignore_ascii_case(literal));
        match self {
            Pattern::Any => !word.is_empty(),
            Pattern::Exact(exact) => exact.eq_ignore_ascii_case(word),
            Pattern::Prefix(prefix) => ends(word.get(..prefix.len()), prefix),
            Pattern::Suffix(suffix) => {
                ends(word.len().checked_sub(suffix.len()).and_then(|from| word.get(from..)), suffix)
            }
        }
    }
}

impl PathPattern {
    /// Reads a pattern of paths. What is literal in it is brought into the form that requests' paths have.
    pub fn parse(text: &str) -> Result<Self, PatternError> {
        if text.contains("{*}") || text.contains("{**}") {
            return template(text);
        }
        let normal = |part: &Arc<str>| normal(part).map(Arc::from);
        Ok(PathPattern::Plain(match Pattern::parse(text)? {
            Pattern::Any => Pattern::Any,
            Pattern::Exact(path) => Pattern::Exact(normal(&path)?),
            Pattern::Prefix(path) => Pattern::Prefix(normal(&path)?),
            // The end of a path, which may begin within a segment.
            Pattern::Suffix(end) if end.starts_with('/') => Pattern::Suffix(normal(&end)?),
            Pattern::Suffix(end) => {
                let whole = normal(&Arc::from(format!("/{end}")))?;
                Pattern::Suffix(whole.strip_prefix('/').unwrap_or_default().into())
            }
        }))
    }

    /// The one path.
    pub fn exact(path: &str) -> Result<Self, PatternError> {
        Ok(PathPattern::Plain(Pattern::Exact(normal(path)?.into())))
    }

    /// Whether a normalised path is meant.
    pub fn matches(&self, path: &str) -> bool {
        match self {
            PathPattern::Plain(pattern) => pattern.matches(path),
            PathPattern::Template(segments) => follows(path, segments),
        }
    }

    /// What every path that it means begins with.
    pub fn beginning(&self) -> String {
        match self {
            PathPattern::Plain(Pattern::Exact(text) | Pattern::Prefix(text)) => text.to_string(),
            PathPattern::Plain(Pattern::Any | Pattern::Suffix(_)) => String::new(),
            PathPattern::Template(segments) => {
                let literals = segments.iter().map_while(|segment| match segment {
                    Segment::Literal(literal) => Some(format!("/{literal}")),
                    Segment::One | Segment::Rest => None,
                });
                literals.collect()
            }
        }
    }
}

fn normal(path: &str) -> Result<String, PatternError> {
    match crate::path::normalise(path) {
        // A prefix that ends within an escape, or a spelling that another request would have: both match nothing.
        Ok(normal) if path.is_ascii() && !normal.is_as_it_came() => Err(PatternError::NotNormal),
        Ok(normal) => Ok(normal.as_str().to_string()),
        Err(_) => Err(PatternError::NotNormal),
    }
}

fn template(text: &str) -> Result<PathPattern, PatternError> {
    let segments = text.strip_prefix('/').ok_or(PatternError::NotNormal)?;
    let segments = segments.split('/').map(|segment| match segment {
        "{*}" => Ok(Segment::One),
        "{**}" => Ok(Segment::Rest),
        segment if segment.contains(['*', '{', '}']) => Err(PatternError::Template),
        "" => Ok(Segment::Literal("".into())),
        segment => {
            let whole = normal(&format!("/{segment}"))?;
            Ok(Segment::Literal(whole.strip_prefix('/').unwrap_or_default().into()))
        }
    });
    let segments: Vec<Segment> = segments.collect::<Result<_, _>>()?;
    // A slash at the end may stay.
    let within = segments.split_last().map(|(_, within)| within).unwrap_or_default();
    if within.contains(&Segment::Literal("".into())) {
        return Err(PatternError::NotNormal);
    }
    let mut behind = segments.iter().skip_while(|segment| **segment != Segment::Rest).skip(1);
    if behind.any(|segment| !matches!(segment, Segment::Literal(_))) {
        return Err(PatternError::Rest);
    }
    Ok(PathPattern::Template(segments.into()))
}

/// Whether a path has these segments. Looks at each segment of the path once, since `{**}` comes once.
fn follows(path: &str, template: &[Segment]) -> bool {
    let Some(path) = path.strip_prefix('/') else { return false };
    let one = |segment: &Segment, text: &str| match segment {
        Segment::Literal(literal) => **literal == *text,
        Segment::One => !text.is_empty(),
        Segment::Rest => false,
    };
    let Some(at) = template.iter().position(|segment| *segment == Segment::Rest) else {
        let mut texts = path.split('/');
        return template.iter().all(|segment| texts.next().is_some_and(|text| one(segment, text)))
            && texts.next().is_none();
    };
    let (front, behind) = (template.get(..at).unwrap_or_default(), template.get(at + 1..).unwrap_or_default());
    let texts: Vec<&str> = path.split('/').collect();
    // `/a/{**}` means `/a` too, and `/{**}` everything.
    let Some(middle) = texts.len().checked_sub(front.len() + behind.len()) else { return false };
    let starts = front.iter().zip(&texts).all(|(segment, text)| one(segment, text));
    starts && behind.iter().zip(texts.iter().skip(front.len() + middle)).all(|(segment, text)| one(segment, text))
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Pattern::Any => f.write_str("*"),
            Pattern::Exact(word) => f.write_str(word),
            Pattern::Prefix(word) => write!(f, "{word}*"),
            Pattern::Suffix(word) => write!(f, "*{word}"),
        }
    }
}

impl fmt::Display for PathPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            PathPattern::Plain(pattern) => pattern.fmt(f),
            PathPattern::Template(segments) => segments.iter().try_for_each(|segment| match segment {
                Segment::Literal(literal) => write!(f, "/{literal}"),
                Segment::One => f.write_str("/{*}"),
                Segment::Rest => f.write_str("/{**}"),
            }),
        }
    }
}

impl Serialize for Pattern {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl Serialize for PathPattern {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words() {
        // (pattern, meant, not meant)
        for (pattern, meant, not) in [
            ("*", vec!["a", "*"], vec![""]),
            ("a", vec!["a"], vec!["", "A", "aa", "ab"]),
            ("a*", vec!["a", "ab", "a*"], vec!["", "ba", "Ab"]),
            ("*a", vec!["a", "ba"], vec!["", "ab"]),
        ] {
            let pattern = Pattern::parse(pattern).unwrap();
            meant.into_iter().for_each(|word| assert!(pattern.matches(word), "{pattern} {word:?}"));
            not.into_iter().for_each(|word| assert!(!pattern.matches(word), "{pattern} {word:?}"));
        }
        for (pattern, why) in [
            ("", PatternError::Empty),
            ("a*b", PatternError::Wildcard),
            ("*a*", PatternError::Wildcard),
            ("a**", PatternError::Wildcard),
        ] {
            assert_eq!(Pattern::parse(pattern), Err(why), "{pattern}");
        }
        for (pattern, word, meant) in [
            ("get", "GET", true),
            ("GE*", "get", true),
            ("*ET", "get", true),
            ("*GET", "et", false),
            ("ü*", "u", false),
        ] {
            assert_eq!(Pattern::parse(pattern).unwrap().matches_any_case(word), meant, "{pattern} {word}");
        }
    }

    #[test]
    fn paths() {
        for (pattern, meant, not) in [
            ("/a", vec!["/a"], vec!["/a/", "/ab", "/A", "/"]),
            ("/a/*", vec!["/a/", "/a/b/c"], vec!["/a", "/ab"]),
            ("/a*", vec!["/a", "/ab", "/a/b"], vec!["/b"]),
            ("*/b", vec!["/b", "/a/b"], vec!["/ab", "/a/b/"]),
            ("*.js", vec!["/a.js", "/.js"], vec!["/a.jsx"]),
            ("/ü", vec!["/%C3%BC"], vec!["/u"]),
            ("/u/{*}", vec!["/u/1"], vec!["/u", "/u/", "/u/1/", "/u/1/2", "/v/1"]),
            ("/u/{*}/x", vec!["/u/1/x"], vec!["/u/1", "/u//x", "/u/x", "/u/1/2/x", "/u/1/x/"]),
            ("/{*}/{*}", vec!["/a/b"], vec!["/a", "/a/b/c"]),
            ("/f/{**}", vec!["/f", "/f/", "/f/a", "/f/a/b/"], vec!["/", "/fa", "/g/a"]),
            ("/f/{**}/x", vec!["/f/x", "/f/a/x", "/f/a/b/x"], vec!["/f", "/x", "/f/x/a", "/f/ax"]),
            ("/{*}/{**}", vec!["/a", "/a/b", "/a/"], vec!["/"]),
            ("/{**}", vec!["/", "/a", "/a/b"], vec!["*"]),
            ("/u/{*}/", vec!["/u/1/"], vec!["/u/1"]),
        ] {
            let parsed = PathPattern::parse(pattern).unwrap_or_else(|why| panic!("{pattern}: {why}"));
            meant.into_iter().for_each(|path| assert!(parsed.matches(path), "{pattern} {path}"));
            not.into_iter().for_each(|path| assert!(!parsed.matches(path), "{pattern} {path}"));
        }
    }

    /// What no request could ever meet is a mistake, and a DENY that holds for nobody is a hole.
    #[test]
    fn paths_that_mean_nothing_are_refused() {
        use PatternError::*;
        for (pattern, why) in [
            ("", Empty),
            ("a", NotNormal),
            ("a/*", NotNormal),
            ("//a", NotNormal),
            ("/a/../b", NotNormal),
            ("/%61", NotNormal),
            ("/a%2", NotNormal),
            ("/a%c3%bc", NotNormal),
            ("/a?b", NotNormal),
            ("/a b", NotNormal),
            ("/a\\b", NotNormal),
            ("/a*b", Wildcard),
            ("/{*}/*", Template),
            ("/a{*}", Template),
            ("/{**}/{*}", Rest),
            ("/{**}/{**}", Rest),
            ("/a//{*}", NotNormal),
            ("{*}", NotNormal),
        ] {
            assert_eq!(PathPattern::parse(pattern), Err(why), "{pattern}");
        }
    }

    #[test]
    fn beginnings() {
        for (pattern, beginning) in
            [("/a", "/a"), ("/a/*", "/a/"), ("*/a", ""), ("*", ""), ("/a/b/{*}/c", "/a/b"), ("/{**}", "")]
        {
            assert_eq!(PathPattern::parse(pattern).unwrap().beginning(), beginning);
        }
    }
}
