//! What plugin and agent say to each other: one question and one answer per connection, as JSON, with the network
//! namespace's descriptor beside the question. A question ends with the half-close of who asks.

use std::fs::File;
use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::net::{IpAddr, Shutdown};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
    recvmsg, sendmsg,
};
use serde::{Deserialize, Serialize};

/// A question is some hundreds of bytes.
pub(super) const MAX_MESSAGE: usize = 64 * 1024;
/// For the question to be said, and for the answer to be taken.
pub(super) const SAY: Duration = Duration::from_secs(5);

/// What the plugin asks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Question {
    pub about: About,
    /// The runtime's id of the sandbox.
    pub container: String,
    pub uid: String,
    pub namespace: String,
    pub name: String,
    pub ips: Vec<IpAddr>,
    /// The path of its network namespace on the node.
    pub netns: PathBuf,
}

/// About what.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum About {
    /// A sandbox that is being made; the descriptor comes along.
    Add,
    /// One that was made: is it still captured?
    Check,
    /// One that ends.
    Del,
}

/// What the agent answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", tag = "answer")]
pub enum Answer {
    /// It is done: captured, or forgotten.
    Done,
    /// The pod is not of the mesh.
    NotMeshed,
    /// No such pod was heard of.
    Unknown,
    /// It is of the mesh, and is not captured.
    Failed {
        /// Why.
        reason: String,
    },
}

/// Asks the agent.
pub(super) fn ask(
    socket: &Path,
    question: &Question,
    netns: Option<BorrowedFd<'_>>,
    wait: Duration,
) -> io::Result<Answer> {
    let mut stream = UnixStream::connect(socket)?;
    stream.set_write_timeout(Some(SAY))?;
    stream.set_read_timeout(Some(wait))?;
    let bytes = serde_json::to_vec(question)?;
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let descriptors: Vec<BorrowedFd<'_>> = netns.into_iter().collect();
    if !descriptors.is_empty() {
        control.push(SendAncillaryMessage::ScmRights(&descriptors));
    }
    let said = sendmsg(&stream, &[IoSlice::new(&bytes)], &mut control, SendFlags::NOSIGNAL)?;
    stream.write_all(bytes.get(said..).unwrap_or_default())?;
    stream.shutdown(Shutdown::Write)?;
    let mut answer = Vec::new();
    stream.take(MAX_MESSAGE as u64).read_to_end(&mut answer)?;
    if answer.is_empty() {
        return Err(io::Error::from(io::ErrorKind::UnexpectedEof));
    }
    Ok(serde_json::from_slice(&answer)?)
}

/// Reads a question to its end, with the descriptor that came along.
pub(super) fn read(stream: &UnixStream) -> io::Result<(Question, Option<File>)> {
    stream.set_read_timeout(Some(SAY))?;
    let (mut bytes, mut netns) = (Vec::new(), None);
    let mut chunk = [0u8; 4096];
    loop {
        let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let flags = RecvFlags::CMSG_CLOEXEC;
        let received = recvmsg(stream.as_fd(), &mut [IoSliceMut::new(&mut chunk)], &mut control, flags)?;
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(descriptors) = message {
                netns = descriptors.last().map(|descriptor: OwnedFd| File::from(descriptor)).or(netns);
            }
        }
        if received.bytes == 0 {
            return Ok((serde_json::from_slice(&bytes)?, netns));
        }
        bytes.extend_from_slice(chunk.get(..received.bytes).unwrap_or_default());
        if bytes.len() > MAX_MESSAGE {
            return Err(io::Error::from(io::ErrorKind::InvalidData));
        }
    }
}

/// Says the answer.
pub(super) fn say(mut stream: &UnixStream, answer: &Answer) -> io::Result<()> {
    stream.set_write_timeout(Some(SAY))?;
    stream.write_all(&serde_json::to_vec(answer)?)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    fn question() -> Question {
        Question {
            about: About::Add,
            container: "c1".into(),
            uid: "u1".into(),
            namespace: "shop".into(),
            name: "web-0".into(),
            ips: vec!["10.244.1.2".parse().unwrap(), "fd99::2".parse().unwrap()],
            netns: "/run/netns/cni-1".into(),
        }
    }

    #[test]
    fn a_question_brings_its_descriptor_and_gets_its_answer() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("s");
        let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
        let agent = std::thread::spawn(move || {
            let (stream, _) = listener.accept().unwrap();
            let heard = read(&stream).unwrap();
            say(&stream, &Answer::Failed { reason: "no routes".into() }).unwrap();
            heard
        });
        let netns = File::open("/proc/self/ns/net").unwrap();
        let answer = ask(&path, &question(), Some(netns.as_fd()), SAY).unwrap();
        assert_eq!(answer, Answer::Failed { reason: "no routes".into() });
        let (heard, descriptor) = agent.join().unwrap();
        assert_eq!(heard, question());
        let inode = |file: &File| file.metadata().unwrap().ino();
        assert_eq!(descriptor.as_ref().map(inode), Some(inode(&netns)));
    }

    #[test]
    fn what_is_no_question_or_no_agent_is_an_error() {
        let (one, other) = UnixStream::pair().unwrap();
        (&one).write_all(b"{\"about\":\"add\"}").unwrap();
        one.shutdown(Shutdown::Write).unwrap();
        assert!(read(&other).is_err());
        let directory = tempfile::tempdir().unwrap();
        let missing = ask(&directory.path().join("s"), &question(), None, SAY);
        assert_eq!(missing.unwrap_err().kind(), io::ErrorKind::NotFound);
    }
}
