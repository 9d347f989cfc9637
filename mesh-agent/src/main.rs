//! mesh-agent: parse the command line, hand over to the library.

use std::process::ExitCode;

use clap::Parser;
use mesh_agent::cli::{Cli, Command};
use mesh_agent::cni::plugin;
use mesh_agent::config::{Config, ControllerConfig, Refusals, Surroundings};
use mesh_agent::{app, commands};

/// glibc's allocator keeps what thousands of connections once needed: its arenas shrink from their ends alone, where
/// something always lives. This one gives free pages back wherever they are.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// What the command line, the environment or the file says cannot be done; as clap's own refusals.
const WRONG_USAGE: u8 = 2;

fn main() -> ExitCode {
    // There are keys in memory: no core is written, and nobody without CAP_SYS_PTRACE looks in. Linux refuses it to nobody.
    let _ = rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable);
    // Each thread would hold pages of 2 MiB for what fits in a few of 4 KiB; a kernel that has none refuses.
    let _ = rustix::thread::disable_transparent_huge_pages(true);
    // Container runtimes start the plugin by its name, with no arguments.
    if let Some(call) = plugin::Call::of_environment() {
        return plugin::run(&call, std::io::stdin().lock(), &mut std::io::stdout().lock());
    }
    let surroundings = Surroundings::of_this_process();
    let done = match Cli::parse().command {
        Command::Run(args) => match Config::load(*args, &surroundings) {
            Ok(config) => app::run(config).map(|()| ExitCode::SUCCESS),
            Err(refusals) => return refuse(&refusals, "run"),
        },
        Command::Controller(args) => match ControllerConfig::load(*args, &surroundings) {
            Ok(config) => app::control(config).map(|()| ExitCode::SUCCESS),
            Err(refusals) => return refuse(&refusals, "controller"),
        },
        Command::Check(args) => commands::check(args, &surroundings),
        Command::Validate(args) => commands::validate(args),
        Command::Ca(command) => commands::ca(command),
        Command::Policy(command) => commands::policy(command),
        Command::Cni(command) => commands::cni(command),
        Command::Get(args) => commands::get(args),
        Command::Bench(args) => commands::bench(args),
        Command::Rest(args) => commands::rest(args),
        Command::Version => {
            println!("mesh-agent {}", env!("CARGO_PKG_VERSION"));
            Ok(ExitCode::SUCCESS)
        }
        Command::Detach(args) => commands::detach(args),
    };
    done.unwrap_or_else(|error| {
        eprintln!("error: {error:#}");
        ExitCode::FAILURE
    })
}

fn refuse(refusals: &Refusals, command: &str) -> ExitCode {
    for refusal in &refusals.0 {
        eprintln!("error: {refusal}");
    }
    eprintln!("\nFor more information, try 'mesh-agent {command} --help'.");
    ExitCode::from(WRONG_USAGE)
}
