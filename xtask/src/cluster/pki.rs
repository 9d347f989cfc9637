//! The cluster's certificates and kubeconfigs, by openssl.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};

use super::layout::{API_SERVICE, CONTROL_IP, NODES, node_ip, pki};

/// Longer than any cluster lives.
const DAYS: &str = "3650";

/// Makes a root, a key for service accounts, and a certificate and kubeconfig for everyone.
pub fn make() -> Result<()> {
    let directory = pki();
    fs::create_dir_all(&directory).with_context(|| format!("making {}", directory.display()))?;
    key("ca")?;
    openssl(&["req", "-x509", "-new", "-key", "ca.key", "-subj", "/CN=kubernetes", "-days", DAYS, "-out", "ca.crt"])?;
    openssl(&["genrsa", "-out", "sa.key", "2048"])?;
    openssl(&["rsa", "-in", "sa.key", "-pubout", "-out", "sa.pub"])?;
    let names = "DNS:kubernetes,DNS:kubernetes.default,DNS:kubernetes.default.svc,\
                 DNS:kubernetes.default.svc.cluster.local,DNS:localhost,IP:127.0.0.1";
    certificate("apiserver", "/CN=kube-apiserver", Some(&format!("{names},IP:{CONTROL_IP},IP:{API_SERVICE}")))?;
    certificate("kubelet-client", "/O=system:masters/CN=kube-apiserver-kubelet-client", None)?;
    certificate("front-proxy", "/CN=front-proxy-client", None)?;
    for (name, subject) in [
        ("admin", "/O=system:masters/CN=admin"),
        ("controller-manager", "/CN=system:kube-controller-manager"),
        ("scheduler", "/CN=system:kube-scheduler"),
        ("proxy", "/CN=system:kube-proxy"),
    ] {
        certificate(name, subject, None)?;
        kubeconfig(name)?;
    }
    for node in NODES {
        let subject = format!("/O=system:nodes/CN=system:node:{node}");
        certificate(node, &subject, Some(&format!("DNS:{node},IP:{}", node_ip(node))))?;
        kubeconfig(node)?;
    }
    Ok(())
}

fn key(name: &str) -> Result<()> {
    openssl(&["ecparam", "-genkey", "-name", "prime256v1", "-noout", "-out", &format!("{name}.key")])
}

fn certificate(name: &str, subject: &str, names: Option<&str>) -> Result<()> {
    key(name)?;
    let [key, request, extensions, certificate] = ["key", "csr", "ext", "crt"].map(|ending| format!("{name}.{ending}"));
    openssl(&["req", "-new", "-key", &key, "-subj", subject, "-out", &request])?;
    let mut text = "keyUsage=critical,digitalSignature,keyEncipherment\n\
                    extendedKeyUsage=serverAuth,clientAuth\n"
        .to_string();
    if let Some(names) = names {
        text.push_str(&format!("subjectAltName={names}\n"));
    }
    fs::write(pki().join(&extensions), text)?;
    openssl(&[
        "x509",
        "-req",
        "-in",
        &request,
        "-CA",
        "ca.crt",
        "-CAkey",
        "ca.key",
        "-CAcreateserial",
        "-days",
        DAYS,
        "-extfile",
        &extensions,
        "-out",
        &certificate,
    ])
}

fn kubeconfig(name: &str) -> Result<()> {
    let directory = pki();
    let file = |ending: &str| directory.join(format!("{name}.{ending}")).display().to_string();
    let config = serde_json::json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "nodemesh",
        "clusters": [{"name": "nodemesh", "cluster": {
            "server": format!("https://{CONTROL_IP}:6443"), "certificate-authority": directory.join("ca.crt"),
        }}],
        "users": [{"name": name, "user": {"client-certificate": file("crt"), "client-key": file("key")}}],
        "contexts": [{"name": "nodemesh", "context": {"cluster": "nodemesh", "user": name}}],
    });
    // JSON is YAML.
    fs::write(file("kubeconfig"), config.to_string()).with_context(|| format!("writing {}", file("kubeconfig")))
}

fn openssl(arguments: &[&str]) -> Result<()> {
    run_in(&pki(), "openssl", arguments)
}

fn run_in(directory: &Path, program: &str, arguments: &[&str]) -> Result<()> {
    let output = Command::new(program).args(arguments).current_dir(directory).output();
    let output = output.with_context(|| format!("starting {program}"))?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{program} {}: {}", arguments.join(" "), said.trim());
    Ok(())
}
