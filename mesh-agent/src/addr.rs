//! Addresses with a role. A client, a server and an original destination are all socket addresses; swapping two of
//! them must not compile.
//!
//! All of them are canonical: an IPv4-mapped IPv6 address is the IPv4 address.

use std::fmt;
use std::net::{IpAddr, SocketAddr};

/// The TCP peer that opened a connection: the source as policy and the application see it.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct ClientAddr(SocketAddr);

/// What an application passed to `connect()`, before capture rewrote it.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct OrigDstAddr(SocketAddr);

/// Where a connection is really sent: an endpoint's IP and port.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct ServerAddr(SocketAddr);

macro_rules! address_role {
    ($name:ident) => {
        impl $name {
            /// Gives a socket address this role, in canonical form.
            pub fn new(address: SocketAddr) -> Self {
                Self(SocketAddr::new(address.ip().to_canonical(), address.port()))
            }

            /// The IP address; never IPv4-mapped.
            pub fn ip(self) -> IpAddr {
                self.0.ip()
            }

            /// The port, in host order.
            pub fn port(self) -> u16 {
                self.0.port()
            }

            /// The plain socket address, for the operating system.
            pub fn socket(self) -> SocketAddr {
                self.0
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

address_role!(ClientAddr);
address_role!(OrigDstAddr);
address_role!(ServerAddr);
