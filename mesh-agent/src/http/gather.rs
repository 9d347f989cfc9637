//! A connection that HTTP/2 is spoken on: what one wake-up has to say is one write.
//!
//! h2 flushes after every frame of more than a few bytes: a system call for each, and on a busy connection dozens for
//! one wake-up. Here frames gather until whoever drives the connection has been polled ([`Gather::drive`]);
//! what is large already goes out as it comes.
//!
//! ```text
//! h2 ──small frames──► gathered ──end of the wake-up, or full──► socket
//!  └───────────────────large frames (after what is gathered)──────┘
//! ```

use std::cell::RefCell;
use std::future::Future;
use std::io::{self, IoSlice};
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::task::coop::unconstrained;
use tokio::task::yield_now;

use crate::hbone::Round;
use crate::hbone::limits::{GATHER_BYTES, GATHER_FIRST_BYTES, GATHER_LARGE_BYTES};

const GATHER: usize = GATHER_BYTES as usize;
const LARGE: usize = GATHER_LARGE_BYTES as usize;
const FIRST: usize = GATHER_FIRST_BYTES as usize;

/// A connection of bytes that is written once per wake-up. Clones are the same connection: h2 owns one, and its driver
/// another. Whatever polls the one that h2 owns must run within [`Gather::drive`], or nothing leaves; and it must be one
/// task, or whoever waits for room to write is not the one who is woken.
pub struct Gather<T>(Rc<RefCell<Inner<T>>>);

struct Inner<T> {
    io: T,
    /// Said; given to `io` up to `given`.
    gathered: Vec<u8>,
    given: usize,
    /// Whether `io` was given something since it was flushed.
    unflushed: bool,
    /// What may still be read in this wake-up.
    round: Round,
    /// How the last flush failed, until h2 hears of it.
    failure: Option<io::Error>,
}

impl<T> Clone for Gather<T> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<T: AsyncRead + AsyncWrite + Unpin> Gather<T> {
    /// Around a connection.
    pub fn new(io: T) -> Self {
        let inner =
            Inner { io, gathered: Vec::new(), given: 0, unflushed: false, round: Round::default(), failure: None };
        Self(Rc::new(RefCell::new(inner)))
    }

    /// Runs what uses the connection. Whenever it has been polled, what it said goes out.
    pub async fn drive<F: Future>(&self, future: F) -> F::Output {
        let mut future = pin!(future);
        std::future::poll_fn(|cx| {
            self.0.borrow_mut().round = Round::default();
            let polled = future.as_mut().poll(cx);
            self.0.borrow_mut().end_round(cx);
            polled
        })
        .await
    }
}

impl<T: AsyncRead + AsyncWrite + Unpin> Inner<T> {
    /// Sends what is gathered, as far as the socket takes it; the rest goes when it is writable.
    fn end_round(&mut self, cx: &mut Context<'_>) {
        // What was read counts against the task's share of this worker; what answers it goes out all the same, and is
        // bounded.
        let flushing = pin!(unconstrained(std::future::poll_fn(|cx| self.flush(cx))));
        if let Poll::Ready(Err(error)) = flushing.poll(cx) {
            self.failure = Some(error);
            // h2 hears of it by its next read or write.
            cx.waker().wake_by_ref();
        }
    }

    fn flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.drain(cx))?;
        if self.unflushed {
            ready!(Pin::new(&mut self.io).poll_flush(cx))?;
            self.unflushed = false;
        }
        Poll::Ready(Ok(()))
    }

    /// Gives `io` what is gathered.
    fn drain(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while let Some(rest) = self.gathered.get(self.given..)
            && !rest.is_empty()
        {
            let written = ready!(Pin::new(&mut self.io).poll_write(cx, rest))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.given = self.given.saturating_add(written);
            self.unflushed = true;
        }
        self.given = 0;
        self.gathered.clear();
        if self.gathered.capacity() > FIRST {
            // What a burst needed is not kept.
            self.gathered = Vec::new();
        }
        Poll::Ready(Ok(()))
    }

    fn write(&mut self, cx: &mut Context<'_>, slices: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        self.heard()?;
        let length = slices.iter().fold(0usize, |length, slice| length.saturating_add(slice.len()));
        if length >= LARGE {
            ready!(self.drain(cx))?;
            self.unflushed = true;
            return Pin::new(&mut self.io).poll_write_vectored(cx, slices);
        }
        if self.gathered.len().saturating_add(length) > GATHER {
            ready!(self.drain(cx))?;
        }
        self.make_room(length);
        slices.iter().for_each(|slice| self.gathered.extend_from_slice(slice));
        Poll::Ready(Ok(length))
    }

    /// Twice as much each time, and never more than may gather.
    fn make_room(&mut self, length: usize) {
        let wanted = self.gathered.len().saturating_add(length);
        let capacity = self.gathered.capacity();
        if wanted > capacity {
            let most = capacity.saturating_mul(2).clamp(FIRST, GATHER).max(wanted);
            self.gathered.reserve_exact(most.saturating_sub(self.gathered.len()));
        }
    }

    /// Fails once if a flush has.
    fn heard(&mut self) -> io::Result<()> {
        self.failure.take().map_or(Ok(()), Err)
    }
}

impl<T: AsyncRead + AsyncWrite + Unpin> AsyncRead for Gather<T> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, out: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let inner = &mut *self.0.borrow_mut();
        inner.heard()?;
        if inner.round.is_over() {
            // Woken at once, this task would be polled some dozens of times before anybody looks whether something has
            // come for the others.
            return pin!(yield_now()).poll(cx).map(Ok);
        }
        let before = out.filled().len();
        ready!(Pin::new(&mut inner.io).poll_read(cx, out))?;
        inner.round.took(out.filled().len().saturating_sub(before));
        Poll::Ready(Ok(()))
    }
}

impl<T: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Gather<T> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.0.borrow_mut().write(cx, &[IoSlice::new(bytes)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.0.borrow_mut().write(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    /// Says yes: what is gathered goes out at the end of the wake-up.
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(self.0.borrow_mut().heard())
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let inner = &mut *self.0.borrow_mut();
        inner.heard()?;
        ready!(inner.flush(cx))?;
        Pin::new(&mut inner.io).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};

    use super::*;
    use crate::hbone::limits::{COPY_ROUND_BYTES, READ_ROUND_MS};

    const ROUND: usize = COPY_ROUND_BYTES as usize;
    const ROUND_TIME: Duration = Duration::from_millis(READ_ROUND_MS);

    fn local<F: Future>(test: F) -> F::Output {
        tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap().block_on(test)
    }

    /// Counts what reaches the connection below.
    struct Counted {
        io: DuplexStream,
        writes: Rc<RefCell<Vec<usize>>>,
    }

    impl AsyncRead for Counted {
        fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, out: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
            Pin::new(&mut self.io).poll_read(cx, out)
        }
    }

    impl AsyncWrite for Counted {
        fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
            let written = ready!(Pin::new(&mut self.io).poll_write(cx, bytes))?;
            self.writes.borrow_mut().push(written);
            Poll::Ready(Ok(written))
        }

        fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
            Pin::new(&mut self.io).poll_flush(cx)
        }

        fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
            Pin::new(&mut self.io).poll_shutdown(cx)
        }
    }

    fn counted(pipe: usize) -> (Gather<Counted>, DuplexStream, Rc<RefCell<Vec<usize>>>) {
        let (near, far) = tokio::io::duplex(pipe);
        let writes = Rc::<RefCell<Vec<usize>>>::default();
        (Gather::new(Counted { io: near, writes: writes.clone() }), far, writes)
    }

    #[test]
    fn a_wake_ups_frames_are_one_write() {
        local(async {
            let (wire, mut far, writes) = counted(1 << 20);
            let mut h2 = wire.clone();
            wire.drive(async {
                for _ in 0..20 {
                    h2.write_all(&[7; 300]).await.unwrap();
                    h2.flush().await.unwrap();
                }
                tokio::task::yield_now().await;
                assert_eq!(*writes.borrow(), [6000]);
                // A frame as large as a record does not wait, and what came before it does not come after.
                h2.write_all(&[8; 9]).await.unwrap();
                h2.write_all(&[9; LARGE]).await.unwrap();
                assert_eq!(*writes.borrow(), [6000, 9, LARGE]);
            })
            .await;
            let mut came = vec![0; 6009 + LARGE];
            far.read_exact(&mut came).await.unwrap();
            assert!(came[..6000].iter().all(|byte| *byte == 7) && came[6000..6009].iter().all(|byte| *byte == 8));
        });
    }

    #[test]
    fn what_gathers_is_bounded() {
        local(async {
            let (wire, _far, writes) = counted(1 << 20);
            let mut h2 = wire.clone();
            wire.drive(async {
                for _ in 0..10 {
                    h2.write_all(&[1; LARGE - 1]).await.unwrap();
                    assert!(wire.0.borrow().gathered.len() <= GATHER);
                }
                assert!(writes.borrow().iter().sum::<usize>() >= 10 * (LARGE - 1) - GATHER);
            })
            .await;
            assert!(wire.0.borrow().gathered.capacity() <= FIRST, "an idle tunnel holds what a burst needed");
        });
    }

    #[test]
    fn a_peer_that_is_gone_is_heard_of_by_the_next_word() {
        local(async {
            let (wire, far, _) = counted(64);
            drop(far);
            let mut h2 = wire.clone();
            wire.drive(async {
                h2.write_all(b"hello").await.unwrap();
                tokio::task::yield_now().await;
                assert_eq!(h2.write_all(b"hello").await.unwrap_err().kind(), io::ErrorKind::BrokenPipe);
            })
            .await;
        });
    }

    #[test]
    fn a_round_ends_however_much_there_is_to_read() {
        local(async {
            let (wire, mut far, _) = counted(4 * ROUND);
            far.write_all(&vec![3; 3 * ROUND]).await.unwrap();
            let mut h2 = wire.clone();
            let rounds = RefCell::new(Vec::new());
            let reading = async {
                let mut buffer = vec![0; 32 << 10];
                let mut left = 3 * ROUND;
                while left > 0 {
                    let read = h2.read(&mut buffer).await.unwrap();
                    left -= read;
                    if let Some(round) = rounds.borrow_mut().last_mut() {
                        *round += read;
                    }
                }
            };
            let mut driven = pin!(wire.drive(reading));
            std::future::poll_fn(|cx| {
                rounds.borrow_mut().push(0);
                driven.as_mut().poll(cx)
            })
            .await;
            let rounds = rounds.take();
            assert!(rounds.len() >= 3 && rounds.iter().all(|round| *round < ROUND + (32 << 10)), "{rounds:?}");
        });
    }

    /// Little is read, and what comes of it takes long.
    #[test]
    fn a_round_ends_when_it_has_taken_long() {
        local(async {
            let (wire, mut far, _) = counted(1 << 10);
            far.write_all(&[3; 4]).await.unwrap();
            let mut h2 = wire.clone();
            let rounds = RefCell::new(Vec::new());
            let reading = async {
                for _ in 0..4 {
                    h2.read_u8().await.unwrap();
                    std::thread::sleep(ROUND_TIME);
                    if let Some(round) = rounds.borrow_mut().last_mut() {
                        *round += 1;
                    }
                }
            };
            let mut driven = pin!(wire.drive(reading));
            std::future::poll_fn(|cx| {
                rounds.borrow_mut().push(0);
                driven.as_mut().poll(cx)
            })
            .await;
            assert_eq!(rounds.take(), [1; 4]);
        });
    }

    /// A peer that always has more to say does not keep others from hearing what has come for them.
    #[test]
    fn what_comes_for_others_is_heard_after_a_round() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        tokio::task::LocalSet::new().block_on(&runtime, async {
            let rounds = Rc::new(std::cell::Cell::new(0));
            let counted = rounds.clone();
            let wire = Gather::new(tokio::io::join(tokio::io::repeat(3), tokio::io::sink()));
            tokio::task::spawn_local(async move {
                let mut h2 = wire.clone();
                let reading = async {
                    let mut buffer = vec![0; ROUND / 4];
                    while h2.read_exact(&mut buffer).await.is_ok() {}
                };
                let mut driven = pin!(wire.drive(reading));
                std::future::poll_fn(|cx| {
                    counted.set(counted.get() + 1);
                    driven.as_mut().poll(cx)
                })
                .await;
            });
            let (mut far, mut near) = tokio::net::UnixStream::pair().unwrap();
            for _ in 0..20 {
                // There is nothing, so that the driver has to say when there is.
                near.try_read(&mut [0; 1]).unwrap_err();
                far.write_all(b"x").await.unwrap();
                let before = rounds.get();
                near.read_u8().await.unwrap();
                let waited = rounds.get() - before;
                assert!(waited <= 4, "{waited} rounds of the other's");
            }
            assert!(rounds.get() >= 10, "nobody was in the way");
        });
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

        /// Whatever the sizes, and however little the peer takes at a time, its bytes are ours in our order.
        #[test]
        fn bytes_arrive_in_order(frames in proptest::collection::vec(0usize..40_000, 1..30), pipe in 1usize..20_000) {
            local(async {
                let (wire, mut far, _) = counted(pipe);
                let mut h2 = wire.clone();
                let all = frames.iter().sum::<usize>();
                let said = (0..all).map(|at| (at % 251) as u8).collect::<Vec<_>>();
                let say = wire.drive(async {
                    let mut rest = &said[..];
                    for (index, length) in frames.iter().enumerate() {
                        let (frame, later) = rest.split_at(*length);
                        rest = later;
                        h2.write_all(frame).await.unwrap();
                        h2.flush().await.unwrap();
                        if index % 5 == 4 {
                            tokio::task::yield_now().await;
                        }
                    }
                    h2.shutdown().await.unwrap();
                });
                let mut came = Vec::new();
                let (heard, ()) = tokio::join!(far.read_to_end(&mut came), say);
                heard.unwrap();
                assert!(came == said, "{} of {all} bytes came", came.len());
            });
        }
    }
}
