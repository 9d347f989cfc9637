//! Log records of OTLP (opentelemetry/proto/logs/v1/logs.proto), written as they go over the wire, one after the other into
//! one buffer. As values of their own, with a text for each of 25 names and as many for what they say, they took more
//! processor time than all else that is told of a request.

use std::fmt::{self, Display, Write as _};
use std::time::SystemTime;

use bytes::{BufMut as _, Bytes, BytesMut};
use opentelemetry_proto::tonic::common::v1::InstrumentationScope;
use opentelemetry_proto::tonic::logs::v1::SeverityNumber;
use opentelemetry_proto::tonic::resource::v1::Resource;
use prost::encoding::{WireType, encode_varint, encoded_len_varint, key_len};

use super::{cut, nanos};

/// `ExportLogsServiceRequest`, of records that are written already: on the wire a message within another is its bytes.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Request {
    #[prost(message, repeated, tag = "1")]
    pub resources: Vec<OfResource>,
}

/// `ResourceLogs`
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct OfResource {
    #[prost(message, optional, tag = "1")]
    pub resource: Option<Resource>,
    #[prost(message, repeated, tag = "2")]
    pub scopes: Vec<OfScope>,
}

/// `ScopeLogs`
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct OfScope {
    #[prost(message, optional, tag = "1")]
    pub scope: Option<InstrumentationScope>,
    #[prost(bytes = "bytes", repeated, tag = "2")]
    pub records: Vec<Bytes>,
}

/// Of keys and lengths around a name and a value, in bytes: room is made once for all of an attribute.
const MOST_AROUND: usize = 32;

/// What events' names begin with.
const EVENTS: &str = "nodemesh.";

/// What is handed out piece by piece, in bytes: some twenty records. It is given back when the last of them has gone out.
pub const LINES_CHUNK: usize = 16 << 10;

/// Writes records.
#[derive(Default)]
pub(super) struct Writer {
    /// The record that was begun.
    out: Vec<u8>,
    /// Where it goes when it is done.
    chunk: BytesMut,
    /// Of what is told as it is shown.
    shown: String,
}

impl Writer {
    /// Begins a record.
    pub fn begin(&mut self, at: SystemTime, name: &str) {
        self.out.clear();
        let severity = SeverityNumber::Info;
        self.fixed(1, nanos(at));
        self.key(2, WireType::Varint);
        self.varint(i32::from(severity).unsigned_abs().into());
        self.bytes(3, "INFO".as_bytes());
        // The body: a value that is a text.
        self.key(5, WireType::LengthDelimited);
        self.varint(size_of_bytes(name.len()) as u64);
        self.bytes(1, name.as_bytes());
        self.fixed(11, nanos(at));
        self.key(12, WireType::LengthDelimited);
        self.varint((EVENTS.len() + name.len()) as u64);
        self.out.extend_from_slice(EVENTS.as_bytes());
        self.out.extend_from_slice(name.as_bytes());
    }

    /// The trace, and the span in it; either may be empty.
    pub fn trace(&mut self, trace: &[u8], span: &[u8]) {
        for (number, id) in [(9, trace), (10, span)] {
            if !id.is_empty() {
                self.bytes(number, id);
            }
        }
    }

    /// An attribute; none without a value.
    pub fn text(&mut self, name: &str, value: Option<&str>) {
        let Some(value) = value.map(cut) else { return };
        self.attribute(name, size_of_bytes(value.len()));
        self.bytes(1, value.as_bytes());
    }

    /// An attribute, as it is shown.
    pub fn shown(&mut self, name: &str, value: Option<impl Display>) {
        let Some(value) = value else { return };
        let mut shown = std::mem::take(&mut self.shown);
        shown.clear();
        let written: fmt::Result = write!(shown, "{value}");
        if written.is_ok() {
            self.text(name, Some(&shown));
        }
        self.shown = shown;
    }

    /// An attribute.
    pub fn number(&mut self, name: &str, value: Option<u64>) {
        // What is beyond an i64 is not told in any other way by OTLP.
        let Some(value) = value.map(|value| value.min(i64::MAX.unsigned_abs())) else { return };
        self.attribute(name, key_len(3) + encoded_len_varint(value));
        self.key(3, WireType::Varint);
        self.varint(value);
    }

    /// An attribute.
    pub fn float(&mut self, name: &str, value: f64) {
        self.attribute(name, key_len(4) + size_of::<f64>());
        self.key(4, WireType::SixtyFourBit);
        self.out.extend_from_slice(&value.to_le_bytes());
    }

    /// The record that was begun.
    pub fn end(&mut self) -> Bytes {
        if self.chunk.capacity() < self.out.len() {
            self.chunk = BytesMut::with_capacity(self.out.len().max(LINES_CHUNK));
        }
        self.chunk.put_slice(&self.out);
        self.out.clear();
        self.chunk.split().freeze()
    }

    /// `KeyValue { key, value }` up to the value, which takes so many bytes.
    fn attribute(&mut self, name: &str, value: usize) {
        self.out.reserve(name.len() + value + MOST_AROUND);
        self.key(6, WireType::LengthDelimited);
        self.varint((size_of_bytes(name.len()) + size_of_bytes(value)) as u64);
        self.bytes(1, name.as_bytes());
        self.key(2, WireType::LengthDelimited);
        self.varint(value as u64);
    }

    fn fixed(&mut self, number: u32, value: u64) {
        self.key(number, WireType::SixtyFourBit);
        self.out.extend_from_slice(&value.to_le_bytes());
    }

    fn bytes(&mut self, number: u32, bytes: &[u8]) {
        self.key(number, WireType::LengthDelimited);
        self.varint(bytes.len() as u64);
        self.out.extend_from_slice(bytes);
    }

    fn key(&mut self, number: u32, wire: WireType) {
        self.varint((number << 3 | wire as u32).into());
    }

    /// Most numbers are small.
    #[inline]
    fn varint(&mut self, value: u64) {
        match u8::try_from(value) {
            Ok(byte) if byte < 0x80 => self.out.push(byte),
            _ => encode_varint(value, &mut self.out),
        }
    }
}

/// Of a field of bytes, whose number is 1 or 2.
fn size_of_bytes(length: usize) -> usize {
    key_len(1) + encoded_len_varint(length as u64) + length
}

#[cfg(test)]
mod tests {
    use opentelemetry_proto::tonic::common::v1::AnyValue;
    use opentelemetry_proto::tonic::common::v1::any_value::Value;
    use opentelemetry_proto::tonic::logs::v1::LogRecord;
    use proptest::prelude::*;
    use prost::Message as _;

    use super::super::{MAX_TEXT_BYTES, attribute, text};
    use super::*;

    proptest! {
        /// As the library writes the same record, whatever is in it.
        #[test]
        fn others_read_what_was_told(
            texts in proptest::collection::vec(("[a-z_]{1,200}", ".{0,300}"), 0..4),
            number in any::<u64>(),
            float in any::<f64>().prop_filter("it equals itself", |float| float.is_finite()),
            ids in (proptest::collection::vec(any::<u8>(), 0..17), proptest::collection::vec(any::<u8>(), 0..9)),
            at in any::<u32>(),
        ) {
            let at = SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(at.into());
            let mut writer = Writer::default();
            let mut expected = LogRecord {
                time_unix_nano: nanos(at),
                observed_time_unix_nano: nanos(at),
                severity_number: SeverityNumber::Info.into(),
                severity_text: "INFO".to_string(),
                body: Some(AnyValue { value: Some(Value::StringValue("request".to_string())) }),
                event_name: "nodemesh.request".to_string(),
                trace_id: ids.0.clone(),
                span_id: ids.1.clone(),
                ..LogRecord::default()
            };
            writer.begin(at, "request");
            for (name, value) in &texts {
                writer.text(name, Some(value));
                writer.shown(name, Some(value));
                writer.text(name, None);
                expected.attributes.extend([text(name, value), text(name, value)]);
            }
            writer.number("n", Some(number));
            writer.number("none", None);
            writer.float("f", float);
            writer.trace(&ids.0, &ids.1);
            let most = i64::try_from(number).unwrap_or(i64::MAX);
            expected.attributes.push(attribute("n", Value::IntValue(most)));
            expected.attributes.push(attribute("f", Value::DoubleValue(float)));
            let record = writer.end();
            prop_assert_eq!(LogRecord::decode(record), Ok(expected));
            prop_assert!(writer.end().is_empty());
        }
    }

    /// Records lie side by side, and one that is longer than a chunk has its own.
    #[test]
    fn records_stay_what_they_were() {
        let mut writer = Writer::default();
        let texts =
            [1, LINES_CHUNK / 3, LINES_CHUNK / 3, LINES_CHUNK / 2, 2 * LINES_CHUNK, 1].map(|length| "x".repeat(length));
        let mut write = |value: &String| {
            writer.begin(SystemTime::UNIX_EPOCH, "request");
            for part in value.as_bytes().chunks(MAX_TEXT_BYTES) {
                writer.text("x", str::from_utf8(part).ok());
            }
            writer.end()
        };
        let records: Vec<Bytes> = texts.iter().map(&mut write).collect();
        for (record, value) in records.into_iter().zip(&texts) {
            let parts = LogRecord::decode(record).unwrap().attributes;
            let expected: Vec<_> =
                value.as_bytes().chunks(MAX_TEXT_BYTES).map(|part| text("x", str::from_utf8(part).unwrap())).collect();
            assert_eq!(parts, expected);
        }
    }

    #[test]
    fn what_is_long_is_cut() {
        let mut writer = Writer::default();
        writer.text("path", Some(&"é".repeat(MAX_TEXT_BYTES)));
        let record = LogRecord::decode(writer.end()).unwrap();
        assert_eq!(record.attributes, [text("path", &"é".repeat(MAX_TEXT_BYTES / 2))]);
    }
}
