//! The fuzz targets: every parser of bytes from the network or the kernel and of text from the operator, with what must
//! hold for any input at all. A target panics when it does not hold.
//!
//! Each room has its own `fuzzing` module, which sees what the room hides; none of it is in an agent that runs. `cargo
//! xtask fuzz` feeds them with what libFuzzer finds (`mesh-agent/fuzz`), and the test below with the committed corpus.

use std::net::SocketAddr;

use mesh_common::addr::{Endpoint, Ip};
use mesh_common::key::DialKey;
use mesh_common::outcome::Outcome;
use mesh_common::record::{Event, PodAddresses};
use mesh_common::steer;

use crate::spiffe::SpiffeId;
use crate::{admin, config, discovery, extauth, hbone, http, identity, path, routes};

/// A target by its name, which is also that of its binary and its corpus.
pub type Target = (&'static str, fn(&[u8]));

/// All of them.
pub const TARGETS: &[Target] = &[
    ("admin_http", admin::fuzzing::requests),
    ("authorizer_answer", extauth::fuzzing::answer),
    ("client_hello", routes::fuzzing::client_hello),
    ("config_file", config::fuzzing::file),
    ("crd_object", discovery::fuzzing::object),
    ("hbone_client", hbone::fuzzing::client),
    ("hbone_server", hbone::fuzzing::server),
    ("hbone_words", hbone::fuzzing::words),
    ("http_requests", http::fuzzing::requests),
    ("kernel_values", kernel_values),
    ("peer_certificate", identity::fuzzing::chain),
    ("request_path", path::fuzz),
    ("route_filters", routes::fuzzing::heads),
    ("route_table", routes::fuzzing::table),
    ("spiffe_id", spiffe_id),
    ("yaml_edit", discovery::fuzzing::edit),
    ("yaml_world", discovery::fuzzing::world),
];

/// Feeds one input to a target.
pub fn run(name: &str, input: &[u8]) {
    let target = TARGETS.iter().find(|(known, _)| *known == name);
    let (_, target) = target.unwrap_or_else(|| panic!("no fuzz target {name}"));
    target(input);
}

/// What reads as an id prints as it was, and is made of its pieces.
fn spiffe_id(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else { return };
    let Ok(id) = SpiffeId::parse(text) else { return };
    assert_eq!(id.to_string(), text);
    let again = SpiffeId::new(id.trust_domain(), id.namespace(), id.service_account());
    assert_eq!(again.as_ref(), Ok(&id));
    // Nothing in it could be taken for another id, a path or a header by whoever reads it next.
    assert!(text.bytes().all(|byte| byte.is_ascii_graphic() && !matches!(byte, b'%' | b'"' | b',' | b'\\' | b'?')));
}

/// Addresses, keys, records and events, from bytes as the kernel writes them.
fn kernel_values(input: &[u8]) {
    if let Some(event) = Event::from_bytes(input) {
        let _ = Outcome::from_number(event.outcome()).map_or("unknown", Outcome::name);
        let (source, destination) = (SocketAddr::from(event.source()), SocketAddr::from(event.destination()));
        assert_eq!(
            (Endpoint::from(source), Endpoint::from(destination)),
            (canonical(event.source()), canonical(event.destination()))
        );
    }
    let (addresses, _) = input.as_chunks::<16>();
    let ips: Vec<Ip> = addresses.iter().map(|octets| Ip::from_v6(*octets)).collect();
    let port = input.first_chunk().map_or(1, |bytes| u16::from_be_bytes(*bytes));
    for ip in &ips {
        assert_eq!(Ip::from_v6(ip.octets()), *ip);
        let endpoint = Endpoint::new(*ip, port);
        if let Some(key) = DialKey::decode(endpoint) {
            assert!(ip.is_capture(), "an address outside of the range carries a key");
            let again = if ip.is_v4() { key.encode_v4() } else { key.encode_v6(port) };
            assert_eq!(DialKey::decode(again), Some(key));
            assert_eq!(again, endpoint, "two destinations carry one key");
        }
    }
    if let Some((cookie, [generation, ..])) =
        input.split_first_chunk().map(|(cookie, rest)| (u64::from_le_bytes(*cookie), rest))
    {
        let keys = [DialKey::for_v4(cookie, *generation), DialKey::for_v6(cookie, *generation)];
        assert_eq!(DialKey::decode(keys[0].encode_v4()), Some(keys[0]));
        assert_eq!(DialKey::decode(keys[1].encode_v6(port)), Some(keys[1]));
    }
    let [v4, v6, source, destination, ..] = ips.as_slice() else { return };
    let pod = PodAddresses::new(*v4, *v6);
    // From the wire nothing arrives that claims to be the pod itself or the agent, on whatever packet.
    let forged = pod.contain(source) || source.is_capture() || source.is_loopback();
    if forged && pod.contain(destination) {
        for is_syn in [false, true] {
            let outcome = steer::tcp_to_pod(&pod, source, destination, is_syn);
            assert_eq!(outcome.verdict(), mesh_common::outcome::Verdict::Refuse, "{outcome:?}");
        }
    }
}

/// As it comes back from a socket address, which keeps an IPv4 address as one.
fn canonical(endpoint: Endpoint) -> Endpoint {
    Endpoint::from(SocketAddr::from(endpoint))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    /// What was found once is not found again. A panic names the target by its backtrace and the input by the last line.
    #[test]
    fn the_committed_corpus_holds() {
        let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus");
        for (name, target) in TARGETS {
            let mut count = 0;
            for entry in std::fs::read_dir(corpus.join(name)).unwrap_or_else(|error| panic!("{name}: {error}")) {
                let file = entry.unwrap().path();
                println!("{}", file.display());
                target(&std::fs::read(&file).unwrap());
                count += 1;
            }
            assert!(count > 0, "{name} has no corpus");
        }
    }

    /// Cheap randomness: what needs no coverage to be found is found by every `cargo test`.
    #[test]
    fn noise_holds() {
        let mut random = fastrand::Rng::with_seed(4);
        for (_, target) in TARGETS {
            for _ in 0..50 {
                let length = random.usize(0..200);
                let noise: Vec<u8> = (0..length).map(|_| random.u8(..)).collect();
                target(&noise);
            }
        }
    }
}
