//! Pods of every kind, and what becomes of one that ends.

use anyhow::{Context, Result, ensure};
use xtask::cluster::tools::TOOLS;
use xtask::testbed::eventually;

use crate::support::{ENABLED, Namespace, PATIENCE, STRICT, in_cluster, only_shop};

/// All run under one account, and nobody else is let in. `CALL` ends when `web` has answered.
const KINDS: &str = "
apiVersion: v1
kind: ServiceAccount
metadata: {name: runner}
---
apiVersion: nodemesh.dev/v1alpha1
kind: AuthorizationPolicy
metadata: {name: runners}
spec:
  targetRefs: [{kind: Namespace}]
  action: ALLOW
  rules:
  - sources: [{type: ServiceAccount, serviceAccount: {namespace: kinds, name: runner}}]
---
apiVersion: batch/v1
kind: Job
metadata: {name: once}
spec:
  backoffLimit: 0
  template:
    spec:
      serviceAccountName: runner
      restartPolicy: Never
      initContainers:
      - name: before
        image: localhost/tools:1
        command: [sh, -c, CALL]
      - name: beside
        image: localhost/tools:1
        restartPolicy: Always
        command: [sh, -c, 'CALL; exec nginx']
        startupProbe: {httpGet: {port: 8080}, periodSeconds: 1, timeoutSeconds: 10, failureThreshold: 90}
      containers:
      - name: main
        image: localhost/tools:1
        command: [sh, -c, CALL]
---
apiVersion: v1
kind: Service
metadata: {name: db}
spec: {clusterIP: None, selector: {app: db}, ports: [{port: 8080}]}
---
apiVersion: apps/v1
kind: StatefulSet
metadata: {name: db}
spec:
  serviceName: db
  replicas: 2
  podManagementPolicy: Parallel
  selector: {matchLabels: {app: db}}
  template:
    metadata: {labels: {app: db}}
    spec:
      serviceAccountName: runner
      terminationGracePeriodSeconds: 1
      containers:
      - name: main
        image: localhost/tools:1
        command: [nginx]
        readinessProbe: {httpGet: {port: 8080}, periodSeconds: 1, timeoutSeconds: 10}
---
apiVersion: v1
kind: Pod
metadata: {name: of-host}
spec:
  nodeName: n2
  hostNetwork: true
  serviceAccountName: runner
  terminationGracePeriodSeconds: 1
  containers: [{name: main, image: 'localhost/tools:1'}]
---
apiVersion: v1
kind: Pod
metadata: {name: nested}
spec:
  nodeName: n2
  serviceAccountName: runner
  terminationGracePeriodSeconds: 1
  containers:
  - name: main
    image: localhost/tools:1
    securityContext: {privileged: true}
    command: [sh, -c, 'unshare -n sh -c \"ip link set lo up; exec nginx\" & exec sleep 2147483647']
";

const CALL: &str = "until curl -fsS --max-time 5 -o /dev/null http://web/; do sleep 0.2; done";

#[test]
fn pods_of_every_kind_are_of_the_mesh() {
    in_cluster("pods_of_every_kind_are_of_the_mesh", |kube| {
        let namespace = kube.namespace("kinds", ENABLED)?;
        namespace.apply(STRICT)?;
        namespace.web("web", "n1")?;
        namespace.apply(&KINDS.replace("CALL", CALL))?;
        // An init container, a sidecar and the job itself have called, and the mesh keeps the job from no end.
        namespace.kubectl(&["wait", "--for=condition=Complete", "job/once", "--timeout=180s"])?;
        namespace.kubectl(&["rollout", "status", "statefulset/db", "--timeout=120s"])?;
        namespace.kubectl(&["wait", "--for=condition=Ready", "pod/nested", "pod/of-host", "--timeout=120s"])?;

        // Each of a headless Service by its own name; and whoever called has another namespace in it.
        for pod in ["db-0", "db-1"] {
            let (url, answer) = (format!("http://{pod}.db:8080/"), format!("{pod} to "));
            namespace.eventually_answers("nested", &url, &answer)?;
        }
        let inner =
            "pid=$(pidof nginx | sed 's/ .*//'); nsenter -t $pid -n curl -sS --max-time 5 http://127.0.0.1:8080/";
        // Nobody waits for the server in there to start.
        eventually(PATIENCE, "a namespace in the pod to be let alone", || {
            let (_, said) = namespace.run("nested", &["sh", "-c", inner])?;
            ensure!(said.starts_with("nested to 127.0.0.1"), "{said}");
            Ok(Some(()))
        })?;
        let address = namespace.field("service/web", ".spec.clusterIP")?;
        let inner = inner.replace("127.0.0.1:8080", &address);
        let (ok, said) = namespace.run("nested", &["sh", "-c", &inner])?;
        ensure!(!ok, "a namespace that leads nowhere was led somewhere: {said}");
        let strangers = kube.strangers("kinds-strangers")?;
        strangers.eventually_refuses("stranger", "http://db-0.db.kinds:8080/")?;

        // It cannot be, and says so.
        let captured = ".status.conditions[?(@.type=='nodemesh.dev/Captured')]";
        namespace.eventually_says("pod/of-host", &format!("{captured}.reason"), "NotEnrollable")?;
        let message = namespace.field("pod/of-host", &format!("{captured}.message"))?;
        ensure!(message.contains("hostNetwork"), "{message}");
        namespace.eventually_says("pod/nested", &format!("{captured}.status"), "True")?;
        ensure!(
            namespace.is_refused("of-host", &format!("http://{address}/"))?,
            "a pod of the host's network has no identity"
        );
        Ok(())
    });
}

#[test]
fn a_container_that_comes_later_is_of_the_mesh() {
    in_cluster("a_container_that_comes_later_is_of_the_mesh", |kube| {
        let namespace = kube.shop("later", &[("shop", "n2")])?;
        let logged = || -> Result<usize> { Ok(kube.agent_log("n1")?.lines().filter(|line| is_tunnel(line)).count()) };
        let before = logged()?;
        // More than lines of the shop's own that may still be on their way.
        let often = format!("{CALL}; for i in $(seq 20); do {CALL}; done");
        let debug = ["debug", "shop", "--image", TOOLS, "--container=later", "--", "sh", "-c", &often];
        namespace.kubectl(&debug)?;
        let ended = ".status.ephemeralContainerStatuses[0].state.terminated.exitCode";
        namespace.eventually_says("pod/shop", ended, "0")?;
        // `web` lets nobody in who shows no identity.
        eventually(PATIENCE, "the server's agent to tell of it", || Ok((logged()? >= before + 21).then_some(())))
    });
}

/// Whether this is an access log line of the shop's, by tunnel.
fn is_tunnel(line: &str) -> bool {
    line.contains("transport=\"tunnel\"") && line.contains("/ns/later/sa/shop")
}

/// Answers late, and goes on for longer than that when it is told to end.
const SLOW: &str = r#"readinessProbe: {tcpSocket: {port: 8080}, periodSeconds: 1, timeoutSeconds: 10}, command: [sh, -c,
  "mkdir -p /tmp/www/cgi-bin; cd /tmp/www/cgi-bin; echo at once > ../index.html; echo '#!/bin/sh' > slow;
   echo 'touch /tmp/asked; sleep 8; echo Content-Type: text/plain; echo; echo late but whole' >> slow; chmod +x slow;
   trap 'sleep 15; exit' TERM; httpd -f -p 8080 -h /tmp/www & wait"]"#;

#[test]
fn a_pod_that_ends_serves_what_it_has_and_leaves_no_right_behind() {
    in_cluster("a_pod_that_ends_serves_what_it_has_and_leaves_no_right_behind", |kube| {
        let namespace = &kube.shop("ends", &[("shop", "n2")])?;
        namespace.served("slow", "n1", SLOW)?;
        namespace.apply(&only_shop("ends"))?;
        namespace.wait_ready()?;
        // The question is asked once: DNS and kube-proxy, which nobody waits for, know the Service before that.
        namespace.eventually_answers("shop", "http://slow/", "at once")?;
        let answer = std::thread::scope(|scope| {
            let question = ["curl", "-sS", "--max-time", "60", "http://slow/cgi-bin/slow"];
            let asked = scope.spawn(move || namespace.run("shop", &question));
            eventually(PATIENCE, "the question to be asked", || {
                Ok(namespace.run("slow", &["test", "-e", "/tmp/asked"])?.0.then_some(()))
            })?;
            namespace.kubectl(&["delete", "pod", "slow", "--wait=false", "--grace-period=30"])?;
            let deleted = namespace.field("pod/slow", ".metadata.deletionTimestamp")?;
            ensure!(!deleted.is_empty(), "the pod is not ending");
            asked.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })?;
        ensure!(answer.1.contains("late but whole"), "what a pod served when it was told to end: {answer:?}");

        // Another's pod gets the address of one that was allowed.
        let address = namespace.field("pod/shop", ".status.podIP")?;
        namespace.kubectl(&["delete", "pod", "shop"])?;
        give_next(namespace, "n2", &address)?;
        namespace.client("thief", "n2")?;
        namespace.wait_ready()?;
        let again = namespace.field("pod/thief", ".status.podIP")?;
        ensure!(again == address, "the address {address} was to be used again; the pod has {again}");
        let often = "for i in $(seq 20); do curl -sS --max-time 5 http://web/ 2>&1; done; true";
        let (_, said) = namespace.run("thief", &["sh", "-c", often])?;
        ensure!(!said.contains("web to "), "an old right came with the address: {said}");
        namespace.eventually_refuses("thief", "http://web/")?;
        namespace.kubectl(&["delete", "authorizationpolicy", "only-shop"])?;
        namespace.eventually_answers("thief", "http://web/", "web to ")
    });
}

/// The next pod of a node gets this address: host-local goes on after the one that it gave out last.
fn give_next(namespace: &Namespace<'_>, node: &str, address: &str) -> Result<()> {
    let (network, last) = address.rsplit_once('.').context("an IPv4 address")?;
    let before = last.parse::<u8>()?.saturating_sub(1);
    let script = format!("printf %s {network}.{before} > /var/lib/cni/networks/podnet/last_reserved_ip.0");
    namespace.kube.on_node(node, &script).map(drop)
}
