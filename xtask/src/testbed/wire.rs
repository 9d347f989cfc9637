//! The witness on a link: tcpdump's recording, and what to ask it.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::process::Signal;

use super::eventually;
use super::process::{Place, Process};

/// For tcpdump to start and to end.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long tcpdump leaves packets in its ring, where it has no more to read: libpcap's time to give them out, as tcpdump
/// sets it (1 s), and a little more.
const HOLDS: Duration = Duration::from_millis(1300);
/// For it to write what it has seen, where there is always more to see.
const CATCH_UP: Duration = Duration::from_secs(8);

/// A recording in progress.
pub struct Recording {
    tcpdump: Process,
    file: PathBuf,
}

/// Every packet of a recording.
pub struct Packets {
    frames: Vec<Vec<u8>>,
}

/// A TCP packet's ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TcpPacket {
    /// Source.
    pub from: SocketAddr,
    /// Destination.
    pub to: SocketAddr,
}

impl Recording {
    /// Starts to record an interface; returns when it does.
    pub fn start(place: &Place, interface: &str, file: &Path) -> Result<Self> {
        let path = file.to_string_lossy();
        // As root, and what was read is written at once. Without immediate mode packets lie side by side in the ring of
        // 64 MiB; with it each would take the room of the longest, and a thousand in one breath would be too many.
        let argv = ["tcpdump", "-i", interface, "-n", "-s", "0", "-Z", "root", "-U", "-B", "65536", "-w", &path];
        let name = format!("tcpdump-{}", file.file_stem().unwrap_or_default().to_string_lossy());
        let mut tcpdump = place.spawn(&name, &argv)?;
        eventually(PATIENCE, "tcpdump to listen", || {
            tcpdump.check_running()?;
            Ok(tcpdump.log().contains("listening on").then_some(()))
        })?;
        Ok(Self { tcpdump, file: file.to_path_buf() })
    }

    /// Ends the recording.
    pub fn stop(mut self) -> Result<Packets> {
        self.let_it_catch_up()?;
        self.tcpdump.signal(Signal::INT)?;
        self.tcpdump.wait(PATIENCE)?;
        if !self.tcpdump.log().contains("0 packets dropped by kernel") {
            bail!("tcpdump lost packets, so it is no witness: {}", self.tcpdump.log());
        }
        let bytes = fs::read(&self.file).with_context(|| format!("reading {}", self.file.display()))?;
        Ok(Packets { frames: frames(&bytes)? })
    }

    /// What is on its way through the veth and tcpdump's ring gets its chance to be written: what tcpdump has not read when it
    /// is told to end is lost. Until the file has stopped growing, or it has had its time.
    fn let_it_catch_up(&self) -> Result<()> {
        let size = || -> Result<u64> {
            Ok(fs::metadata(&self.file).with_context(|| format!("looking at {}", self.file.display()))?.len())
        };
        let (end, mut written) = (Instant::now() + CATCH_UP, size()?);
        loop {
            std::thread::sleep(HOLDS);
            let now = size()?;
            if now == written || Instant::now() >= end {
                return Ok(());
            }
            written = now;
        }
    }
}

impl Packets {
    /// How many packets carry these bytes.
    pub fn containing(&self, marker: &str) -> usize {
        let marker = marker.as_bytes();
        self.frames.iter().filter(|frame| frame.windows(marker.len()).any(|window| window == marker)).count()
    }

    /// Every TCP packet's ends.
    pub fn tcp(&self) -> Vec<TcpPacket> {
        self.frames.iter().filter_map(|frame| tcp_packet(frame)).collect()
    }

    /// TCP packets between two hosts, either way.
    pub fn tcp_between(&self, a: IpAddr, b: IpAddr) -> Vec<TcpPacket> {
        let mut packets = self.tcp();
        packets.retain(|p| (p.from.ip(), p.to.ip()) == (a, b) || (p.from.ip(), p.to.ip()) == (b, a));
        packets
    }
}

impl TcpPacket {
    /// Whether either end has this port.
    pub fn has_port(&self, port: u16) -> bool {
        self.from.port() == port || self.to.port() == port
    }
}

/// Splits a pcap file, in the byte order of this machine, which is how tcpdump writes it.
fn frames(file: &[u8]) -> Result<Vec<Vec<u8>>> {
    const HEADER: usize = 24;
    const MAGIC: u32 = 0xa1b2_c3d4;
    let word = |at: usize| file.get(at..at + 4).map(|b| u32::from_ne_bytes([b[0], b[1], b[2], b[3]]));
    if word(0) != Some(MAGIC) {
        bail!("tcpdump wrote no pcap file");
    }
    let mut frames = Vec::new();
    let mut at = HEADER;
    while let Some(length) = word(at + 8) {
        let end = at + 16 + length as usize;
        // A last packet that is cut short was being written when tcpdump ended.
        let Some(frame) = file.get(at + 16..end) else { break };
        frames.push(frame.to_vec());
        at = end;
    }
    Ok(frames)
}

fn tcp_packet(frame: &[u8]) -> Option<TcpPacket> {
    const TCP: u8 = 6;
    let ip = frame.get(14..)?;
    let (from, to, segment) = match frame.get(12..14)? {
        [0x08, 0x00] => {
            let header = usize::from(ip.first()? & 0x0f) * 4;
            if *ip.get(9)? != TCP {
                return None;
            }
            (IpAddr::V4(v4(ip.get(12..16)?)), IpAddr::V4(v4(ip.get(16..20)?)), ip.get(header..)?)
        }
        // The testbed's own senders use no extension headers.
        [0x86, 0xdd] if *ip.get(6)? == TCP => {
            (IpAddr::V6(v6(ip.get(8..24)?)), IpAddr::V6(v6(ip.get(24..40)?)), ip.get(40..)?)
        }
        _ => return None,
    };
    let port = |at: usize| Some(u16::from_be_bytes([*segment.get(at)?, *segment.get(at + 1)?]));
    Some(TcpPacket { from: SocketAddr::new(from, port(0)?), to: SocketAddr::new(to, port(2)?) })
}

fn v4(bytes: &[u8]) -> Ipv4Addr {
    <[u8; 4]>::try_from(bytes).unwrap_or_default().into()
}

fn v6(bytes: &[u8]) -> Ipv6Addr {
    <[u8; 16]>::try_from(bytes).unwrap_or_default().into()
}
