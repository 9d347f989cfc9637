//! What holds a stream, and what opens one.

use std::task::{Context, Poll};

use bytes::Bytes;
use h2::Reason;
use http::StatusCode;

use super::live::{Break, Live, keep};
use super::{Core, Goodbye, OUT, STREAM_WINDOW, Session};
use crate::hbone::frame::{self, Head};
use crate::hbone::head::{self, Answer, Asked};
use crate::hbone::limits;
use crate::hbone::stream::StreamError;
use crate::hbone::words::ConnectRequest;

/// What goes out at once of anything long.
const RECORD: usize = limits::GATHER_LARGE_BYTES as usize;

/// A request that a peer made.
pub(in crate::hbone) struct Request {
    pub asked: Asked,
    pub handle: Handle,
}

/// The holder of a stream. Dropping it ends the stream: by a reset, if it has not ended by itself.
pub(in crate::hbone) struct Handle {
    pub(super) session: Session,
    pub(super) key: usize,
}

/// May open streams. With the last of them gone, and the last stream, the connection is closed.
pub(in crate::hbone) struct Opener(pub(super) Session);

/// Why no stream is opened.
pub(in crate::hbone) enum Unopened {
    /// The peer said goodbye.
    Goodbye(String),
    /// The connection is gone.
    Lost(String),
    /// The peer reset the request.
    Reset(Reason),
}

impl Clone for Opener {
    fn clone(&self) -> Self {
        self.0.0.borrow_mut().openers += 1;
        Self(self.0.clone())
    }
}

impl Drop for Opener {
    fn drop(&mut self) {
        let core = &mut *self.0.0.borrow_mut();
        core.openers = core.openers.saturating_sub(1);
        if core.openers == 0 {
            core.wake_driver();
        }
    }
}

impl Opener {
    /// How many streams the peer takes at once.
    pub(in crate::hbone) fn most_streams(&self) -> usize {
        self.0.0.borrow().their.streams
    }

    /// Whether the peer has said goodbye, or the connection is lost.
    pub(in crate::hbone) fn is_going_away(&self) -> bool {
        self.0.0.borrow().why_not_open().is_some()
    }

    /// Sends a CONNECT, when the peer takes another stream.
    pub(in crate::hbone) async fn ask(&self, request: &ConnectRequest) -> Result<Handle, Unopened> {
        std::future::poll_fn(|cx| {
            let core = &mut *self.0.0.borrow_mut();
            if let Some(why) = core.why_not_open() {
                return Poll::Ready(Err(why));
            }
            if core.open >= core.their.streams {
                if !core.opening.iter().any(|waker| waker.will_wake(cx.waker())) {
                    core.opening.push(cx.waker().clone());
                }
                return Poll::Pending;
            }
            let key = core.ask(request);
            Poll::Ready(Ok(Handle { session: self.0.clone(), key }))
        })
        .await
    }
}

impl Core {
    fn why_not_open(&self) -> Option<Unopened> {
        if let Some(why) = &self.ended {
            return Some(Unopened::Lost(why.to_string()));
        }
        if self.next > frame::MOST_STREAM || self.goodbye != Goodbye::Unsaid {
            return Some(Unopened::Goodbye("this end has opened all that it may".into()));
        }
        match self.their_goodbye? {
            Reason::NO_ERROR => Some(Unopened::Goodbye(format!("goodbye: {}", Reason::NO_ERROR))),
            reason => Some(Unopened::Lost(format!("goodbye: {reason}"))),
        }
    }

    fn ask(&mut self, request: &ConnectRequest) -> usize {
        let stream = self.next;
        self.next = self.next.saturating_add(2);
        let key = self.streams.insert(Live::new(stream, self.their.initial_window));
        self.by_id.insert(stream, key);
        self.open = self.open.saturating_add(1);
        self.put_head(stream, 0, &head::request(request));
        key
    }

    /// In one frame: what we say is shorter than the shortest that a peer may bound frames to.
    fn put_head(&mut self, stream: u32, flags: u8, block: &[u8]) {
        self.out.put(|out| frame::put(out, frame::HEADERS, frame::END_HEADERS | flags, stream, block));
        self.wake_driver();
    }
}

impl Handle {
    fn with<T>(&self, gone: T, with: impl FnOnce(&mut Core, usize) -> T) -> T {
        let core = &mut *self.session.0.borrow_mut();
        if core.streams.contains(self.key) { with(core, self.key) } else { gone }
    }

    fn live<T>(&self, gone: T, with: impl FnOnce(&mut Live) -> T) -> T {
        self.session.0.borrow_mut().streams.get_mut(self.key).map_or(gone, with)
    }

    /// What the far side answers.
    pub(in crate::hbone) async fn answer(&self) -> Result<Answer, Unopened> {
        std::future::poll_fn(|cx| {
            self.live(Poll::Ready(Err(Unopened::Lost("the stream is gone".into()))), |live| {
                if let Some(answer) = &live.answer {
                    return Poll::Ready(Ok(answer.clone()));
                }
                match &live.broken {
                    Some(Break::Reset(reason)) => Poll::Ready(Err(Unopened::Reset(*reason))),
                    Some(Break::Lost(why)) => Poll::Ready(Err(Unopened::Lost(why.to_string()))),
                    Some(Break::Unseen(why)) => Poll::Ready(Err(Unopened::Goodbye(why.to_string()))),
                    None => {
                        keep(&mut live.reader, cx);
                        Poll::Pending
                    }
                }
            })
        })
        .await
    }

    /// Answers a request, and with `ends` says no more.
    pub(in crate::hbone) fn respond(&self, status: StatusCode, baggage: &str, ends: bool) -> Result<(), StreamError> {
        self.with(Ok(()), |core, key| {
            let Some(live) = core.streams.get_mut(key) else { return Ok(()) };
            live.unbroken()?;
            let stream = live.id;
            live.our_end |= ends;
            core.put_head(stream, if ends { frame::END_STREAM } else { 0 }, &head::answer(status, baggage));
            core.count_closed(key);
            Ok(())
        })
    }

    /// Bytes that came and were not released.
    pub(in crate::hbone) fn unreleased(&self) -> usize {
        self.live(0, |live| live.unreleased)
    }

    /// What came next; `None` at the end.
    pub(in crate::hbone) fn poll_recv(&self, cx: &Context<'_>) -> Poll<Option<Result<Bytes, StreamError>>> {
        self.live(Poll::Ready(None), |live| {
            if let Some(bytes) = live.received.pop() {
                return Poll::Ready(Some(Ok(bytes)));
            }
            if live.their_end {
                return Poll::Ready(None);
            }
            match &live.broken {
                Some(broken) => Poll::Ready(Some(Err(broken.clone().into()))),
                None => {
                    keep(&mut live.reader, cx);
                    Poll::Pending
                }
            }
        })
    }

    /// Gives the far side credit.
    pub(in crate::hbone) fn release(&self, bytes: usize) {
        self.with((), |core, key| {
            let Some(live) = core.streams.get_mut(key) else { return };
            let bytes = bytes.min(live.unreleased);
            live.unreleased = live.unreleased.saturating_sub(bytes);
            live.owed = live.owed.saturating_add(bytes);
            if live.owed as i64 >= STREAM_WINDOW / 2 && !live.their_end && live.broken.is_none() {
                let owed = std::mem::take(&mut live.owed);
                live.recv_window = live.recv_window.saturating_add(owed as i64);
                let stream = live.id;
                core.out.put(|out| frame::put_credit(out, stream, owed as u32));
                core.wake_driver();
            }
            // Of one that is over, the peer has had all of the connection's when that ended.
            if core.streams.get(key).is_some_and(|live| live.is_open) {
                core.owe(bytes);
            }
        });
    }

    /// How many bytes may be sent now, up to `wanted`; waits for the first.
    pub(in crate::hbone) fn poll_capacity(&self, cx: &Context<'_>, wanted: usize) -> Poll<Result<usize, StreamError>> {
        self.with(Poll::Ready(Err(StreamError::Reset(Reason::CANCEL))), |core, key| {
            let room = OUT.saturating_sub(core.out.len());
            // Room for a few bytes is not worth a read: there will soon be more.
            let room = if room < wanted.min(RECORD) { 0 } else { room };
            let shared = (room as i64).min(core.send_window);
            let Some(live) = core.streams.get_mut(key) else { return Poll::Pending };
            live.unbroken()?;
            if live.our_end {
                return Poll::Ready(Err(StreamError::Reset(Reason::CANCEL)));
            }
            let most = shared.min(live.send_window).min(wanted as i64);
            if most > 0 {
                return Poll::Ready(Ok(most as usize));
            }
            keep(&mut live.writer, cx);
            if live.send_window > 0 && !std::mem::replace(&mut live.is_starving, true) {
                core.starving.push(self.key);
            }
            Poll::Pending
        })
    }

    /// Sends bytes; no more than there is capacity for.
    pub(in crate::hbone) fn send(&self, mut bytes: Bytes) -> Result<(), StreamError> {
        self.with(Err(StreamError::Reset(Reason::CANCEL)), |core, key| {
            let most = core.their.frame;
            let Some(live) = core.streams.get_mut(key) else { return Ok(()) };
            live.unbroken()?;
            let length = bytes.len() as i64;
            if live.our_end || length > live.send_window.min(core.send_window) {
                return Err(StreamError::Reset(Reason::INTERNAL_ERROR));
            }
            live.send_window = live.send_window.saturating_sub(length);
            core.send_window = core.send_window.saturating_sub(length);
            while !bytes.is_empty() {
                let part = bytes.split_to(bytes.len().min(most));
                let head = Head { length: part.len(), kind: frame::DATA, flags: 0, stream: live.id };
                core.out.put(|out| out.extend_from_slice(&head.write()));
                core.out.push(part);
            }
            core.wake_driver();
            Ok(())
        })
    }

    /// Ends our half.
    pub(in crate::hbone) fn finish(&self) -> Result<(), StreamError> {
        self.with(Ok(()), |core, key| {
            let Some(live) = core.streams.get_mut(key) else { return Ok(()) };
            live.unbroken()?;
            live.our_end = true;
            let stream = live.id;
            core.out.put(|out| frame::put(out, frame::DATA, frame::END_STREAM, stream, &[]));
            core.wake_driver();
            core.count_closed(key);
            Ok(())
        })
    }

    /// Resets it, if it has not ended.
    pub(in crate::hbone) fn reset(&self, reason: Reason) {
        self.with((), |core, key| {
            let Some(live) = core.streams.get_mut(key) else { return };
            if live.is_over() {
                return;
            }
            let stream = live.id;
            core.put_reset(stream, reason);
            core.break_stream(key, Break::Reset(reason));
        });
    }

    /// Ready once the far side has reset it, or the connection is lost.
    pub(in crate::hbone) fn poll_reset(&self, cx: &Context<'_>) -> Poll<StreamError> {
        self.live(Poll::Ready(StreamError::Reset(Reason::CANCEL)), |live| match &live.broken {
            Some(broken) => Poll::Ready(broken.clone().into()),
            None => {
                keep(&mut live.watcher, cx);
                Poll::Pending
            }
        })
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        // Who was answered, and has more to say, is told that nobody listens; for the others it is cut off.
        let has_answered = self.live(false, |live| live.our_end);
        self.reset(if has_answered { Reason::NO_ERROR } else { Reason::CANCEL });
        self.session.0.borrow_mut().remove(self.key);
    }
}
