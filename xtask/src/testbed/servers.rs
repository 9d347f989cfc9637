//! The real programs that pods run.

use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::address::Family;
use super::eventually;
use super::pod::Pod;
use super::process::{Finished, Process};

/// Debian's interpreter, which sees Debian's grpcio; another `python3` may come first in PATH.
const PYTHON: &str = "/usr/bin/python3";

/// nginx on ports 80 and 8080; the second says so; and on 8081, by HTTP/2 alone. Its log has one line per request: client
/// IP, client port, request, status. Returns the log's path.
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
    // It binds one after the other, this one last.
    pod.wait_listening(8081)?;
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

/// PostgreSQL on port 5432, as the user `postgres`, in the pod's directory. Everyone is its superuser, and nothing is
/// safe from a power cut.
pub fn start_postgres(pod: &Pod) -> Result<()> {
    let dir = pod.dir.join("postgres");
    fs::create_dir_all(&dir)?;
    // PostgreSQL refuses to run as root, and takes no directory that others may read.
    fs::set_permissions(&dir, fs::Permissions::from_mode(0o700))?;
    let user = postgres_user()?;
    std::os::unix::fs::chown(&dir, Some(user), Some(user)).context("giving PostgreSQL its directory")?;
    let (programs, data) = (postgres_programs()?, dir.join("data").to_string_lossy().into_owned());
    let program = |name: &str| programs.join(name).to_string_lossy().into_owned();
    let as_user = ["setpriv", &format!("--reuid={user}"), &format!("--regid={user}"), "--clear-groups"];
    let (initdb, postgres) = (program("initdb"), program("postgres"));
    let make = [&initdb, "-D", &data, "-U", "postgres", "--auth=trust", "--no-sync", "--locale=C.UTF-8"];
    pod.run(&[&as_user[..], &make].concat(), Duration::from_secs(120))?.expect_ok("initdb")?;
    let anyone = "host all all 0.0.0.0/0 trust\nhost all all ::/0 trust\n";
    let rules = dir.join("data/pg_hba.conf");
    fs::write(&rules, fs::read_to_string(&rules)? + anyone)?;
    let sockets = format!("unix_socket_directories={}", dir.display());
    let settings = ["listen_addresses=*", "fsync=off", "max_connections=200", "shared_buffers=32MB", &sockets];
    let settings = settings.iter().flat_map(|setting| ["-c", setting]);
    let serve: Vec<&str> = [&postgres, "-D", &data].into_iter().chain(settings).collect();
    pod.start("postgres", &[&as_user[..], &serve].concat())?;
    pod.wait_listening(5432)?;
    // It listens before it lets anybody in.
    eventually(Duration::from_secs(60), "PostgreSQL to be ready", || {
        let log = fs::read_to_string(pod.log_path("postgres"))?;
        Ok(log.contains("ready to accept connections").then_some(()))
    })
}

/// The user that the distribution's package makes; without it, nobody.
fn postgres_user() -> Result<u32> {
    let users = fs::read_to_string("/etc/passwd").context("reading /etc/passwd")?;
    let id = |name: &str| {
        let line = users.lines().find(|line| line.split(':').next() == Some(name))?;
        line.split(':').nth(2)?.parse().ok()
    };
    id("postgres").or_else(|| id("nobody")).context("there is neither a user postgres nor nobody")
}

/// Where the server and its tools are: Debian has a directory for each version.
pub fn postgres_programs() -> Result<PathBuf> {
    let versions = fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let mut places: Vec<PathBuf> = versions.map(|version| version.path().join("bin")).collect();
    places.extend(["/usr/bin".into(), "/usr/libexec/postgresql".into()]);
    let found = places.into_iter().filter(|place| place.join("postgres").is_file() && place.join("initdb").is_file());
    found.max().context("PostgreSQL's server is not installed")
}

/// psql from a pod, as superuser, with every command of `script` in one session; stops at the first that fails.
pub fn psql(pod: &Pod, server: SocketAddr, script: &str) -> Result<Finished> {
    let file = pod.dir.join("script.sql");
    fs::write(&file, script)?;
    let target = postgres_url(server);
    let quiet = ["psql", "-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-f"];
    pod.run(&[&quiet[..], &[&file.to_string_lossy(), &target]].concat(), Duration::from_secs(120))
}

/// The server's database `postgres` as its superuser.
pub fn postgres_url(server: SocketAddr) -> String {
    let (host, port) = (server.ip(), server.port());
    format!("host={host} port={port} user=postgres dbname=postgres connect_timeout=30")
}

/// A web server that says the pod's name, with a status, after so many seconds. [`web_requests`] counts what came.
pub fn start_web(pod: &Pod, port: u16, status: u16, seconds: u32) -> Result<()> {
    let script = script(pod, "web_server", include_str!("servers/web_server.py"))?;
    let (port_text, status, seconds) = (port.to_string(), status.to_string(), seconds.to_string());
    let argv = [PYTHON, "-u", &script, &port_text, &pod.spec.name, &status, &seconds];
    pod.start("web", &argv)?;
    pod.wait_listening(port)
}

/// How many requests came to [`start_web`].
pub fn web_requests(pod: &Pod) -> Result<usize> {
    let log = fs::read_to_string(pod.log_path("web")).context("reading the web server's log")?;
    Ok(log.lines().filter(|line| line.starts_with("request ")).count())
}

/// A gRPC server on port 50051, `demo.Greeter`: calls of all four kinds, and one that waits.
pub fn start_greeter(pod: &Pod) -> Result<()> {
    let script = script(pod, "greeter_server", include_str!("servers/greeter_server.py"))?;
    pod.start("greeter", &[PYTHON, "-u", &script, "50051"])?;
    pod.wait_listening(50051)
}

/// An HTTP/1.1 server that answers with what it was asked, as JSON; `/status/NNN` with that status.
pub fn start_reflector(pod: &Pod, port: u16) -> Result<()> {
    start_script(pod, "reflector", include_str!("servers/reflector.py"), port, &[&pod.spec.name])
}

/// The same over TLS, with a certificate of its own for that name. Returns the certificate's file.
pub fn start_tls_reflector(pod: &Pod, port: u16, name: &str) -> Result<PathBuf> {
    let (file, certificate) = make_certificate(pod, name)?;
    let path = file.to_string_lossy();
    start_script(pod, &format!("reflector-{name}"), include_str!("servers/reflector.py"), port, &[name, &path])?;
    Ok(certificate)
}

/// A certificate that rests on itself, in a file with its key and in one without.
pub fn make_certificate(pod: &Pod, name: &str) -> Result<(PathBuf, PathBuf)> {
    let file = pod.dir.join(format!("{name}.pem"));
    let path = file.to_string_lossy();
    let make = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-noenc"];
    let (subject, names) = (format!("/CN={name}"), format!("subjectAltName=DNS:{name}"));
    // No authority: clients that are strict take none for a server.
    let about = ["-days", "2", "-subj", &subject, "-addext", &names, "-addext", "basicConstraints=critical,CA:FALSE"];
    let certificate = pod.dir.join(format!("{name}.crt"));
    let out = ["-keyout", &path, "-out", &certificate.to_string_lossy()];
    pod.run(&[&make[..], &about, &out].concat(), Duration::from_secs(60))?.expect_ok("openssl req")?;
    // One file for the server: the key, then the certificate.
    fs::write(&file, fs::read_to_string(&file)? + &fs::read_to_string(&certificate)?)?;
    Ok((file, certificate))
}

/// Somebody to ask about requests: by gRPC on this port, by HTTP on the next. [`authorizer_checks`] says who asked.
pub fn start_authorizer(pod: &Pod, port: u16) -> Result<()> {
    start_script(pod, "authorizer", include_str!("servers/authorizer_server.py"), port, &[])
}

/// What [`start_authorizer`] was asked: a line each, `grpc` or `http`, then whether it was about the client.
pub fn authorizer_checks(pod: &Pod) -> Result<Vec<String>> {
    let log = fs::read_to_string(pod.log_path("authorizer")).context("reading the authorizer's log")?;
    let is_check = |line: &&str| line.starts_with("grpc ") || line.starts_with("http ");
    Ok(log.lines().filter(is_check).map(str::to_string).collect())
}

/// An issuer `https://issuer.example` with its keys at `/keys`, by the certificate and key in a file. Returns a token of
/// `alice`.
pub fn start_issuer(pod: &Pod, port: u16, certificate: &std::path::Path) -> Result<String> {
    let (path, dir) = (certificate.to_string_lossy(), pod.dir.to_string_lossy());
    start_script(pod, "issuer", include_str!("servers/issuer_server.py"), port, &[&path, &dir])?;
    fs::read_to_string(pod.dir.join("token")).context("reading the token")
}

/// A gRPC server that answers every call with what it saw, as JSON.
pub fn start_grpc_echo(pod: &Pod, port: u16) -> Result<()> {
    start_script(pod, "grpc-echo", include_str!("servers/grpc_echo.py"), port, &[&pod.spec.name])
}

/// Makes calls of gRPC from a pod, one after the other, with `metadata`. A line of JSON for each: `code`, and what the
/// server saw.
pub fn grpc_calls(
    pod: &Pod,
    server: SocketAddr,
    method: &str,
    metadata: &[(&str, &str)],
    count: usize,
) -> Result<Vec<serde_json::Value>> {
    let script = script(pod, "grpc_calls", include_str!("servers/grpc_calls.py"))?;
    let (metadata, count) = (serde_json::to_string(metadata)?, count.to_string());
    let argv = [PYTHON, &script, &server.to_string(), method, &metadata, &count];
    let said = pod.run(&argv, Duration::from_secs(120))?.expect_ok("calls of gRPC")?;
    said.lines().map(|line| serde_json::from_str(line).with_context(|| line.to_string())).collect()
}

/// A server of HTTP/1.1 that answers without end, or reads nothing.
pub fn start_endless(pod: &Pod, port: u16) -> Result<()> {
    start_script(pod, "endless", include_str!("servers/endless_server.py"), port, &[])
}

/// Starts a client that means no good, in one of its ways, so many times over. It says `ready` once it has done what it
/// came for, and holds on to what it has.
pub fn hostile_client(pod: &Pod, server: SocketAddr, way: &str, count: usize) -> Result<Process> {
    let script = script(pod, "hostile_client", include_str!("servers/hostile_client.py"))?;
    let (host, port, count) = (server.ip().to_string(), server.port().to_string(), count.to_string());
    pod.spawn(&format!("hostile-{way}"), &[PYTHON, "-u", &script, &host, &port, way, &count])
}

const ODD_SOCKETS: &str = include_str!("servers/odd_sockets.py");

/// The far end of connections of every kind (`serve`), or who takes other pods' sockets by a unix socket (`hold PATH`).
pub fn start_odd_sockets(pod: &Pod, part: &[&str]) -> Result<()> {
    let script = script(pod, "odd_sockets", ODD_SOCKETS)?;
    pod.start("odd-sockets", &[&[PYTHON, "-u", &script][..], part].concat())?;
    eventually(Duration::from_secs(60), "odd sockets", || {
        let log = fs::read_to_string(pod.log_path("odd-sockets"))?;
        ensure!(!log.contains("Error"), "{log}");
        Ok(log.contains("ready").then_some(()))
    })
}

/// Makes connections of every kind to a pod that serves them, one after the other, in a form of addresses: v4, v6 or
/// mapped. A line of JSON for each: its `kind`, its `clients`, what was `seen`.
pub fn dial_odd_sockets(pod: &Pod, form: &str, server: &Pod, holder: &Path) -> Result<Vec<serde_json::Value>> {
    let family = if form == "v6" { Family::V6 } else { Family::V4 };
    let (server, own, holder) = (server.ips.ip(family), pod.ips.ip(family), holder.to_string_lossy());
    let script = script(pod, "odd_sockets", ODD_SOCKETS)?;
    let argv = [PYTHON, &script, "dial", form, &server.to_string(), &own.to_string(), &holder];
    let said = pod.run(&argv, Duration::from_secs(120))?.expect_ok("odd sockets")?;
    said.lines().map(|line| serde_json::from_str(line).with_context(|| line.to_string())).collect()
}

/// Starts a stranger at a port that speaks TLS: so many connections on which it says nothing, and so many handshakes a
/// second, after each of which it leaves. A line of JSON now and then says how many there were.
pub fn handshake_storm(pod: &Pod, server: SocketAddr, silent: usize, rate: u64) -> Result<Process> {
    let script = script(pod, "storm_client", include_str!("servers/storm_client.py"))?;
    let (host, port, silent, rate) =
        (server.ip().to_string(), server.port().to_string(), silent.to_string(), rate.to_string());
    pod.spawn("storm", &[PYTHON, "-u", &script, &host, &port, &silent, &rate])
}

/// A WebSocket server that answers in upper case.
pub fn start_websocket(pod: &Pod, port: u16) -> Result<()> {
    start_script(pod, "websocket", include_str!("servers/websocket_server.py"), port, &[])
}

/// Puts a script where the pod finds it, by its path.
fn script(pod: &Pod, name: &str, text: &str) -> Result<String> {
    let script = pod.dir.join(format!("{name}.py"));
    fs::write(&script, text)?;
    Ok(script.to_string_lossy().into_owned())
}

fn start_script(pod: &Pod, name: &str, text: &str, port: u16, arguments: &[&str]) -> Result<()> {
    let script = script(pod, name, text)?;
    let argv = [PYTHON, "-u", &script, &port.to_string()];
    pod.start(name, &[&argv[..], arguments].concat())?;
    pod.wait_listening(port)
}

/// A client of that server, which says messages of many sizes and checks the answers.
pub fn websocket_client(pod: &Pod, server: SocketAddr) -> Result<Finished> {
    let script = script(pod, "websocket_client", include_str!("servers/websocket_client.py"))?;
    pod.run(&[PYTHON, &script, &format!("ws://{server}/")], Duration::from_secs(60))
}

/// A line of Python from a pod, with arguments.
pub fn python(pod: &Pod, script: &str, arguments: &[&str]) -> Result<Finished> {
    pod.run(&[&[PYTHON, "-c", script][..], arguments].concat(), Duration::from_secs(60))
}

/// Calls the gRPC server from a pod: one Hello with `name`, one Count to 100. Prints both answers.
pub fn greeter_client(pod: &Pod, server: SocketAddr, name: &str) -> Result<Finished> {
    let script = script(pod, "greeter_client", include_str!("servers/greeter_client.py"))?;
    pod.run(&[PYTHON, &script, &server.to_string(), name], Duration::from_secs(90))
}

/// Starts a client that makes calls of every kind over one channel, for at least so many seconds; it ends with a line of
/// JSON.
pub fn greeter_session(pod: &Pod, server: SocketAddr, seconds: u64) -> Result<Process> {
    let script = script(pod, "greeter_session", include_str!("servers/greeter_session.py"))?;
    let argv = [PYTHON, "-u", &script, &server.to_string(), &seconds.to_string()];
    pod.spawn("greeter-session", &argv)
}
