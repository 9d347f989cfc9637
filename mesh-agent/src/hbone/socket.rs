//! Reads in few and large pieces: of applications' sockets, and of a tunnel's, below TLS.
//!
//! rustls asks for 4 KiB at a time, which is five system calls for one full record. A socket that has nothing waiting holds
//! no memory.

use std::cell::RefCell;
use std::io::{self, IoSlice};
use std::os::fd::AsFd;
use std::pin::{Pin, pin};
use std::rc::{Rc, Weak};
use std::task::{Context, Poll, ready};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

use super::limits::{COPY_CHUNK_BYTES, READ_BLOCK_BYTES, READ_SMALL_BYTES};
use crate::sys::{self, TcpInfo};

const CHUNK: usize = COPY_CHUNK_BYTES as usize;
const SMALL: usize = READ_SMALL_BYTES as usize;
const BLOCK: usize = READ_BLOCK_BYTES as usize;

thread_local! {
    /// Where reads land; one per worker, whatever the number of connections.
    static READ_BLOCK: RefCell<BytesMut> = RefCell::new(BytesMut::new());
    /// Where tunnels' reads land: whoever has read what TLS has not asked for yet keeps it, and the next takes another.
    static SPARE: RefCell<Vec<BytesMut>> = const { RefCell::new(Vec::new()) };
}

/// Reads what there is, up to `most`; empty at the end.
pub fn poll_read(cx: &mut Context<'_>, tcp: &mut TcpStream, most: usize) -> Poll<io::Result<Bytes>> {
    READ_BLOCK.with_borrow_mut(|block| {
        make_room(block);
        ready!(poll_into(cx, tcp, block, most))?;
        Poll::Ready(Ok(take(block)))
    })
}

/// Room for a chunk in an empty block.
pub(super) fn make_room(block: &mut BytesMut) {
    if block.capacity() < CHUNK {
        // Takes the old block again if nobody holds a part of it, else a new one.
        block.reserve(BLOCK);
    }
}

/// What was read, as a part of the block; a small one as its own, since it would hold on to all of it.
fn take(block: &mut BytesMut) -> Bytes {
    if block.len() > SMALL {
        return block.split().freeze();
    }
    let copied = Bytes::copy_from_slice(block);
    block.clear();
    copied
}

/// The first bytes of a block, as a part of it; a small one as its own.
pub(super) fn part(block: &mut BytesMut, length: usize) -> Bytes {
    let part = block.split_to(length.min(block.len()));
    if part.len() > SMALL { part.freeze() } else { Bytes::copy_from_slice(&part) }
}

/// Reads behind what is in the block, up to `most` bytes, for which there is room.
pub(super) fn poll_into<T: AsyncRead + Unpin>(
    cx: &mut Context<'_>,
    io: &mut T,
    block: &mut BytesMut,
    most: usize,
) -> Poll<io::Result<usize>> {
    let mut room = block.limit(most.min(CHUNK));
    pin!(io.read_buf(&mut room)).poll(cx)
}

/// A TCP connection that reads ahead.
pub struct Socket {
    /// Shared with nobody but who asks how it does, and never while this is polled.
    tcp: Rc<RefCell<TcpStream>>,
    /// Read, and not asked for yet.
    ahead: BytesMut,
}

impl Socket {
    pub(super) fn new(tcp: TcpStream) -> Self {
        Self { tcp: Rc::new(RefCell::new(tcp)), ahead: BytesMut::new() }
    }

    /// For who wants to know how it does, later.
    pub(super) fn below(&self) -> Below {
        Below(Rc::downgrade(&self.tcp))
    }
}

/// The socket below a tunnel, which this does not keep open. Made by default: none.
#[derive(Clone, Default)]
pub(super) struct Below(Weak<RefCell<TcpStream>>);

impl Below {
    fn info(&self) -> Option<TcpInfo> {
        let tcp = self.0.upgrade()?;
        let tcp = tcp.try_borrow().ok()?;
        sys::tcp_info(tcp.as_fd()).ok()
    }

    /// Begins to watch it. One system call.
    pub(super) fn watch(&self) -> Option<Line> {
        let before = self.info()?.retransmits;
        Some(Line { below: self.clone(), before })
    }
}

/// The TCP connection of a tunnel, from when one of its streams began.
pub struct Line {
    below: Below,
    /// What had been sent again by then.
    before: u32,
}

impl Line {
    /// What the kernel measured; of what was sent again, what was since this was made. None: it is gone. One system call.
    pub fn info(&self) -> Option<TcpInfo> {
        let now = self.below.info()?;
        Some(TcpInfo { retransmits: now.retransmits.saturating_sub(self.before), ..now })
    }
}

impl AsyncRead for Socket {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, out: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let Self { tcp, ahead } = &mut *self;
        if ahead.is_empty() {
            *ahead = SPARE.with_borrow_mut(Vec::pop).unwrap_or_else(|| BytesMut::with_capacity(CHUNK));
            let read = poll_into(cx, &mut *tcp.borrow_mut(), ahead, CHUNK);
            if !matches!(read, Poll::Ready(Ok(1..))) {
                give_back(ahead);
                return read.map(|read| read.map(drop));
            }
        }
        let asked = ahead.len().min(out.remaining());
        if let Some(bytes) = ahead.get(..asked) {
            out.put_slice(bytes);
        }
        ahead.advance(asked);
        if ahead.is_empty() {
            give_back(ahead);
        }
        Poll::Ready(Ok(()))
    }
}

/// Leaves the memory to whoever of this worker reads next.
fn give_back(ahead: &mut BytesMut) {
    let mut room = std::mem::take(ahead);
    // From its beginning again: nobody else has a part of it.
    room.clear();
    if room.try_reclaim(CHUNK) {
        SPARE.with_borrow_mut(|spare| {
            if spare.is_empty() {
                spare.push(room);
            }
        });
    }
}

impl AsyncWrite for Socket {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut *self.tcp.borrow_mut()).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut *self.tcp.borrow_mut()).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.tcp.borrow().is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.tcp.borrow_mut()).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.tcp.borrow_mut()).poll_shutdown(cx)
    }
}
