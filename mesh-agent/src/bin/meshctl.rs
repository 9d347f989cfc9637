//! meshctl: one command line for a whole mesh, of a cluster or of single agents. Also `kubectl mesh`, under the name
//! kubectl-mesh.

use std::process::ExitCode;

fn main() -> ExitCode {
    mesh_agent::ctl::run(std::env::args_os())
}
