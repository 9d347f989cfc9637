//! A server for thousands of connections: answers every word with itself, closes when the client does.

use std::io::{ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsFd;

use anyhow::{Context, Result};
use rustix::buffer::spare_capacity;
use rustix::event::epoll;
use rustix::net::{AddressFamily, Ipv6Addr, SocketAddrV6, SocketType, bind, listen, socket, sockopt};

use super::tally::raise_descriptor_limit;

/// The server.
#[derive(clap::Args)]
pub struct Echo {
    /// The port, of both families
    port: u16,
}

/// Connections that wait to be accepted: as many as may come at once.
const BACKLOG: i32 = 4096;

const LISTENER: u64 = u64::MAX;

impl Echo {
    /// Serves until it is killed.
    pub fn run(self) -> Result<()> {
        raise_descriptor_limit();
        let listener = listen_on(self.port)?;
        listener.set_nonblocking(true)?;
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let mut connections: Vec<Option<TcpStream>> = Vec::new();
        let mut free: Vec<usize> = Vec::new();
        epoll::add(&epoll, &listener, epoll::EventData::new_u64(LISTENER), epoll::EventFlags::IN)?;
        let mut events = Vec::with_capacity(256);
        loop {
            match epoll::wait(&epoll, spare_capacity(&mut events), None) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
            for event in events.drain(..) {
                let data = event.data;
                if data.u64() == LISTENER {
                    while let Some(stream) = accept(&listener)? {
                        let place = free.pop().unwrap_or_else(|| {
                            connections.push(None);
                            connections.len() - 1
                        });
                        let data = epoll::EventData::new_u64(place as u64);
                        epoll::add(&epoll, stream.as_fd(), data, epoll::EventFlags::IN)?;
                        connections[place] = Some(stream);
                    }
                    continue;
                }
                let place = data.u64() as usize;
                if connections[place].as_ref().is_some_and(|stream| !answer(stream)) {
                    connections[place] = None;
                    free.push(place);
                }
            }
        }
    }
}

/// Listens on a port of both families with room for a crowd.
pub fn listen_on(port: u16) -> Result<TcpListener> {
    let listener = socket(AddressFamily::INET6, SocketType::STREAM, None)?;
    sockopt::set_socket_reuseaddr(&listener, true)?;
    sockopt::set_ipv6_v6only(&listener, false)?;
    bind(&listener, &SocketAddrV6::new(Ipv6Addr::UNSPECIFIED, port, 0, 0))
        .with_context(|| format!("binding port {port}"))?;
    listen(&listener, BACKLOG)?;
    Ok(listener.into())
}

fn accept(listener: &TcpListener) -> Result<Option<TcpStream>> {
    match listener.accept() {
        Ok((stream, _)) => {
            // std's accept gives blocking sockets whatever the listener is; the words here are short.
            stream.set_nodelay(true)?;
            Ok(Some(stream))
        }
        Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::ConnectionAborted) => Ok(None),
        Err(error) => Err(error).context("accepting"),
    }
}

/// Whether the connection goes on.
fn answer(mut stream: &TcpStream) -> bool {
    let mut word = [0; 4096];
    match stream.read(&mut word) {
        Ok(0) | Err(_) => false,
        Ok(read) => stream.write_all(&word[..read]).is_ok(),
    }
}
