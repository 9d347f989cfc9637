//! Which addresses keys may be fetched from. Who may write a RequestAuthentication makes the agent call an address from
//! the node's own network namespace; so addresses that lead to the node itself or to what only the node should ask
//! (metadata of clouds) are refused unless an operator allows them.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::str::FromStr;

use ipnet::IpNet;

use super::fetch::Trouble;
use super::limits::MAX_ADDRESSES;
use crate::state::MeshState;
use crate::tokens::KeysUri;

/// What an operator allows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reach {
    /// Roots beside the machine's, as PEM.
    pub ca: Option<PathBuf>,
    /// What is refused otherwise.
    pub allowed: Allowed,
}

/// What is refused unless it is in here: `http`, and ranges of inward addresses.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Allowed {
    /// Keys that come unencrypted: whoever is on the way can put his own in their place.
    pub http: bool,
    /// Of addresses that are refused otherwise, these are not.
    pub networks: Vec<IpNet>,
}

impl FromStr for Allowed {
    type Err = ();

    /// Words joined by commas: `http`, or a range such as `127.0.0.0/8`.
    fn from_str(text: &str) -> Result<Self, ()> {
        let mut allowed = Self::default();
        for word in text.split(',').map(str::trim) {
            match word {
                "http" => allowed.http = true,
                range => allowed.networks.push(range.parse().map_err(drop)?),
            }
        }
        Ok(allowed)
    }
}

impl fmt::Display for Allowed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let http = self.http.then(|| "http".to_string());
        let words: Vec<String> = http.into_iter().chain(self.networks.iter().map(ToString::to_string)).collect();
        f.write_str(&words.join(","))
    }
}

impl Allowed {
    fn check(&self, address: SocketAddr) -> Result<SocketAddr, Trouble> {
        let ip = address.ip().to_canonical();
        let is_allowed = !is_inward(ip) || self.networks.iter().any(|network| network.contains(&ip));
        if is_allowed { Ok(SocketAddr::new(ip, address.port())) } else { Err(Trouble::Forbidden(ip)) }
    }
}

/// Loopback, link-local and what clouds tell their machines about themselves.
fn is_inward(ip: IpAddr) -> bool {
    const ALIBABA: Ipv4Addr = Ipv4Addr::new(100, 100, 100, 200);
    const AWS: Ipv6Addr = Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254);
    match ip {
        IpAddr::V4(ip) => {
            ip.is_loopback()
                || ip.is_link_local()
                || ip.octets()[0] == 0
                || ip.is_broadcast()
                || ip.is_multicast()
                || ip == ALIBABA
        }
        IpAddr::V6(ip) => {
            let [high, low] = [ip.segments()[6], ip.segments()[7]];
            // RFC 6052: an IPv4 address behind a translator.
            let within = (ip.segments()[..6] == [0x64, 0xff9b, 0, 0, 0, 0])
                .then(|| Ipv4Addr::from((u32::from(high) << 16) | u32::from(low)));
            ip.is_loopback()
                || ip.is_unspecified()
                || ip.is_unicast_link_local()
                || ip.is_multicast()
                || ip == AWS
                || within.is_some_and(|within| is_inward(within.into()))
        }
    }
}

/// The addresses to try. A Service of the cluster is found in the snapshot, for a node need not know cluster DNS; its
/// endpoints are dialled.
pub async fn addresses(uri: &KeysUri, allowed: &Allowed, state: &MeshState) -> Result<Vec<SocketAddr>, Trouble> {
    if !uri.is_encrypted() && !allowed.http {
        return Err(Trouble::Unencrypted);
    }
    let found: Vec<SocketAddr> = match (uri.host().parse::<IpAddr>(), service(uri.host())) {
        (Ok(ip), _) => vec![SocketAddr::new(ip, uri.port())],
        (Err(_), Some((namespace, name))) => endpoints(state, namespace, name, uri.port()),
        (Err(_), None) => {
            let found = tokio::net::lookup_host((uri.host(), uri.port())).await;
            found.map_err(|error| Trouble::Unresolved(error.to_string()))?.collect()
        }
    };
    if found.is_empty() {
        return Err(Trouble::Unresolved("no address".to_string()));
    }
    // One that is refused refuses them all: a name that leads inward at times is no name to trust.
    found.into_iter().take(MAX_ADDRESSES).map(|address| allowed.check(address)).collect()
}

/// `(namespace, name)` of `<name>.<namespace>.svc` or `<name>.<namespace>.svc.cluster.local`.
fn service(host: &str) -> Option<(&str, &str)> {
    let host = host.strip_suffix(".cluster.local").unwrap_or(host).strip_suffix(".svc")?;
    let (name, namespace) = host.split_once('.')?;
    (!namespace.contains('.')).then_some((namespace, name))
}

fn endpoints(state: &MeshState, namespace: &str, name: &str, port: u16) -> Vec<SocketAddr> {
    let Some(service) = state.service(&namespace.into(), &name.into()) else { return Vec::new() };
    let Some(port) = service.port(port) else { return Vec::new() };
    let mut found: Vec<SocketAddr> =
        port.endpoints.iter().map(|endpoint| SocketAddr::new(endpoint.ip, endpoint.port)).collect();
    fastrand::shuffle(&mut found);
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn inward_addresses_are_refused_unless_they_are_allowed() {
        for (address, is_refused) in [
            ("127.0.0.1", true),
            ("127.9.9.9", true),
            ("::1", true),
            ("::ffff:127.0.0.1", true),
            ("::ffff:169.254.169.254", true),
            ("64:ff9b::a9fe:a9fe", true),
            ("64:ff9b::808:808", false),
            ("0.0.0.0", true),
            ("::", true),
            ("169.254.169.254", true),
            ("fd00:ec2::254", true),
            ("100.100.100.200", true),
            ("fe80::1", true),
            ("224.0.0.1", true),
            ("ff02::1", true),
            ("255.255.255.255", true),
            ("10.0.0.1", false),
            ("fd00::1", false),
            ("8.8.8.8", false),
            ("2001:4860:4860::8888", false),
        ] {
            let address = SocketAddr::new(address.parse().unwrap(), 443);
            assert_eq!(Allowed::default().check(address).is_err(), is_refused, "{address}");
            let all = Allowed { http: false, networks: vec!["0.0.0.0/0".parse().unwrap(), "::/0".parse().unwrap()] };
            assert!(all.check(address).is_ok(), "{address}");
        }
        let loopback = "http, 127.0.0.0/8".parse::<Allowed>().unwrap();
        assert!(loopback.http && loopback.check("127.0.0.1:1".parse().unwrap()).is_ok());
        assert!(loopback.check("[::1]:1".parse().unwrap()).is_err());
        assert_eq!(loopback.to_string(), "http,127.0.0.0/8");
        for text in ["", "https", "127.0.0.1/99", "http,,"] {
            assert_eq!(text.parse::<Allowed>(), Err(()), "{text}");
        }
    }

    #[test]
    fn services_are_told_by_their_names() {
        for (host, expected) in [
            ("keys.auth.svc", Some(("auth", "keys"))),
            ("keys.auth.svc.cluster.local", Some(("auth", "keys"))),
            ("keys.auth", None),
            ("svc", None),
            ("a.keys.auth.svc", None),
            ("issuer.example", None),
        ] {
            assert_eq!(service(host), expected, "{host}");
        }
    }
}
