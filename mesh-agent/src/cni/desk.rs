//! Where the agent answers the plugin: a unix socket for root alone.

use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::UnixListener;
use tokio::sync::Semaphore;
use tokio::time::Instant;

use super::ask::{self, About, Answer, Question};
use super::notes::Notes;
use crate::named::named;
use crate::sandboxes::{Progress, Sandbox, Sandboxes};
use crate::state::StateReader;

/// How long a pod of the mesh has to be captured. Kubelet gives a sandbox two minutes, and tries again after any failure:
/// a reason that shows in the pod's events is worth more than a longer wait.
pub(super) const PATIENCE: Duration = Duration::from_secs(30);
/// How long the watch of the API server has to tell of a pod that kubelet knows.
pub(super) const ACQUAINTANCE: Duration = Duration::from_secs(5);
/// Kubelet starts a few pods at a time.
pub(super) const AT_ONCE: usize = 64;

/// What is needed to answer.
#[derive(Clone)]
pub struct Desk {
    sandboxes: Sandboxes,
    state: StateReader,
    notes: Notes,
}

impl Desk {
    /// For questions on `socket`. Hands over what earlier agents were asked there.
    pub fn new(sandboxes: Sandboxes, state: StateReader, socket: &Path) -> Self {
        let notes = Notes::beside(socket);
        notes.recall(&sandboxes);
        Self { sandboxes, state, notes }
    }

    /// Answers on `listener`. Never ends.
    pub async fn serve(self, listener: UnixListener) {
        let places = Arc::new(Semaphore::new(AT_ONCE));
        loop {
            let stream = match listener.accept().await {
                Ok((stream, _)) => stream,
                Err(error) => {
                    tracing::warn!(%error, "the plugin's question cannot be accepted");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            };
            // The file's mode says so already, unless its directory was opened to others.
            if !stream.peer_cred().is_ok_and(|peer| peer.uid() == 0) {
                tracing::warn!("a process that is not root's asked on the plugin's socket");
                continue;
            }
            let Ok(place) = places.clone().acquire_owned().await else { return };
            let desk = self.clone();
            tokio::spawn(async move {
                if let Err(error) = desk.attend(stream).await {
                    tracing::debug!(%error, "a question of the plugin had no answer");
                }
                drop(place);
            });
        }
    }

    /// Takes off the node what is there for answering on `socket`, where no other agent comes.
    pub fn remove(socket: &Path) {
        Notes::beside(socket).remove_all();
        // It may be gone already.
        let _ = std::fs::remove_file(socket);
    }

    async fn attend(self, stream: tokio::net::UnixStream) -> io::Result<()> {
        let stream = stream.into_std()?;
        stream.set_nonblocking(false)?;
        let (stream, question, netns) = blocking(move || {
            let (question, netns) = ask::read(&stream)?;
            Ok((stream, question, netns))
        })
        .await?;
        let answer = self.answer(&question, netns).await;
        let Question { about, namespace, name, .. } = &question;
        let container = &*question.container;
        tracing::info!(
            ?about,
            container,
            namespace = named(namespace),
            name = named(name),
            ?answer,
            "the plugin asked"
        );
        blocking(move || ask::say(&stream, &answer)).await
    }

    async fn answer(self, question: &Question, netns: Option<File>) -> Answer {
        match (question.about, netns) {
            (About::Add, Some(netns)) => match Sandbox::new(&question.container, question.ips.clone(), netns) {
                Ok(sandbox) => self.add(question, sandbox).await,
                Err(error) => Answer::Failed { reason: format!("looking at its network namespace: {error}") },
            },
            (About::Add, None) => Answer::Failed { reason: "its network namespace did not come along".into() },
            (About::Check, _) => self.look(&question.uid),
            (About::Del, _) => {
                self.forget(&question.container);
                Answer::Done
            }
        }
    }

    /// Waits for capture. What was handed over is taken back unless that came: kubelet tries again with a new sandbox.
    async fn add(mut self, question: &Question, sandbox: Sandbox) -> Answer {
        let started = Instant::now();
        // Before it is captured: the next agent is to know of it, should this one die.
        if let Err(error) = self.notes.write(question) {
            return Answer::Failed { reason: format!("noting its sandbox: {error}") };
        }
        self.sandboxes.add(question.uid.as_str().into(), sandbox);
        let mut progress = self.sandboxes.progress();
        let answer = loop {
            progress.mark_unchanged();
            let answer = self.look(&question.uid);
            let patience = match answer {
                Answer::Done | Answer::NotMeshed => break answer,
                Answer::Unknown => ACQUAINTANCE,
                Answer::Failed { .. } => PATIENCE,
            };
            tokio::select! {
                told = self.state.changed() => if !told { break answer },
                told = progress.changed() => if told.is_err() { break answer },
                () = tokio::time::sleep_until(started + patience) => break answer,
            }
        };
        if answer != Answer::Done {
            self.forget(&question.container);
        }
        answer
    }

    fn forget(&self, container: &str) {
        self.notes.remove(container);
        self.sandboxes.remove(container);
    }

    /// How it stands with a pod now.
    fn look(&self, uid: &str) -> Answer {
        let state = self.state.current();
        let Some(workload) = state.local_workloads().find(|workload| *workload.uid == *uid) else {
            return Answer::Unknown;
        };
        if !workload.enrolled {
            return Answer::NotMeshed;
        }
        let Some(sandbox) = self.sandboxes.get(uid) else {
            return Answer::Failed { reason: "its sandbox was not handed over by the plugin".into() };
        };
        let progress = self.sandboxes.progress();
        let told = progress.borrow().get(uid).cloned();
        match told {
            Some(Progress::Captured(inode)) if inode == sandbox.inode() => Answer::Done,
            Some(Progress::Captured(_)) => Answer::Failed { reason: "its earlier sandbox is captured still".into() },
            Some(Progress::Waiting(reason)) => Answer::Failed { reason },
            None => Answer::Failed { reason: "it is being enrolled".into() },
        }
    }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(io::Error::other)?
}
