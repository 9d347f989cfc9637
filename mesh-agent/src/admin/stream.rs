//! An answer that goes on: a line of JSON for each connection and request that ends.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body, Frame};
use tokio::time::{Instant, Interval, MissedTickBehavior, interval_at};

use crate::telemetry::flows::Subscription;

/// How often a line is sent with nothing in it: whoever went away without a word is noticed, and whoever waits knows that
/// somebody is there.
pub(super) const HEARTBEAT: Duration = Duration::from_secs(5);

/// The lines.
pub struct FlowLines {
    subscription: Subscription,
    heartbeat: Interval,
}

impl FlowLines {
    /// Of a listener.
    pub fn new(subscription: Subscription) -> Self {
        // The first at once: whoever asked knows that it is heard now.
        let mut heartbeat = interval_at(Instant::now(), HEARTBEAT);
        heartbeat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Self { subscription, heartbeat }
    }
}

impl Body for FlowLines {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        if self.heartbeat.poll_tick(context).is_ready() {
            return Poll::Ready(Some(Ok(Frame::data(Bytes::from_static(b"\n")))));
        }
        self.subscription.poll_next(context).map(|told| {
            let line = told?.to_json();
            Some(Ok(Frame::data(Bytes::from(format!("{line}\n")))))
        })
    }
}
