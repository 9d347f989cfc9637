//! A tunnelled connection: bytes both ways, half-close, reset.
//!
//! ```text
//! ours:    open ──finish──► ended (END_STREAM)        theirs:  open ──END_STREAM, RST(NO_ERROR|CANCEL)──► ended
//!            └──reset, drop──► RST_STREAM(CONNECT_ERROR)         └──RST(other), tunnel lost──► error
//! ```

use std::rc::{Rc, Weak};
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use h2::Reason;

use super::pool::{Carrier, Occupied};
use super::session::Handle;
use super::socket::{Below, Line};

/// Both halves of a tunnelled connection. Dropping it before both have ended resets it: the far side must never take
/// a connection that broke for one that was closed.
pub struct Stream {
    handle: Rc<Handle>,
    sent_end: bool,
    received_end: bool,
    baggage: Option<String>,
    /// The client's place in its tunnel; given back on drop.
    occupied: Option<Occupied>,
    below: Below,
}

/// Tells how much of what came by a stream waits in this agent.
pub struct Waiting(Weak<Handle>);

impl Waiting {
    /// Bytes that came and were not released.
    pub fn bytes(&self) -> usize {
        self.0.upgrade().map_or(0, |handle| handle.unreleased())
    }
}

/// How a stream broke.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StreamError {
    /// The far side reset this stream: its application did, or its policy.
    #[error("reset by the far side: {0}")]
    Reset(Reason),
    /// The tunnel went away under it.
    #[error("the tunnel was lost: {0}")]
    TunnelLost(String),
}

impl StreamError {
    /// Whether this is an end rather than a break: ztunnel ends a stream that it is done with by NO_ERROR or CANCEL.
    pub fn is_end(&self) -> bool {
        matches!(self, StreamError::Reset(Reason::NO_ERROR | Reason::CANCEL))
    }
}

impl Stream {
    pub(super) fn new(handle: Handle, baggage: Option<String>, occupied: Option<Occupied>, below: Below) -> Self {
        Self { handle: Rc::new(handle), sent_end: false, received_end: false, baggage, occupied, below }
    }

    /// The TCP connection below, for who tells how it was while this stream lived.
    pub fn line(&self) -> Option<Line> {
        self.below.watch()
    }

    /// Who the far side says it is; from the answer to our CONNECT. Not trusted for anything.
    pub fn baggage(&self) -> Option<&str> {
        self.baggage.as_deref()
    }

    /// The tunnel that it is in; of the dialling end alone.
    pub fn carrier(&self) -> Option<Carrier> {
        self.occupied.as_ref().map(Occupied::carrier)
    }

    /// Tells how much of what came waits here, whoever reads.
    pub fn waiting(&self) -> Waiting {
        Waiting(Rc::downgrade(&self.handle))
    }

    /// The next bytes; `None` once the far side has ended its half. Call [`Stream::release`] as they are used up.
    pub fn poll_recv(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, StreamError>>> {
        if self.received_end {
            return Poll::Ready(None);
        }
        match ready!(self.handle.poll_recv(cx)) {
            Some(Ok(bytes)) => Poll::Ready(Some(Ok(bytes))),
            None => {
                self.received_end = true;
                Poll::Ready(None)
            }
            Some(Err(error)) => {
                (self.received_end, self.sent_end) = (true, true);
                // ztunnel ends a stream that it is done with like this.
                Poll::Ready(if error.is_end() { None } else { Some(Err(error)) })
            }
        }
    }

    /// Gives the far side credit for bytes that were used up. What is never released is given back on drop.
    pub fn release(&mut self, bytes: usize) {
        self.handle.release(bytes);
    }

    /// Waits until at least one byte may be sent; returns how many may, up to `wanted`.
    pub fn poll_capacity(&mut self, cx: &mut Context<'_>, wanted: usize) -> Poll<Result<usize, StreamError>> {
        self.handle.poll_capacity(cx, wanted)
    }

    /// Queues bytes, no more than there is capacity for.
    pub fn send(&mut self, bytes: Bytes) -> Result<(), StreamError> {
        self.handle.send(bytes)
    }

    /// Ends our half.
    pub fn finish(&mut self) -> Result<(), StreamError> {
        if !self.sent_end {
            self.sent_end = true;
            return self.handle.finish();
        }
        Ok(())
    }

    /// Resets both halves with CONNECT_ERROR: the application reset its connection, or we cut it.
    pub fn reset(&mut self) {
        (self.sent_end, self.received_end) = (true, true);
        self.handle.reset(Reason::CONNECT_ERROR);
    }

    /// Ready once the far side has reset the stream; for the time when there is nothing to receive any more.
    pub fn poll_reset(&mut self, cx: &mut Context<'_>) -> Poll<StreamError> {
        self.handle.poll_reset(cx)
    }

    /// [`Stream::poll_recv`] as a future.
    pub async fn recv(&mut self) -> Option<Result<Bytes, StreamError>> {
        std::future::poll_fn(|cx| self.poll_recv(cx)).await
    }

    /// Sends all of `bytes`, as capacity allows.
    pub async fn send_all(&mut self, mut bytes: Bytes) -> Result<(), StreamError> {
        while !bytes.is_empty() {
            let capacity = std::future::poll_fn(|cx| self.poll_capacity(cx, bytes.len())).await?;
            self.send(bytes.split_to(capacity))?;
        }
        Ok(())
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        if !(self.sent_end && self.received_end) {
            self.handle.reset(Reason::CONNECT_ERROR);
        }
    }
}
