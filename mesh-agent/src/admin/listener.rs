//! Where a surface is reached: a TCP address or a unix socket.

use std::fmt;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};

/// An address as it is written: `127.0.0.1:15000`, `[::1]:15000` or `unix:/run/nodemesh/admin.sock`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// An IP address and a port.
    Tcp(SocketAddr),
    /// The path of a unix socket.
    Unix(PathBuf),
}

/// Why a text is no address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected IP:PORT or unix:PATH")]
pub struct AddressError;

/// A bound listener. A unix socket's file goes when this is dropped.
pub struct Listener {
    socket: Socket,
    address: Address,
}

enum Socket {
    Tcp(TcpListener),
    Unix { socket: UnixListener, _file: SocketFile },
}

/// A connection of either kind.
pub(super) enum Connection {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl Listener {
    /// Binds. The caller names the address when it tells an error. A unix socket left by a process that is gone is
    /// replaced; one that somebody answers on is not. `[::]` on a machine without IPv6 means `0.0.0.0`.
    pub async fn bind(address: &Address) -> io::Result<Self> {
        if let Address::Unix(path) = address {
            refuse_answered(path)?;
        }
        Self::bind_over(address).await
    }

    /// As [`Listener::bind`], also over a unix socket that somebody answers on: the caller takes that one's place. Those
    /// who are connected to it stay connected.
    pub async fn bind_over(address: &Address) -> io::Result<Self> {
        let socket = match address {
            Address::Tcp(address) => Socket::Tcp(bind_tcp(*address).await?),
            Address::Unix(path) => bind_unix(path)?,
        };
        let address = match &socket {
            Socket::Tcp(socket) => Address::Tcp(socket.local_addr()?),
            Socket::Unix { .. } => address.clone(),
        };
        Ok(Self { socket, address })
    }

    /// Where it is really bound: with the port that the system chose for port 0.
    pub fn address(&self) -> &Address {
        &self.address
    }

    pub(super) async fn accept(&self) -> io::Result<Connection> {
        match &self.socket {
            Socket::Tcp(socket) => Ok(Connection::Tcp(socket.accept().await?.0)),
            Socket::Unix { socket, .. } => Ok(Connection::Unix(socket.accept().await?.0)),
        }
    }
}

/// `[::]` on a machine without IPv6 means `0.0.0.0`.
///
/// # Errors
/// What the system says.
pub async fn bind_tcp(address: SocketAddr) -> io::Result<TcpListener> {
    let bound = TcpListener::bind(address).await;
    let no_ipv6 = bound.as_ref().is_err_and(|error| {
        matches!(error.raw_os_error(), Some(libc::EAFNOSUPPORT | libc::EADDRNOTAVAIL))
            && address.is_ipv6()
            && address.ip().is_unspecified()
    });
    if no_ipv6 { TcpListener::bind((Ipv4Addr::UNSPECIFIED, address.port())).await } else { bound }
}

/// Binds a unix socket of mode 0600, over one that is there already; makes its directory.
pub fn bind_private(path: &Path) -> io::Result<UnixListener> {
    if let Some(parent) = path.parent().filter(|parent| !parent.as_os_str().is_empty()) {
        std::fs::DirBuilder::new().recursive(true).mode(0o755).create(parent)?;
    }
    refuse_other_files(path)?;
    bind_unnamed(path)
}

fn bind_unix(path: &Path) -> io::Result<Socket> {
    let socket = bind_private(path)?;
    let file = SocketFile::new(path)?;
    Ok(Socket::Unix { socket, _file: file })
}

/// Binds under a name that nobody knows, sets the mode, then gives it its name: nobody can connect in between.
fn bind_unnamed(path: &Path) -> io::Result<UnixListener> {
    let mut unnamed = path.as_os_str().to_owned();
    unnamed.push(format!(".{}", std::process::id()));
    let unnamed = PathBuf::from(unnamed);
    match std::fs::remove_file(&unnamed) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        Ok(()) | Err(_) => {}
    }
    let socket = UnixListener::bind(&unnamed)?;
    std::fs::set_permissions(&unnamed, std::fs::Permissions::from_mode(0o600))?;
    std::fs::rename(&unnamed, path)?;
    Ok(socket)
}

/// Refuses a path on which somebody answers.
fn refuse_answered(path: &Path) -> io::Result<()> {
    match std::os::unix::net::UnixStream::connect(path) {
        Ok(_) => Err(io::Error::new(io::ErrorKind::AddrInUse, "another process answers on it")),
        Err(_) => Ok(()),
    }
}

/// Only a socket is replaced. Anything else under that name is somebody's, and stays.
fn refuse_other_files(path: &Path) -> io::Result<()> {
    match std::fs::symlink_metadata(path) {
        Ok(metadata) if !metadata.file_type().is_socket() => {
            Err(io::Error::new(io::ErrorKind::AlreadyExists, "there is a file that is no socket"))
        }
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        Ok(_) | Err(_) => Ok(()),
    }
}

/// The file of a bound unix socket, known by its inode: a successor's file under the same name is left alone.
struct SocketFile {
    path: PathBuf,
    device: u64,
    inode: u64,
}

impl SocketFile {
    fn new(path: &Path) -> io::Result<Self> {
        let metadata = std::fs::symlink_metadata(path)?;
        Ok(Self { path: path.to_owned(), device: metadata.dev(), inode: metadata.ino() })
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        let is_ours = std::fs::symlink_metadata(&self.path)
            .is_ok_and(|metadata| (metadata.dev(), metadata.ino()) == (self.device, self.inode));
        if is_ours {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

impl FromStr for Address {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.strip_prefix("unix:") {
            Some("") => Err(AddressError),
            Some(path) => Ok(Address::Unix(path.into())),
            None => text.parse().map(Address::Tcp).map_err(|_| AddressError),
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Address::Tcp(address) => address.fmt(f),
            Address::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}
