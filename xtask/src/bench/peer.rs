//! A pair of proxies that everybody knows, to tell a slow machine from a slow mesh: HAProxy on either node, mutual TLS 1.3
//! between them, plain text at both ends.

use std::fs;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result};

use super::stage::{BYTES, GRPC, HTTP, HTTP2, IPERF};
use crate::testbed::{Family, Pod};

/// What the proxy of the server's node listens on: this and the server's port.
const FAR: u16 = 20_000;

/// Starts both; `near` is asked, `far` asks `server`.
pub fn start(near: &Pod, far: &Pod, server: &Pod) -> Result<()> {
    certificates(far)?;
    for file in ["ca.pem", "peer.pem"] {
        fs::copy(far.dir.join(file), near.dir.join(file)).with_context(|| format!("copying {file}"))?;
    }
    let (mut nearer, mut farther) = (String::new(), String::new());
    for port in [HTTP, HTTP2, GRPC, BYTES, IPERF] {
        let between = far.ips.socket(Family::V4, FAR + port);
        let target = server.ips.socket(Family::V4, if port == BYTES { HTTP } else { port });
        let (mode, clear, alpn) = match port {
            HTTP => ("http", "", "alpn http/1.1"),
            HTTP2 | GRPC => ("http", "proto h2", "alpn h2"),
            _ => ("tcp", "", ""),
        };
        // One rule and one field a hop, as the least that a mesh does to a request.
        let rule = if mode == "http" { "  http-request add-header x-hop 1\n  http-reuse always\n" } else { "" };
        let tls = format!("crt {{dir}}/peer.pem ca-file {{dir}}/ca.pem verify required {alpn}");
        nearer.push_str(&hop(port, mode, rule, &format!("bind :{port} {clear}"), between, &format!("ssl {tls}")));
        farther.push_str(&hop(port, mode, rule, &format!("bind :{} ssl {tls}", between.port()), target, clear));
    }
    for (pod, hops) in [(near, nearer), (far, farther)] {
        let dir = pod.dir.to_string_lossy();
        let file = pod.dir.join("haproxy.cfg");
        let text = format!("{}{}", include_str!("haproxy.cfg"), hops.replace("{dir}", &dir));
        fs::write(&file, text).with_context(|| format!("writing {}", file.display()))?;
        pod.start("haproxy", &["haproxy", "-db", "-f", &file.to_string_lossy()])?;
    }
    near.wait_listening(IPERF)?;
    far.wait_listening(FAR + IPERF)
}

fn hop(port: u16, mode: &str, rule: &str, bind: &str, to: SocketAddr, how: &str) -> String {
    format!("listen port-{port}\n  mode {mode}\n  {bind}\n{rule}  server next {to} {how}\n")
}

/// A root and one certificate for both ends, P-256.
fn certificates(pod: &Pod) -> Result<()> {
    let script = "set -e; cd \"$0\"
key() { openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out $1.key; }
key ca; key peer
openssl req -x509 -new -key ca.key -subj /CN=root -days 2 -out ca.pem
openssl req -new -key peer.key -subj /CN=peer | openssl x509 -req -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 > peer.crt
cat peer.crt peer.key > peer.pem";
    pod.run(&["sh", "-c", script, &pod.dir.to_string_lossy()], Duration::from_secs(30))?.expect_ok("openssl")?;
    Ok(())
}
