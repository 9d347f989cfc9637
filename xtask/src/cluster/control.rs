//! The control plane: etcd, API server, controller manager, scheduler, in a network namespace of their own.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process};

use super::layout::{self, CONTROL, CONTROL_IP, PODS, SERVICES, pki, run_dir, work};
use super::parts::Parts;
use crate::testbed::{Place, eventually};

/// How long an API server may take to be ready: a second or two, on a busy machine a minute.
const READY: Duration = Duration::from_secs(120);
const ETCD: &str = "http://127.0.0.1:12379";

/// Where the control plane's processes run.
pub fn place() -> Result<Place> {
    layout::place(CONTROL)
}

/// Starts etcd.
pub fn start_etcd() -> Result<()> {
    let data = work().join("etcd").display().to_string();
    let (peers, cluster) = ("http://127.0.0.1:12380", "default=http://127.0.0.1:12380");
    let argv = [
        "/usr/bin/etcd",
        "--data-dir",
        &data,
        "--listen-client-urls",
        ETCD,
        "--advertise-client-urls",
        ETCD,
        "--listen-peer-urls",
        peers,
        "--initial-advertise-peer-urls",
        peers,
        "--initial-cluster",
        cluster,
        // What is lost with the machine was a test.
        "--unsafe-no-fsync",
    ];
    start("etcd", &argv.map(str::to_string))
}

/// Starts the API server, which is ready some seconds later: [`wait_ready`].
pub fn start_api_server(parts: &Parts) -> Result<()> {
    let file = |name: &str| pki().join(name).display().to_string();
    let issuer = "https://kubernetes.default.svc.cluster.local";
    let settings = [
        ("etcd-servers", ETCD.to_string()),
        ("advertise-address", CONTROL_IP.to_string()),
        ("secure-port", "6443".to_string()),
        ("service-cluster-ip-range", SERVICES.to_string()),
        ("client-ca-file", file("ca.crt")),
        ("tls-cert-file", file("apiserver.crt")),
        ("tls-private-key-file", file("apiserver.key")),
        ("service-account-issuer", issuer.to_string()),
        ("service-account-key-file", file("sa.pub")),
        ("service-account-signing-key-file", file("sa.key")),
        ("kubelet-client-certificate", file("kubelet-client.crt")),
        ("kubelet-client-key", file("kubelet-client.key")),
        ("requestheader-client-ca-file", file("ca.crt")),
        ("requestheader-allowed-names", "front-proxy-client".to_string()),
        ("requestheader-username-headers", "X-Remote-User".to_string()),
        ("requestheader-group-headers", "X-Remote-Group".to_string()),
        ("requestheader-extra-headers-prefix", "X-Remote-Extra-".to_string()),
        ("proxy-client-cert-file", file("front-proxy.crt")),
        ("proxy-client-key-file", file("front-proxy.key")),
        ("enable-aggregator-routing", "true".to_string()),
        ("kubelet-preferred-address-types", "InternalIP".to_string()),
        ("authorization-mode", "Node,RBAC".to_string()),
        ("enable-admission-plugins", "NodeRestriction".to_string()),
        ("allow-privileged", "true".to_string()),
        ("profiling", "false".to_string()),
    ];
    start_part(parts, "kube-apiserver", &settings)
}

/// Starts what watches the API server.
pub fn start_controllers(parts: &Parts) -> Result<()> {
    let file = |name: &str| pki().join(name).display().to_string();
    let configured = |name: &str| {
        let config = file(&format!("{name}.kubeconfig"));
        ["kubeconfig", "authentication-kubeconfig", "authorization-kubeconfig"].map(|flag| (flag, config.clone()))
    };
    let mut settings = vec![
        ("flex-volume-plugin-dir", work().join("flex").display().to_string()),
        ("service-account-private-key-file", file("sa.key")),
        ("root-ca-file", file("ca.crt")),
        ("cluster-signing-cert-file", file("ca.crt")),
        ("cluster-signing-key-file", file("ca.key")),
        ("use-service-account-credentials", "true".to_string()),
        ("allocate-node-cidrs", "true".to_string()),
        ("cluster-cidr", PODS.to_string()),
        ("node-cidr-mask-size", "24".to_string()),
        ("service-cluster-ip-range", SERVICES.to_string()),
        ("leader-elect", "false".to_string()),
        // A node that a test takes away is noticed, and its pods are not moved away within the test.
        // It is much longer than a test takes the API server away for: else its return finds every node lost, and their pods
        // are nobody's endpoints.
        ("node-monitor-grace-period", "180s".to_string()),
    ];
    settings.extend(configured("controller-manager"));
    start_part(parts, "kube-controller-manager", &settings)?;
    let mut settings = vec![("leader-elect", "false".to_string())];
    settings.extend(configured("scheduler"));
    start_part(parts, "kube-scheduler", &settings)
}

/// Waits until the API server answers.
pub fn wait_ready(parts: &Parts) -> Result<()> {
    eventually(READY, "the API server to be ready", || {
        let ready = super::kubectl(parts, &["get", "--raw", "/readyz"], None);
        Ok(ready.is_ok_and(|answer| answer.trim() == "ok").then_some(()))
    })
}

/// Kills one of its processes, as a crash does; [`start_api_server`] and the others bring it back.
pub fn kill(name: &str) -> Result<()> {
    let file = pid_file(name);
    let pid = fs::read_to_string(&file).with_context(|| format!("{name} was not started"))?;
    let Some(pid) = pid.trim().parse().ok().and_then(Pid::from_raw) else { bail!("{} is no pid", file.display()) };
    kill_process(pid, Signal::KILL).with_context(|| format!("killing {name}"))?;
    eventually(Duration::from_secs(60), &format!("{name} to end"), || {
        let state = fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero())).unwrap_or_default();
        // A zombie has ended; its parent may be this process.
        Ok((state.is_empty() || state.contains(") Z ")).then_some(()))
    })
}

fn start_part(parts: &Parts, name: &str, settings: &[(&str, String)]) -> Result<()> {
    let mut argv = vec![parts.program(name).display().to_string()];
    argv.extend(settings.iter().map(|(flag, value)| format!("--{flag}={value}")));
    argv.push("--v=1".to_string());
    start(name, &argv)
}

fn start(name: &str, argv: &[String]) -> Result<()> {
    let argv: Vec<&str> = argv.iter().map(String::as_str).collect();
    let mut process = place()?.spawn(name, &argv)?;
    fs::write(pid_file(name), process.pid().to_string()).context("writing a pid down")?;
    process.keep();
    Ok(())
}

fn pid_file(name: &str) -> PathBuf {
    run_dir().join(format!("{name}.pid"))
}
