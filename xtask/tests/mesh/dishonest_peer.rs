//! A peer with a good certificate that asks for what it must not get.

use std::collections::HashSet;
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use mesh_agent::addr::ClientAddr;
use mesh_agent::drain::Drain;
use mesh_agent::hbone::{ConnectRequest, OpenError, Pool, TunnelKey};
use mesh_agent::identity::Config;
use mesh_agent::identity::Identities;
use mesh_agent::identity::local_ca::LocalCa;
use mesh_agent::spiffe::SpiffeId;
use xtask::testbed::Family;

use crate::pair::{PORT, Pair, in_both_families};

#[test]
fn a_tunnel_leads_to_its_own_pod_only() -> Result<()> {
    in_both_families("CONNECT to elsewhere", |pair, family| {
        if !pair.with_mesh {
            return Ok(());
        }
        let _listener = pair.listen(&["echo"])?;
        let server = pair.bed.pod("server").ips.ip(family);
        let own = SocketAddr::new(server, PORT);
        ensure!(
            connect(pair, family, own)? == 200,
            "the pod's own port must be reachable, or this test proves nothing"
        );
        let other_family = if family == Family::V4 { Family::V6 } else { Family::V4 };
        for elsewhere in [
            pair.bed.pod("client").ips.socket(family, PORT),
            pair.bed.pod("server").ips.socket(other_family, PORT),
            pair.bed.node("n2").ips.socket(family, 15020),
            SocketAddr::new(IpAddr::from([127, 0, 0, 1]), PORT),
            SocketAddr::new(IpAddr::from([0, 0, 0, 0, 0, 0, 0, 1]), PORT),
            SocketAddr::new(server, 15008),
        ] {
            let status = connect(pair, family, elsewhere)?;
            ensure!(status >= 400, "CONNECT {elsewhere} was answered with {status}");
        }
        Ok(())
    })
}

/// Opens a tunnel to the server pod under the client's identity and asks for `authority`; returns the HTTP status.
fn connect(pair: &Pair, family: Family, authority: SocketAddr) -> Result<u16> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    tokio::task::LocalSet::new().block_on(&runtime, async {
        let own = SpiffeId::parse(&pair.bed.pod("client").identity())?;
        let ca = LocalCa::directory(&pair.bed.dir().join("ca"), "cluster.local").context("opening the run's CA")?;
        let config = Config { trust_domain: "cluster.local".into(), lifetime: Duration::from_secs(600) };
        let identities = Identities::new(Arc::new(ca), config);
        let drain = Drain::new();
        tokio::task::spawn_local(identities.clone().run(drain.token()));
        identities.want(&HashSet::from([own.clone()]));
        let svid = identities.ready(&own).await;

        let address = pair.bed.pod("server").ips.ip(family);
        let destination = SpiffeId::parse(&pair.bed.pod("server").identity())?;
        let key = TunnelKey { source_uid: "a dishonest peer".into(), destination, address };
        let forwarded = ClientAddr::new(pair.bed.pod("client").ips.socket(family, 1));
        let request =
            ConnectRequest { authority, forwarded, host: None, baggage: String::new(), traceparent: String::new() };
        // From the node: a process of the pod could not even send the SYN past the guard.
        let netns = &pair.bed.node("n1").netns;
        let dial = async || {
            let dialled =
                netns.within(|| TcpStream::connect_timeout(&(address, 15008).into(), Duration::from_secs(20)));
            let tcp = dialled.map_err(std::io::Error::other)??;
            tcp.set_nonblocking(true)?;
            tokio::net::TcpStream::from_std(tcp)
        };
        match Pool::new(Default::default()).open(&key, &svid, dial, &request).await {
            Ok(_) => Ok(200),
            Err(OpenError::Refused(status)) => Ok(status.as_u16()),
            Err(error) => bail!("the tunnel itself failed: {error}"),
        }
    })
}
