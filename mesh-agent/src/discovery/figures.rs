//! What a change costs among 10 000 pods, and what all of them weigh. Prints; asserts nothing about time. How to run it
//! is in docs/development.md.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant, SystemTime};

use super::file::{self, Directory};
use super::tests::config;
use super::{Current, MESH_LABEL};
use crate::state::MeshState;

const PODS: usize = 10_000;
const SERVICES: usize = 1_000;
const NAMESPACES: usize = 100;
const NODES: usize = 100;
const ROUNDS: usize = 21;

#[test]
#[ignore = "figures, for a release build"]
fn figures_of_a_large_world() {
    for one_file_each in [true, false] {
        let form = if one_file_each { "a file for each object" } else { "one List" };
        let directory = tempfile::tempdir().unwrap();
        let mut objects = Objects::large();
        objects.write_all(directory.path(), one_file_each);
        let empty = resident();
        let mut agent = Agent::new(directory.path());
        let (from_scratch, state) = agent.refresh();
        assert_eq!((state.workloads().count(), state.services().count()), (PODS, SERVICES));
        println!(
            "\n{form}: {PODS} pods, {SERVICES} Services with a slice each, {NAMESPACES} namespaces, {NODES} nodes"
        );
        println!(
            "  from scratch                      {from_scratch:?}, {} MiB",
            resident().saturating_sub(empty) >> 20
        );
        let changes: [(&str, Change); 5] = [
            ("nothing", |_, _| String::new()),
            ("one pod: not ready, ready", |objects, round| objects.change("pod-5", pod(5, round % 2 == 0))),
            ("one endpoint of a slice", |objects, round| objects.change("slice-7", slice(7, round % 2 == 0))),
            ("one namespace's label: 100 pods", |objects, round| objects.change("ns-3", namespace(3, round % 2 == 0))),
            ("one policy", |objects, round| objects.change("policy-1", policy(1, round % 2 == 0))),
        ];
        let mut before = state;
        for (what, change) in changes {
            let mut times = Vec::new();
            for round in 0..ROUNDS {
                let name = change(&mut objects, round);
                objects.write(directory.path(), one_file_each, &name);
                let (times_of_round, state) = agent.refresh();
                let stayed =
                    before.services().zip(state.services()).filter(|(old, new)| std::sync::Arc::ptr_eq(old, new));
                assert!(stayed.count() >= SERVICES - 10);
                before = state;
                times.push(times_of_round);
            }
            println!("  {what:<33} {:?}", Times::median(times));
        }
        println!("  after all that                    {} MiB", resident().saturating_sub(empty) >> 20);
    }
}

type Change = fn(&mut Objects, usize) -> String;

/// The parts of one refresh.
#[derive(Clone, Copy)]
struct Times {
    files: Duration,
    objects: Duration,
    snapshot: Duration,
}

impl Times {
    fn median(mut all: Vec<Times>) -> Times {
        all.sort_by_key(|times| times.files + times.objects + times.snapshot);
        all[all.len() / 2]
    }
}

impl std::fmt::Debug for Times {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Times { files, objects, snapshot } = self;
        let all = *files + *objects + *snapshot;
        write!(f, "{all:>10.1?} (files {files:.1?}, objects {objects:.1?}, snapshot {snapshot:.1?})")
    }
}

/// Discovery without its waiting.
struct Agent<'a> {
    directory: &'a Path,
    files: Directory,
    current: Current,
    /// As a reader has it, so that what changes has to be copied.
    _published: Option<MeshState>,
}

impl<'a> Agent<'a> {
    fn new(directory: &'a Path) -> Self {
        let current = Current::new(&config("node-1"));
        Self { directory, files: Directory::default(), current, _published: None }
    }

    fn refresh(&mut self) -> (Times, MeshState) {
        // As if every file but the one that was just written were older than it takes to be sure of it.
        let now = SystemTime::now() + file::SETTLED * 2;
        let started = Instant::now();
        let changes = self.files.changes(file::list(self.directory).unwrap(), now);
        let files = started.elapsed();
        self.current.take(&changes);
        let objects = started.elapsed() - files;
        let state = self.current.engine.snapshot();
        let snapshot = started.elapsed() - files - objects;
        assert_eq!(self.current.store.findings(), []);
        self._published = Some(state.clone());
        (Times { files, objects, snapshot }, state)
    }
}

/// Name and JSON of each.
struct Objects(std::collections::BTreeMap<String, String>);

impl Objects {
    fn large() -> Self {
        let mut objects = Self(Default::default());
        (0..NAMESPACES).for_each(|index| drop(objects.change(&format!("ns-{index}"), namespace(index, true))));
        (0..NODES).for_each(|index| drop(objects.change(&format!("node-{index}"), node(index))));
        (0..PODS).for_each(|index| drop(objects.change(&format!("pod-{index}"), pod(index, true))));
        (0..SERVICES).for_each(|index| drop(objects.change(&format!("service-{index}"), service(index))));
        (0..SERVICES).for_each(|index| drop(objects.change(&format!("slice-{index}"), slice(index, true))));
        (0..NAMESPACES).for_each(|index| drop(objects.change(&format!("policy-{index}"), policy(index, true))));
        objects
    }

    fn change(&mut self, name: &str, json: String) -> String {
        self.0.insert(name.to_string(), json);
        name.to_string()
    }

    fn write_all(&self, directory: &Path, one_file_each: bool) {
        if one_file_each {
            self.0.keys().for_each(|name| self.write(directory, true, name));
        } else {
            self.write(directory, false, "all");
        }
    }

    fn write(&self, directory: &Path, one_file_each: bool, name: &str) {
        if name.is_empty() {
            return;
        }
        let staged = directory.join(".staged");
        if one_file_each {
            fs::write(&staged, &self.0[name]).unwrap();
            fs::rename(staged, directory.join(format!("{name}.yaml"))).unwrap();
        } else {
            let items: String = self.0.values().map(|object| format!("- {object}\n")).collect();
            fs::write(&staged, format!("apiVersion: v1\nkind: List\nitems:\n{items}")).unwrap();
            fs::rename(staged, directory.join("all.yaml")).unwrap();
        }
    }
}

fn namespace(index: usize, enabled: bool) -> String {
    let label = if enabled { "enabled" } else { "disabled" };
    format!(
        r#"{{"apiVersion": "v1", "kind": "Namespace", "metadata": {{"name": "ns-{index}", "labels": {{"{MESH_LABEL}": "{label}"}}}}}}"#
    )
}

fn node(index: usize) -> String {
    let zone = index % 3;
    format!(
        r#"{{"apiVersion": "v1", "kind": "Node", "metadata": {{"name": "node-{index}", "labels": {{"topology.kubernetes.io/zone": "z{zone}"}}}}, "status": {{"addresses": [{{"type": "InternalIP", "address": "192.168.1.{index}"}}]}}}}"#
    )
}

/// The pods of a Service are all in one namespace, on ten nodes.
fn pod(index: usize, ready: bool) -> String {
    let (service, namespace, node) = (index % SERVICES, index % NAMESPACES, index % NODES + index / SERVICES);
    let (node, status) = (node % NODES, if ready { "True" } else { "False" });
    format!(
        r#"{{"apiVersion": "v1", "kind": "Pod", "metadata": {{"namespace": "ns-{namespace}", "name": "pod-{index}", "uid": "uid-{index}", "creationTimestamp": "2026-01-01T00:00:00Z", "labels": {{"app": "app-{service}", "tier": "t"}}}}, "spec": {{"nodeName": "node-{node}", "serviceAccountName": "app-{service}", "containers": [{{"name": "c", "image": "example/app:1", "ports": [{{"name": "http", "containerPort": 8080}}]}}]}}, "status": {{"phase": "Running", "hostIP": "192.168.1.{node}", "podIPs": [{{"ip": "{}"}}], "conditions": [{{"type": "Ready", "status": "{status}"}}]}}}}"#,
        pod_ip(index)
    )
}

fn pod_ip(index: usize) -> String {
    format!("10.1.{}.{}", index / 250, index % 250)
}

fn service(index: usize) -> String {
    format!(
        r#"{{"apiVersion": "v1", "kind": "Service", "metadata": {{"namespace": "ns-{}", "name": "s-{index}"}}, "spec": {{"clusterIP": "10.96.{}.{}", "selector": {{"app": "app-{index}"}}, "ports": [{{"name": "http", "port": 80, "targetPort": "http"}}]}}}}"#,
        index % NAMESPACES,
        index / 250,
        index % 250
    )
}

fn slice(index: usize, first_ready: bool) -> String {
    let endpoint = |pod: usize| {
        let ready = first_ready || pod != index;
        format!(r#"{{"addresses": ["{}"], "conditions": {{"ready": {ready}}}}}"#, pod_ip(pod))
    };
    let endpoints: Vec<String> = (0..PODS / SERVICES).map(|number| endpoint(index + number * SERVICES)).collect();
    format!(
        r#"{{"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "metadata": {{"namespace": "ns-{}", "name": "s-{index}-1", "labels": {{"kubernetes.io/service-name": "s-{index}"}}}}, "addressType": "IPv4", "ports": [{{"name": "http", "port": 8080}}], "endpoints": [{}]}}"#,
        index % NAMESPACES,
        endpoints.join(", ")
    )
}

fn policy(index: usize, one: bool) -> String {
    let caller = if one { "one" } else { "other" };
    format!(
        r#"{{"apiVersion": "nodemesh.dev/v1alpha1", "kind": "AuthorizationPolicy", "metadata": {{"namespace": "ns-{index}", "name": "callers"}}, "spec": {{"targetRefs": [{{"kind": "Pod", "selector": {{"matchLabels": {{"app": "app-{index}"}}}}}}], "action": "ALLOW", "rules": [{{"sources": [{{"type": "ServiceAccount", "serviceAccount": {{"name": "{caller}"}}}}]}}]}}}}"#
    )
}

/// Bytes of memory that this process has.
fn resident() -> usize {
    let pages = fs::read_to_string("/proc/self/statm").unwrap();
    pages.split(' ').nth(1).unwrap().parse::<usize>().unwrap() * 4096
}
