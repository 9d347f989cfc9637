//! What is said. A row is an attack's name, its frames, and what becomes of it at either door.

use super::frames::*;
use super::{Attack, Door, End, Expected, Ground};

/// `http::limits::MAX_LOCAL_RESETS`, and `hbone::limits::MAX_FAULTS`.
const RESETS: [u64; 2] = [1024, 16_384];
/// Where it ends sooner, or where ten bytes kept of each would be more than may be.
const MANY: u32 = 100_000;
/// More answers than the kernel holds of what nobody reads.
const ENOUGH: u32 = 2_000_000;

fn nothing(_: &Ground) -> Vec<u8> {
    Vec::new()
}

/// The client's streams have odd numbers.
fn stream(number: u32) -> u32 {
    2 * number + 1
}

const fn ends(end: End, mib: i64) -> Expected {
    Expected { end, answers: None, mib }
}

/// The same, and so many frames of a kind come back: at least, at most.
const fn answered(end: End, mib: i64, answers: (u8, u64, u64)) -> Expected {
    Expected { end, answers: Some(answers), mib }
}

/// It ends when so many streams had to be reset.
const fn resets(most: u64) -> Expected {
    answered(CALM, 4, (RST_STREAM, 0, most))
}

const CALM: End = End::GoAway(ENHANCE_YOUR_CALM);
const BROKEN: End = End::GoAway(PROTOCOL_ERROR);

pub const ATTACKS: &[Attack] = &[
    Attack {
        name: "B3 CONTINUATION without end, empty",
        first: |ground| frame(HEADERS, 0, 1, &ground.good("5")),
        again: |_, _| frame(CONTINUATION, 0, 1, &[]),
        times: MANY,
        reads: true,
        requests: ends(CALM, 1),
        tunnel: ends(CALM, 1),
    },
    Attack {
        name: "B3 CONTINUATION without end, full of fields",
        first: |ground| frame(HEADERS, 0, 1, &ground.good("5")),
        again: |_, _| frame(CONTINUATION, 0, 1, &field(b"x", b"y").repeat(3000)),
        times: MANY,
        reads: true,
        requests: ends(CALM, 1),
        tunnel: ends(CALM, 1),
    },
    Attack {
        name: "B3 CONTINUATION without end, one string",
        first: |ground| frame(HEADERS, 0, 1, &[ground.good("5"), vec![0, 1, b'x'], length(200_000_000)].concat()),
        again: |_, _| frame(CONTINUATION, 0, 1, &[b'y'; 16_000]),
        times: MANY,
        reads: true,
        requests: ends(CALM, 1),
        tunnel: ends(CALM, 1),
    },
    Attack {
        name: "B5 WINDOW_UPDATE of 0 for the connection",
        first: nothing,
        again: |_, _| window_update(0, 0),
        times: 20_000,
        reads: true,
        requests: ends(BROKEN, 1),
        tunnel: ends(BROKEN, 1),
    },
    Attack {
        name: "B5 WINDOW_UPDATE of 0 for streams",
        first: nothing,
        again: |ground, i| [ground.open(stream(i)), window_update(stream(i), 0)].concat(),
        times: 20_000,
        reads: true,
        requests: ends(BROKEN, 1),
        tunnel: ends(BROKEN, 1),
    },
    Attack {
        name: "B5 windows that overflow",
        first: nothing,
        again: |ground, i| [ground.open(stream(i)), window_update(stream(i), (1 << 31) - 1)].concat(),
        times: 20_000,
        reads: true,
        requests: resets(RESETS[0]),
        tunnel: resets(RESETS[1]),
    },
    Attack {
        name: "B5 DATA after the end of a stream",
        first: nothing,
        again: |ground, i| {
            [ground.open(stream(i)), frame(DATA, END_STREAM, stream(i), b""), frame(DATA, 0, stream(i), b"x")].concat()
        },
        times: 20_000,
        reads: true,
        requests: ends(BROKEN, 1),
        tunnel: ends(End::GoAway(STREAM_CLOSED), 1),
    },
    Attack {
        name: "B5 more DATA than was said",
        first: nothing,
        again: |ground, i| {
            let head = [ground.good("5"), field(b"content-length", b"1")].concat();
            [frame(HEADERS, END_HEADERS, stream(i), &head), frame(DATA, 0, stream(i), b"xx")].concat()
        },
        times: 20_000,
        reads: true,
        requests: ends(CALM, 8),
        tunnel: ends(CALM, 8),
    },
    Attack {
        name: "B5 streams that depend on themselves",
        first: nothing,
        again: |_, i| frame(PRIORITY, 0, stream(i), &[&stream(i).to_be_bytes()[..], &[0]].concat()),
        times: 20_000,
        reads: true,
        requests: resets(RESETS[0]),
        tunnel: resets(RESETS[1]),
    },
    Attack {
        name: "B5 DATA on streams that never were",
        first: |ground| ground.ask(stream(20_000), "5"),
        again: |_, i| frame(DATA, 0, stream(i), b""),
        times: 20_000,
        reads: true,
        requests: resets(RESETS[0]),
        tunnel: resets(RESETS[1]),
    },
    Attack {
        name: "B5 DATA on a stream that was reset",
        first: |ground| [ground.open(1), frame(RST_STREAM, 0, 1, &[0; 4])].concat(),
        again: |_, _| frame(DATA, 0, 1, b""),
        times: 20_000,
        reads: true,
        requests: ends(CALM, 1),
        tunnel: ends(CALM, 1),
    },
    Attack {
        name: "B4 heads that cannot be read, answers unread",
        first: nothing,
        again: |ground, i| ground.with(stream(i), &field(b"connection", b"close")),
        times: 20_000,
        reads: false,
        requests: resets(RESETS[0]),
        tunnel: resets(RESETS[1]),
    },
    Attack {
        name: "B6 SETTINGS",
        first: nothing,
        again: |_, _| frame(SETTINGS, 0, 0, &[]),
        times: MANY,
        reads: true,
        requests: answered(End::Taken, 1, (SETTINGS, MANY as u64 + 2, MANY as u64 + 2)),
        tunnel: answered(End::Taken, 1, (SETTINGS, MANY as u64 + 2, MANY as u64 + 2)),
    },
    Attack {
        name: "B6 SETTINGS that move the windows of 100 streams",
        first: |ground| (0..100).flat_map(|i| ground.open(stream(i))).collect(),
        again: |_, i| settings(INITIAL_WINDOW_SIZE, 65_535 - i % 2),
        times: 2_000,
        reads: true,
        requests: answered(End::Taken, 8, (SETTINGS, 2002, 2002)),
        tunnel: answered(End::Taken, 8, (SETTINGS, 2002, 2002)),
    },
    Attack {
        name: "B6 PING",
        first: nothing,
        again: |_, i| frame(PING, 0, 0, &u64::from(i).to_be_bytes()),
        times: MANY,
        reads: true,
        requests: answered(End::Taken, 1, (PING, MANY as u64, MANY as u64 + 1)),
        tunnel: answered(End::Taken, 1, (PING, MANY as u64, MANY as u64 + 1)),
    },
    Attack {
        name: "B6 PING, answers unread",
        first: nothing,
        again: |_, i| frame(PING, 0, 0, &u64::from(i).to_be_bytes()),
        times: ENOUGH,
        reads: false,
        requests: ends(End::Stopped, 1),
        tunnel: ends(End::Stopped, 1),
    },
    Attack {
        name: "B6 empty DATA",
        first: |ground| ground.open(1),
        again: |_, _| frame(DATA, 0, 1, b""),
        times: MANY,
        reads: true,
        requests: ends(CALM, 1),
        tunnel: ends(CALM, 1),
    },
    Attack {
        name: "B6 DATA of one byte",
        first: |ground| ground.open(1),
        again: |_, _| frame(DATA, 0, 1, b"x"),
        times: 300_000,
        reads: true,
        requests: ends(End::Taken, 4),
        tunnel: ends(End::Taken, 4),
    },
    Attack {
        name: "B6 PRIORITY",
        first: nothing,
        again: |_, i| frame(PRIORITY, 0, stream(i % 1000), &[0, 0, 0, 0, 7]),
        times: MANY,
        reads: true,
        requests: ends(End::Taken, 1),
        tunnel: ends(End::Taken, 1),
    },
    Attack {
        name: "B6 frames of no known kind",
        first: nothing,
        again: |_, _| frame(0xfa, 0, 0, &[]),
        times: MANY,
        reads: true,
        requests: ends(End::Taken, 1),
        tunnel: ends(End::Taken, 1),
    },
    Attack {
        name: "B7 a field of 4 KB, 10 000 times in one head",
        first: |ground| ground.with(1, &remembered(b"x", &[b'y'; 4000])),
        again: |ground, i| ground.with(stream(i + 1), &[NEWEST; 10_000]),
        times: 20_000,
        reads: true,
        requests: ends(CALM, 1),
        tunnel: ends(CALM, 1),
    },
    Attack {
        name: "B7 a field of 4 KB, as often as is no reason to close",
        first: |ground| ground.with(1, &remembered(b"x", &[b'y'; 4000])),
        again: |ground, i| {
            // Less than four times what a head may be.
            let times = if ground.door == Door::Requests { 60 } else { 14 };
            ground.with(stream(i + 1), &[NEWEST].repeat(times))
        },
        times: 1000,
        reads: true,
        requests: ends(End::Taken, 2),
        tunnel: ends(End::Taken, 2),
    },
    Attack {
        name: "B8 windows of 0, and 200 requests with long answers",
        first: |_| settings(INITIAL_WINDOW_SIZE, 0),
        again: |ground, i| ground.ask(stream(i), "67108864"),
        times: 200,
        reads: true,
        requests: answered(End::Taken, 160, (HEADERS, 100, 100)),
        tunnel: answered(End::Taken, 160, (HEADERS, 100, 100)),
    },
    Attack {
        name: "B8 windows without end, and 200 long answers that nobody reads",
        first: |_| [settings(INITIAL_WINDOW_SIZE, (1 << 31) - 1), window_update(0, (1 << 31) - 65_536)].concat(),
        again: |ground, i| ground.ask(stream(i), "67108864"),
        times: 200,
        reads: false,
        requests: ends(End::Taken, 160),
        tunnel: ends(End::Taken, 160),
    },
    Attack {
        name: "B9 200 fields",
        first: nothing,
        again: |ground, _| ground.with(1, &field(b"x", b"y").repeat(200)),
        times: 1,
        reads: true,
        requests: answered(End::Taken, 1, (HEADERS, 1, 1)),
        tunnel: answered(End::Taken, 1, (HEADERS, 1, 1)),
    },
    Attack {
        name: "B9 1 900 fields in each of 100 heads",
        first: nothing,
        again: |ground, i| ground.with(stream(i), &field(b"x", b"").repeat(1900)),
        times: 100,
        reads: true,
        requests: answered(End::Taken, 2, (HEADERS, 100, 100)),
        tunnel: answered(End::Taken, 2, (HEADERS, 100, 100)),
    },
    Attack {
        name: "B9 a field of 100 KB",
        first: |ground| frame(HEADERS, END_STREAM, 1, &[ground.good("5"), vec![0, 1, b'x'], length(100_000)].concat()),
        again: |_, i| frame(CONTINUATION, if i == 3 { END_HEADERS } else { 0 }, 1, &[b'y'; 25_000]),
        times: 4,
        reads: true,
        requests: answered(End::Taken, 1, (HEADERS, 1, 1)),
        tunnel: ends(CALM, 1),
    },
];
