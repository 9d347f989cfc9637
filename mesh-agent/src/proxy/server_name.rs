//! The server name that a TLS client asks for, read without taking a byte: whoever leads the connection on has no part
//! in it.

use std::io;
use std::time::Duration;

use rustix::net::RecvFlags;
use tokio::io::Interest;
use tokio::net::TcpStream;

use super::limits::SERVER_NAME_TIMEOUT;
use crate::routes::ClientHello;
use crate::routes::limits::CLIENT_HELLO_BYTES;
use crate::routing::Refusal;

/// Waits for the client's first message. None: it names no server.
pub async fn read(tcp: &TcpStream) -> Result<Option<String>, Refusal> {
    read_within(tcp, SERVER_NAME_TIMEOUT).await
}

async fn read_within(tcp: &TcpStream, patience: Duration) -> Result<Option<String>, Refusal> {
    tokio::time::timeout(patience, look(tcp)).await.unwrap_or(Err(Refusal::SilentClient))
}

async fn look(tcp: &TcpStream) -> Result<Option<String>, Refusal> {
    // Of more the reader makes nothing.
    let mut seen = vec![0; CLIENT_HELLO_BYTES.saturating_mul(2)];
    let mut length = 0;
    loop {
        let ready = tcp.ready(Interest::READABLE).await.map_err(|_| Refusal::SilentClient)?;
        let has_ended = ready.is_read_closed();
        let looked = tcp.try_io(Interest::READABLE, || {
            let (now, _) = rustix::net::recv(tcp, &mut seen[..], RecvFlags::PEEK)?;
            // What was seen already is no news: the next bytes are, or the end.
            if now == length && !has_ended { Err(io::ErrorKind::WouldBlock.into()) } else { Ok(now) }
        });
        match looked {
            Ok(now) => length = now,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue,
            Err(_) => return Err(Refusal::SilentClient),
        }
        match ClientHello::read(seen.get(..length).unwrap_or_default()) {
            ClientHello::Named(name) => return Ok(Some(name)),
            ClientHello::Nameless => return Ok(None),
            ClientHello::Incomplete if !has_ended => {}
            ClientHello::Incomplete | ClientHello::Refused => return Err(Refusal::NotTls),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    async fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        (client, listener.accept().await.unwrap().0)
    }

    /// What a real client says first.
    fn hello(name: &'static str) -> Vec<u8> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config =
            rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
        let config = config.with_root_certificates(rustls::RootCertStore::empty()).with_no_client_auth();
        let mut client = rustls::ClientConnection::new(Arc::new(config), name.try_into().unwrap()).unwrap();
        let mut bytes = Vec::new();
        client.write_tls(&mut bytes).unwrap();
        bytes
    }

    #[tokio::test]
    async fn the_name_is_read_and_nothing_is_taken() {
        for piece in [usize::MAX, 100, 1] {
            let (mut client, mut server) = pair().await;
            client.set_nodelay(true).unwrap();
            let said = hello("web.example.com");
            let say = async {
                for bytes in said.chunks(piece.min(said.len())) {
                    client.write_all(bytes).await.unwrap();
                    tokio::task::yield_now().await;
                }
            };
            let (name, ()) = tokio::join!(read(&server), say);
            assert_eq!(name, Ok(Some("web.example.com".to_string())), "in pieces of {piece}");
            let mut heard = vec![0; said.len()];
            server.read_exact(&mut heard).await.unwrap();
            assert_eq!(heard, said);
        }
    }

    #[tokio::test]
    async fn what_names_no_server() {
        let whole = hello("web.example.com");
        for (what, said, ends, expected) in [
            ("an address", hello("10.0.0.1"), false, Ok(None)),
            ("another protocol", b"GET / HTTP/1.1\r\n".to_vec(), false, Err(Refusal::NotTls)),
            ("half a message", whole[..whole.len() / 2].to_vec(), true, Err(Refusal::NotTls)),
            ("nothing", vec![], true, Err(Refusal::NotTls)),
        ] {
            let (mut client, server) = pair().await;
            client.write_all(&said).await.unwrap();
            if ends {
                client.shutdown().await.unwrap();
            }
            assert_eq!(read(&server).await, expected, "{what}");
        }
    }

    #[tokio::test]
    async fn a_silent_client_is_not_waited_for() {
        let (mut client, server) = pair().await;
        client.write_all(&[22, 3, 1]).await.unwrap();
        assert_eq!(read_within(&server, Duration::from_millis(50)).await, Err(Refusal::SilentClient));
    }
}
