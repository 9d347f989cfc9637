//! sessionAffinity ClientIP without a table: rendezvous hashing.
//!
//! Every client ranks all endpoints by a hash of both addresses and takes the first. Nothing is remembered, so nothing
//! expires (`timeoutSeconds` has no effect), every node and every restarted agent answers alike, and when an endpoint
//! goes only its own clients move. What differs from kube-proxy: an endpoint that comes takes over its share of the
//! clients at their next connection, where kube-proxy would leave those that connected within the timeout; and if the
//! favourite does not take a connection, the next in rank is tried.

use std::net::IpAddr;

use super::balance::mix;
use crate::state::Endpoint;

/// Up to `most` endpoints, the client's favourite first.
pub(super) fn favourites<'a>(endpoints: &[&'a Endpoint], client: IpAddr, most: usize) -> Vec<&'a Endpoint> {
    let client = hash(0, client);
    let rank = |endpoint: &Endpoint| {
        let weight = mix(hash(client, endpoint.ip) ^ u64::from(endpoint.port));
        (std::cmp::Reverse(weight), endpoint.ip, endpoint.port)
    };
    let mut ranked: Vec<_> = endpoints.iter().map(|endpoint| (rank(endpoint), *endpoint)).collect();
    if most < ranked.len() {
        ranked.select_nth_unstable_by_key(most, |(rank, _)| *rank);
        ranked.truncate(most);
    }
    ranked.sort_unstable_by_key(|(rank, _)| *rank);
    ranked.into_iter().map(|(_, endpoint)| endpoint).collect()
}

/// Written out rather than taken from the standard library, whose hashes may differ between two agents' versions.
fn hash(seed: u64, ip: IpAddr) -> u64 {
    let bits = match ip {
        IpAddr::V4(ip) => ip.to_ipv6_mapped().to_bits(),
        IpAddr::V6(ip) => ip.to_bits(),
    };
    let (high, low) = ((bits >> 64) as u64, bits as u64);
    mix(mix(seed ^ high) ^ low)
}
