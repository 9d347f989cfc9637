//! Trace contexts in headers: W3C Trace Context, and B3 in one header or in several. Untrusted; what is not right is none.

use http::{HeaderMap, HeaderName, HeaderValue};
use opentelemetry::trace::{SpanId, TraceId};

const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
const TRACESTATE: HeaderName = HeaderName::from_static("tracestate");
const B3: HeaderName = HeaderName::from_static("b3");
const B3_TRACE: HeaderName = HeaderName::from_static("x-b3-traceid");
const B3_SPAN: HeaderName = HeaderName::from_static("x-b3-spanid");
const B3_PARENT: HeaderName = HeaderName::from_static("x-b3-parentspanid");
const B3_SAMPLED: HeaderName = HeaderName::from_static("x-b3-sampled");
const B3_FLAGS: HeaderName = HeaderName::from_static("x-b3-flags");

/// In which headers it came, and so in which it goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    W3c,
    /// `b3: trace-span-decision-parent`
    B3Single,
    /// `x-b3-…`
    B3Several,
}

/// What the caller wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Decision {
    Sampled,
    NotSampled,
    /// It leaves the decision to us.
    Open,
}

/// What came with a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Context {
    form: Form,
    /// Absent where B3 says the decision alone.
    ids: Option<(TraceId, SpanId)>,
    decision: Decision,
}

impl Context {
    /// The W3C headers count before B3's.
    pub(super) fn read(headers: &HeaderMap) -> Option<Self> {
        w3c(headers).or_else(|| b3_single(headers)).or_else(|| b3_several(headers))
    }

    pub(super) fn decision(&self) -> Decision {
        self.decision
    }

    pub(super) fn trace(&self) -> TraceId {
        self.ids.map_or(TraceId::INVALID, |(trace, _)| trace)
    }

    pub(super) fn parent(&self) -> Option<SpanId> {
        self.ids.map(|(_, span)| span)
    }
}

/// Makes a span the parent of what follows, in the form that the caller has.
pub(super) fn write(headers: &mut HeaderMap, context: Option<&Context>, trace: TraceId, span: SpanId) {
    let mut set = |name: HeaderName, value: String| {
        // Hex digits and dashes.
        if let Ok(value) = HeaderValue::from_str(&value) {
            headers.insert(name, value);
        }
    };
    let parent = context.and_then(Context::parent);
    match context.map_or(Form::W3c, |context| context.form) {
        Form::W3c => set(TRACEPARENT, format!("00-{trace}-{span}-01")),
        Form::B3Single => {
            let parent = parent.map(|parent| format!("-{parent}")).unwrap_or_default();
            set(B3, format!("{trace}-{span}-1{parent}"));
        }
        Form::B3Several => {
            set(B3_TRACE, trace.to_string());
            set(B3_SPAN, span.to_string());
            if let Some(parent) = parent {
                set(B3_PARENT, parent.to_string());
            }
            set(B3_SAMPLED, "1".to_string());
        }
    }
    if context.is_none() {
        // Of a trace that is not this one.
        headers.remove(TRACESTATE);
    }
}

/// The one value of a header; several are none, for two readers could take different ones.
fn only<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a str> {
    let mut values = headers.get_all(name).iter();
    let value = values.next()?.to_str().ok()?;
    values.next().is_none().then_some(value)
}

/// `00-<32>-<16>-<2>`; of later versions the same beginning (Trace Context, 2.2.4: versioning).
fn w3c(headers: &HeaderMap) -> Option<Context> {
    let text = only(headers, &TRACEPARENT)?;
    let mut pieces = text.split('-');
    let (version, trace, span, flags) = (pieces.next()?, pieces.next()?, pieces.next()?, pieces.next()?);
    let has_more = pieces.next().is_some();
    if !is_hex(version, 2) || !is_hex(flags, 2) || version == "ff" || (version == "00" && has_more) {
        return None;
    }
    let is_sampled = u8::from_str_radix(flags, 16).ok()? & 1 == 1;
    let decision = if is_sampled { Decision::Sampled } else { Decision::NotSampled };
    Some(Context {
        form: Form::W3c,
        ids: Some((trace_id(trace).filter(|_| trace.len() == 32)?, span_id(span)?)),
        decision,
    })
}

/// `b3: trace-span-decision-parent`, `trace-span`, or the decision alone.
fn b3_single(headers: &HeaderMap) -> Option<Context> {
    let text = only(headers, &B3)?;
    let pieces: Vec<&str> = text.splitn(5, '-').collect();
    let (ids, decision) = match pieces[..] {
        [decision] => (None, b3_decision(Some(decision))?),
        [trace, span] => (Some((trace_id(trace)?, span_id(span)?)), Decision::Open),
        [trace, span, decision] => (Some((trace_id(trace)?, span_id(span)?)), b3_decision(Some(decision))?),
        [trace, span, decision, parent] => {
            span_id(parent)?;
            (Some((trace_id(trace)?, span_id(span)?)), b3_decision(Some(decision))?)
        }
        _ => return None,
    };
    as_b3(Form::B3Single, ids, decision)
}

fn b3_several(headers: &HeaderMap) -> Option<Context> {
    let is_debug = only(headers, &B3_FLAGS) == Some("1");
    let decision = if is_debug { Decision::Sampled } else { b3_decision(only(headers, &B3_SAMPLED))? };
    let ids = match (only(headers, &B3_TRACE), only(headers, &B3_SPAN)) {
        (Some(trace), Some(span)) => Some((trace_id(trace)?, span_id(span)?)),
        (None, None) => None,
        _ => return None,
    };
    as_b3(Form::B3Several, ids, decision)
}

/// A decision without a trace holds where it is a no; a yes without one begins a trace in W3C's form.
fn as_b3(form: Form, ids: Option<(TraceId, SpanId)>, decision: Decision) -> Option<Context> {
    (ids.is_some() || decision == Decision::NotSampled).then_some(Context { form, ids, decision })
}

fn b3_decision(text: Option<&str>) -> Option<Decision> {
    match text {
        None => Some(Decision::Open),
        Some("1" | "d" | "true") => Some(Decision::Sampled),
        Some("0" | "false") => Some(Decision::NotSampled),
        Some(_) => None,
    }
}

/// 16 or 32 lower-case hex digits, not zero.
fn trace_id(text: &str) -> Option<TraceId> {
    let is_right = is_hex(text, 32) || is_hex(text, 16);
    TraceId::from_hex(text).ok().filter(|id| is_right && *id != TraceId::INVALID)
}

fn span_id(text: &str) -> Option<SpanId> {
    SpanId::from_hex(text).ok().filter(|id| is_hex(text, 16) && *id != SpanId::INVALID)
}

fn is_hex(text: &str, digits: usize) -> bool {
    text.len() == digits && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
    const SPAN: &str = "00f067aa0ba902b7";

    fn read(pairs: &[(&str, &str)]) -> Option<Context> {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(HeaderName::try_from(*name).unwrap(), value.parse().unwrap());
        }
        Context::read(&headers)
    }

    #[test]
    fn contexts_that_are_right() {
        use Decision::{NotSampled, Open, Sampled};
        let w3c = |rest: &str| format!("00-{TRACE}-{SPAN}-{rest}");
        for (name, value, decision) in [
            ("traceparent", w3c("01"), Sampled),
            ("traceparent", w3c("00"), NotSampled),
            ("traceparent", w3c("03"), Sampled),
            ("traceparent", format!("01-{TRACE}-{SPAN}-01-more"), Sampled),
            ("b3", format!("{TRACE}-{SPAN}-1"), Sampled),
            ("b3", format!("{TRACE}-{SPAN}-d"), Sampled),
            ("b3", format!("{TRACE}-{SPAN}-0-{SPAN}"), NotSampled),
            ("b3", format!("{TRACE}-{SPAN}"), Open),
        ] {
            let context = read(&[(name, &value)]).unwrap_or_else(|| panic!("{name}: {value}"));
            assert_eq!((context.decision, context.trace().to_string().as_str()), (decision, TRACE), "{value}");
            assert_eq!(context.parent().unwrap().to_string(), SPAN);
        }
        let short = read(&[("b3", &format!("{SPAN}-{SPAN}-1"))]).unwrap();
        assert_eq!(short.trace().to_string(), format!("0000000000000000{SPAN}"));
        assert_eq!(read(&[("b3", "0")]).unwrap().decision, NotSampled);
        let several = [("x-b3-traceid", TRACE), ("x-b3-spanid", SPAN), ("x-b3-flags", "1")];
        assert_eq!(read(&several).unwrap().decision, Sampled);
    }

    #[test]
    fn contexts_that_are_none() {
        let zero = "0".repeat(32);
        let upper = TRACE.to_uppercase();
        for (name, value) in [
            ("traceparent", String::new()),
            ("traceparent", format!("00-{zero}-{SPAN}-01")),
            ("traceparent", format!("00-{TRACE}-{}-01", &zero[..16])),
            ("traceparent", format!("00-{upper}-{SPAN}-01")),
            ("traceparent", format!("00-{TRACE}-{SPAN}-01-more")),
            ("traceparent", format!("ff-{TRACE}-{SPAN}-01")),
            ("traceparent", format!("00-{SPAN}-{SPAN}-01")),
            ("traceparent", format!("00-{TRACE}-{SPAN}-1")),
            ("traceparent", format!("00-{TRACE}-{SPAN}-+1")),
            ("b3", "1".to_string()),
            ("b3", format!("{TRACE}-{SPAN}-x")),
            ("b3", format!("{TRACE}-{SPAN}-1-{SPAN}-1")),
            ("b3", format!("{TRACE}-{SPAN}-1-")),
            ("x-b3-traceid", TRACE.to_string()),
            ("x-b3-sampled", "1".to_string()),
        ] {
            assert_eq!(read(&[(name, &value)]), None, "{name}: {value}");
        }
        let right = format!("00-{TRACE}-{SPAN}-01");
        assert_eq!(read(&[("traceparent", &right), ("traceparent", &right)]), None);
    }

    #[test]
    fn a_context_goes_on_in_the_form_in_which_it_came() {
        let (trace, span) = (TraceId::from_hex(TRACE).unwrap(), SpanId::from_hex("000000000000abcd").unwrap());
        for (pairs, name, expected) in [
            (vec![("b3", format!("{TRACE}-{SPAN}-1"))], "b3", format!("{TRACE}-000000000000abcd-1-{SPAN}")),
            (
                vec![("x-b3-traceid", TRACE.to_string()), ("x-b3-spanid", SPAN.into()), ("x-b3-sampled", "1".into())],
                "x-b3-parentspanid",
                SPAN.to_string(),
            ),
            (vec![], "traceparent", format!("00-{TRACE}-000000000000abcd-01")),
        ] {
            let mut headers: HeaderMap =
                pairs.iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap())).collect();
            let context = Context::read(&headers);
            write(&mut headers, context.as_ref(), trace, span);
            assert_eq!(headers[name], expected);
        }
    }
}
