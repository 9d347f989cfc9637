//! The words of a CONNECT: authority and headers, written and read. Reading is strict and never fails a request but
//! for the authority: a header that does not read is as good as absent.

use std::fmt;
use std::net::SocketAddr;

use super::limits;
use crate::addr::ClientAddr;
use crate::identity;

pub(super) const FORWARDED: &str = "forwarded";
pub(super) const BAGGAGE: &str = "baggage";
pub(super) const TRACEPARENT: &str = "traceparent";

/// What a CONNECT says.
#[derive(Clone, Debug)]
pub struct ConnectRequest {
    /// The endpoint: pod IP and target port.
    pub authority: SocketAddr,
    /// Who connected to us.
    pub forwarded: ClientAddr,
    /// The service that the application dialled, if it dialled one.
    pub host: Option<String>,
    /// Who the source is, in [`Baggage`]'s form; left out when empty.
    pub baggage: String,
    /// The trace, in [`TraceParent`]'s form; left out when empty.
    pub traceparent: String,
}

/// Reads `ip:port`, IPv6 in brackets. No names, no zones, no port 0.
pub fn parse_authority(text: &str) -> Option<SocketAddr> {
    // The standard library takes `[fe80::1%3]:80`, which means nothing on another machine.
    if text.contains('%') {
        return None;
    }
    let address: SocketAddr = text.parse().ok()?;
    (address.port() != 0).then(|| SocketAddr::new(address.ip().to_canonical(), address.port()))
}

/// The `forwarded` header: the address of the client, and the service that it dialled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Forwarded {
    /// The client.
    pub client: SocketAddr,
    /// The service, if there is one.
    pub host: Option<String>,
}

impl fmt::Display for Forwarded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "for=\"{}\"", self.client)?;
        match self.host.as_deref().filter(|host| is_host(host)) {
            Some(host) => write!(f, ";host={host}"),
            None => Ok(()),
        }
    }
}

impl Forwarded {
    /// Reads one element with `for` and perhaps `host`; parameters that we do not know are skipped.
    pub fn parse(text: &str) -> Option<Self> {
        let (mut client, mut host) = (None, None);
        for parameter in text.split(';') {
            let (name, value) = parameter.split_once('=')?;
            let value = unquote(value)?;
            if name.eq_ignore_ascii_case("for") && client.is_none() {
                client = Some(parse_authority(value)?);
            } else if name.eq_ignore_ascii_case("host") && host.is_none() {
                host = Some(value).filter(|host| is_host(host)).map(str::to_string);
            }
        }
        Some(Self { client: client?, host })
    }
}

fn unquote(value: &str) -> Option<&str> {
    match value.strip_prefix('"') {
        Some(rest) => rest.strip_suffix('"').filter(|inner| !inner.contains(['"', '\\'])),
        None => Some(value).filter(|value| !value.contains(['"', ',', ' '])),
    }
}

fn is_host(text: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_');
    !text.is_empty() && text.len() <= 253 && text.bytes().all(allowed)
}

/// A W3C trace context of version 00.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TraceParent {
    /// The trace, not zero.
    pub trace: [u8; 16],
    /// The span that called, not zero.
    pub parent: [u8; 8],
    /// Bit 0: sampled.
    pub flags: u8,
}

impl TraceParent {
    /// A new trace, not sampled. Zero only if the machine has no randomness, which readers take for absent.
    pub fn random() -> Self {
        let (mut trace, mut parent) = ([0; 16], [0; 8]);
        identity::fill_random(&mut trace);
        identity::fill_random(&mut parent);
        Self { trace, parent, flags: 0 }
    }

    /// Reads `00-<32 hex>-<16 hex>-<2 hex>`, lower case.
    pub fn parse(text: &str) -> Option<Self> {
        let mut pieces = text.split('-');
        let (version, trace, parent, flags) = (pieces.next()?, pieces.next()?, pieces.next()?, pieces.next()?);
        if version != "00" || pieces.next().is_some() {
            return None;
        }
        let [flags] = hex::<1>(flags)?;
        let read = Self { trace: hex(trace)?, parent: hex(parent)?, flags };
        (read.trace != [0; 16] && read.parent != [0; 8]).then_some(read)
    }

    /// The trace as text, for logs.
    pub fn trace_id(&self) -> String {
        let mut text = String::with_capacity(32);
        let _ = write_hex(&mut text, &self.trace);
        text
    }
}

impl fmt::Display for TraceParent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("00-")?;
        write_hex(f, &self.trace)?;
        f.write_str("-")?;
        write_hex(f, &self.parent)?;
        write!(f, "-{:02x}", self.flags)
    }
}

fn write_hex(out: &mut impl fmt::Write, bytes: &[u8]) -> fmt::Result {
    bytes.iter().try_for_each(|byte| write!(out, "{byte:02x}"))
}

fn hex<const N: usize>(text: &str) -> Option<[u8; N]> {
    let digit = |byte: u8| match byte {
        b'0'..=b'9' => Some(byte - b'0'),
        b'a'..=b'f' => Some(byte - b'a' + 10),
        _ => None,
    };
    let (pairs, []) = text.as_bytes().as_chunks::<2>() else { return None };
    if pairs.len() != N {
        return None;
    }
    let mut bytes = [0; N];
    for (byte, [high, low]) in bytes.iter_mut().zip(pairs) {
        *byte = digit(*high)? << 4 | digit(*low)?;
    }
    Some(bytes)
}

/// Who a workload is, as ztunnel writes it into `baggage`. Empty fields are left out. Not trusted for anything.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Baggage {
    /// `k8s.cluster.name`
    pub cluster: String,
    /// `k8s.namespace.name`
    pub namespace: String,
    /// The kind in `k8s.<kind>.name`: deployment, cronjob, job or pod.
    pub workload_kind: String,
    /// `k8s.<kind>.name`
    pub workload: String,
    /// `service.name`
    pub service: String,
    /// `service.version`
    pub version: String,
    /// `cloud.region`
    pub region: String,
    /// `cloud.availability_zone`
    pub zone: String,
}

/// The kinds that `k8s.<kind>.name` may have.
const WORKLOAD_KINDS: [&str; 4] = ["deployment", "cronjob", "job", "pod"];

impl fmt::Display for Baggage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { cluster, namespace, workload_kind, workload, service, version, region, zone } = self;
        let kind = WORKLOAD_KINDS.iter().find(|kind| *kind == workload_kind).unwrap_or(&"pod");
        let workload_key = format!("k8s.{kind}.name");
        let entries = [
            ("k8s.cluster.name", cluster),
            ("k8s.namespace.name", namespace),
            (workload_key.as_str(), workload),
            ("service.name", service),
            ("service.version", version),
            ("cloud.region", region),
            ("cloud.availability_zone", zone),
        ];
        let mut comma = "";
        for (key, value) in entries.into_iter().filter(|(_, value)| is_baggage_value(value)) {
            write!(f, "{comma}{key}={value}")?;
            comma = ",";
        }
        Ok(())
    }
}

impl Baggage {
    /// Reads what it knows and skips the rest.
    pub fn parse(text: &str) -> Self {
        let mut read = Self::default();
        if text.len() as u64 > limits::MAX_BAGGAGE_BYTES {
            return read;
        }
        for (key, value) in text.split(',').filter_map(|entry| entry.trim().split_once('=')) {
            if !is_baggage_value(value) {
                continue;
            }
            let field = match key {
                "k8s.cluster.name" => &mut read.cluster,
                "k8s.namespace.name" => &mut read.namespace,
                "service.name" => &mut read.service,
                "service.version" => &mut read.version,
                "cloud.region" => &mut read.region,
                "cloud.availability_zone" => &mut read.zone,
                _ => {
                    let kind = key.strip_prefix("k8s.").and_then(|rest| rest.strip_suffix(".name"));
                    let Some(kind) = kind.filter(|kind| WORKLOAD_KINDS.contains(kind)) else { continue };
                    read.workload_kind = kind.to_string();
                    &mut read.workload
                }
            };
            *field = value.to_string();
        }
        read
    }
}

/// Not empty, and nothing that would end the value or the header.
fn is_baggage_value(value: &str) -> bool {
    !value.is_empty() && value.bytes().all(|byte| byte.is_ascii_graphic() && !matches!(byte, b',' | b'=' | b';' | b'"'))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn authorities() {
        for (text, read) in [
            ("10.0.0.1:80", Some("10.0.0.1:80")),
            ("[fd00::1]:80", Some("[fd00::1]:80")),
            // Our own words for the IPv4 address, so that it is compared as such.
            ("[::ffff:10.0.0.1]:80", Some("10.0.0.1:80")),
            ("10.0.0.1:0", None),
            ("10.0.0.1", None),
            ("10.0.0.1:", None),
            ("10.0.0.1:65536", None),
            ("10.0.0.1:+80", None),
            ("010.0.0.1:80", None),
            ("10.1:80", None),
            ("fd00::1:80", None),
            ("[fe80::1%1]:80", None),
            ("[10.0.0.1]:80", None),
            ("web.default.svc:80", None),
            ("user@10.0.0.1:80", None),
            ("10.0.0.1:80 ", None),
            ("", None),
        ] {
            assert_eq!(parse_authority(text), read.map(|read| read.parse().unwrap()), "{text:?}");
        }
    }

    #[test]
    fn forwarded() {
        let read = |text: &str| Forwarded::parse(text).map(|read| (read.client.to_string(), read.host));
        let client = |client: &str, host: Option<&str>| Some((client.to_string(), host.map(str::to_string)));
        for (text, expected) in [
            (r#"for="10.0.0.1:5000""#, client("10.0.0.1:5000", None)),
            (r#"for="10.0.0.1:5000";host=web.default.svc"#, client("10.0.0.1:5000", Some("web.default.svc"))),
            (r#"For="[fd00::1]:5000";proto=tcp;Host="web""#, client("[fd00::1]:5000", Some("web"))),
            ("for=10.0.0.1:5000", client("10.0.0.1:5000", None)),
            (r#"for="10.0.0.1:5000";host=we b"#, None),
            (r#"for="10.0.0.1:5000";host=w/b"#, client("10.0.0.1:5000", None)),
            (r#"for="10.0.0.1""#, None),
            (r#"for="10.0.0.1:5000"#, None),
            (r#"for="10.0.0.1:5000", for="10.0.0.2:1""#, None),
            ("for=unknown", None),
            ("host=web", None),
            ("", None),
        ] {
            assert_eq!(read(text), expected, "{text:?}");
        }
    }

    #[test]
    fn traces() {
        let good = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        let read = TraceParent::parse(good).unwrap();
        assert_eq!((read.to_string().as_str(), read.trace_id().as_str()), (good, "4bf92f3577b34da6a3ce929d0e0e4736"));
        for text in [
            "",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-x",
            "01-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01",
            "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
            "00-4bf92f3577b34da6a3ce929d0e0e473-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e473g-00f067aa0ba902b7-01",
        ] {
            assert_eq!(TraceParent::parse(text), None, "{text:?}");
        }
        assert_ne!(TraceParent::random(), TraceParent::random());
    }

    #[test]
    fn baggage_as_ztunnel_writes_it() {
        let text = "k8s.cluster.name=c1,k8s.namespace.name=ns,k8s.deployment.name=web,service.name=web,service.version=v1,\
                    cloud.region=r,cloud.availability_zone=z";
        let read = Baggage::parse(text);
        assert_eq!(
            (read.workload_kind.as_str(), read.workload.as_str(), read.zone.as_str()),
            ("deployment", "web", "z")
        );
        assert_eq!(read.to_string(), text);
        assert_eq!(Baggage::default().to_string(), "");
        let evil = Baggage { namespace: "a,k8s.cluster.name=x".to_string(), service: "b\r\nx".to_string(), ..read };
        assert!(!evil.to_string().contains("x"), "{evil}");
    }

    proptest! {
        #[test]
        fn nothing_panics(text in "\\PC{0,80}") {
            let _ = parse_authority(&text);
            let _ = Forwarded::parse(&text);
            let _ = TraceParent::parse(&text);
            let _ = Baggage::parse(&text);
        }
    }
}
