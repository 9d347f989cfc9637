//! One line per closed connection, under the target `access` at level info: `--log-level info,access=off` silences it.
//!
//! The fields are an interface, stable by name; a field with nothing to say is left out. Every text is recorded as a
//! string, never through `Display`: the text format then quotes and escapes it and the JSON format encodes it, so no
//! name from a certificate or a header can end the line and begin one of its own.
//!
//! ```text
//! 2026-01-31T12:00:00.000000Z  INFO access: connection direction="inbound" transport="tunnel" result="denied"
//!   reason="no-allow-rule" rule="shop/only-web" source_pod="shop/outsider-0" … bytes_sent=0 duration_ms=1.2
//! ```
//! (one line in truth)

use tracing::info;

use super::ConnectionRecord;

/// The target of access log lines.
pub const TARGET: &str = "access";

/// Writes the line of a connection that has ended. Costs one look at the filter when the target is off.
pub fn write(record: &ConnectionRecord) {
    if !tracing::enabled!(target: TARGET, tracing::Level::INFO) {
        return;
    }
    let ConnectionRecord {
        direction,
        transport,
        source_pod,
        source_identity,
        client,
        dialled,
        service,
        destination_pod,
        destination_identity,
        server,
        trace_id,
        rule,
        audited,
        result,
        bytes_sent,
        bytes_received,
        duration,
    } = record;
    let audited = (!audited.is_empty()).then(|| audited.join(","));
    let source_identity = source_identity.as_ref().map(ToString::to_string);
    let destination_identity = destination_identity.as_ref().map(ToString::to_string);
    let dialled = dialled.map(|address| address.to_string());
    let server = server.map(|address| address.to_string());
    info!(
        target: TARGET,
        direction = direction.name(),
        transport = transport.name(),
        result = result.name(),
        reason = result.reason(),
        rule = rule.as_deref(),
        audited = audited.as_deref(),
        source_pod = source_pod.as_deref(),
        source_identity = source_identity.as_deref(),
        client = client.to_string().as_str(),
        dialled = dialled.as_deref(),
        service = service.as_deref(),
        destination_pod = destination_pod.as_deref(),
        destination_identity = destination_identity.as_deref(),
        server = server.as_deref(),
        trace_id = trace_id.as_deref(),
        bytes_sent,
        bytes_received,
        duration_ms = (duration.as_secs_f64() * 1e6).round() / 1e3,
        "connection"
    );
}
