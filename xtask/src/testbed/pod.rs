//! A simulated pod.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::Duration;

use anyhow::{Context, Result};

use super::address::{self, DualStack, Family, ServiceAddress};
use super::net::{self, Links, Netns};
use super::node::Node;
use super::process::{Finished, Place, Process};
use super::run::{Run, random_uuid, xtask_binary};
use super::{cgroup, eventually};
use crate::clean;

/// What a pod shall be.
#[derive(Clone, Debug)]
pub struct PodSpec {
    /// metadata.name, unique in the testbed, at most 20 characters.
    pub name: String,
    /// metadata.namespace
    pub namespace: String,
    /// spec.nodeName
    pub node: String,
    /// spec.serviceAccountName
    pub service_account: String,
    /// metadata.labels
    pub labels: BTreeMap<String, String>,
    /// metadata.annotations
    pub annotations: BTreeMap<String, String>,
    /// Named container ports.
    pub ports: Vec<(String, u16)>,
    /// Ports of the node, and the ports of the pod that they lead to.
    pub host_ports: Vec<(u16, u16)>,
    /// Further fields of its container, such as its probes.
    pub container: serde_json::Map<String, serde_json::Value>,
    /// The families that it has an address of.
    pub families: Vec<Family>,
    /// The Ready condition.
    pub ready: bool,
    /// metadata.deletionTimestamp is set; its processes go on.
    pub terminating: bool,
    /// Its network stands and no process of it runs yet; its object tells no address. Until [`Testbed::finish_pod`].
    ///
    /// [`Testbed::finish_pod`]: super::Testbed::finish_pod
    pub pending: bool,
    /// The addresses of an earlier pod of the node, by [`Pod::place`]; else new ones.
    pub place: Option<usize>,
}

impl PodSpec {
    /// A pod with the service account and the label `app` named like itself.
    pub fn new(namespace: &str, name: &str, node: &str) -> Self {
        Self {
            name: name.to_string(),
            namespace: namespace.to_string(),
            node: node.to_string(),
            service_account: name.to_string(),
            labels: BTreeMap::from([("app".to_string(), name.to_string())]),
            annotations: BTreeMap::new(),
            ports: Vec::new(),
            host_ports: Vec::new(),
            container: serde_json::Map::new(),
            families: Family::BOTH.to_vec(),
            ready: true,
            terminating: false,
            pending: false,
            place: None,
        }
    }

    /// The same with a named container port.
    pub fn port(mut self, name: &str, port: u16) -> Self {
        self.ports.push((name.to_string(), port));
        self
    }

    /// The same with a label.
    pub fn label(mut self, name: &str, value: &str) -> Self {
        self.labels.insert(name.to_string(), value.to_string());
        self
    }

    /// The same with an annotation.
    pub fn annotation(mut self, name: &str, value: &str) -> Self {
        self.annotations.insert(name.to_string(), value.to_string());
        self
    }

    /// The same with one more field of its container.
    pub fn container(mut self, field: &str, value: serde_json::Value) -> Self {
        self.container.insert(field.to_string(), value);
        self
    }

    /// The same behind a port of its node.
    pub fn host_port(mut self, host: u16, target: u16) -> Self {
        self.host_ports.push((host, target));
        self
    }

    /// The same with an address of one family alone.
    pub fn only(mut self, family: Family) -> Self {
        self.families = vec![family];
        self
    }

    /// The same while it is not ready.
    pub fn not_ready(mut self) -> Self {
        self.ready = false;
        self
    }

    /// The same as the container runtime's plugins meet it.
    pub fn pending(mut self) -> Self {
        self.pending = true;
        self
    }

    /// The same with the addresses of a pod that is gone.
    pub fn at(mut self, place: usize) -> Self {
        self.place = Some(place);
        self
    }

    /// The same while it is being deleted, and still serves.
    pub fn terminating(mut self) -> Self {
        self.terminating = true;
        self
    }
}

/// A running pod.
pub struct Pod {
    /// Which of its node's addresses it has.
    pub place: usize,
    /// What was asked for.
    pub spec: PodSpec,
    /// metadata.uid
    pub uid: String,
    /// status.podIPs
    pub ips: DualStack,
    /// Its network.
    pub netns: Netns,
    /// The node's end of its link.
    pub host_end: String,
    /// A directory for its files.
    pub dir: PathBuf,
    /// Those that its cluster has.
    families: &'static [Family],
    cgroup: PathBuf,
    logs: PathBuf,
    processes: Mutex<Vec<Process>>,
}

impl Pod {
    pub(super) fn create(run: &Run, node: &mut Node, spec: PodSpec, links: &Links) -> Result<Self> {
        let uid = random_uuid()?;
        let place = spec.place.unwrap_or(node.pods_made + 2);
        let host_end = format!("nm{}", node.pods_made);
        node.pods_made += 1;
        let ips = address::pod(node.index, place);
        let netns = Netns::create(run, &format!("{}-{}", node.name, spec.name))?;
        net::join_pod(node, &netns, &ips, &spec.families, &host_end, links)?;
        let cgroup = node.cgroup.join(format!("kubepods/besteffort/pod{uid}"));
        let dir = run.dir().join("pods").join(&spec.name);
        for part in [&cgroup, &dir] {
            fs::create_dir_all(part).with_context(|| format!("making {}", part.display()))?;
        }
        let logs = run.dir().join("logs");
        let pod = Self {
            place,
            spec,
            uid,
            ips,
            netns,
            host_end,
            dir,
            families: links.families,
            cgroup,
            logs,
            processes: Mutex::default(),
        };
        pod.write_hosts(&[])?;
        pod.note_place()?;
        if !pod.spec.pending {
            pod.start_pause()?;
        }
        Ok(pod)
    }

    /// What holds a real pod's namespaces together while its containers come and go.
    pub fn start_pause(&self) -> Result<()> {
        self.start("pause", &["sleep", "infinity"])
    }

    /// Starts a process that lives as long as the pod, in a container of its own.
    pub fn start(&self, container: &str, argv: &[&str]) -> Result<()> {
        let process = self.spawn(container, argv)?;
        self.processes.lock().expect("no holder panics").push(process);
        Ok(())
    }

    /// Starts a process that lives as long as what is returned.
    pub fn spawn(&self, container: &str, argv: &[&str]) -> Result<Process> {
        self.container(container)?.spawn(container, argv)
    }

    /// Runs a process to its end.
    pub fn run(&self, argv: &[&str], timeout: Duration) -> Result<Finished> {
        self.container("exec")?.run(argv, timeout)
    }

    /// Runs xtask's probe (see [`crate::probe`]) to its end.
    pub fn probe(&self, arguments: &[&str]) -> Result<Finished> {
        self.probe_for(arguments, Duration::from_secs(90))
    }

    /// The same with another limit of time.
    pub fn probe_for(&self, arguments: &[&str], timeout: Duration) -> Result<Finished> {
        self.run(&as_strs(&probe_argv(arguments)?), timeout)
    }

    /// Starts xtask's probe, which lives as long as the pod.
    pub fn start_probe(&self, name: &str, arguments: &[&str]) -> Result<()> {
        self.start(name, &as_strs(&probe_argv(arguments)?))
    }

    /// Starts xtask's probe, which lives as long as what is returned.
    pub fn spawn_probe(&self, name: &str, arguments: &[&str]) -> Result<Process> {
        self.spawn(name, &as_strs(&probe_argv(arguments)?))
    }

    /// Waits until something listens on a TCP port of the pod. Looks, and does not connect.
    pub fn wait_listening(&self, port: u16) -> Result<()> {
        eventually(Duration::from_secs(60), &format!("{} to listen on port {port}", self.spec.name), || {
            for process in self.processes.lock().expect("no holder panics").iter_mut() {
                process.check_running()?;
            }
            Ok(self.netns.within(|| listens(port))?.then_some(()))
        })
    }

    /// The processes of its long-lived containers that run now, by pid.
    pub fn pids(&self) -> Vec<u32> {
        self.processes.lock().expect("no holder panics").iter().map(Process::pid).collect()
    }

    /// Ends them all; the pod keeps its network and its cgroup, as with a runtime that has no process for the sandbox.
    pub fn end_processes(&self) {
        self.processes.lock().expect("no holder panics").clear();
    }

    /// Its cgroup.
    pub fn cgroup(&self) -> &Path {
        &self.cgroup
    }

    /// The SPIFFE id that its service account has in the default trust domain.
    pub fn identity(&self) -> String {
        format!("spiffe://cluster.local/ns/{}/sa/{}", self.spec.namespace, self.spec.service_account)
    }

    /// A log file of one of its containers.
    pub fn log_path(&self, container: &str) -> PathBuf {
        self.logs.join(format!("{}-{container}.log", self.owner()))
    }

    pub(super) fn write_hosts(&self, services: &[ServiceAddress]) -> Result<()> {
        let mut text = String::from("127.0.0.1 localhost\n::1 localhost ip6-localhost\n");
        for family in &self.spec.families {
            text.push_str(&format!("{} {}\n", self.ips.ip(*family), self.spec.name));
        }
        for ServiceAddress { namespace, name, ips } in services {
            let names = format!("{name}.{namespace}.svc.cluster.local {name}.{namespace}.svc {name}.{namespace}");
            for family in self.families {
                text.push_str(&format!("{} {names}\n", ips.ip(*family)));
            }
        }
        // In place, not by rename: running processes have this very file bound over /etc/hosts.
        fs::write(self.hosts_file(), text).context("writing a pod's hosts file")
    }

    pub(super) fn keep(&mut self) {
        self.processes.lock().expect("no holder panics").iter_mut().for_each(Process::keep);
    }

    /// As a network plugin does it: the link goes at once, whoever still holds the namespace.
    pub(super) fn destroy(self, node: &Node) -> Result<()> {
        let Self { netns, cgroup, processes, host_end, .. } = self;
        drop(processes);
        cgroup::destroy(&cgroup)?;
        node.netns.batch(&format!("link delete {host_end}"))?;
        clean::delete_netns(&netns.name)
    }

    /// For `cargo xtask exec`, which is another process than the one that made the pod.
    fn note_place(&self) -> Result<()> {
        let place = self.container("shell")?;
        fs::write(self.dir.join("place"), serde_json::to_string(&place)?).context("writing down a pod's place")
    }

    fn container(&self, name: &str) -> Result<Place> {
        let cgroup = self.cgroup.join(name);
        fs::create_dir_all(&cgroup).with_context(|| format!("making {}", cgroup.display()))?;
        Ok(Place {
            netns: self.netns.path(),
            cgroup,
            hosts: Some(self.hosts_file()),
            logs: self.logs.clone(),
            owner: self.owner(),
        })
    }

    fn owner(&self) -> String {
        format!("{}-{}", self.spec.node, self.spec.name)
    }

    fn hosts_file(&self) -> PathBuf {
        self.dir.join("hosts")
    }
}

fn probe_argv(arguments: &[&str]) -> Result<Vec<String>> {
    let mut argv = vec![xtask_binary()?.to_string_lossy().into_owned(), "__probe".to_string()];
    argv.extend(arguments.iter().map(|argument| argument.to_string()));
    Ok(argv)
}

fn as_strs(strings: &[String]) -> Vec<&str> {
    strings.iter().map(String::as_str).collect()
}

fn listens(port: u16) -> bool {
    const LISTEN: &str = "0A";
    let wanted = format!("{port:04X}");
    ["tcp", "tcp6"].iter().any(|table| {
        let text = fs::read_to_string(Path::new("/proc/thread-self/net").join(table)).unwrap_or_default();
        text.lines().skip(1).any(|line| {
            let mut words = line.split_whitespace();
            let local_port = words.nth(1).and_then(|local| local.rsplit(':').next());
            local_port == Some(&wanted) && words.nth(1) == Some(LISTEN)
        })
    })
}
