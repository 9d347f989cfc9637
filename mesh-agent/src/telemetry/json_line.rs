//! Lines of the access log as JSON, written in one pass: they are written for every connection and request, and the
//! general formatter's many small writes cost as much as a third of carrying a request does.

use std::fmt::{self, Write};

use tracing::field::{Field, Visit};
use tracing::{Event, Level};
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::{FormatTime, SystemTime};

use super::logs::begins_control;

/// Most lines are shorter; in bytes.
pub(super) const USUAL_BYTES: usize = 1024;

/// The event as one line, in the order of the general formatter: time, level, message and fields, target.
pub fn format(event: &Event<'_>) -> Result<String, fmt::Error> {
    let mut line = String::with_capacity(USUAL_BYTES);
    line.push_str("{\"timestamp\":\"");
    SystemTime.format_time(&mut Writer::new(&mut line))?;
    line.push_str("\",\"level\":\"");
    line.push_str(level(*event.metadata().level()));
    line.push('"');
    event.record(&mut Fields { line: &mut line });
    line.push_str(",\"target\":");
    push_text(&mut line, event.metadata().target());
    line.push_str("}\n");
    Ok(line)
}

fn level(level: Level) -> &'static str {
    match level {
        Level::ERROR => "ERROR",
        Level::WARN => "WARN",
        Level::INFO => "INFO",
        Level::DEBUG => "DEBUG",
        Level::TRACE => "TRACE",
    }
}

struct Fields<'a> {
    line: &'a mut String,
}

impl Fields<'_> {
    fn name(&mut self, field: &Field) {
        self.line.push_str(",\"");
        // A word of our own source.
        self.line.push_str(field.name());
        self.line.push_str("\":");
    }

    fn plain(&mut self, field: &Field, value: impl fmt::Display) {
        self.name(field);
        // A String takes everything.
        let _ = write!(self.line, "{value}");
    }
}

impl Visit for Fields<'_> {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.name(field);
        push_text(self.line, value);
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.plain(field, value);
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.plain(field, value);
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.plain(field, value);
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        if value.is_finite() {
            self.plain(field, value);
        } else {
            self.plain(field, "null");
        }
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.record_str(field, &format!("{value:?}"));
    }
}

/// A JSON string (RFC 8259 section 7). All control characters are escaped, also those that JSON would let pass: the line
/// is one line for every reader.
fn push_text(line: &mut String, text: &str) {
    line.push('"');
    let is_plain = |byte: u8| !begins_control(byte) && !matches!(byte, b'"' | b'\\');
    if text.bytes().all(is_plain) {
        line.push_str(text);
    } else {
        for character in text.chars() {
            match character {
                '"' | '\\' => line.extend(['\\', character]),
                control if control.is_control() => {
                    // A String takes everything.
                    let _ = write!(line, "\\u{:04x}", u32::from(control));
                }
                other => line.push(other),
            }
        }
    }
    line.push('"');
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn any_text_comes_back_from_one_line(text in any::<String>()) {
            let mut line = String::new();
            push_text(&mut line, &text);
            prop_assert!(!line.chars().any(char::is_control), "{line:?}");
            prop_assert_eq!(serde_json::from_str::<String>(&line).unwrap(), text);
        }
    }
}
