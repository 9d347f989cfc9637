//! One thread per enrolled pod that lives in the pod's network namespace, because a socket belongs to the namespace of
//! the thread that makes it and setns is per thread.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::sync::mpsc::{self, Sender};
use std::sync::{Mutex, PoisonError};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use tokio::sync::oneshot;

/// It makes sockets and netlink requests, no more.
pub(super) const STACK_BYTES: usize = 128 * 1024;

type Job = Box<dyn FnOnce() + Send>;

/// The handle of a pod's thread; the thread ends when it is stopped or the handle goes.
pub(super) struct PodThread {
    /// None once stopped.
    jobs: Mutex<Option<Sender<Job>>>,
}

impl PodThread {
    /// Starts a thread in `namespace`.
    pub async fn start(namespace: File) -> io::Result<Self> {
        let (jobs, queue) = mpsc::channel::<Job>();
        let (entered, has_entered) = oneshot::channel();
        std::thread::Builder::new().name("nodemesh-pod".into()).stack_size(STACK_BYTES).spawn(move || {
            let moved = move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network));
            drop(namespace);
            let inside = moved.is_ok();
            let _ = entered.send(moved.map_err(io::Error::from));
            while inside && let Ok(job) = queue.recv() {
                job();
            }
        })?;
        has_entered.await.map_err(|_| stopped())??;
        Ok(Self { jobs: Mutex::new(Some(jobs)) })
    }

    /// Runs `job` in the namespace and returns its result.
    pub async fn run<T: Send + 'static>(&self, job: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
        let (answer, answered) = oneshot::channel();
        self.post(move || drop(answer.send(job())))?;
        answered.await.map_err(|_| stopped())?
    }

    /// Queues `job`.
    pub fn post(&self, job: impl FnOnce() + Send + 'static) -> io::Result<()> {
        let jobs = self.jobs.lock().unwrap_or_else(PoisonError::into_inner);
        jobs.as_ref().and_then(|jobs| jobs.send(Box::new(job)).ok()).ok_or_else(stopped)
    }

    /// Lets the thread end after what is queued: it keeps the namespace alive.
    pub fn stop(&self) {
        self.jobs.lock().unwrap_or_else(PoisonError::into_inner).take();
    }
}

fn stopped() -> io::Error {
    io::Error::new(io::ErrorKind::NotConnected, "the pod left the mesh")
}
