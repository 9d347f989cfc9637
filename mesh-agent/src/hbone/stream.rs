//! A tunnelled connection: bytes both ways, half-close, reset.
//!
//! ```text
//! ours:    open ──finish──► ended (END_STREAM)        theirs:  open ──END_STREAM, RST(NO_ERROR|CANCEL)──► ended
//!            └──reset, drop──► RST_STREAM(CONNECT_ERROR)         └──RST(other), tunnel lost──► error
//! ```

use std::task::{Context, Poll, Waker, ready};

use bytes::Bytes;
use h2::{FlowControl, Reason, RecvStream, SendStream};

use super::pool::{Carrier, Occupied};
use super::socket::{Below, Line};

/// Both halves of a tunnelled connection. Dropping it before both have ended resets it: the far side must never take
/// a connection that broke for one that was closed.
pub struct Stream {
    send: SendStream<Bytes>,
    recv: RecvStream,
    sent_end: bool,
    received_end: bool,
    baggage: Option<String>,
    /// The client's place in its tunnel; given back on drop.
    occupied: Option<Occupied>,
    below: Below,
}

/// Tells how much of what came by a stream waits in this agent. Not to be kept for longer than the stream.
pub struct Waiting(FlowControl);

impl Waiting {
    /// Bytes that came and were not released.
    pub fn bytes(&self) -> usize {
        self.0.used_capacity()
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

impl From<h2::Error> for StreamError {
    fn from(error: h2::Error) -> Self {
        match error.reason() {
            Some(reason) if error.is_reset() => StreamError::Reset(reason),
            Some(_) | None => StreamError::TunnelLost(error.to_string()),
        }
    }
}

impl Stream {
    pub(super) fn new(
        send: SendStream<Bytes>,
        recv: RecvStream,
        baggage: Option<String>,
        occupied: Option<Occupied>,
        below: Below,
    ) -> Self {
        Self { send, recv, sent_end: false, received_end: false, baggage, occupied, below }
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
    pub fn waiting(&mut self) -> Waiting {
        Waiting(self.recv.flow_control().clone())
    }

    /// The next bytes; `None` once the far side has ended its half. Call [`Stream::release`] as they are used up.
    pub fn poll_recv(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, StreamError>>> {
        if self.received_end {
            return Poll::Ready(None);
        }
        let mut next = ready!(self.recv.poll_data(cx));
        while matches!(&next, Some(Ok(bytes)) if bytes.is_empty()) {
            // The frame that only carries END_STREAM, or padding.
            next = ready!(self.recv.poll_data(cx));
        }
        match next {
            Some(Ok(bytes)) => Poll::Ready(Some(Ok(bytes))),
            None => {
                self.received_end = true;
                Poll::Ready(None)
            }
            // ztunnel ends a stream that it is done with like this.
            Some(Err(error))
                if matches!(error.reason(), Some(Reason::NO_ERROR | Reason::CANCEL)) && error.is_reset() =>
            {
                self.received_end = true;
                self.sent_end = true;
                Poll::Ready(None)
            }
            Some(Err(error)) => {
                self.received_end = true;
                self.sent_end = true;
                Poll::Ready(Some(Err(error.into())))
            }
        }
    }

    /// Gives the far side credit for bytes that were used up. What is never released is given back on drop.
    pub fn release(&mut self, bytes: usize) {
        // It fails only when more is released than came, or the stream is gone; neither needs credit.
        let _ = self.recv.flow_control().release_capacity(bytes);
    }

    /// Waits until at least one byte may be sent; returns how many may, up to `wanted`.
    pub fn poll_capacity(&mut self, cx: &mut Context<'_>, wanted: usize) -> Poll<Result<usize, StreamError>> {
        self.send.reserve_capacity(wanted);
        let now = self.send.capacity();
        if now > 0 {
            return Poll::Ready(Ok(now.min(wanted)));
        }
        match ready!(self.send.poll_capacity(cx)) {
            Some(Ok(capacity)) => Poll::Ready(Ok(capacity.min(wanted))),
            Some(Err(error)) => Poll::Ready(Err(error.into())),
            // The sending half is closed: it was reset, with a reason that the receiving half reports.
            None => Poll::Ready(Err(self.reset_reason().unwrap_or(StreamError::Reset(Reason::CANCEL)))),
        }
    }

    /// Gives back capacity that was asked for and is not needed now, so that it does not lie idle.
    pub fn unreserve(&mut self) {
        self.send.reserve_capacity(0);
    }

    /// Queues bytes. Within the capacity they go out at once.
    pub fn send(&mut self, bytes: Bytes) -> Result<(), StreamError> {
        self.send.send_data(bytes, false).map_err(|error| self.why_closed(error))
    }

    /// Ends our half.
    pub fn finish(&mut self) -> Result<(), StreamError> {
        if !self.sent_end {
            self.sent_end = true;
            return self.send.send_data(Bytes::new(), true).map_err(|error| self.why_closed(error));
        }
        Ok(())
    }

    /// Resets both halves with CONNECT_ERROR: the application reset its connection, or we cut it.
    pub fn reset(&mut self) {
        self.sent_end = true;
        self.received_end = true;
        self.send.send_reset(Reason::CONNECT_ERROR);
    }

    /// Ready once the far side has reset the stream; for the time when there is nothing to receive any more.
    pub fn poll_reset(&mut self, cx: &mut Context<'_>) -> Poll<StreamError> {
        match ready!(self.send.poll_reset(cx)) {
            Ok(reason) => Poll::Ready(StreamError::Reset(reason)),
            Err(error) => Poll::Ready(error.into()),
        }
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

    /// The library says only that the stream is closed; the reset that closed it says more.
    fn why_closed(&mut self, error: h2::Error) -> StreamError {
        self.reset_reason().unwrap_or_else(|| error.into())
    }

    fn reset_reason(&mut self) -> Option<StreamError> {
        match self.poll_reset(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(error) => Some(error),
            Poll::Pending => None,
        }
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        if !(self.sent_end && self.received_end) {
            self.send.send_reset(Reason::CONNECT_ERROR);
        }
    }
}
