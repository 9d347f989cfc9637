//! Opening TCP connections from inside a pod's network namespace.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::os::fd::AsRawFd;

use socket2::{SockAddr, SockRef, Socket, TcpKeepalive};
use tokio::net::TcpStream;

use super::limits::{CONNECT_TIMEOUT, KEEPALIVE_IDLE, KEEPALIVE_INTERVAL, KEEPALIVE_PROBES};
use super::worker::Pod;
use crate::addr::{ClientAddr, ServerAddr};
use crate::podnet::{ClientRecord, Family};
use crate::policy::Permit;

/// Dials `address` from the pod, with the pod's own IP as the source.
pub async fn from_pod(pod: &Pod, address: SocketAddr) -> io::Result<TcpStream> {
    in_time(async {
        let tcp = connect(socket(pod, Family::of(address.ip())).await?, address).await?;
        keep_alive(&tcp);
        Ok(tcp)
    })
    .await
}

/// Finds out when the other end of a wire is gone without a word. The applications' own probes end at the agent, which
/// always answers.
pub fn keep_alive(tcp: &TcpStream) {
    let probes =
        TcpKeepalive::new().with_time(KEEPALIVE_IDLE).with_interval(KEEPALIVE_INTERVAL).with_retries(KEEPALIVE_PROBES);
    // It fails only on a socket that is gone already.
    let _ = SockRef::from(tcp).set_tcp_keepalive(&probes);
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
    pod: &Pod,
    _permit: &Permit,
    client: ClientAddr,
    server: ServerAddr,
) -> io::Result<AppConnection> {
    let family = Family::of(server.ip());
    in_time(async {
        let socket = socket(pod, family).await?;
        let record = ClientRecord::file(&pod.net, client, family)?;
        // The port is chosen at connect(): the address is this connection's own, so any port is free.
        socket.bind(&SockAddr::from(SocketAddr::new(record.source(), 0)))?;
        let tcp = connect(socket, server.socket()).await?;
        Ok(AppConnection { tcp, record })
    })
    .await
}

/// A socket in the pod's namespace. When the process is short of descriptors the error is EMFILE, as the kernel's own
/// would be a little later.
async fn socket(pod: &Pod, family: Family) -> io::Result<Socket> {
    let socket = match pod.net.stocked_socket(family) {
        Some(socket) => socket,
        None => pod.net.make_socket(family).await?,
    };
    match pod.budget.check_descriptor(socket.as_raw_fd()) {
        Ok(()) => Ok(socket),
        Err(_) => Err(io::Error::from_raw_os_error(libc::EMFILE)),
    }
}

/// Whether the process, or the machine, has no descriptors left.
pub fn is_out_of_descriptors(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE))
}

async fn connect(socket: Socket, address: SocketAddr) -> io::Result<TcpStream> {
    tokio::net::TcpSocket::from_std_stream(std::net::TcpStream::from(socket)).connect(address).await
}

/// Bounds a dial as a whole: the socket may have to be made first.
async fn in_time<T>(dial: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    match tokio::time::timeout(CONNECT_TIMEOUT, dial).await {
        Ok(dialled) => dialled,
        Err(_) => Err(io::Error::new(io::ErrorKind::TimedOut, format!("no answer within {CONNECT_TIMEOUT:?}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_silent_end_is_looked_for() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let tcp = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        keep_alive(&tcp);
        let socket = SockRef::from(&tcp);
        assert!(socket.keepalive().unwrap());
        assert_eq!(socket.tcp_keepalive_time().unwrap(), KEEPALIVE_IDLE);
        assert_eq!(socket.tcp_keepalive_interval().unwrap(), KEEPALIVE_INTERVAL);
        assert_eq!(socket.tcp_keepalive_retries().unwrap(), KEEPALIVE_PROBES);
    }
}
