//! `mesh-agent ca`: the root that signs, in a directory or in a cluster.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, bail};

use crate::apiserver::ApiServer;
use crate::cli::{CaArgs, CaCommand, CaPhase, CaRotateArgs};
use crate::config;
use crate::controller::{Rotation, RotationError};
use crate::identity::local_ca::Error;
use crate::identity::{Phase, RootDirectory};

/// Where a root is.
enum Place {
    Directory(RootDirectory),
    Cluster(Box<Rotation>, tokio::runtime::Runtime),
}

/// What a phase came to.
enum Step {
    Done(Vec<String>),
    /// Agents need this much more time.
    Wait(Duration),
}

pub(super) fn run(command: CaCommand) -> anyhow::Result<Vec<String>> {
    match command {
        CaCommand::Status(args) => Place::of(args)?.status(),
        CaCommand::Rotate(CaRotateArgs { root, phase, force }) => {
            let place = Place::of(root)?;
            let phase = match phase {
                CaPhase::Prepare => Phase::Prepare,
                CaPhase::Switch => Phase::Switch,
                CaPhase::Finish => Phase::Finish,
                CaPhase::Cancel => Phase::Cancel,
            };
            loop {
                match place.rotate(phase, force)? {
                    Step::Done(told) => return Ok(told),
                    Step::Wait(left) => {
                        eprintln!("waiting {} s for every agent to take the phase before", left.as_secs() + 1);
                        std::thread::sleep(left);
                    }
                }
            }
        }
    }
}

impl Place {
    fn of(args: CaArgs) -> anyhow::Result<Self> {
        let CaArgs { ca, trust_domain, kubeconfig, namespace } = args;
        let trust_domain = trust_domain.as_deref().unwrap_or(config::default::TRUST_DOMAIN);
        if ca == "kubernetes" {
            return Self::cluster(kubeconfig, namespace.as_deref().unwrap_or(config::default::NAMESPACE), trust_domain);
        }
        let path = ca.strip_prefix("dir:").filter(|path| !path.is_empty());
        let expected = "expected dir: and the directory of the root, or kubernetes";
        let path = path.with_context(|| format!("--ca {ca:?} is refused: {expected}"))?;
        for (flag, is_given) in [("--kubeconfig", kubeconfig.is_some()), ("--namespace", namespace.is_some())] {
            if is_given {
                bail!("{flag} is refused: it is for --ca kubernetes");
            }
        }
        Ok(Self::Directory(RootDirectory::new(path.as_ref(), trust_domain)?))
    }

    fn cluster(kubeconfig: Option<PathBuf>, namespace: &str, trust_domain: &str) -> anyhow::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let client = runtime.block_on(async { ApiServer::find(kubeconfig).await?.client() })?;
        Ok(Self::Cluster(Box::new(Rotation::new(client, namespace, trust_domain)), runtime))
    }

    fn status(&self) -> anyhow::Result<Vec<String>> {
        match self {
            Self::Directory(directory) => Ok(directory.status()?),
            Self::Cluster(rotation, runtime) => Ok(runtime.block_on(rotation.status())?),
        }
    }

    fn rotate(&self, phase: Phase, is_forced: bool) -> anyhow::Result<Step> {
        match self {
            Self::Directory(directory) => match directory.rotate(phase, is_forced) {
                Err(Error::TooSoon(left)) => Ok(Step::Wait(left)),
                done => Ok(Step::Done(done?)),
            },
            Self::Cluster(rotation, runtime) => match runtime.block_on(rotation.rotate(phase, is_forced)) {
                Err(RotationError::TooSoon(left)) => Ok(Step::Wait(left)),
                done => Ok(Step::Done(done?)),
            },
        }
    }
}
