//! Agents and pods that come and go.

use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use xtask::build;
use xtask::demo::stage::MESH_LABEL;
use xtask::rings::can_use_kernel;
use xtask::testbed::cgroup;
use xtask::testbed::{AgentOptions, Family, PodSpec, eventually, start_nginx};

use crate::pair::{Pair, meshed};
use crate::probes::tcp_counter;

const PATIENCE: Duration = Duration::from_secs(30);

#[test]
fn a_restarted_agent_serves_again() -> Result<()> {
    let Some(mut pair) = meshed("restart")? else { return Ok(()) };
    if !pair.with_mesh {
        return Ok(());
    }
    start_nginx(pair.bed.pod("server"))?;
    for node in ["n1", "n2"] {
        pair.bed.agent_mut(node).stop()?;
        pair.bed.start_agent(node, &AgentOptions::default())?;
        pair.served()?;
    }
    Ok(())
}

/// What a reboot leaves: no pins, no programs, and pods that are started before the agent is.
#[test]
fn a_node_without_its_pins_enrols_its_pods_again() -> Result<()> {
    let Some(mut pair) = meshed("reboot")? else { return Ok(()) };
    if !pair.with_mesh {
        return Ok(());
    }
    start_nginx(pair.bed.pod("server"))?;
    pair.bed.agent_mut("n2").kill()?;
    let pins = pair.bed.agent("n2").pins().to_path_buf();
    let detached = Command::new(build::agent_binary()?).arg("detach").arg("--bpf-pins").arg(&pins).status()?;
    ensure!(detached.success(), "mesh-agent detach: {detached}");
    pair.bed.start_agent("n2", &AgentOptions::default())?;
    pair.served()?;
    let connections = eventually(PATIENCE, "n2 to tell of connections", || {
        let mut connections = pair.bed.agent("n2").access_log();
        // Those that are kept for more requests have no line yet.
        connections.extend(pair.bed.agent("n2").get_json("/connections")?.as_array().cloned().unwrap_or_default());
        Ok((!connections.is_empty()).then_some(connections))
    })?;
    ensure!(connections.iter().all(|one| one["transport"] == "tunnel"), "{connections:?}");
    Ok(())
}

/// Where capture would be half a capture there is no agent at all.
#[test]
fn an_agent_that_cannot_capture_refuses_to_start() -> Result<()> {
    if !can_use_kernel("refused start") {
        return Ok(());
    }
    let dir = tempfile::Builder::new().prefix("nodemesh-refused-").tempdir()?;
    let node = cgroup::mount_point()?.join(dir.path().file_name().context("a name")?);
    for (kubepods, reason) in [(false, "neither kubepods nor kubepods.slice"), (true, "is not on a BPF file system")] {
        std::fs::create_dir_all(if kubepods { node.join("kubepods") } else { node.clone() })?;
        let within = |name: &str| dir.path().join(name).display().to_string();
        let run = Command::new(build::agent_binary()?)
            .args(["run", "--node=n1", "--ca=memory", "--metrics=127.0.0.1:0", "--readiness=127.0.0.1:0"])
            .args([format!("--discovery=dir:{}", within("world")), format!("--admin=unix:{}", within("admin.sock"))])
            .args([format!("--cgroup-root={}", node.display()), format!("--bpf-pins={}", within("nodemesh"))])
            .output()?;
        let said = String::from_utf8_lossy(&run.stderr);
        ensure!(!run.status.success() && said.contains(reason), "{}: {said}", run.status);
    }
    cgroup::destroy(&node)
}

#[test]
fn a_world_that_cannot_be_read_keeps_the_last_state() -> Result<()> {
    let Some(mut pair) = meshed("vanished world")? else { return Ok(()) };
    if !pair.with_mesh {
        return Ok(());
    }
    start_nginx(pair.bed.pod("server"))?;
    let world = pair.bed.world.dir().to_path_buf();
    let away = world.with_extension("away");
    std::fs::rename(&world, &away)?;
    let unreachable = eventually(PATIENCE, "the agent to notice", || {
        let dump = pair.bed.agent("n1").get_json("/config_dump")?;
        Ok(dump["discovery"]["health"]["unreachable"].as_str().map(str::to_string))
    })?;
    ensure!(unreachable.contains(&*world.to_string_lossy()), "{unreachable}");
    pair.served()?;
    std::fs::rename(&away, &world)?;
    pair.bed.add_pod(PodSpec::new("pair", "later", "n1"))?;
    eventually(PATIENCE, "the world to be read again", || {
        Ok(pair.bed.agent("n1").get_json("/config_dump")?.to_string().contains("pair/sa/later").then_some(()))
    })?;
    Ok(())
}

#[test]
fn a_pod_that_starts_later_is_enrolled() -> Result<()> {
    let Some(mut pair) = meshed("a later pod")? else { return Ok(()) };
    start_nginx(pair.bed.pod("server"))?;
    pair.bed.add_pod(PodSpec::new("pair", "late", "n1"))?;
    if !pair.with_mesh {
        return Ok(());
    }
    for family in Family::BOTH {
        let url = format!("http://{}/", pair.server(family, 80));
        // Only the mesh knows the way to a cluster IP.
        eventually(PATIENCE, "the new pod to be served by Service", || {
            let answer = pair.bed.pod("late").run(&["curl", "-sS", "--max-time", "5", &url], PATIENCE)?;
            answer.expect_ok("curl").map(Some)
        })?;
    }
    Ok(())
}

#[test]
fn a_pod_that_ends_leaves_nothing_in_the_agent() -> Result<()> {
    let Some(mut pair) = meshed("a pod's end")? else { return Ok(()) };
    if !pair.with_mesh {
        return Ok(());
    }
    let uid = pair.bed.pod("client").uid.clone();
    let file = pair.bed.pod("client").netns.path();
    let namespace = std::os::unix::fs::MetadataExt::ino(&std::fs::metadata(file)?);
    pair.bed.remove_pod("client")?;
    eventually(PATIENCE, "the agent to let go of the pod's network namespace", || {
        let pid = pair.bed.agent("n1").pid();
        let held = format!("/proc/{pid}/fd");
        let wanted = format!("net:[{namespace}]");
        let holds = std::fs::read_dir(held)?
            .flatten()
            .filter_map(|entry| std::fs::read_link(entry.path()).ok())
            .any(|target| target.to_string_lossy() == wanted);
        let threads = std::fs::read_dir(format!("/proc/{pid}/task"))?
            .flatten()
            .filter_map(|entry| std::fs::read_link(entry.path().join("ns/net")).ok())
            .any(|target| target.to_string_lossy() == wanted);
        Ok((!holds && !threads).then_some(()))
    })?;
    let (status, body) = pair.bed.agent("n1").get("/readyz")?;
    ensure!(status == 200, "a pod that is gone keeps the agent from being ready: {body}");
    let connections = pair.bed.agent("n1").get_json("/connections")?.to_string();
    ensure!(!connections.contains(&uid), "{connections}");
    Ok(())
}

/// A pod that is deleted by force lives until kubelet comes to it, and without kubelet for ever. It did not ask to leave the
/// mesh: nothing of it passes, whichever agent is there, and with its object it is served as before.
#[test]
fn a_pod_that_nobody_speaks_of_is_refused_while_it_lives() -> Result<()> {
    let Some(mut pair) = meshed("a pod without its object")? else { return Ok(()) };
    if !pair.with_mesh {
        return Ok(());
    }
    pair.bed.add_namespace("outside", &[])?;
    pair.bed.add_pod(PodSpec::new("outside", "stranger", "n1"))?;
    for pod in ["server", "stranger"] {
        start_nginx(pair.bed.pod(pod))?;
    }
    pair.served()?;
    let passes = |pair: &Pair, from: &str, to: &str, family: Family| -> Result<bool> {
        let url = format!("http://{}/", pair.bed.pod(to).ips.socket(family, 80));
        Ok(pair.bed.pod(from).run(&["curl", "-sS", "--max-time", "2", &url], PATIENCE)?.ok())
    };
    let ways = [("stranger", "server"), ("server", "stranger")];
    for (from, to) in ways {
        eventually(PATIENCE, &format!("{from} to reach {to} where nothing forbids it"), || {
            Ok(passes(&pair, from, to, Family::V4)?.then_some(()))
        })?;
    }
    pair.bed.delete_object("server")?;
    eventually(PATIENCE, "the pod to be forsaken", || {
        Ok(pair.bed.agent("n2").log().contains("refused while its processes live").then_some(()))
    })?;
    let refused = |pair: &Pair, when: &str| -> Result<()> {
        // Longer than it takes an agent to look for what nobody stands for any more.
        let end = Instant::now() + Duration::from_secs(7);
        while Instant::now() < end {
            for ((from, to), family) in ways.into_iter().flat_map(|way| Family::BOTH.map(|family| (way, family))) {
                ensure!(!passes(pair, from, to, family)?, "{when}: {from} reaches {to} over {family}");
            }
        }
        Ok(())
    };
    refused(&pair, "with the agent that had it").map_err(|error| pair.bed.explain(error))?;
    pair.bed.agent_mut("n2").kill()?;
    pair.bed.start_agent("n2", &AgentOptions::default())?;
    refused(&pair, "with an agent that never had it").map_err(|error| pair.bed.explain(error))?;
    pair.bed.write_pod("server")?;
    pair.served().map_err(|error| pair.bed.explain(error))
}

/// With CRI-O nothing runs in a pod while its one container begins again. It stays captured: what the container dials first
/// would go past the mesh.
#[test]
fn a_pod_whose_containers_begin_again_stays_captured() -> Result<()> {
    let Some(pair) = meshed("containers that begin again")? else { return Ok(()) };
    if !pair.with_mesh {
        return Ok(());
    }
    start_nginx(pair.bed.pod("server"))?;
    pair.served()?;
    pair.bed.pod("server").end_processes();
    // Longer than it takes an agent to look whether pods live.
    std::thread::sleep(Duration::from_secs(7));
    pair.bed.pod("server").start_pause()?;
    start_nginx(pair.bed.pod("server"))?;
    pair.served().map_err(|error| pair.bed.explain(error))?;
    let log = pair.bed.agent("n2").log();
    ensure!(!log.contains("left the mesh"), "{log}");
    Ok(())
}

const ONLY_THE_CLIENT: &str = "apiVersion: nodemesh.dev/v1alpha1
kind: AuthorizationPolicy
metadata: {name: only-the-client, namespace: pair}
spec:
  targetRefs: [{kind: Pod, selector: {matchLabels: {app: server}}}]
  action: ALLOW
  rules: [{sources: [{type: ServiceAccount, serviceAccount: {name: client}}]}]
";

/// A pod is made again with the address of one that was deleted, and is another: it has none of its rights, and who
/// dials the address reaches the new one by its own identity. So also when an agent is away in between.
#[test]
fn an_address_that_is_given_again_carries_no_rights() -> Result<()> {
    let Some(mut pair) = meshed("an address given again")? else { return Ok(()) };
    if !pair.with_mesh {
        return Ok(());
    }
    start_nginx(pair.bed.pod("server"))?;
    pair.served()?;
    pair.bed.world.apply("only-the-client", ONLY_THE_CLIENT)?;
    let server = pair.bed.pod("server").ips;
    let is_served = |pair: &Pair, caller: &str, family: Family| -> Result<bool> {
        let url = format!("http://{}/", server.socket(family, 80));
        Ok(pair.bed.pod(caller).run(&["curl", "-sS", "--fail", "--max-time", "3", &url], PATIENCE)?.ok())
    };
    pair.bed.add_pod(PodSpec::new("pair", "witness", "n1"))?;
    for family in Family::BOTH {
        eventually(PATIENCE, "the policy to hold", || Ok((!is_served(&pair, "witness", family)?).then_some(())))?;
    }
    let (mut caller, place) = ("client".to_string(), pair.bed.pod("client").place);
    for (number, account) in ["other", "client", "other", "client"].into_iter().enumerate() {
        let with_agent = number < 2;
        pair.bed.remove_pod(&caller)?;
        if !with_agent {
            pair.bed.agent_mut("n1").kill()?;
        }
        caller = format!("{account}-{number}");
        let spec = PodSpec { service_account: account.to_string(), ..PodSpec::new("pair", &caller, "n1").at(place) };
        pair.bed.add_pod(spec)?;
        if !with_agent {
            pair.bed.start_agent("n1", &AgentOptions::default())?;
        }
        let what = format!("{caller}, with an agent: {with_agent}");
        for family in Family::BOTH {
            if account == "client" {
                eventually(PATIENCE, "the new pod to be served", || {
                    Ok(is_served(&pair, &caller, family)?.then_some(()))
                })
                .with_context(|| format!("{what}, {family}"))
                .map_err(|error| pair.bed.explain(error))?;
                continue;
            }
            for _ in 0..20 {
                ensure!(!is_served(&pair, &caller, family)?, "{what}, {family}: it passed as the pod before it");
            }
        }
    }
    // The other end: tunnels to the address were made for another identity.
    let place = pair.bed.pod("server").place;
    pair.bed.remove_pod("server")?;
    let spec = PodSpec { service_account: "stranger".to_string(), ..PodSpec::new("pair", "server2", "n2").at(place) };
    pair.bed.add_pod(spec)?;
    start_nginx(pair.bed.pod("server2"))?;
    for family in Family::BOTH {
        eventually(PATIENCE, "the new server to be reached", || Ok(is_served(&pair, &caller, family)?.then_some(())))
            .map_err(|error| pair.bed.explain(error))?;
    }
    // The network of the pod before went with it, so nobody could say goodbye: its tunnels are dead peers.
    eventually(3 * PATIENCE, "tunnels to the new identity alone", || {
        // Before its node's agent knows it, plaintext reaches it.
        ensure!(is_served(&pair, &caller, Family::V4)?, "it is not served any more");
        let dump = pair.bed.agent("n1").get_json("/config_dump")?;
        let open = dump["tunnels"].as_array().into_iter().flatten().filter(|tunnel| tunnel["retired"] == false);
        let identities: Vec<String> = open.map(|tunnel| tunnel["destination"].to_string()).collect();
        ensure!(identities.iter().any(|identity| identity.contains("stranger")), "{identities:?}");
        Ok(identities.iter().all(|identity| identity.contains("stranger")).then_some(()))
    })?;
    Ok(())
}

/// What un-enrolment takes down with a delay must not take down what was set up since.
#[test]
fn a_pod_that_leaves_and_comes_back_at_once_stays_served() -> Result<()> {
    let Some(mut pair) = meshed("leave and return")? else { return Ok(()) };
    if !pair.with_mesh {
        return Ok(());
    }
    start_nginx(pair.bed.pod("server"))?;
    for pod in ["client", "server"] {
        let node = pair.bed.pod(pod).spec.node.clone();
        let said = |pair: &Pair, what: &str| pair.bed.agent(&node).log().matches(what).count();
        let enrolled = said(&pair, "\"enrolled\"");
        pair.bed.label_pod(pod, MESH_LABEL, Some("disabled"))?;
        eventually(PATIENCE, "the pod to leave", || Ok((said(&pair, "\"left the mesh\"") > 0).then_some(())))?;
        pair.bed.label_pod(pod, MESH_LABEL, None)?;
        eventually(PATIENCE, "the pod to be enrolled again", || {
            Ok((said(&pair, "\"enrolled\"") > enrolled).then_some(()))
        })?;
        pair.served()?;
        let end = Instant::now() + Duration::from_millis(2500);
        while Instant::now() < end {
            for family in Family::BOTH {
                let url = format!("http://{}/", pair.server(family, 80));
                let answer = pair.bed.pod("client").run(&["curl", "-sS", "--max-time", "20", &url], PATIENCE)?;
                answer.expect_ok(pod).map_err(|error| pair.bed.explain(error))?;
            }
        }
    }
    Ok(())
}

/// A running pod joins by its label, on either side of a stream of new connections, and none of them fails or waits.
#[test]
fn enrolment_is_not_noticed_by_new_connections() -> Result<()> {
    const UNTIL_STOPPED: &str = r#"while [ ! -e "$1" ]; do
        curl -sS -o /dev/null --max-time 20 -w '%{time_total}\n' "$0" || echo FAILED
    done"#;
    let Some(mut pair) = meshed("joining unnoticed")? else { return Ok(()) };
    if !pair.with_mesh {
        return Ok(());
    }
    start_nginx(pair.bed.pod("server"))?;
    for (pod, node) in [("client", "n1"), ("server", "n2")] {
        pair.bed.label_pod(pod, MESH_LABEL, Some("disabled"))?;
        eventually(PATIENCE, "the pod to leave", || {
            Ok(pair.bed.agent(node).log().contains("left the mesh").then_some(()))
        })?;
        let stop = pair.bed.dir().join(format!("stop-{pod}"));
        let url = format!("http://{}/", pair.bed.pod("server").ips.socket(Family::V4, 80));
        let stop_path = stop.to_string_lossy().into_owned();
        let sent_again = |pair: &Pair| tcp_counter(pair.bed.pod("client"), "TCPSynRetrans");
        let before = sent_again(&pair)?;
        let caller = pair.bed.pod("client").spawn("caller", &["sh", "-c", UNTIL_STOPPED, &url, &stop_path])?;
        let requests = |count| move |log: String| (log.lines().count() >= count).then_some(());
        eventually(PATIENCE, "some requests before", || Ok(requests(20)(caller.log())))?;
        let enrolled = pair.bed.agent(node).log().matches("\"enrolled\"").count();
        pair.bed.label_pod(pod, MESH_LABEL, None)?;
        eventually(PATIENCE, "the pod to be enrolled", || {
            Ok((pair.bed.agent(node).log().matches("\"enrolled\"").count() > enrolled).then_some(()))
        })?;
        let now = caller.log().lines().count();
        eventually(PATIENCE, "some requests after", || Ok(requests(now + 20)(caller.log())))?;
        std::fs::write(&stop, "")?;
        // A SYN that is lost is sent again after a second. Where none was, it may be the machine that stood still.
        let most = if sent_again(&pair)? > before { 0.9 } else { 5.0 };
        let slow = |line: &str| line.parse::<f64>().map_or(true, |seconds| seconds > most);
        let log = caller.log();
        let noticed: Vec<&str> = log.lines().filter(|line| slow(line)).collect();
        ensure!(noticed.is_empty(), "{pod}: {noticed:?} of {} requests", log.lines().count());
    }
    Ok(())
}
