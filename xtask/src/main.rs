//! cargo xtask: builds, demonstrates and tests Nodemesh.

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};
use xtask::testbed::enter::Exec;
use xtask::testbed::relay::Relay;
use xtask::testbed::run;
use xtask::{bench, build, clean, cluster, demo, exec, fuzz, image, kernels, manifests, probe, rings, soak, ui};

/// Builds, demonstrates and tests Nodemesh
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Arguments {
    #[command(subcommand)]
    command: Xtask,
}

#[derive(Subcommand)]
enum Xtask {
    Demo(demo::Demo),
    Test(rings::Test),
    Soak(soak::Soak),
    Bench(bench::Bench),
    Build(build::Build),
    Image(image::BuildImage),
    Manifests(manifests::Manifests),
    Fuzz(fuzz::Fuzz),
    Ui(ui::Ui),
    /// Build the BPF object alone; prints its path
    BuildEbpf,
    Cluster(cluster::Cluster),
    Kernels(kernels::Kernels),
    Clean(clean::Clean),
    #[command(name = "exec")]
    InPod(exec::InPod),
    /// Become a process of a pod or a node
    #[command(name = "__exec", hide = true)]
    Exec(Exec),
    #[command(name = "__cluster-node", hide = true)]
    ClusterNode(cluster::init::Init),
    /// End a run when its maker is gone
    #[command(name = "__guard", hide = true)]
    Guard {
        run: String,
    },
    /// Make a run and hold it, for the test that kills its maker
    #[command(name = "__hold", hide = true)]
    Hold,
    /// Be a bad cable between two nodes
    #[command(name = "__relay", hide = true)]
    Relay(Relay),
    /// Be one end of a test connection
    #[command(name = "__probe", hide = true, subcommand)]
    Probe(probe::Probe),
}

fn main() -> ExitCode {
    match run(Arguments::parse().command) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: Xtask) -> Result<ExitCode> {
    match command {
        Xtask::Demo(demo) => return demo.run(),
        Xtask::Test(test) => return test.run(),
        Xtask::Soak(soak) => return soak.run(),
        Xtask::Bench(bench) => return bench.run(),
        Xtask::Build(build) => build.run()?,
        Xtask::Image(image) => image.run()?,
        Xtask::Manifests(manifests) => manifests.run()?,
        Xtask::Fuzz(fuzz) => return fuzz.run(),
        Xtask::Ui(ui) => ui.run()?,
        Xtask::BuildEbpf => println!("{}", xtask::ebpf::build()?.display()),
        Xtask::Cluster(cluster) => return cluster.run(),
        Xtask::Kernels(kernels) => return kernels.run(),
        Xtask::ClusterNode(init) => init.run()?,
        Xtask::Clean(clean) => clean.run()?,
        Xtask::InPod(exec) => return exec.run(),
        Xtask::Exec(exec) => exec.run()?,
        Xtask::Guard { run } => run::guard(&run)?,
        Xtask::Hold => run::hold()?,
        Xtask::Relay(relay) => relay.run()?,
        Xtask::Probe(probe) => probe.run()?,
    }
    Ok(ExitCode::SUCCESS)
}
