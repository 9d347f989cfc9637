//! `xtask __relay`: a bad cable between two nodes, since not every kernel has netem.
//!
//! Each end is a TAP interface in its node's namespace; every frame goes through this process, which loses some and lets
//! others overtake. The same seed treats the same sequence of frames alike. SIGSTOP is a cable that is pulled, SIGCONT
//! one that is plugged in again; when the process ends, the interfaces are gone.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::OFlags;

use super::enter::join_network;
use super::process::Place;
use crate::sys;

/// What a cable does to what it carries.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Impairment {
    /// Of a thousand frames so many are lost.
    pub lost_per_mille: u32,
    /// Of a thousand frames so many are held back until others have overtaken them.
    pub late_per_mille: u32,
}

/// The cable.
#[derive(clap::Args)]
pub struct Relay {
    /// Network namespace and interface of each end
    #[arg(long, value_names = ["NETNS", "INTERFACE"], num_args = 2)]
    a: Vec<PathBuf>,
    /// The other end
    #[arg(long, value_names = ["NETNS", "INTERFACE"], num_args = 2)]
    b: Vec<PathBuf>,
    /// Frames lost, of a thousand
    #[arg(long)]
    lost: u32,
    /// Frames held back, of a thousand
    #[arg(long)]
    late: u32,
    /// Where chance begins
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

/// A frame that is held back goes when so many have overtaken it at the latest…
const OVERTAKEN_BY: usize = 8;
/// … or when so much time has passed.
const HELD_FOR: Duration = Duration::from_millis(5);

/// A frame of the largest MTU here with its header.
const FRAME_BYTES: usize = 1 << 14;

/// The relay's command line.
pub fn argv(ends: [(&Place, &str); 2], impairment: Impairment) -> Result<Vec<String>> {
    let mut argv = vec![super::run::xtask_binary()?.to_string_lossy().into_owned(), "__relay".to_string()];
    for (flag, (place, interface)) in ["--a", "--b"].into_iter().zip(ends) {
        argv.extend([flag.to_string(), place.netns.to_string_lossy().into_owned(), interface.to_string()]);
    }
    let Impairment { lost_per_mille, late_per_mille } = impairment;
    argv.extend([format!("--lost={lost_per_mille}"), format!("--late={late_per_mille}")]);
    Ok(argv)
}

impl Relay {
    /// Runs until it is killed.
    pub fn run(self) -> Result<()> {
        let Self { a, b, lost, late, seed } = self;
        let (a, b) = (tap(&a)?, tap(&b)?);
        println!("relaying");
        let impairment = Impairment { lost_per_mille: lost, late_per_mille: late };
        std::thread::scope(|scope| {
            let there = scope.spawn(|| carry(&a, &b, impairment, Chance(seed.max(1))));
            let back = scope.spawn(|| carry(&b, &a, impairment, Chance(seed.wrapping_mul(7919).max(1))));
            for way in [there, back] {
                way.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
            }
            Ok(())
        })
    }
}

/// A TAP interface in a namespace.
fn tap(end: &[PathBuf]) -> Result<File> {
    let [netns, interface] = end else { anyhow::bail!("an end is a namespace and an interface") };
    std::thread::scope(|scope| {
        let made = scope.spawn(|| {
            join_network(netns)?;
            let file = File::options().read(true).write(true).open("/dev/net/tun").context("opening /dev/net/tun")?;
            sys::become_tap(&file, &interface.to_string_lossy()).context("making a TAP interface")?;
            rustix::fs::fcntl_setfl(&file, OFlags::NONBLOCK)?;
            Ok(file)
        });
        made.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// One direction.
fn carry(mut from: &File, mut to: &File, impairment: Impairment, mut chance: Chance) -> Result<()> {
    let mut held: VecDeque<Held> = VecDeque::new();
    let mut frame = vec![0; FRAME_BYTES];
    loop {
        while held.front().is_some_and(|held| held.overtaken >= OVERTAKEN_BY || held.due <= Instant::now()) {
            pass_on(&mut to, &held.pop_front().expect("there is one").frame)?;
        }
        let length = match from.read(&mut frame) {
            Ok(length) => length,
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                wait_for(from, held.front().map(|held| held.due))?;
                continue;
            }
            Err(error) => return Err(error).context("reading a frame"),
        };
        if chance.of_a_thousand(impairment.lost_per_mille) {
            continue;
        }
        if chance.of_a_thousand(impairment.late_per_mille) {
            held.push_back(Held { frame: frame[..length].to_vec(), overtaken: 0, due: Instant::now() + HELD_FOR });
            continue;
        }
        pass_on(&mut to, &frame[..length])?;
        held.iter_mut().for_each(|held| held.overtaken += 1);
    }
}

struct Held {
    frame: Vec<u8>,
    overtaken: usize,
    due: Instant,
}

fn pass_on(to: &mut &File, frame: &[u8]) -> Result<()> {
    match to.write(frame) {
        Ok(_) => Ok(()),
        // The other end's interface is down (EIO), or its queue is full: a cable loses such frames.
        Err(error) if error.kind() == ErrorKind::WouldBlock || error.raw_os_error() == Some(5) => Ok(()),
        Err(error) => Err(error).context("writing a frame"),
    }
}

fn wait_for(from: &File, due: Option<Instant>) -> Result<()> {
    let left = due.map(|due| due.saturating_duration_since(Instant::now()));
    let left = left.map(|left| Timespec { tv_sec: 0, tv_nsec: left.subsec_nanos().into() });
    match poll(&mut [PollFd::from_borrowed_fd(from.as_fd(), PollFlags::IN)], left.as_ref()) {
        Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// xorshift64.
struct Chance(u64);

impl Chance {
    fn of_a_thousand(&mut self, share: u32) -> bool {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % 1000 < u64::from(share)
    }
}

#[cfg(test)]
mod tests {
    use super::Chance;

    #[test]
    fn chance_is_about_what_is_asked_for_and_the_same_again() {
        let draw = |seed| {
            let mut chance = Chance(seed);
            (0..100_000).filter(|_| chance.of_a_thousand(50)).count()
        };
        assert!((4500..5500).contains(&draw(1)), "{}", draw(1));
        assert_eq!(draw(7), draw(7));
    }
}
