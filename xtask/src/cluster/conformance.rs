//! `cargo xtask cluster conformance`: Gateway API's own conformance suite against the mesh.

use std::process::{Command, ExitCode};

use anyhow::{Context, Result};

use super::layout::admin_config;
use super::parts::Parts;
use super::{control, kubectl};
use crate::build;

/// What of the suite is asked of a mesh: every feature that one of its mesh tests needs.
const FEATURES: [&str; 17] = [
    "Mesh",
    "HTTPRoute",
    "GRPCRoute",
    "HTTPRouteResponseHeaderModification",
    "HTTPRouteParentRefPort",
    "HTTPRoute303RedirectStatusCode",
    "HTTPRoute307RedirectStatusCode",
    "HTTPRoute308RedirectStatusCode",
    "MeshClusterIPMatching",
    "MeshConsumerRoute",
    "MeshHTTPRouteRewritePath",
    "MeshHTTPRouteSchemeRedirect",
    "MeshHTTPRouteRedirectPort",
    "MeshHTTPRouteRedirectPath",
    "MeshHTTPRouteBackendRequestHeaderModification",
    "MeshHTTPRouteQueryParamMatching",
    "MeshHTTPRouteNamedRouteRule",
];

/// How the suite is run.
#[derive(clap::Args)]
pub struct Conformance {
    /// How often in a row each answer has to be right: with the suite's own 3 traffic that is not meshed passes by luck
    #[arg(long, default_value_t = 20)]
    consecutive: u32,
    /// Only this test, such as MeshHTTPRouteWeight
    #[arg(long, value_name = "NAME")]
    only: Option<String>,
}

impl Conformance {
    /// Runs it against the mesh that is installed; the report is target/conformance-report.yaml.
    pub fn run(self, parts: &Parts) -> Result<ExitCode> {
        let Self { consecutive, only } = self;
        let status = suite(parts, consecutive, only.as_deref())?.status().context("starting the suite")?;
        Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }
}

/// The suite as a command.
pub fn suite(parts: &Parts, consecutive: u32, only: Option<&str>) -> Result<Command> {
    kubectl(parts, &["-n", "nodemesh-system", "get", "daemonset", "nodemesh-agent"], None)
        .context("the mesh is not installed: cargo xtask cluster install")?;
    let report = build::target_dir().join("conformance-report.yaml");
    let program = parts.program("conformance").display().to_string();
    let flags = [
        "-test.run=TestConformance".to_string(),
        "-test.v".to_string(),
        "-test.timeout=60m".to_string(),
        "--conformance-profiles=MESH-HTTP,MESH-GRPC".to_string(),
        format!("--supported-features={}", FEATURES.join(",")),
        "--namespace-labels=nodemesh.dev/mesh=enabled".to_string(),
        "--gateway-class=none".to_string(),
        "--organization=nodemesh".to_string(),
        "--project=nodemesh".to_string(),
        "--url=https://nodemesh.dev".to_string(),
        format!("--version=v{}", env!("CARGO_PKG_VERSION")),
        "--contact=@nodemesh".to_string(),
        format!("--report-output={}", report.display()),
    ];
    let only = only.map(|name| format!("--run-test={name}"));
    let argv: Vec<&str> = [program.as_str()].into_iter().chain(flags.iter().chain(&only).map(String::as_str)).collect();
    let mut command = control::place()?.command(&argv)?;
    command.env("KUBECONFIG", admin_config()).env("NODEMESH_CONSECUTIVE_SUCCESSES", consecutive.to_string());
    Ok(command)
}
