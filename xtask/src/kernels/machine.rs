//! A machine in QEMU: boots a kernel, does the work, and says how each step ended over a serial port.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use super::package::Kernel;
use crate::build;

/// What is done in each machine, after `mesh-agent check --load`.
pub(super) struct Work {
    pub agent: PathBuf,
    /// Name, program, and which of its tests.
    pub tests: Vec<(&'static str, PathBuf, String)>,
}

/// Who plays the processor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Accelerator {
    /// The kernel, by the processor's own means.
    Kvm,
    /// QEMU, instruction by instruction: thirty times slower, and everywhere.
    Tcg,
}

/// A kernel under KVM says its first word within a second or two. Where KVM is itself in a machine, it may say none at all.
const ALIVE: Duration = Duration::from_secs(20);
/// The same by TCG, beside other work.
const ALIVE_SLOWLY: Duration = Duration::from_secs(300);
/// All of the work: some seconds by KVM; by TCG a minute or two for check and capture, and many for more tests.
const WHOLE: Duration = Duration::from_secs(3600);
const MEMORY_MB: &str = "3072";

/// What a machine did.
pub(super) struct Done {
    pub steps: Vec<Step>,
    /// Whether it came to its end.
    pub is_whole: bool,
    /// What the kernel said.
    pub console: String,
}

#[derive(Default)]
pub(super) struct Step {
    pub name: String,
    pub said: String,
    /// None: it did not end.
    pub status: Option<i32>,
}

pub(super) struct Machine;

/// KVM where there is a device.
pub(super) fn first_choice() -> Accelerator {
    if Path::new("/dev/kvm").exists() { Accelerator::Kvm } else { Accelerator::Tcg }
}

impl Accelerator {
    pub fn name(self) -> &'static str {
        match self {
            Self::Kvm => "KVM",
            Self::Tcg => "TCG, without the processor's help",
        }
    }

    fn arguments(self) -> [&'static str; 4] {
        match self {
            Self::Kvm => ["-accel", "kvm", "-cpu", "host"],
            Self::Tcg => ["-accel", "tcg", "-cpu", "max"],
        }
    }

    fn patience(self) -> Duration {
        match self {
            Self::Kvm => ALIVE,
            Self::Tcg => ALIVE_SLOWLY,
        }
    }
}

impl Machine {
    /// Boots, works, ends. Where nothing is heard under KVM, `accelerator` is TCG from then on.
    pub fn boot(kernel: &Kernel, work: &Work, accelerator: &mut Accelerator) -> Result<Done> {
        let place = build::target_dir().join("kernels").join(&kernel.version);
        fs::create_dir_all(&place).with_context(|| format!("making {}", place.display()))?;
        let script = place.join("work.sh");
        fs::write(&script, work.script())?;
        let first = place.join("first-files");
        kernel.first_files(&include_str!("init.sh").replace("%WORK%", &script.to_string_lossy()), &first)?;
        let console = place.join("console.log");
        loop {
            let mut running = Running::start(kernel, &first, &console, *accelerator)?;
            if running.is_alive(accelerator.patience())? {
                let (steps, is_whole) = running.follow()?;
                let console = fs::read_to_string(&console).unwrap_or_default();
                return Ok(Done { steps, is_whole, console });
            }
            let console = fs::read_to_string(&console).unwrap_or_default();
            ensure!(*accelerator == Accelerator::Kvm, "{} does not boot: {console}", kernel.version);
            eprintln!("under KVM nothing is heard of it: the machine here may be one itself. Again with TCG");
            *accelerator = Accelerator::Tcg;
        }
    }
}

impl Work {
    fn script(&self) -> String {
        let step = |(name, program, text): &(&str, PathBuf, String)| {
            format!("step {name} '{}' --nocapture --test-threads=1 '{text}'", program.display())
        };
        let steps: Vec<String> = self.tests.iter().map(step).collect();
        let script = include_str!("work.sh").replace("%AGENT%", &self.agent.to_string_lossy());
        script.replace("%ROOT%", &build::root().to_string_lossy()).replace("%STEPS%", &steps.join("\n"))
    }
}

impl Done {
    /// All that a step said.
    pub fn said(&self, name: &str) -> Result<&str> {
        let step = self.steps.iter().find(|step| step.name == name);
        let step =
            step.with_context(|| format!("the machine did not come to {name}; its console:\n{}", self.console))?;
        Ok(&step.said)
    }
}

/// A machine that runs; ends when dropped.
struct Running {
    qemu: Child,
    lines: Receiver<String>,
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.qemu.kill();
        let _ = self.qemu.wait();
    }
}

impl Running {
    fn start(kernel: &Kernel, first: &Path, console: &Path, accelerator: Accelerator) -> Result<Self> {
        let share = |path: &Path, name: &str| {
            let path = path.to_string_lossy();
            format!("local,path={path},mount_tag={name},security_model=none,readonly=on,multidevs=remap")
        };
        let mut qemu = Command::new("qemu-system-x86_64");
        qemu.args(accelerator.arguments())
            .args(["-machine", "q35", "-smp", "2", "-m", MEMORY_MB, "-nodefaults", "-no-reboot", "-display", "none"])
            .arg("-kernel")
            .arg(kernel.image())
            .arg("-initrd")
            .arg(first)
            .args(["-append", "console=ttyS0 loglevel=4 panic=-1"])
            .arg("-serial")
            .arg(format!("file:{}", console.display()))
            .args(["-serial", "stdio"])
            .args(["-virtfs", &share(Path::new("/"), "host")])
            .args(["-virtfs", &share(&kernel.modules(), "modules")]);
        let mut qemu = qemu.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().context("starting QEMU")?;
        let stdout = qemu.stdout.take().context("no pipe from QEMU")?;
        let (sender, lines) = channel();
        // Ends with QEMU, or with who listens.
        std::thread::spawn(move || {
            for line in BufReader::new(stdout).split(b'\n').map_while(Result::ok) {
                if sender.send(String::from_utf8_lossy(&line).trim_end_matches('\r').to_string()).is_err() {
                    break;
                }
            }
        });
        Ok(Self { qemu, lines })
    }

    /// Waits for the first word. None under KVM: QEMU has ended, or the kernel hangs.
    fn is_alive(&mut self, patience: Duration) -> Result<bool> {
        let until = Instant::now() + patience;
        loop {
            match self.lines.recv_timeout(until.saturating_duration_since(Instant::now())) {
                Ok(line) if line == "@ alive" => return Ok(true),
                Ok(_) => {}
                Err(_) => return Ok(false),
            }
        }
    }

    /// Reads on until the machine ends: its steps, and whether it did all of them.
    fn follow(&mut self) -> Result<(Vec<Step>, bool)> {
        let until = Instant::now() + WHOLE;
        let mut steps: Vec<Step> = Vec::new();
        loop {
            let line = match self.lines.recv_timeout(until.saturating_duration_since(Instant::now())) {
                Ok(line) => line,
                Err(RecvTimeoutError::Disconnected) => return Ok((steps, false)),
                Err(RecvTimeoutError::Timeout) => bail!("after {} s the machine still works", WHOLE.as_secs()),
            };
            if line == "@ done" {
                return Ok((steps, true));
            }
            if let Some(reason) = line.strip_prefix("@ failed: ") {
                bail!("{reason}");
            }
            if let Some(name) = line.strip_prefix("@ begin ") {
                eprintln!("{name} …");
                steps.push(Step { name: name.to_string(), ..Step::default() });
            } else if let Some(step) = steps.last_mut() {
                match line.strip_prefix("@ end ") {
                    Some(status) => step.status = status.parse().ok(),
                    None => step.said.push_str(&format!("{line}\n")),
                }
            }
        }
    }
}
