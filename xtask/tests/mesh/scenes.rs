//! Each part of a TrafficPolicy with curl and h2load, a scene each, all in one bed: a Service of its own with a policy of
//! its own, in front of pods that are shared. What a failing or slow service as a whole needs is in `traffic`.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::json;
use xtask::rings::can_use_kernel;
use xtask::testbed::{
    AgentOptions, Family, PodSpec, ServiceSpec, Testbed, eventually, grpc_calls, start_grpc_echo, start_web,
    web_requests,
};

const PORT: u16 = 8080;
const GRPC: u16 = 50051;
const PATIENCE: Duration = Duration::from_secs(60);

/// The pods with a web server: name, node, status, seconds.
const SERVERS: [(&str, &str, u16, u32); 8] = [
    ("w1", "n2", 200, 0),
    ("w2", "n2", 200, 0),
    ("w3", "n2", 200, 0),
    ("w4", "n2", 200, 0),
    ("near", "n1", 200, 0),
    ("slow", "n2", 200, 1),
    ("bad", "n2", 500, 0),
    ("dead-near", "n1", 503, 0),
];

/// A scene: its Service, the pods behind it, the policy, and what is asked and seen.
struct Scene {
    name: &'static str,
    pods: &'static [&'static str],
    policy: &'static str,
    play: fn(&Testbed, &str) -> Result<()>,
}

const ALIKE: &[&str] = &["w1", "w2", "w3", "w4"];

const SCENES: &[Scene] = &[
    Scene {
        name: "round-robin",
        pods: ALIKE,
        policy: "loadBalancing: {algorithm: RoundRobin}",
        play: |bed, service| shares(&get(bed, "client", service, 80, &[])?, |share| share.abs_diff(20) <= 2),
    },
    Scene {
        name: "random",
        pods: ALIKE,
        policy: "loadBalancing: {algorithm: Random}",
        // 50 each, with a standard deviation of 6.
        play: |bed, service| shares(&get(bed, "client", service, 200, &[])?, |share| (20..80).contains(&share)),
    },
    Scene {
        name: "least-request",
        pods: &["w1", "w2", "slow"],
        policy: "loadBalancing: {algorithm: LeastRequest}",
        play: |bed, service| {
            let before = web_requests(bed.pod("slow"))?;
            ensure!(load(bed, "client", service, 150, 8)?.contains("150 2xx"), "not all were answered");
            // By turns it would get fifty.
            let slow = web_requests(bed.pod("slow"))? - before;
            ensure!((1..30).contains(&slow), "{slow} of 150 went to the slow one");
            Ok(())
        },
    },
    Scene {
        name: "failover",
        pods: &["dead-near", "w1"],
        policy: "loadBalancing: {locality: {mode: Failover}}, outlierDetection: {consecutiveGatewayErrors: 2, maxEjectionPercent: 100, baseEjectionTime: 300s}",
        play: |bed, service| {
            let seen = get(bed, "client", service, 20, &[])?;
            // Two that failed, on each worker that served.
            let (near, far) = (count(&seen, "503"), count(&seen, "w1"));
            ensure!((2..10).contains(&near) && near + far >= 20, "{seen:?}");
            let after = get(bed, "client", service, 20, &[])?;
            ensure!(count(&after, "w1") > 10, "{after:?}");
            Ok(())
        },
    },
    Scene {
        name: "near-first",
        pods: &["near", "w1", "w2"],
        policy: "loadBalancing: {locality: {mode: Failover}}",
        play: |bed, service| {
            let seen = get(bed, "client", service, 30, &[])?;
            ensure!(count(&seen, "near") == 30, "{seen:?}");
            Ok(())
        },
    },
    Scene {
        name: "weighted",
        pods: &["near", "w1"],
        policy: "loadBalancing: {locality: {mode: Weighted, weights: {node: 1, zone: 3, elsewhere: 3}}}",
        play: |bed, service| {
            let seen = get(bed, "client", service, 200, &[])?;
            // 50 of 200, with a standard deviation of 6.
            ensure!((20..80).contains(&count(&seen, "near")), "{seen:?}");
            Ok(())
        },
    },
    Scene {
        name: "hash-header",
        pods: ALIKE,
        policy: "loadBalancing: {algorithm: ConsistentHash, consistentHash: {header: x-user}}",
        play: |bed, service| keyed(bed, service, |user| format!("x-user: {user}")),
    },
    Scene {
        name: "hash-cookie",
        pods: ALIKE,
        policy: "loadBalancing: {algorithm: ConsistentHash, consistentHash: {cookie: user}}",
        play: |bed, service| keyed(bed, service, |user| format!("cookie: a=b; user={user}; c=d")),
    },
    Scene {
        name: "hash-source",
        pods: ALIKE,
        policy: "loadBalancing: {algorithm: ConsistentHash, consistentHash: {source: IP}}",
        play: one_each,
    },
    Scene {
        name: "hash-identity",
        pods: ALIKE,
        policy: "loadBalancing: {algorithm: ConsistentHash, consistentHash: {source: Identity}}",
        play: one_each,
    },
    Scene {
        name: "session",
        pods: ALIKE,
        policy: "loadBalancing: {algorithm: RoundRobin}, sessionPersistence: {sessionName: sid, type: Cookie}",
        play: |bed, service| {
            let jar = bed.pod("client").dir.join("jar").to_string_lossy().into_owned();
            let first = get(bed, "client", service, 1, &["--cookie-jar", &jar])?;
            let [pod] = &first.keys().collect::<Vec<_>>()[..] else { anyhow::bail!("{first:?}") };
            let again = get(bed, "client", service, 20, &["--cookie", &jar])?;
            ensure!(count(&again, pod) == 20, "{pod}, and then {again:?}");
            let others = get(bed, "client", service, 20, &[])?;
            ensure!(others.len() > 1, "without the cookie: {others:?}");
            Ok(())
        },
    },
    Scene {
        name: "slow-start",
        pods: &["w1", "w2", "w3"],
        policy: "loadBalancing: {algorithm: Random, slowStart: 300s}",
        play: |bed, service| {
            ensure!(get(bed, "client", service, 20, &[])?.len() > 1, "the three are not in use");
            more(bed, service, "w4")?;
            let seen = eventually(PATIENCE, "the new one to be asked", || {
                let seen = get(bed, "client", service, 200, &[])?;
                Ok((count(&seen, "w4") > 0).then_some(seen))
            })?;
            // 50 would be its share; it has a tenth of the weight of the others, which is 6, standard deviation 2.5.
            ensure!(count(&seen, "w4") < 25, "{seen:?}");
            Ok(())
        },
    },
    Scene {
        name: "success-rate",
        pods: &["w1", "w2", "w3", "w4", "bad"],
        policy: "loadBalancing: {algorithm: RoundRobin}, outlierDetection: {successRate: {minimumEndpoints: 5, minimumRequests: 10}, consecutiveGatewayErrors: 0, interval: 1s, baseEjectionTime: 300s}",
        play: |bed, service| {
            let first = get(bed, "client", service, 50, &[])?;
            ensure!(count(&first, "500") >= 5, "the bad one is in use: {first:?}");
            eventually(PATIENCE, "the bad one to be left out", || {
                let seen = get(bed, "client", service, 100, &[])?;
                Ok((count(&seen, "500") == 0).then_some(()))
            })
        },
    },
    Scene {
        name: "max-requests",
        pods: &["slow"],
        policy: "connectionLimits: {service: {maxRequests: 2}}",
        play: |bed, service| {
            let said = load(bed, "client", service, 6, 6)?;
            let statuses = statuses(&said);
            ensure!(statuses.0 >= 2 && statuses.2 >= 2 && statuses.0 + statuses.2 == 6, "{said}");
            Ok(())
        },
    },
    Scene {
        name: "max-pending",
        pods: &["bad"],
        policy: "connectionLimits: {endpoint: {maxPending: 0}}",
        play: |bed, service| {
            // Whoever would have to wait for a connection is refused: this client has none to that pod yet.
            let seen = get(bed, "other", service, 3, &[])?;
            ensure!(count(&seen, "503") == 3 && count(&seen, "overflow") == 3, "{seen:?}");
            Ok(())
        },
    },
    Scene {
        name: "max-retries",
        pods: &["dead-near"],
        policy: "retry: {attempts: 3, backoff: 1ms}, connectionLimits: {service: {maxRetries: 0}}",
        play: |bed, service| {
            let before = web_requests(bed.pod("dead-near"))?;
            let seen = get(bed, "client", service, 5, &[])?;
            let came = web_requests(bed.pod("dead-near"))? - before;
            ensure!(count(&seen, "overflow") == 5 && came == 5, "{came} came, {seen:?}");
            Ok(())
        },
    },
    Scene {
        name: "per-identity",
        pods: &["w1"],
        policy: "rateLimits: [{name: each, requests: 10, per: 1h, key: {type: SourceIdentity}}]",
        play: |bed, service| {
            // Each caller has a bucket of its own, by its certificate.
            for client in ["client", "other"] {
                let seen = get(bed, client, service, 15, &["-H", "x-forwarded-for: 6.6.6.6"])?;
                ensure!(count(&seen, "w1") == 10 && count(&seen, "429") == 5, "{client}: {seen:?}");
            }
            let said = bed.pod("client").run(&["curl", "-sSi", "--max-time", "20", &url(bed, service)], PATIENCE)?;
            let said = said.expect_ok("curl")?.to_lowercase();
            for field in ["retry-after: ", "ratelimit-policy: \"each\";q=10;w=3600", "ratelimit: \"each\";r=0;t="] {
                ensure!(said.contains(field), "{field}: {said}");
            }
            Ok(())
        },
    },
    Scene {
        name: "fair",
        pods: &["w1"],
        policy: "rateLimits: [{name: shared, requests: 40, per: 1h, burst: 40, fair: true}]",
        play: |bed, service| {
            // Both have been seen; the one then takes all it can get, and the other still has its part.
            ensure!(count(&get(bed, "other", service, 1, &[])?, "w1") == 1, "the first of all is refused");
            let greedy = get(bed, "client", service, 80, &[])?;
            ensure!(count(&greedy, "429") >= 40, "{greedy:?}");
            let modest = get(bed, "other", service, 5, &[])?;
            ensure!(count(&modest, "w1") == 5, "{modest:?} after {greedy:?}");
            Ok(())
        },
    },
    Scene {
        name: "mesh-wide",
        pods: &["near", "w1", "w2", "w3"],
        policy: "rateLimits: [{name: split, requests: 40, per: 1h, burst: 40, scope: Mesh}]",
        play: |bed, service| {
            // One of four endpoints is on this client's node, three on the other's.
            for (client, part) in [("client", 10), ("far-client", 30)] {
                let seen = get(bed, client, service, 45, &[])?;
                ensure!(count(&seen, "429") == 45 - part, "{client}: {seen:?}");
            }
            Ok(())
        },
    },
    Scene {
        name: "delays",
        pods: &["w1"],
        policy: "faults: [{name: spread, when: {paths: [{exact: /u}]}, delay: {uniform: {min: 100ms, max: 400ms}}}, {name: tail, when: {paths: [{exact: /e}]}, delay: {exponential: {mean: 100ms, max: 300ms}}}]",
        play: |bed, service| {
            let url = url(bed, service);
            let took = |path: &str| -> Result<Vec<f64>> {
                let command = [
                    "curl",
                    "-sS",
                    "--max-time",
                    "30",
                    "-o",
                    "/dev/null",
                    "-w",
                    "%{time_total}\n",
                    &format!("{url}{path}?[1-12]"),
                ];
                let said = bed.pod("client").run(&command, PATIENCE)?.expect_ok("curl")?;
                said.lines().map(|line| line.parse().with_context(|| line.to_string())).collect()
            };
            let uniform = took("u")?;
            ensure!(uniform.len() == 12 && uniform.iter().all(|seconds| *seconds >= 0.1), "{uniform:?}");
            let (least, most) = uniform.iter().fold((9.0_f64, 0.0_f64), |(a, b), one| (a.min(*one), b.max(*one)));
            ensure!(most - least > 0.05, "they are all alike: {uniform:?}");
            // At most 300 ms, and what this machine adds.
            let exponential = took("e")?;
            let short = exponential.iter().filter(|seconds| **seconds < 0.25).count();
            ensure!(exponential.len() == 12 && short >= 3, "{exponential:?}");
            Ok(())
        },
    },
    Scene {
        name: "grpc-abort",
        pods: &["w1"],
        policy: "faults: [{name: gone, when: {headers: {x-fail: ''}}, abort: {grpcStatus: FAILED_PRECONDITION}}]",
        play: |bed, service| {
            let at = bed.service(service).socket(Family::V4, GRPC);
            let [well] = &grpc_calls(bed.pod("client"), at, "/a.B/C", &[], 1)?[..] else { anyhow::bail!("one answer") };
            ensure!(well["code"] == "OK" && well["pod"] == "w1", "{well}");
            let [failed] = &grpc_calls(bed.pod("client"), at, "/a.B/C", &[("x-fail", "1")], 1)?[..] else {
                anyhow::bail!("one answer")
            };
            ensure!(failed["code"] == "FAILED_PRECONDITION" && failed["details"] == "fault-injected", "{failed}");
            Ok(())
        },
    },
];

fn url(bed: &Testbed, service: &str) -> String {
    format!("http://{}/", bed.service(service).socket(Family::V4, 80))
}

/// Asks one after the other on one connection; says how often each word was answered: the pod's name, statuses other than
/// 200, the mesh's own reasons.
fn get(bed: &Testbed, client: &str, service: &str, times: usize, more: &[&str]) -> Result<BTreeMap<String, usize>> {
    let url = format!("{}?[1-{times}]", url(bed, service));
    let command = [&["curl", "-sS", "--max-time", "30", "-w", "\n%{http_code}\n"][..], more, &[&url]].concat();
    let said = bed.pod(client).run(&command, PATIENCE)?.expect_ok("curl")?;
    let mut counts = BTreeMap::new();
    for word in said.split_whitespace().filter(|word| *word != "200") {
        *counts.entry(word.to_string()).or_default() += 1;
    }
    Ok(counts)
}

fn count(seen: &BTreeMap<String, usize>, word: &str) -> usize {
    seen.get(word).copied().unwrap_or_default()
}

fn shares(seen: &BTreeMap<String, usize>, is_right: impl Fn(usize) -> bool) -> Result<()> {
    ensure!(ALIKE.iter().all(|pod| is_right(count(seen, pod))), "{seen:?}");
    Ok(())
}

/// One key leads to one pod, and keys to several.
fn keyed(bed: &Testbed, service: &str, field: impl Fn(usize) -> String) -> Result<()> {
    let mut pods = BTreeMap::new();
    for user in 0..12 {
        let seen = get(bed, "client", service, 4, &["-H", &field(user)])?;
        ensure!(seen.len() == 1, "user {user}: {seen:?}");
        pods.extend(seen);
    }
    // That all twelve go to one of four happens once in four million.
    ensure!(pods.len() > 1, "all go to {pods:?}");
    Ok(())
}

/// Each caller has its pod, however often and by whatever connection it asks.
fn one_each(bed: &Testbed, service: &str) -> Result<()> {
    for client in ["client", "other", "far-client"] {
        let mut pods = get(bed, client, service, 10, &[])?;
        pods.extend(get(bed, client, service, 1, &[])?);
        ensure!(pods.len() == 1, "{client}: {pods:?}");
    }
    Ok(())
}

/// What h2load says of so many requests by so many connections.
fn load(bed: &Testbed, client: &str, service: &str, requests: usize, connections: usize) -> Result<String> {
    let (requests, connections) = (requests.to_string(), connections.to_string());
    let load = ["h2load", "--h1", "-n", &requests, "-c", &connections, &url(bed, service)];
    bed.pod(client).run(&load, PATIENCE)?.expect_ok("h2load")
}

/// 2xx, 4xx and 5xx of what h2load says.
fn statuses(said: &str) -> (usize, usize, usize) {
    let of = |class: &str| {
        let before = said.split(class).next().unwrap_or_default();
        before.rsplit(|c: char| !c.is_ascii_digit()).find(|word| !word.is_empty()).and_then(|word| word.parse().ok())
    };
    (of(" 2xx").unwrap_or(0), of(" 4xx").unwrap_or(0), of(" 5xx").unwrap_or(0))
}

/// Puts one more pod behind a Service.
fn more(bed: &Testbed, service: &str, pod: &str) -> Result<()> {
    let slice = json!({
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {
            "name": format!("{service}-more"),
            "namespace": "shop",
            "labels": {"kubernetes.io/service-name": service},
        },
        "addressType": "IPv4",
        "endpoints": [{"addresses": [bed.pod(pod).ips.ip(Family::V4).to_string()], "conditions": {"ready": true}}],
        "ports": [{"name": "http", "port": PORT, "protocol": "TCP"}],
    });
    bed.world.apply(&format!("{service}-more"), &slice.to_string())
}

#[test]
fn each_part_of_a_policy_does_what_it_says() -> Result<()> {
    if !can_use_kernel("the parts of TrafficPolicies") {
        return Ok(());
    }
    let mut bed = Testbed::of_two_nodes("shop")?;
    for (client, node) in [("client", "n1"), ("other", "n1"), ("far-client", "n2")] {
        bed.add_pod(PodSpec::new("shop", client, node))?;
    }
    for (name, node, ..) in SERVERS {
        bed.add_pod(PodSpec::new("shop", name, node))?;
    }
    for scene in SCENES {
        let ips = scene.pods.iter().flat_map(|pod| Family::BOTH.map(|family| bed.pod(pod).ips.ip(family)));
        let service = ServiceSpec::new("shop", scene.name).listing(&ips.collect::<Vec<_>>());
        bed.add_service(service.port("http", 80, PORT).port("grpc", GRPC, GRPC))?;
        let policy = format!(
            "apiVersion: nodemesh.dev/v1alpha1\nkind: TrafficPolicy\nmetadata: {{name: {name}, namespace: shop}}\n\
             spec: {{targetRefs: [{{kind: Service, name: {name}}}], {}}}\n",
            scene.policy,
            name = scene.name,
        );
        bed.world.apply(&format!("traffic-{}", scene.name), &policy)?;
    }
    for (name, _, status, seconds) in SERVERS {
        start_web(bed.pod(name), PORT, status, seconds)?;
    }
    start_grpc_echo(bed.pod("w1"), GRPC)?;
    bed.start_agents(&AgentOptions::default())?;
    let mut failed = Vec::new();
    for scene in SCENES {
        let started = std::time::Instant::now();
        if let Err(error) = (scene.play)(&bed, scene.name) {
            failed.push(format!("{}: {error:#}", scene.name));
        }
        println!("{}: {:.1} s", scene.name, started.elapsed().as_secs_f32());
    }
    if failed.is_empty() { Ok(()) } else { Err(bed.explain(anyhow::anyhow!("{}", failed.join("\n")))) }
}
