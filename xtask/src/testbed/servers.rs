//! The real programs that pods run.

use std::fs;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::Result;

use super::pod::Pod;
use super::process::Finished;

/// Debian's interpreter, which sees Debian's grpcio; another `python3` may come first in PATH.
const PYTHON: &str = "/usr/bin/python3";

/// nginx on ports 80 and 8080; the second says so. Its log has one line per request: client IP, client port, request,
/// status. Returns the log's path.
pub fn start_nginx(pod: &Pod) -> Result<std::path::PathBuf> {
    let dir = pod.dir.join("nginx");
    fs::create_dir_all(dir.join("html"))?;
    fs::write(dir.join("html/index.html"), format!("hello from {}\n", pod.spec.name))?;
    fs::write(dir.join("html/big"), vec![b'x'; 1 << 20])?;
    let log = dir.join("access.log");
    let config = include_str!("servers/nginx.conf").replace("DIR", &dir.to_string_lossy());
    let file = dir.join("nginx.conf");
    fs::write(&file, config)?;
    pod.start("nginx", &["nginx", "-e", "stderr", "-p", &dir.to_string_lossy(), "-c", &file.to_string_lossy()])?;
    pod.wait_listening(80)?;
    Ok(log)
}

/// Redis on port 6379, in memory only.
pub fn start_redis(pod: &Pod) -> Result<()> {
    let dir = pod.dir.join("redis");
    fs::create_dir_all(&dir)?;
    let dir = dir.to_string_lossy();
    let bind = ["--bind", "0.0.0.0", "::", "--protected-mode", "no", "--port", "6379"];
    let memory_only = ["--save", "", "--appendonly", "no", "--dir", &dir];
    pod.start("redis", &[&["redis-server"][..], &bind, &memory_only].concat())?;
    pod.wait_listening(6379)
}

/// A gRPC server on port 50051: `demo.Greeter/Hello` (unary) and `demo.Greeter/Count` (server streaming).
pub fn start_greeter(pod: &Pod) -> Result<()> {
    let script = pod.dir.join("greeter_server.py");
    fs::write(&script, include_str!("servers/greeter_server.py"))?;
    pod.start("greeter", &[PYTHON, "-u", &script.to_string_lossy(), "50051"])?;
    pod.wait_listening(50051)
}

/// Calls the gRPC server from a pod: one Hello with `name`, one Count to 100. Prints both answers.
pub fn greeter_client(pod: &Pod, server: SocketAddr, name: &str) -> Result<Finished> {
    let script = pod.dir.join("greeter_client.py");
    fs::write(&script, include_str!("servers/greeter_client.py"))?;
    pod.run(&[PYTHON, &script.to_string_lossy(), &server.to_string(), name], Duration::from_secs(20))
}
