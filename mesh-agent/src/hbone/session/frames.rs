//! What comes from the peer, frame by frame.

use std::rc::Rc;

use bytes::Bytes;
use h2::Reason;

use super::live::{Break, Live, wake};
use super::{ARE_YOU_THERE, Block, Core, Fault, Goodbye, LAST_CALL, Role};
use crate::hbone::frame::{self, Head};
use crate::hbone::head::Fields;
use crate::hbone::limits;

const MOST_FRAME: usize = limits::MAX_FRAME_BYTES as usize;
const MOST_BLOCK: usize = limits::MAX_HEADER_LIST_BYTES as usize;

impl Core {
    pub(super) fn take(&mut self, head: Head, payload: &[u8]) -> Result<(), Fault> {
        if let Some(block) = &self.block
            && (head.kind != frame::CONTINUATION || head.stream != block.stream)
        {
            return Err((Reason::PROTOCOL_ERROR, "a head was not finished"));
        }
        if !self.their.has_spoken && (head.kind != frame::SETTINGS || head.has(frame::ACK)) {
            return Err((Reason::PROTOCOL_ERROR, "its first frame is no SETTINGS"));
        }
        match head.kind {
            frame::HEADERS => self.headers(head, payload),
            frame::CONTINUATION => self.continuation(head, payload),
            frame::PRIORITY => self.priority(head, payload),
            frame::RST_STREAM => self.reset(head, payload),
            frame::SETTINGS => self.settings(head, payload),
            frame::PUSH_PROMISE => Err((Reason::PROTOCOL_ERROR, "a push, which nobody may make")),
            frame::PING => self.pinged(head, payload),
            frame::GOAWAY => self.goaway(head, payload),
            frame::WINDOW_UPDATE => self.credit(head, payload),
            _ => Ok(()),
        }
    }

    fn headers(&mut self, head: Head, payload: &[u8]) -> Result<(), Fault> {
        if head.stream == 0 {
            return Err((Reason::PROTOCOL_ERROR, "a head without a stream"));
        }
        let mut rest = payload;
        let mut padding = 0;
        if head.has(frame::PADDED) {
            let (first, after) = rest.split_first().ok_or(SHORT)?;
            (padding, rest) = (usize::from(*first), after);
        }
        if head.has(frame::PRIORITISED) {
            let (priority, after) = rest.split_at_checked(5).ok_or(SHORT)?;
            if depends_on(priority) == Some(head.stream) {
                return Err((Reason::PROTOCOL_ERROR, "a stream that depends on itself"));
            }
            rest = after;
        }
        let length = rest.len().checked_sub(padding).ok_or((Reason::PROTOCOL_ERROR, "more padding than frame"))?;
        let bytes = rest.get(..length).unwrap_or_default().to_vec();
        let block = Block { stream: head.stream, ends: head.has(frame::END_STREAM), bytes, continuations: 0 };
        self.block_grew(block, head.has(frame::END_HEADERS))
    }

    fn continuation(&mut self, head: Head, payload: &[u8]) -> Result<(), Fault> {
        let mut block = self.block.take().ok_or((Reason::PROTOCOL_ERROR, "no head goes on here"))?;
        block.bytes.extend_from_slice(payload);
        block.continuations = block.continuations.saturating_add(1);
        self.block_grew(block, head.has(frame::END_HEADERS))
    }

    fn block_grew(&mut self, block: Block, is_whole: bool) -> Result<(), Fault> {
        if block.bytes.len() > MOST_BLOCK || block.continuations > limits::MAX_CONTINUATIONS {
            return Err((Reason::ENHANCE_YOUR_CALM, "a head that is too long"));
        }
        if !is_whole {
            self.block = Some(block);
            return Ok(());
        }
        let mut fields = Fields::default();
        let read = self.decoder.decode(&block.bytes, |name, value| fields.take(name, value));
        read.map_err(|_| (Reason::COMPRESSION_ERROR, "a head that cannot be read"))?;
        if fields.is_flood() {
            return Err((Reason::ENHANCE_YOUR_CALM, "a head that is too large"));
        }
        match self.by_id.get(&block.stream).copied() {
            Some(key) => self.more_headers(key, &block, &fields),
            None if self.role == Role::Server => self.request(&block, &fields),
            None if self.is_idle(block.stream) => Err((Reason::PROTOCOL_ERROR, "a head for no stream")),
            None => self.late(block.stream),
        }
    }

    /// Something for a stream that is over.
    fn late(&mut self, stream: u32) -> Result<(), Fault> {
        if self.forgotten.contains(&stream) {
            return Ok(());
        }
        self.refuse(stream, Reason::STREAM_CLOSED)
    }

    fn request(&mut self, block: &Block, fields: &Fields) -> Result<(), Fault> {
        let stream = block.stream;
        if stream.is_multiple_of(2) {
            return Err((Reason::PROTOCOL_ERROR, "a client's stream with an even number"));
        }
        if stream <= self.last {
            return self.late(stream);
        }
        self.last = stream;
        let is_leaving = matches!(self.goodbye, Goodbye::Said(last) if stream > last);
        if is_leaving || self.open >= self.most_streams {
            self.put_reset(stream, Reason::REFUSED_STREAM);
            return Ok(());
        }
        let asked = match fields.request() {
            Ok(asked) => asked,
            Err(reason) => return self.refuse(stream, reason),
        };
        let mut live = Live::new(stream, self.their.initial_window);
        (live.asked, live.their_end) = (Some(asked), block.ends);
        let key = self.streams.insert(live);
        self.by_id.insert(stream, key);
        self.open = self.open.saturating_add(1);
        self.incoming.push_back(key);
        Ok(())
    }

    /// An answer, or trailers, of which none mean anything.
    fn more_headers(&mut self, key: usize, block: &Block, fields: &Fields) -> Result<(), Fault> {
        let role = self.role;
        let Some(live) = self.streams.get_mut(key) else { return Ok(()) };
        if live.their_end {
            return Err((Reason::PROTOCOL_ERROR, "a head after the end"));
        }
        let is_answer = role == Role::Client && live.answer.is_none();
        if is_answer {
            match fields.answer() {
                Ok(answer) if answer.status.is_informational() => return Ok(()),
                Ok(answer) => live.answer = Some(answer),
                Err(reason) => return self.refuse(block.stream, reason),
            }
            wake(&mut live.reader);
        }
        match block.ends {
            true => self.end_of(block.stream),
            false if is_answer => {}
            false => return self.refuse(block.stream, Reason::PROTOCOL_ERROR),
        }
        Ok(())
    }

    fn priority(&mut self, head: Head, payload: &[u8]) -> Result<(), Fault> {
        if head.stream == 0 || payload.len() != 5 {
            return Err((Reason::PROTOCOL_ERROR, "a priority of nothing"));
        }
        if depends_on(payload) == Some(head.stream) { self.fault() } else { Ok(()) }
    }

    fn reset(&mut self, head: Head, payload: &[u8]) -> Result<(), Fault> {
        let reason = frame::word(payload).filter(|_| payload.len() == 4).ok_or(SIZE)?;
        if head.stream == 0 || self.is_idle(head.stream) {
            return Err((Reason::PROTOCOL_ERROR, "a reset of no stream"));
        }
        let Some(key) = self.by_id.get(&head.stream).copied() else { return Ok(()) };
        self.break_stream(key, Break::Reset(Reason::from(reason)));
        if self.pending_resets > limits::MAX_PENDING_RESETS {
            return Err((Reason::ENHANCE_YOUR_CALM, "too many requests that were taken back at once"));
        }
        Ok(())
    }

    fn settings(&mut self, head: Head, payload: &[u8]) -> Result<(), Fault> {
        if head.stream != 0 {
            return Err((Reason::PROTOCOL_ERROR, "settings of a stream"));
        }
        if head.has(frame::ACK) {
            return if payload.is_empty() { Ok(()) } else { Err(SIZE) };
        }
        if !payload.len().is_multiple_of(6) {
            return Err(SIZE);
        }
        let mut window = None;
        for (name, value) in frame::settings(payload) {
            match name {
                frame::INITIAL_WINDOW_SIZE if i64::from(value) > frame::MOST_WINDOW => {
                    return Err((Reason::FLOW_CONTROL_ERROR, "a window larger than any"));
                }
                frame::INITIAL_WINDOW_SIZE => window = Some(value),
                frame::MAX_FRAME_SIZE if !(frame::LEAST_FRAME..=frame::MOST_FRAME).contains(&value) => {
                    return Err((Reason::PROTOCOL_ERROR, "a size of frames that may not be"));
                }
                frame::MAX_FRAME_SIZE => self.their.frame = (value as usize).min(MOST_FRAME),
                frame::MAX_CONCURRENT_STREAMS => self.their.streams = value as usize,
                frame::ENABLE_PUSH if value > 1 => {
                    return Err((Reason::PROTOCOL_ERROR, "a switch that is neither on nor off"));
                }
                // What we say is never remembered, so its table may be of any size.
                _ => {}
            }
        }
        self.their.has_spoken = true;
        if let Some(window) = window {
            self.windows_moved(window)?;
        }
        self.wake_opening();
        self.out.put(|out| frame::put(out, frame::SETTINGS, frame::ACK, 0, &[]));
        Ok(())
    }

    fn windows_moved(&mut self, window: u32) -> Result<(), Fault> {
        let by = i64::from(window).saturating_sub(i64::from(self.their.initial_window));
        self.their.initial_window = window;
        for (_, live) in &mut self.streams {
            live.send_window = live.send_window.saturating_add(by);
            if live.send_window > frame::MOST_WINDOW {
                return Err((Reason::FLOW_CONTROL_ERROR, "a window larger than any"));
            }
            wake(&mut live.writer);
        }
        Ok(())
    }

    fn pinged(&mut self, head: Head, payload: &[u8]) -> Result<(), Fault> {
        let payload: [u8; 8] = payload.try_into().map_err(|_| SIZE)?;
        if head.stream != 0 {
            return Err((Reason::PROTOCOL_ERROR, "a ping of a stream"));
        }
        if !head.has(frame::ACK) {
            self.out.put(|out| frame::put(out, frame::PING, frame::ACK, 0, &payload));
            return Ok(());
        }
        if payload == ARE_YOU_THERE
            && let Some(ping) = &mut self.ping
        {
            ping.is_answered = true;
            wake(&mut ping.waker);
        }
        if payload == LAST_CALL && self.goodbye == Goodbye::Announced {
            self.say_goodbye(Reason::NO_ERROR);
        }
        Ok(())
    }

    fn goaway(&mut self, head: Head, payload: &[u8]) -> Result<(), Fault> {
        if head.stream != 0 {
            return Err((Reason::PROTOCOL_ERROR, "a goodbye of a stream"));
        }
        let (Some(last), Some(reason)) = (frame::word(payload), payload.get(4..).and_then(frame::word)) else {
            return Err(SIZE);
        };
        let (last, reason) = (last & frame::MOST_STREAM, Reason::from(reason));
        self.their_goodbye = Some(reason);
        let why: Rc<str> = format!("the peer said goodbye: {reason}").into();
        for (_, live) in &mut self.streams {
            if self.role == Role::Client && live.id > last && !live.is_over() {
                live.broken = Some(if reason == Reason::NO_ERROR {
                    Break::Unseen(why.clone())
                } else {
                    Break::Lost(why.clone())
                });
                live.wake_all();
            }
        }
        self.wake_opening();
        Ok(())
    }

    fn credit(&mut self, head: Head, payload: &[u8]) -> Result<(), Fault> {
        let by = frame::word(payload).filter(|_| payload.len() == 4).ok_or(SIZE)? & frame::MOST_STREAM;
        if by == 0 {
            return Err((Reason::PROTOCOL_ERROR, "a credit of nothing"));
        }
        if head.stream == 0 {
            self.send_window = self.send_window.saturating_add(i64::from(by));
            if self.send_window > frame::MOST_WINDOW {
                return Err((Reason::FLOW_CONTROL_ERROR, "a window larger than any"));
            }
            self.feed();
            return Ok(());
        }
        if self.is_idle(head.stream) {
            return Err((Reason::PROTOCOL_ERROR, "a credit for no stream"));
        }
        // It may be late, as for any stream that has ended.
        let Some(live) = self.live(head.stream) else { return Ok(()) };
        live.send_window = live.send_window.saturating_add(i64::from(by));
        wake(&mut live.writer);
        if live.send_window > frame::MOST_WINDOW {
            return self.refuse(head.stream, Reason::FLOW_CONTROL_ERROR);
        }
        Ok(())
    }

    pub(super) fn begin_data(&mut self, head: Head) -> Result<(), Fault> {
        if self.block.is_some() {
            return Err((Reason::PROTOCOL_ERROR, "a head was not finished"));
        }
        if !self.their.has_spoken {
            return Err((Reason::PROTOCOL_ERROR, "its first frame is no SETTINGS"));
        }
        if head.stream == 0 || self.is_idle(head.stream) {
            return Err((Reason::PROTOCOL_ERROR, "data for no stream"));
        }
        let length = head.length as i64;
        if length > self.recv_window {
            return Err((Reason::FLOW_CONTROL_ERROR, "more data than the connection's window"));
        }
        self.recv_window = self.recv_window.saturating_sub(length);
        // It may be for somebody who never reads it, and the last that the peer could say.
        self.pay();
        if length == 0 && !head.has(frame::END_STREAM) {
            self.fault()?;
        }
        let Some(live) = self.live(head.stream) else { return self.late(head.stream) };
        if live.broken.is_some() {
            return Ok(());
        }
        if live.their_end {
            return Err((Reason::PROTOCOL_ERROR, "data after the end"));
        }
        if length > live.recv_window {
            return self.refuse(head.stream, Reason::FLOW_CONTROL_ERROR);
        }
        live.recv_window = live.recv_window.saturating_sub(length);
        Ok(())
    }

    pub(super) fn data(&mut self, stream: u32, bytes: Bytes) {
        let length = bytes.len();
        match self.live(stream) {
            Some(live) if live.broken.is_none() => {
                live.unreleased = live.unreleased.saturating_add(length);
                live.received.push(bytes);
                wake(&mut live.reader);
            }
            // Nobody will read it: the connection's credit goes back at once.
            Some(_) | None => self.owe(length),
        }
    }

    pub(super) fn padding(&mut self, stream: u32, length: usize) {
        if let Some(live) = self.live(stream) {
            live.recv_window = live.recv_window.saturating_add(length as i64);
            self.out.put(|out| frame::put_credit(out, stream, length as u32));
        }
        self.owe(length);
    }

    pub(super) fn end_of(&mut self, stream: u32) {
        let Some(key) = self.by_id.get(&stream).copied() else { return };
        if let Some(live) = self.streams.get_mut(key) {
            live.their_end = true;
            wake(&mut live.reader);
        }
        self.count_closed(key);
    }
}

/// A frame that ends before what it says is there.
const SHORT: Fault = (Reason::PROTOCOL_ERROR, "a frame that ends too soon");
/// A frame of the wrong size.
const SIZE: Fault = (Reason::FRAME_SIZE_ERROR, "a frame of the wrong size");

fn depends_on(priority: &[u8]) -> Option<u32> {
    frame::word(priority).map(|stream| stream & frame::MOST_STREAM)
}
