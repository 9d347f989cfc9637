//! The few route netlink requests that enrolment makes, in the network namespace of the calling thread.

use std::io::{self, Read, Write};
use std::net::IpAddr;
use std::os::fd::{AsRawFd, BorrowedFd};

use mesh_common::addr::{Endpoint, Ip};
use socket2::{Domain, Protocol, Socket, Type};

const NETLINK_ROUTE: i32 = 0;
const NETLINK_SOCK_DIAG: i32 = 4;

const NEW_LINK: u16 = 16;
const GET_LINK: u16 = 18;
const NEW_ADDRESS: u16 = 20;
const GET_ADDRESS: u16 = 22;
const NEW_ROUTE: u16 = 24;
const DELETE_ROUTE: u16 = 25;
const NEW_NSID: u16 = 88;
const GET_NSID: u16 = 90;

const REQUEST: u16 = 0x1;
const ACKNOWLEDGE: u16 = 0x4;
const REPLACE: u16 = 0x100;
const CREATE: u16 = 0x400;
const DUMP: u16 = 0x300;

const ERROR: u16 = 2;
const DONE: u16 = 3;

const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;
/// lo, in every network namespace.
const LO: u32 = 1;

/// An interface of the calling thread's namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Interface {
    /// Its index.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// Whether it is up.
    pub up: bool,
    /// Whether it is lo.
    pub loopback: bool,
    /// The index of the interface that it hangs on; for a veth the other end, in `peer_namespace`.
    pub peer: Option<u32>,
    /// The namespace of that interface, as an id local to this namespace; none when it is this one.
    pub peer_namespace: Option<i32>,
    /// What it is, such as veth or dummy; none for hardware.
    pub kind: Option<String>,
    /// Whether it is a port of a bridge or bond.
    pub has_master: bool,
}

impl Interface {
    /// Whether nothing leaves the namespace by this interface but through another one of it: bridges and what hangs on
    /// them, as docker in docker makes them, and devices stacked on others.
    pub fn leads_through_others(&self) -> bool {
        match self.kind.as_deref() {
            // Hardware leads out by itself; wireguard sends from the namespace that it was made in, wherever it is now.
            None | Some("wireguard") => false,
            Some("veth") => self.has_master,
            Some(_) => self.peer_namespace.is_none(),
        }
    }
}

/// A local route of capture: `local PREFIX dev lo src SOURCE table local`.
#[derive(Clone, Copy, Debug)]
pub(super) struct LocalRoute {
    /// The prefix's first address.
    pub prefix: IpAddr,
    /// Its length.
    pub length: u8,
    /// What getsockname shows of a socket that connects there.
    pub source: IpAddr,
}

/// Adds a local route, or sets its source anew.
pub(super) fn add_route(route: &LocalRoute) -> io::Result<()> {
    acknowledged(NEW_ROUTE, CREATE | REPLACE, &route.encode())
}

/// Removes a local route, if it is there.
pub(super) fn remove_route(route: &LocalRoute) -> io::Result<()> {
    const ABSENT: i32 = 3;
    match acknowledged(DELETE_ROUTE, 0, &route.encode()) {
        Err(error) if error.raw_os_error() == Some(ABSENT) => Ok(()),
        other => other,
    }
}

impl LocalRoute {
    fn encode(&self) -> Vec<u8> {
        const TABLE_LOCAL: u8 = 255;
        const PROTOCOL_STATIC: u8 = 4;
        const SCOPE_HOST: u8 = 254;
        const LOCAL: u8 = 2;
        const DESTINATION: u16 = 1;
        const INTERFACE: u16 = 4;
        const PREFERRED_SOURCE: u16 = 7;
        let (family, scope) = match self.prefix {
            IpAddr::V4(_) => (AF_INET, SCOPE_HOST),
            IpAddr::V6(_) => (AF_INET6, 0),
        };
        let mut body = vec![family, self.length, 0, 0, TABLE_LOCAL, PROTOCOL_STATIC, scope, LOCAL, 0, 0, 0, 0];
        attribute(&mut body, DESTINATION, &octets(self.prefix));
        attribute(&mut body, INTERFACE, &LO.to_ne_bytes());
        // To remove a route its source need not be known.
        if !self.source.is_unspecified() {
            attribute(&mut body, PREFERRED_SOURCE, &octets(self.source));
        }
        body
    }
}

/// The namespace's interfaces. Also makes the kernel number the namespaces of their peers.
pub(super) fn interfaces() -> io::Result<Vec<Interface>> {
    let messages = dump(GET_LINK, &[0; 16])?;
    Ok(messages.iter().filter(|(kind, _)| *kind == NEW_LINK).filter_map(|(_, body)| interface(body)).collect())
}

fn interface(body: &[u8]) -> Option<Interface> {
    const NAME: u16 = 3;
    const LINK: u16 = 5;
    const LINK_NAMESPACE: u16 = 37;
    const MASTER: u16 = 10;
    const LINK_INFO: u16 = 18;
    const INFO_KIND: u16 = 1;
    const UP: u32 = 1;
    const LOOPBACK: u32 = 8;
    let flags = word(body.get(8..12)?)?;
    let link = attributes(body.get(16..)?);
    let find = |wanted| link.iter().find(|(kind, _)| *kind == wanted).map(|(_, value)| *value);
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim_end_matches('\0').to_string();
    let name = text(find(NAME)?);
    let info = attributes(find(LINK_INFO).unwrap_or_default());
    Some(Interface {
        index: word(body.get(4..8)?)?,
        name,
        up: flags & UP != 0,
        loopback: flags & LOOPBACK != 0,
        peer: find(LINK).and_then(word),
        peer_namespace: find(LINK_NAMESPACE).and_then(word).map(|id| id as i32),
        kind: info.iter().find(|(kind, _)| *kind == INFO_KIND).map(|(_, value)| text(value)),
        has_master: find(MASTER).is_some(),
    })
}

/// The namespace's addresses.
pub(super) fn addresses() -> io::Result<Vec<IpAddr>> {
    let messages = dump(GET_ADDRESS, &[0; 8])?;
    Ok(messages.iter().filter(|(kind, _)| *kind == NEW_ADDRESS).filter_map(|(_, body)| address(body)).collect())
}

fn address(body: &[u8]) -> Option<IpAddr> {
    const ADDRESS: u16 = 1;
    const LOCAL: u16 = 2;
    let attributes = attributes(body.get(8..)?);
    let find = |wanted| attributes.iter().find(|(kind, _)| *kind == wanted).map(|(_, value)| *value);
    let bytes = find(LOCAL).or_else(|| find(ADDRESS))?;
    match *body.first()? {
        AF_INET => Some(IpAddr::from(<[u8; 4]>::try_from(bytes).ok()?)),
        AF_INET6 => Some(IpAddr::from(<[u8; 16]>::try_from(bytes).ok()?)),
        _ => None,
    }
}

/// The id that the calling thread's namespace has for another; none when it has no interface in common with it.
pub(super) fn namespace_id(namespace: BorrowedFd<'_>) -> io::Result<Option<i32>> {
    const ID: u16 = 1;
    const DESCRIPTOR: u16 = 3;
    let mut body = vec![0; 4];
    attribute(&mut body, DESCRIPTOR, &(namespace.as_raw_fd() as u32).to_ne_bytes());
    let messages = exchange(GET_NSID, REQUEST, &body, |kind| kind == NEW_NSID)?;
    let found = messages.iter().filter(|(kind, _)| *kind == NEW_NSID).find_map(|(_, body)| {
        let attributes = attributes(body.get(4..)?);
        attributes.iter().find(|(kind, _)| *kind == ID).and_then(|(_, value)| word(value))
    });
    Ok(found.map(|id| id as i32).filter(|id| *id >= 0))
}

/// Ends a TCP socket of the calling thread's namespace, whichever process has it: `local` is its own end. With a cookie no
/// other socket that took the addresses meanwhile. False where there is none.
pub(super) fn destroy_socket(local: Endpoint, remote: Endpoint, cookie: Option<u64>) -> io::Result<bool> {
    const DESTROY: u16 = 21;
    const TCP: u8 = 6;
    const ANY_STATE: u32 = u32::MAX;
    /// INET_DIAG_NOCOOKIE
    const ANY_COOKIE: u64 = u64::MAX;
    let family = if local.ip().is_v4() { AF_INET } else { AF_INET6 };
    let mut body = vec![family, TCP, 0, 0];
    body.extend(ANY_STATE.to_ne_bytes());
    body.extend(local.port().to_be_bytes());
    body.extend(remote.port().to_be_bytes());
    for ip in [local.ip(), remote.ip()] {
        let mut address = octets(ip.into());
        address.resize(16, 0);
        body.extend(address);
    }
    const ANY_INTERFACE: u32 = 0;
    body.extend(ANY_INTERFACE.to_ne_bytes());
    let cookie = cookie.unwrap_or(ANY_COOKIE);
    // The lower half comes first, whatever the machine's order.
    body.extend((cookie as u32).to_ne_bytes());
    body.extend(((cookie >> 32) as u32).to_ne_bytes());
    match exchange_with(NETLINK_SOCK_DIAG, DESTROY, REQUEST | ACKNOWLEDGE, &body, |_| false) {
        Ok(_) => Ok(true),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Whether this kernel ends sockets that others have (CONFIG_INET_DIAG_DESTROY): asked about one that cannot be.
pub(super) fn can_destroy_sockets() -> io::Result<()> {
    let nowhere = Endpoint::new(Ip::from_v4([127, 128, 0, 0]), 1);
    destroy_socket(nowhere, nowhere, None).map(drop)
}

fn acknowledged(kind: u16, flags: u16, body: &[u8]) -> io::Result<()> {
    exchange(kind, REQUEST | ACKNOWLEDGE | flags, body, |_| false).map(drop)
}

fn dump(kind: u16, body: &[u8]) -> io::Result<Vec<(u16, Vec<u8>)>> {
    exchange(kind, REQUEST | DUMP, body, |_| false)
}

/// Sends one request and reads until its end: an acknowledgement, the end of a dump, or a message that `last` knows.
fn exchange(kind: u16, flags: u16, body: &[u8], last: fn(u16) -> bool) -> io::Result<Vec<(u16, Vec<u8>)>> {
    exchange_with(NETLINK_ROUTE, kind, flags, body, last)
}

fn exchange_with(
    family: i32,
    kind: u16,
    flags: u16,
    body: &[u8],
    last: fn(u16) -> bool,
) -> io::Result<Vec<(u16, Vec<u8>)>> {
    let mut socket = Socket::new(Domain::from(libc::AF_NETLINK), Type::RAW, Some(Protocol::from(family)))?;
    socket.set_read_timeout(Some(std::time::Duration::from_secs(5)))?;
    let mut request = Vec::with_capacity(16 + body.len());
    request.extend((16 + body.len() as u32).to_ne_bytes());
    request.extend(kind.to_ne_bytes());
    request.extend(flags.to_ne_bytes());
    request.extend([0; 8]);
    request.extend(body);
    socket.write_all(&request)?;
    let mut messages = Vec::new();
    let mut buffer = vec![0; 65_536];
    loop {
        let length = socket.read(&mut buffer)?;
        let mut rest = buffer.get(..length).unwrap_or_default();
        while let Some((kind, body, after)) = split_message(rest) {
            match kind {
                DONE => return Ok(messages),
                ERROR => return outcome(body).map(|()| messages),
                kind => messages.push((kind, body.to_vec())),
            }
            if last(kind) {
                return Ok(messages);
            }
            rest = after;
        }
    }
}

/// An error message carries 0 for "done", or a negative error number.
fn outcome(body: &[u8]) -> io::Result<()> {
    match body.get(..4).and_then(word).map(|code| code as i32) {
        Some(0) => Ok(()),
        Some(code) => Err(io::Error::from_raw_os_error(-code)),
        None => Err(io::Error::from(io::ErrorKind::InvalidData)),
    }
}

fn split_message(bytes: &[u8]) -> Option<(u16, &[u8], &[u8])> {
    let length = word(bytes.get(..4)?)? as usize;
    let kind = u16::from_ne_bytes(bytes.get(4..6)?.try_into().ok()?);
    let body = bytes.get(16..length)?;
    Some((kind, body, bytes.get(length.next_multiple_of(4)..).unwrap_or_default()))
}

fn attributes(mut bytes: &[u8]) -> Vec<(u16, &[u8])> {
    const FLAGS: u16 = 0xc000;
    let mut found = Vec::new();
    while let Some((length, kind, value)) = split_attribute(bytes) {
        found.push((kind & !FLAGS, value));
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    found
}

fn split_attribute(bytes: &[u8]) -> Option<(usize, u16, &[u8])> {
    let length = usize::from(u16::from_ne_bytes(bytes.get(..2)?.try_into().ok()?));
    let kind = u16::from_ne_bytes(bytes.get(2..4)?.try_into().ok()?);
    Some((length, kind, bytes.get(4..length)?))
}

fn attribute(body: &mut Vec<u8>, kind: u16, value: &[u8]) {
    body.extend((4 + value.len() as u16).to_ne_bytes());
    body.extend(kind.to_ne_bytes());
    body.extend(value);
    body.resize(body.len().next_multiple_of(4), 0);
}

fn word(bytes: &[u8]) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(..4)?.try_into().ok()?))
}

fn octets(ip: IpAddr) -> Vec<u8> {
    match ip {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    }
}
