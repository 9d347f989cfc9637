//! Whether the network lets one pod of this node through to another.
//!
//! A tunnel's packets pass both pods' links, where the cluster's network policies hold: they refuse its port, and with it
//! all that the tunnel would carry. Where no tunnel is made they must be asked all the same. So one connection is made as
//! the tunnel's would be, from the caller's pod to the other's tunnel port, with a word on it that no TLS begins with, and
//! closed. That it arrives at this very process proves two things: the network has nothing against the tunnel, and what
//! comes for that pod comes to this agent and to no other.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::sync::oneshot;
use tokio::time::{Instant, timeout};

use super::dial;
use super::limits::{WAY_CLOSED, WAY_OPEN, WITNESS_TIMEOUT};
use super::worker::Pod;
use crate::addr::{ClientAddr, ServerAddr};
use crate::hbone;

const WORD: &[u8; 8] = b"nodemesh";

/// Both ends of such a connection, as both of them see it.
type Ends = (SocketAddr, SocketAddr);

/// The connections that this process awaits from itself. Clones are the same.
#[derive(Clone, Default)]
pub struct Witnesses {
    awaited: Arc<Mutex<HashMap<Ends, oneshot::Sender<()>>>>,
}

impl Witnesses {
    /// Makes one, and says whether it arrived.
    async fn ask(&self, pod: &Pod, ip: IpAddr) -> bool {
        match dial::from_pod(pod, SocketAddr::new(ip, hbone::PORT)).await {
            Ok(tcp) => self.arrives(tcp).await,
            Err(_) => false,
        }
    }

    /// Says the word on one. Whoever asks may be gone before it is heard.
    async fn arrives(&self, mut tcp: TcpStream) -> bool {
        let (Ok(from), Ok(to)) = (tcp.local_addr(), tcp.peer_addr()) else { return false };
        let (arrived, arrives) = oneshot::channel();
        // Before the word is said: nobody hears it earlier.
        let _awaited = Awaited::new(self, ends(from, to), arrived);
        let said = async { tcp.write_all(WORD).await.is_ok() && arrives.await.is_ok() };
        timeout(WITNESS_TIMEOUT, said).await.unwrap_or(false)
    }

    /// Whether a connection to a tunnel port is one of these. Looks at its first bytes and takes none.
    pub async fn hear(&self, tcp: &TcpStream) -> bool {
        let mut first = [0; WORD.len()];
        let Ok(Ok(length)) = timeout(WITNESS_TIMEOUT, tcp.peek(&mut first)).await else { return false };
        if first.get(..length) != Some(&WORD[..]) {
            return false;
        }
        let (Ok(from), Ok(to)) = (tcp.peer_addr(), tcp.local_addr()) else { return false };
        let awaited = self.awaited().remove(&ends(from, to));
        awaited.is_some_and(|arrived| arrived.send(()).is_ok())
    }

    fn awaited(&self) -> std::sync::MutexGuard<'_, HashMap<Ends, oneshot::Sender<()>>> {
        self.awaited.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One of them; forgotten when nobody awaits it any more.
struct Awaited<'a> {
    witnesses: &'a Witnesses,
    ends: Ends,
}

impl<'a> Awaited<'a> {
    fn new(witnesses: &'a Witnesses, ends: Ends, arrived: oneshot::Sender<()>) -> Self {
        witnesses.awaited().insert(ends, arrived);
        Self { witnesses, ends }
    }
}

impl Drop for Awaited<'_> {
    fn drop(&mut self) {
        self.witnesses.awaited().remove(&self.ends);
    }
}

/// IPv4 is IPv4, whatever family the socket has.
fn ends(from: SocketAddr, to: SocketAddr) -> Ends {
    (ClientAddr::new(from).socket(), ServerAddr::new(to).socket())
}

/// What one worker was told of ways between pods of its node, for a while.
#[derive(Default)]
pub struct Ways {
    known: RefCell<HashMap<Key, Rc<Way>>>,
}

/// From whom to whom, by uid, and whether by IPv4.
type Key = (Arc<str>, Arc<str>, bool);

#[derive(Default)]
struct Way {
    said: Cell<Option<(bool, Instant)>>,
    /// Held by whoever asks; the others wait for the answer.
    asking: tokio::sync::Mutex<()>,
}

impl Way {
    fn known(&self) -> Option<bool> {
        let (is_open, since) = self.said.get()?;
        let holds = if is_open { WAY_OPEN } else { WAY_CLOSED };
        (since.elapsed() < holds).then_some(is_open)
    }
}

impl Ways {
    /// Whether the network lets `pod` through to the pod `to` at its address `ip`.
    pub async fn is_open(&self, witnesses: &Witnesses, pod: &Pod, to: &Pod, ip: IpAddr) -> bool {
        let key = (pod.uid().clone(), to.uid().clone(), ip.is_ipv4());
        let way = self.known.borrow_mut().entry(key).or_default().clone();
        if let Some(is_open) = way.known() {
            return is_open;
        }
        let _asking = way.asking.lock().await;
        if let Some(is_open) = way.known() {
            return is_open;
        }
        let is_open = witnesses.ask(pod, ip).await;
        way.said.set(Some((is_open, Instant::now())));
        is_open
    }

    /// Forgets what concerns a pod that left.
    pub fn forget(&self, uid: &str) {
        self.known.borrow_mut().retain(|(from, to, _), _| **from != *uid && **to != *uid);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::net::TcpListener;

    use super::*;

    /// (who listens hears it, whoever asks waits for that)
    #[tokio::test]
    async fn nothing_is_awaited_when_nobody_asks_any_more() {
        let moment = Duration::from_millis(20);
        for (is_heard, waits) in [(true, true), (false, true), (false, false)] {
            let witnesses = Witnesses::default();
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let tcp = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
            let (accepted, _) = listener.accept().await.unwrap();
            let asking = witnesses.arrives(tcp);
            let hearing = async {
                if is_heard {
                    assert!(witnesses.hear(&accepted).await);
                }
            };
            if waits {
                let (has_arrived, ()) = tokio::join!(asking, hearing);
                assert_eq!(has_arrived, is_heard);
            } else {
                assert!(timeout(moment, asking).await.is_err(), "it waits for longer");
            }
            assert!(witnesses.awaited().is_empty(), "{is_heard} {waits}");
        }
    }
}
