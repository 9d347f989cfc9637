//! The log of the process: text or JSON, one line per event, on standard output.
//!
//! What the levels mean here:
//!
//! - **error**: the agent cannot do its work, and a person must look. Not for what one connection met.
//! - **warn**: something is wrong outside or for one object, and the agent goes on: a policy that cannot be read, a CA
//!   that does not answer, a pod that asks for the mesh and cannot be enrolled.
//! - **info**: the life of the process and of pods: started, enrolled, rotated, drained; and the access log (target
//!   `access`). Above debug nothing but that and the authority's audit names workloads or their addresses ([`crate::named`]).
//! - **debug**: single connections: routes, refusals, handshakes, with addresses and names.
//! - **trace**: bytes, frames, map operations.
//!
//! A line never waits for its reader. Lines go through a bounded queue to a thread of their own; when the queue is
//! full they are dropped and counted (`nodemesh_log_lines_dropped_total`), because a data path that stops for a full
//! pipe is worse than a log with a hole. That thread collects lines for a moment before it writes them: waking it for
//! each would cost the data path more than the line. Control characters inside a line are escaped in both formats, so an event is
//! always exactly one line.

use std::fmt;
use std::io::{self, Write};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{self, Receiver, SyncSender, TrySendError};
use std::time::{Duration, Instant};

use tracing::{Event, Subscriber};
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields, MakeWriter};
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer, Registry, layer::SubscriberExt, reload};

use super::{access_log, json_line};

/// How many lines may wait for the writing thread: about 2 MB of access log.
pub(super) const QUEUE_LINES: usize = 8192;

/// How many lines were dropped since the process began.
static DROPPED: AtomicU64 = AtomicU64::new(0);

/// How a line looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// For people: time, level, target, message, fields.
    Text,
    /// For machines: one JSON object per line, the fields at top level.
    Json,
}

/// Why the log could not be set up or changed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The filter is none.
    #[error(
        "{text:?} is no log filter: {reason}; give a level (error, warn, info, debug, trace, off) or a list such as info,mesh_agent::hbone=debug,access=off"
    )]
    Filter {
        /// What was given.
        text: String,
        /// What the parser says.
        reason: String,
    },
    /// Another part of the process has set a logger.
    #[error("the log is set up already")]
    AlreadySet,
    /// No thread could be made.
    #[error("the log's writing thread could not be started: {0}")]
    Thread(#[from] io::Error),
    /// The subscriber is gone.
    #[error("the log has ended")]
    Gone,
}

/// The running log. Dropping it writes what waits and ends the writing thread; keep it until the end of `main`.
pub struct Log {
    filter: Filter,
    _flush: FlushOnDrop,
}

/// Reads and changes what is logged, at run time. Cheap to clone.
#[derive(Clone)]
pub struct Filter {
    handle: reload::Handle<EnvFilter, Registry>,
}

/// Sets up the log of this process. `filter` is a level or a list of directives (see [`Error::Filter`]).
pub fn init(format: Format, filter: &str) -> Result<Log, Error> {
    let filter = parse_filter(filter)?;
    let (writer, flush) = spawn_writer(io::stdout(), QUEUE_LINES)?;
    let (subscriber, filter) = subscriber(format, filter, writer);
    subscriber.try_init().map_err(|_| Error::AlreadySet)?;
    Ok(Log { filter, _flush: flush })
}

/// How many lines a slow reader has lost so far.
pub fn dropped_lines() -> u64 {
    DROPPED.load(Ordering::Relaxed)
}

/// Checks and parses a filter.
pub fn parse_filter(text: &str) -> Result<EnvFilter, Error> {
    let error = |reason: String| Error::Filter { text: text.to_string(), reason };
    if text.trim().is_empty() {
        return Err(error("it is empty".into()));
    }
    // Values are words: an expression becomes an automaton that a line of text can make as large as the machine.
    EnvFilter::builder().with_regex(false).parse(text).map_err(|parse| error(parse.to_string()))
}

impl Log {
    /// The handle that reads and changes the filter.
    pub fn filter(&self) -> Filter {
        self.filter.clone()
    }
}

impl Filter {
    /// The filter as it is.
    pub fn current(&self) -> String {
        self.handle.with_current(ToString::to_string).unwrap_or_default()
    }

    /// Replaces the filter.
    pub fn set(&self, text: &str) -> Result<(), Error> {
        self.handle.reload(parse_filter(text)?).map_err(|_| Error::Gone)
    }
}

/// The subscriber, for [`init`] and for tests that look at what is written.
pub(crate) fn subscriber<W>(format: Format, filter: EnvFilter, writer: W) -> (impl Subscriber + Send + Sync, Filter)
where
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    let (filter, handle) = reload::Layer::new(filter);
    let layer = tracing_subscriber::fmt::layer().with_writer(writer).with_ansi(false);
    let layer = match format {
        Format::Text => {
            layer.event_format(OneLine { other: tracing_subscriber::fmt::format(), is_json: false }).boxed()
        }
        Format::Json => {
            let format = tracing_subscriber::fmt::format().json().flatten_event(true).with_current_span(true);
            layer.json().event_format(OneLine { other: format.with_span_list(false), is_json: true }).boxed()
        }
    };
    (Registry::default().with(filter).with(layer), Filter { handle })
}

/// Escapes control characters in what another format writes, so that an event cannot become two lines.
struct OneLine<F> {
    other: F,
    is_json: bool,
}

impl<S, N, F> FormatEvent<S, N> for OneLine<F>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
    F: FormatEvent<S, N>,
{
    fn format_event(&self, context: &FmtContext<'_, S, N>, mut out: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        if self.is_json && event.metadata().target() == access_log::TARGET {
            return out.write_str(&json_line::format(event)?);
        }
        let mut line = String::with_capacity(512);
        self.other.format_event(context, Writer::new(&mut line), event)?;
        let line = line.strip_suffix('\n').unwrap_or(&line);
        if !may_have_control(line) {
            out.write_str(line)?;
            return out.write_char('\n');
        }
        let mut rest = line;
        while let Some(at) = rest.find(|c: char| c.is_control() && c != '\t') {
            let (plain, from) = rest.split_at(at);
            out.write_str(plain)?;
            let mut characters = from.chars();
            if let Some(control) = characters.next() {
                // The form is that of JSON, and good to read in text as well.
                write!(out, "\\u{:04x}", u32::from(control))?;
            }
            rest = characters.as_str();
        }
        out.write_str(rest)?;
        out.write_char('\n')
    }
}

/// Whether a line may have control characters other than tab. Most have none, and looking at bytes costs a tenth of looking at characters.
fn may_have_control(line: &str) -> bool {
    line.bytes().any(|byte| begins_control(byte) && byte != b'\t')
}

/// Whether a control character, tab among them, may begin with this byte of UTF-8.
pub(super) fn begins_control(byte: u8) -> bool {
    byte < b' ' || matches!(byte, 0x7f | 0xc2)
}

/// Hands finished lines to the writing thread.
#[derive(Clone)]
struct QueueWriter {
    lines: SyncSender<Message>,
}

enum Message {
    Line(Vec<u8>),
    End,
}

/// Ends the writing thread after everything that waits has been written.
struct FlushOnDrop {
    lines: SyncSender<Message>,
    ended: Receiver<()>,
}

/// How long the end of the process waits for a slow reader of its log.
pub(super) const FLUSH_WAIT: Duration = Duration::from_secs(2);

/// How often it looks, in that time, whether a full queue has room.
pub(super) const FLUSH_POLL: Duration = Duration::from_millis(10);

/// How long the writing thread collects lines.
pub(super) const COLLECT: Duration = Duration::from_millis(10);

/// What it writes at once, in bytes.
pub(super) const BATCH_BYTES: usize = 64 << 10;

fn spawn_writer(mut out: impl Write + Send + 'static, capacity: usize) -> io::Result<(QueueWriter, FlushOnDrop)> {
    let (lines, queue) = mpsc::sync_channel(capacity);
    let (end, ended) = mpsc::sync_channel(1);
    let work = move || {
        // Gone when the thread ends, however it ends.
        let _end: SyncSender<()> = end;
        while let Ok(Message::Line(first)) = queue.recv() {
            std::thread::sleep(COLLECT);
            let mut batch = Batch::of(first);
            loop {
                match queue.try_recv() {
                    Ok(Message::Line(line)) if batch.bytes.len() < BATCH_BYTES => batch.add(&line),
                    Ok(Message::Line(line)) => std::mem::replace(&mut batch, Batch::of(line)).write(&mut out),
                    Ok(Message::End) => return batch.write(&mut out),
                    Err(_) => break,
                }
            }
            batch.write(&mut out);
        }
    };
    std::thread::Builder::new().name("log".into()).spawn(work)?;
    Ok((QueueWriter { lines: lines.clone() }, FlushOnDrop { lines, ended }))
}

/// Lines that are written together.
struct Batch {
    bytes: Vec<u8>,
    lines: u64,
}

impl Batch {
    fn of(line: Vec<u8>) -> Self {
        Self { bytes: line, lines: 1 }
    }

    fn add(&mut self, line: &[u8]) {
        self.bytes.extend_from_slice(line);
        self.lines += 1;
    }

    fn write(self, out: &mut impl Write) {
        // Nothing can be told to anyone when the log itself cannot be written.
        if out.write_all(&self.bytes).and_then(|()| out.flush()).is_err() {
            DROPPED.fetch_add(self.lines, Ordering::Relaxed);
        }
    }
}

impl Drop for FlushOnDrop {
    fn drop(&mut self) {
        // A reader that has stopped for good must not hang the end: after a while the rest is lost.
        let deadline = Instant::now() + FLUSH_WAIT;
        while let Err(TrySendError::Full(_)) = self.lines.try_send(Message::End) {
            if Instant::now() >= deadline {
                return;
            }
            std::thread::sleep(FLUSH_POLL);
        }
        let _ = self.ended.recv_timeout(deadline.saturating_duration_since(Instant::now()));
    }
}

impl<'a> MakeWriter<'a> for QueueWriter {
    type Writer = LineWriter<'a>;

    fn make_writer(&'a self) -> Self::Writer {
        LineWriter { lines: &self.lines }
    }
}

/// Takes one event, which the formatter writes in one call.
struct LineWriter<'a> {
    lines: &'a SyncSender<Message>,
}

impl Write for LineWriter<'_> {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        match self.lines.try_send(Message::Line(line.to_vec())) {
            Ok(()) => {}
            Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) => {
                DROPPED.fetch_add(1, Ordering::Relaxed);
            }
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A pipe whose reader reads when it is told to.
    struct SlowPipe(Receiver<()>, SyncSender<Vec<u8>>);

    impl Write for SlowPipe {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let _ = self.0.recv();
            let _ = self.1.send(bytes.to_vec());
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn slow_log(capacity: usize) -> (SyncSender<()>, Receiver<Vec<u8>>, QueueWriter, FlushOnDrop) {
        let (read, reads) = mpsc::sync_channel(100);
        let (written, lines) = mpsc::sync_channel(100);
        let (writer, flush) = spawn_writer(SlowPipe(reads, written), capacity).unwrap();
        (read, lines, writer, flush)
    }

    #[test]
    fn a_slow_reader_loses_lines_and_stops_nobody() {
        let (read, lines, writer, flush) = slow_log(4);
        let before = dropped_lines();
        let begin = Instant::now();
        for number in 0..20 {
            writer.make_writer().write_all(format!("{number}\n").as_bytes()).unwrap();
        }
        assert!(begin.elapsed() < Duration::from_secs(10));
        assert!(dropped_lines() >= before + 15, "at most 4 wait and 1 is being written");
        drop(read);
        drop(flush);
        assert!(lines.try_iter().next().is_some_and(|first| first.starts_with(b"0\n")));
    }

    #[test]
    fn a_disk_that_is_full_loses_lines_and_stops_nobody() {
        // What a file on a full disk answers: ENOSPC.
        let full = std::fs::File::options().write(true).open("/dev/full").unwrap();
        let (writer, flush) = spawn_writer(full, 100).unwrap();
        let before = dropped_lines();
        let begin = Instant::now();
        for number in 0..20 {
            writer.make_writer().write_all(format!("{number}\n").as_bytes()).unwrap();
        }
        drop(flush);
        assert!(begin.elapsed() < FLUSH_WAIT, "somebody waited");
        assert!(dropped_lines() >= before + 20, "lines were lost and not counted");
    }

    #[test]
    fn the_end_writes_what_waits() {
        let (read, lines, writer, flush) = slow_log(100);
        for number in 0..50 {
            writer.make_writer().write_all(format!("{number}\n").as_bytes()).unwrap();
        }
        drop(read);
        drop(flush);
        let written: Vec<u8> = lines.try_iter().flatten().collect();
        let expected: String = (0..50).map(|number| format!("{number}\n")).collect();
        assert_eq!(String::from_utf8_lossy(&written), expected);
    }

    #[test]
    fn only_a_line_without_control_characters_is_taken_as_it_is() {
        for (line, may) in [
            ("plain \t text", false),
            ("é ß 日本", false),
            ("a\nb", true),
            ("\u{7f}", true),
            ("\u{85}", true),
            ("\u{9f}", true),
        ] {
            assert_eq!(may_have_control(line), may, "{line:?}");
            assert!(may || !line.chars().any(|c| c.is_control() && c != '\t'), "{line:?}");
        }
    }

    #[test]
    fn the_end_does_not_hang_on_a_reader_that_has_stopped() {
        let (_read, _lines, writer, flush) = slow_log(100);
        writer.make_writer().write_all(b"stuck\n").unwrap();
        let begin = Instant::now();
        drop(flush);
        assert!(begin.elapsed() < FLUSH_WAIT + Duration::from_secs(10));
    }
}
