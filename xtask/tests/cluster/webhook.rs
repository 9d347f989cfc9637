//! A webhook of the cluster's in a pod of the mesh: the API server, who has no identity, calls it, and nothing else of its
//! pod.

use std::process::Command;

use anyhow::{Context, Result, ensure};
use xtask::testbed::eventually;

use crate::policy::OPENED;
use crate::support::{ENABLED, Kube, PATIENCE, STRICT, in_cluster};

/// Allows what says so of itself. nginx reads a question's body where it hands it on, so it asks itself.
const NGINX: &str = r#"
daemon off;
worker_processes 1;
error_log stderr;
pid /tmp/nginx.pid;
events {}
http {
  access_log off;
  client_body_temp_path /tmp/body;
  client_body_buffer_size 256k;
  proxy_temp_path /tmp/proxy;
  fastcgi_temp_path /tmp/fastcgi;
  uwsgi_temp_path /tmp/uwsgi;
  scgi_temp_path /tmp/scgi;
  map $request_body $uid { default ""; '~"request":\{"uid":"(?<found>[0-9a-f-]+)"' $found; }
  map $request_body $verdict { default false; '~"verdict":"good"' true; }
  server { listen 8080; location / { return 200 "another port\n"; } }
  server {
    listen 8443 ssl;
    ssl_certificate /tls/tls.crt;
    ssl_certificate_key /tls/tls.key;
    location / {
      proxy_set_header X-Uid $uid;
      proxy_set_header X-Verdict $verdict;
      proxy_pass http://127.0.0.1:8081;
    }
  }
  server {
    listen 127.0.0.1:8081;
    default_type application/json;
    location / {
      return 200 '{"apiVersion":"admission.k8s.io/v1","kind":"AdmissionReview","response":{"uid":"$http_x_uid","allowed":$http_x_verdict,"status":{"message":"the webhook finds it bad"}}}';
    }
  }
}
"#;

const POD: &str = r"
apiVersion: v1
kind: Pod
metadata: {name: webhook, labels: {app: webhook}}
spec:
  nodeName: n1
  terminationGracePeriodSeconds: 1
  containers:
  - name: main
    image: localhost/tools:1
    command: [nginx, -c, /conf/nginx.conf]
    volumeMounts: [{name: conf, mountPath: /conf}, {name: tls, mountPath: /tls}]
    readinessProbe: {tcpSocket: {port: 8443}, periodSeconds: 1, timeoutSeconds: 10}
  volumes:
  - {name: conf, configMap: {name: conf}}
  - {name: tls, secret: {secretName: tls}}
---
apiVersion: v1
kind: Service
metadata: {name: webhook}
spec: {selector: {app: webhook}, ports: [{port: 443, targetPort: 8443}]}
";

/// Is asked about what is labelled in the test's namespace. Without its answer nothing is let in.
const CONFIGURATION: &str = "
apiVersion: admissionregistration.k8s.io/v1
kind: ValidatingWebhookConfiguration
metadata: {name: nodemesh-test}
webhooks:
- name: verdict.nodemesh.dev
  clientConfig: {service: {namespace: hooks, name: webhook, path: /}, caBundle: BUNDLE}
  rules: [{apiGroups: [''], apiVersions: [v1], operations: [CREATE, UPDATE], resources: [configmaps]}]
  namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: hooks}}
  objectSelector: {matchLabels: {judged: 'yes'}}
  failurePolicy: Fail
  sideEffects: None
  admissionReviewVersions: [v1]
  timeoutSeconds: 15
";

/// Takes the configuration back, which is of no namespace.
struct Configured<'a>(&'a Kube);

impl Drop for Configured<'_> {
    fn drop(&mut self) {
        let _ = self.0.kubectl(&["delete", "validatingwebhookconfiguration", "nodemesh-test", "--ignore-not-found"]);
    }
}

/// A certificate that vouches for itself, and its key.
fn certificate() -> Result<(String, String)> {
    let place = tempfile::tempdir()?;
    let (key, certificate) = (place.path().join("key"), place.path().join("crt"));
    let output = Command::new("openssl")
        .args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"])
        .args(["-subj", "/CN=webhook.hooks.svc", "-addext", "subjectAltName=DNS:webhook.hooks.svc", "-keyout"])
        .arg(&key)
        .arg("-out")
        .arg(&certificate)
        .output()
        .context("starting openssl")?;
    ensure!(output.status.success(), "openssl: {}", String::from_utf8_lossy(&output.stderr).trim());
    Ok((std::fs::read_to_string(certificate)?, std::fs::read_to_string(key)?))
}

fn indented(text: &str) -> String {
    text.lines().map(|line| format!("    {line}\n")).collect()
}

#[test]
fn the_api_server_calls_a_webhook_of_a_strict_pod() {
    in_cluster("the_api_server_calls_a_webhook_of_a_strict_pod", |kube| {
        let namespace = kube.namespace("hooks", ENABLED)?;
        namespace.apply(STRICT)?;
        let (certificate, key) = certificate()?;
        namespace.apply(&format!(
            "apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: conf}}\ndata:\n  nginx.conf: |\n{}---\n\
             apiVersion: v1\nkind: Secret\nmetadata: {{name: tls}}\nstringData:\n  tls.crt: |\n{}  tls.key: |\n{}",
            indented(NGINX),
            indented(&certificate),
            indented(&key)
        ))?;
        namespace.apply(POD)?;
        namespace.wait_ready()?;
        let bundle = namespace.field("secret/tls", ".data.tls\\.crt")?;
        let _configured = Configured(kube);
        kube.apply(&CONFIGURATION.replace("BUNDLE", &bundle))?;
        // What the API server says to an object of that verdict; empty where it takes it.
        let asked = |verdict: &str| -> String {
            let object = format!(
                "{{apiVersion: v1, kind: ConfigMap, metadata: {{name: {verdict}, labels: {{judged: 'yes'}}}}, \
                 data: {{verdict: {verdict}}}}}"
            );
            namespace.apply(&object).err().map(|error| format!("{error:#}")).unwrap_or_default()
        };
        eventually(PATIENCE, "the API server not to reach a webhook that lets no stranger in", || {
            Ok(asked("good").contains("failed calling webhook").then_some(()))
        })?;
        namespace.apply(OPENED)?;
        eventually(PATIENCE, "the webhook to be asked", || Ok(asked("good").is_empty().then_some(())))?;
        let said = asked("bad");
        ensure!(said.contains("denied the request: the webhook finds it bad"), "{said}");
        ensure!(namespace.kubectl(&["get", "configmap", "bad"]).is_err(), "what was refused is there");
        namespace.kubectl(&["get", "configmap", "good"])?;
        // The API server itself, asked to call either port of the pod.
        let called =
            |port: &str| kube.kubectl(&["get", "--raw", &format!("/api/v1/namespaces/hooks/pods/{port}/proxy/")]);
        let answer = called("https:webhook:8443")?;
        ensure!(answer.contains("AdmissionReview"), "{answer}");
        let other = called("webhook:8080");
        ensure!(other.is_err(), "the API server reaches a port that is not open: {other:?}");
        // Which port is open is a matter of the policy alone.
        namespace.kubectl(&["delete", "peerauthentication", "webhook"])?;
        eventually(PATIENCE, "the port to be closed again", || {
            Ok(asked("good").contains("failed calling webhook").then_some(()))
        })
    });
}
