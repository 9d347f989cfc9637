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
            // Whoever has not heard of our reset yet may still say how the message ends.
            return match self.forgotten.contains(&stream) {
                true => Ok(()),
                false => Err((Reason::PROTOCOL_ERROR, "a head for a stream that begins no more")),
            };
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
        if live.broken.is_some() {
            return self.late(block.stream);
        }
        if live.their_end {
            return Err((Reason::STREAM_CLOSED, "a head after the end"));
        }
        let is_answer = role == Role::Client && live.answer.is_none();
        if is_answer {
            match fields.answer() {
                Ok(answer) if answer.status.is_informational() => return Ok(()),
                Ok(answer) => live.answer = Some(answer),
                Err(reason) => return self.refuse(block.stream, reason),
            }
            wake(&mut live.reader);
        } else if !block.ends || !fields.are_trailers() {
            return self.refuse(block.stream, Reason::PROTOCOL_ERROR);
        }
        if block.ends {
            self.end_of(block.stream);
        }
        Ok(())
    }

    fn priority(&mut self, head: Head, payload: &[u8]) -> Result<(), Fault> {
        if head.stream == 0 {
            return Err((Reason::PROTOCOL_ERROR, "a priority of nothing"));
        }
        if payload.len() != 5 {
            return Err(SIZE);
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
        let Some(live) = self.live(head.stream).filter(|live| live.broken.is_none()) else {
            return self.late(head.stream);
        };
        if live.their_end {
            return Err((Reason::STREAM_CLOSED, "data after the end"));
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
        if let Some(live) = self.live(stream).filter(|live| live.broken.is_none()) {
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
const SHORT: Fault = (Reason::FRAME_SIZE_ERROR, "a frame that ends too soon");
/// A frame of the wrong size.
const SIZE: Fault = (Reason::FRAME_SIZE_ERROR, "a frame of the wrong size");

fn depends_on(priority: &[u8]) -> Option<u32> {
    frame::word(priority).map(|stream| stream & frame::MOST_STREAM)
}

#[cfg(test)]
mod tests {
    use std::io::IoSlice;

    use super::super::Session;
    use super::*;
    use crate::hbone::hpack::{self, Known};
    use crate::hbone::limits::Limits;

    /// Its kind, flags, stream and payload.
    type Frame<'a> = (u8, u8, u32, &'a [u8]);

    /// What becomes of frames: the reason for which the connection ends, or each stream that is reset, and why.
    fn comes_of(frames: &[Frame]) -> Result<Vec<(u32, Reason)>, Reason> {
        let session = Session::server(&Limits::default());
        for (kind, flags, stream, payload) in [(frame::SETTINGS, 0, 0, &[][..])].iter().chain(frames).copied() {
            let head = Head { length: payload.len(), kind, flags, stream };
            let taken = if kind == frame::DATA { session.begin_data(head) } else { session.take(head, payload) };
            taken.map_err(|(reason, _)| reason)?;
        }
        let said = session.out(|out| {
            let mut slices = [IoSlice::new(&[]); 8];
            let filled = out.slices(&mut slices);
            slices[..filled].iter().flat_map(|slice| slice.to_vec()).collect::<Vec<u8>>()
        });
        let (mut said, mut resets) = (&said[..], Vec::new());
        while let Some((head, rest)) = said.split_first_chunk() {
            let head = Head::read(*head);
            let (payload, rest) = rest.split_at(head.length);
            if head.kind == frame::RST_STREAM {
                resets.push((head.stream, Reason::from(frame::word(payload).unwrap())));
            }
            said = rest;
        }
        Ok(resets)
    }

    /// RFC 9113, sections 4.2, 5.1, 5.1.1, 6.3 and 8.1.
    #[test]
    fn what_comes_where_it_may_not_ends_as_the_rfc_says() {
        let (mut connect, mut get, mut method, mut field) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        hpack::put_known(&mut connect, Known::Method, b"CONNECT");
        hpack::put_known(&mut connect, Known::Authority, b"10.0.0.1:80");
        hpack::put_known(&mut get, Known::Method, b"GET");
        hpack::put_known(&mut method, Known::Method, b"POST");
        hpack::put(&mut field, "x", b"y");
        const WHOLE: u8 = frame::END_HEADERS;
        const LAST: u8 = frame::END_HEADERS | frame::END_STREAM;
        const PRIORITISED: u8 = frame::END_HEADERS | frame::PRIORITISED;
        let open: Frame = (frame::HEADERS, WHOLE, 1, &connect);
        let [fifth, third]: [Frame; 2] = [5, 3].map(|stream| (frame::HEADERS, WHOLE, stream, &connect[..]));
        let ended: Frame = (frame::HEADERS, LAST, 1, &connect);
        let half: Frame = (frame::HEADERS, WHOLE, 1, &get);
        let trailers: Frame = (frame::HEADERS, LAST, 1, &field);
        let taken_back: Frame = (frame::RST_STREAM, 0, 1, &[0; 4]);
        let data: Frame = (frame::DATA, 0, 1, b"x");
        let stream = |reason| Ok(vec![(1, reason)]);
        for (what, frames, comes) in [
            ("no fault", &[open, data, trailers][..], Ok(vec![])),
            ("DATA after the end", &[ended, data], Err(Reason::STREAM_CLOSED)),
            ("a head after the end", &[ended, trailers], Err(Reason::STREAM_CLOSED)),
            ("DATA, once taken back", &[open, taken_back, data, data], stream(Reason::STREAM_CLOSED)),
            ("a head, once taken back", &[open, taken_back, trailers], stream(Reason::STREAM_CLOSED)),
            ("trailers before the end", &[open, (frame::HEADERS, WHOLE, 1, &field)], stream(Reason::PROTOCOL_ERROR)),
            ("trailers with a method", &[open, (frame::HEADERS, LAST, 1, &method)], stream(Reason::PROTOCOL_ERROR)),
            ("half a request, and more", &[half, data, trailers], stream(Reason::PROTOCOL_ERROR)),
            ("a stream below the last", &[fifth, third], Err(Reason::PROTOCOL_ERROR)),
            ("a short priority", &[(frame::PRIORITY, 0, 1, &[0; 4])], Err(Reason::FRAME_SIZE_ERROR)),
            ("one of a head", &[(frame::HEADERS, PRIORITISED, 1, &[0; 4])], Err(Reason::FRAME_SIZE_ERROR)),
            // It means nothing, and a stream that is idle cannot be reset.
            ("a priority of its own", &[(frame::PRIORITY, 0, 1, &[0, 0, 0, 1, 0])], Ok(vec![])),
        ] {
            assert_eq!(comes_of(frames), comes, "{what}");
        }
    }
}
