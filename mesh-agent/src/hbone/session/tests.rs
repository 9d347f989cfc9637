//! The connection's credit, where not everybody reads.

use std::io::IoSlice;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use http::StatusCode;

use super::*;
use crate::addr::ClientAddr;
use crate::hbone::head;
use crate::hbone::words::ConnectRequest;

const MIB: i64 = 1 << 20;
const CHUNK: usize = limits::MAX_FRAME_BYTES as usize;

/// A client that says whatever it has credit for.
struct Peer {
    session: Session,
    /// What is left of each stream's; that of 0 is the connection's.
    windows: HashMap<u32, i64>,
    next: u32,
    bytes: Bytes,
}

impl Peer {
    fn new() -> Self {
        let session = Session::server(&Limits::default());
        session.take(Head { length: 0, kind: frame::SETTINGS, flags: 0, stream: 0 }, &[]).unwrap();
        let windows = HashMap::from([(0, i64::from(frame::FIRST_WINDOW))]);
        Self { session, windows, next: 1, bytes: vec![0; CHUNK].into() }
    }

    fn open(&mut self) -> (u32, Handle) {
        let authority = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 80);
        let block = head::request(&ConnectRequest {
            authority,
            forwarded: ClientAddr::new(authority),
            host: None,
            baggage: String::new(),
            traceparent: String::new(),
        });
        let stream = self.next;
        let head = Head { length: block.len(), kind: frame::HEADERS, flags: frame::END_HEADERS, stream };
        self.session.take(head, &block).unwrap();
        self.next += 2;
        self.windows.insert(stream, STREAM_WINDOW);
        (stream, self.session.next_request().expect("room for one more").handle)
    }

    /// Takes the credit that was given.
    fn hear(&mut self) {
        let mut heard = Vec::new();
        self.session.out(|out| {
            while out.len() > 0 {
                let mut slices = [IoSlice::new(&[]); 8];
                let filled = out.slices(&mut slices);
                let part: Vec<u8> = slices[..filled].iter().flat_map(|slice| slice.to_vec()).collect();
                out.advance(part.len());
                heard.extend(part);
            }
        });
        let mut left = &heard[..];
        while let Some((head, rest)) = left.split_first_chunk() {
            let head = Head::read(*head);
            let (payload, rest) = rest.split_at(head.length);
            if head.kind == frame::WINDOW_UPDATE {
                let by = frame::word(payload).unwrap();
                assert!(by > 0, "a credit of nothing");
                *self.windows.get_mut(&head.stream).unwrap() += i64::from(by);
            }
            left = rest;
        }
    }

    /// Says as much as it may, up to a frame; how much that was.
    fn say(&mut self, stream: u32) -> usize {
        self.hear();
        let length = self.windows[&0].min(self.windows[&stream]).min(CHUNK as i64) as usize;
        if length > 0 {
            self.session.begin_data(Head { length, kind: frame::DATA, flags: 0, stream }).unwrap();
            self.session.data(stream, self.bytes.slice(..length));
            for window in [0, stream] {
                *self.windows.get_mut(&window).unwrap() -= length as i64;
            }
        }
        length
    }

    /// Says all that a stream's window holds, which nobody reads.
    fn fill(&mut self, stream: u32, handle: &Handle) {
        while self.say(stream) > 0 {}
        assert_eq!(handle.unreleased() as i64, STREAM_WINDOW, "stream {stream}");
    }

    /// Says so much by a stream whose bytes are read as they come.
    fn goes_on(&mut self, stream: u32, handle: &Handle, length: i64) {
        let mut left = length;
        while left > 0 {
            let said = self.say(stream);
            assert!(said > 0, "it stands still, {left} bytes before its end");
            read(handle);
            left -= said as i64;
        }
    }

    /// When nothing is unread, no credit is lost, and none was given twice.
    fn has_all_credit(&mut self) {
        self.hear();
        assert_eq!(self.windows[&0] + self.session.0.borrow().owed, CONNECTION_WINDOW);
    }
}

fn read(handle: &Handle) {
    let cx = Context::from_waker(Waker::noop());
    while let Poll::Ready(Some(Ok(bytes))) = handle.poll_recv(&cx) {
        handle.release(bytes.len());
    }
}

/// (streams that nobody reads, what the one that is read has carried before they begin)
#[test]
fn many_who_do_not_read_stall_nobody_else() {
    for (unread, before) in [(0, 0), (51, 0), (99, 0), (60, 15 * MIB), (86, 15 * MIB), (86, 49 * MIB), (99, 40 * MIB)] {
        let mut peer = Peer::new();
        let (stream, handle) = peer.open();
        peer.goes_on(stream, &handle, before);
        let mut unread: Vec<_> = (0..unread).map(|_| peer.open()).collect();
        unread.iter().for_each(|(stream, handle)| peer.fill(*stream, handle));
        peer.goes_on(stream, &handle, 3 * CONNECTION_WINDOW);
        // Some are read after all, some are given up.
        unread.iter().step_by(2).for_each(|(_, handle)| read(handle));
        unread.clear();
        peer.has_all_credit();
    }
}

/// Both sides have ended them, so the peer opens others in their place: these have a window's room each all the same.
#[test]
fn those_that_are_over_and_unread_stall_nobody_else() {
    let mut peer = Peer::new();
    let over = |peer: &mut Peer| {
        let (stream, handle) = peer.open();
        peer.fill(stream, &handle);
        handle.respond(StatusCode::OK, "", true).unwrap();
        peer.session.end_of(stream);
        handle
    };
    let mut over: Vec<Handle> = (0..limits::MAX_HANDLERS).map(|_| over(&mut peer)).collect();
    let (stream, handle) = peer.open();
    peer.goes_on(stream, &handle, 3 * CONNECTION_WINDOW);
    over.iter().step_by(2).for_each(read);
    over.clear();
    peer.has_all_credit();
}
