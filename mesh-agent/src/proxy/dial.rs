//! Opening TCP connections from inside a pod's network namespace.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use socket2::{SockAddr, Socket};
use tokio::net::TcpStream;

use super::limits::CONNECT_TIMEOUT;
use crate::addr::{ClientAddr, ServerAddr};
use crate::podnet::{ClientRecord, Family, PodNet};
use crate::policy::Permit;

/// Dials `address` from the pod, with the pod's own IP as the source.
pub async fn from_pod(net: &Arc<dyn PodNet>, address: SocketAddr) -> io::Result<TcpStream> {
    let socket = socket(net, Family::of(address.ip())).await?;
    connect(socket, address).await
}

/// A connection to the pod's own application, which sees `client` as its peer while the record lives.
pub struct AppConnection {
    /// The connection.
    pub tcp: TcpStream,
    /// Tells the application who the real client is; drop it after `tcp`.
    pub record: ClientRecord,
}

/// Dials the pod's application at `server` on behalf of `client`. The permit is the proof that policy was asked.
pub async fn application(
    net: &Arc<dyn PodNet>,
    _permit: &Permit,
    client: ClientAddr,
    server: ServerAddr,
) -> io::Result<AppConnection> {
    let family = Family::of(server.ip());
    let socket = socket(net, family).await?;
    let record = ClientRecord::file(net, client, family)?;
    // The port is chosen at connect(): the address is this connection's own, so any port is free.
    socket.bind(&SockAddr::from(SocketAddr::new(record.source(), 0)))?;
    let tcp = connect(socket, server.socket()).await?;
    Ok(AppConnection { tcp, record })
}

async fn socket(net: &Arc<dyn PodNet>, family: Family) -> io::Result<Socket> {
    match net.stocked_socket(family) {
        Some(socket) => Ok(socket),
        None => net.make_socket(family).await,
    }
}

async fn connect(socket: Socket, address: SocketAddr) -> io::Result<TcpStream> {
    let socket = tokio::net::TcpSocket::from_std_stream(std::net::TcpStream::from(socket));
    match tokio::time::timeout(CONNECT_TIMEOUT, socket.connect(address)).await {
        Ok(connected) => connected,
        Err(_) => Err(io::Error::new(io::ErrorKind::TimedOut, format!("no answer within {CONNECT_TIMEOUT:?}"))),
    }
}
