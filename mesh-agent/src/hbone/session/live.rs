//! One stream, as its session knows it.

use std::rc::Rc;
use std::task::{Context, Waker};

use h2::Reason;

use super::STREAM_WINDOW;
use crate::hbone::head::{Answer, Asked};
use crate::hbone::received::Received;
use crate::hbone::stream::StreamError;

/// Why a stream broke.
#[derive(Clone)]
pub(super) enum Break {
    Reset(Reason),
    Lost(Rc<str>),
    /// The peer left before it looked at the request.
    Unseen(Rc<str>),
}

impl From<Break> for StreamError {
    fn from(broken: Break) -> Self {
        match broken {
            Break::Reset(reason) => StreamError::Reset(reason),
            Break::Lost(why) | Break::Unseen(why) => StreamError::TunnelLost(why.to_string()),
        }
    }
}

/// A stream, from its head until its holder lets go of it.
pub(super) struct Live {
    pub id: u32,
    pub send_window: i64,
    pub recv_window: i64,
    /// Came, and not released yet.
    pub unreleased: usize,
    /// Released, and not told to the peer yet.
    pub owed: usize,
    pub received: Received,
    pub their_end: bool,
    pub our_end: bool,
    pub broken: Option<Break>,
    /// Waits for room in the outbox or in the connection's window.
    pub is_starving: bool,
    /// Counts among those that the peer has open.
    pub is_open: bool,
    pub asked: Option<Asked>,
    pub answer: Option<Answer>,
    pub reader: Option<Waker>,
    pub writer: Option<Waker>,
    pub watcher: Option<Waker>,
}

impl Live {
    pub fn new(id: u32, send_window: u32) -> Self {
        Self {
            id,
            send_window: i64::from(send_window),
            recv_window: STREAM_WINDOW,
            unreleased: 0,
            owed: 0,
            received: Received::default(),
            their_end: false,
            our_end: false,
            broken: None,
            is_starving: false,
            is_open: true,
            asked: None,
            answer: None,
            reader: None,
            writer: None,
            watcher: None,
        }
    }

    pub fn is_over(&self) -> bool {
        self.broken.is_some() || (self.their_end && self.our_end)
    }

    /// Why nothing more can be said on it, if that is so.
    pub fn unbroken(&self) -> Result<(), StreamError> {
        self.broken.as_ref().map_or(Ok(()), |broken| Err(broken.clone().into()))
    }

    pub fn wake_all(&mut self) {
        [&mut self.reader, &mut self.writer, &mut self.watcher].into_iter().for_each(wake);
    }
}

pub(super) fn wake(waker: &mut Option<Waker>) {
    if let Some(waker) = waker.take() {
        waker.wake();
    }
}

/// Keeps who is to be woken.
pub(super) fn keep(slot: &mut Option<Waker>, cx: &Context<'_>) {
    match slot {
        Some(kept) if kept.will_wake(cx.waker()) => {}
        slot => *slot = Some(cx.waker().clone()),
    }
}
