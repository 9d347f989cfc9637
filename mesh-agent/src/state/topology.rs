//! Which of a port's endpoints a node uses: readiness, topology hints, node-local policy.
//!
//! The rules are kube-proxy's (`CategorizeEndpoints`), and as there each family is judged by itself. Hints only prefer:
//! they count when every ready endpoint has one and one of them means this node.

use std::sync::Arc;

use super::Backend;

/// Where this agent is.
pub(super) struct Here {
    pub(super) node: Arc<str>,
    /// Empty when not known.
    pub(super) zone: Arc<str>,
}

/// The endpoints for clients who may go anywhere: the ready ones that topology prefers, else all that still serve while
/// they end.
pub(super) fn cluster_wide<'a>(all: &[&'a Backend], here: &Here) -> Vec<&'a Backend> {
    let preference = preference(all, here);
    ready_else_serving(all, |backend| preference.admits(backend, here))
}

/// The endpoints for clients who must stay on the node.
pub(super) fn node_local<'a>(all: &[&'a Backend], here: &Here) -> Vec<&'a Backend> {
    let local: Vec<&Backend> = all.iter().copied().filter(|backend| is_local(backend, here)).collect();
    ready_else_serving(&local, |_| true)
}

fn is_local(backend: &Backend, here: &Here) -> bool {
    !here.node.is_empty() && backend.node == here.node
}

fn ready_else_serving<'a>(all: &[&'a Backend], admits: impl Fn(&Backend) -> bool) -> Vec<&'a Backend> {
    let ready: Vec<&Backend> = all.iter().copied().filter(|backend| backend.ready && admits(backend)).collect();
    if !ready.is_empty() {
        return ready;
    }
    all.iter().copied().filter(|backend| backend.serving && backend.terminating).collect()
}

#[derive(Clone, Copy)]
enum Preference {
    Nobody,
    SameNode,
    SameZone,
}

impl Preference {
    fn admits(self, backend: &Backend, here: &Here) -> bool {
        match self {
            Preference::Nobody => true,
            Preference::SameNode => backend.hints.nodes.contains(&here.node),
            Preference::SameZone => backend.hints.zones.contains(&here.zone),
        }
    }
}

fn preference(all: &[&Backend], here: &Here) -> Preference {
    let hinted = |hints: fn(&Backend) -> &[Arc<str>], wanted: &Arc<str>| {
        let mut ready = all.iter().filter(|backend| backend.ready).map(|backend| hints(backend));
        ready.clone().all(|hints| !hints.is_empty()) && ready.any(|hints| hints.contains(wanted))
    };
    if hinted(|backend| &backend.hints.nodes, &here.node) {
        Preference::SameNode
    } else if hinted(|backend| &backend.hints.zones, &here.zone) {
        Preference::SameZone
    } else {
        Preference::Nobody
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::state::Hints;

    /// An endpoint in short: name, conditions (R ready, D draining: serving and terminating, S serving and staying, yet
    /// not ready, - none), node, hinted nodes, hinted zones.
    type Short = (&'static str, char, &'static str, &'static str, &'static str);

    #[test]
    fn as_kube_proxy_chooses() {
        let table: [(&str, &[Short], &str, &str); 14] = [
            ("nothing", &[], "", ""),
            ("all ready", &[("a", 'R', "n1", "", ""), ("b", 'R', "n2", "", "")], "a b", "a"),
            ("unready", &[("a", '-', "n1", "", ""), ("b", 'R', "n2", "", "")], "b", ""),
            ("draining is not needed", &[("a", 'D', "n1", "", ""), ("b", 'R', "n2", "", "")], "b", "a"),
            (
                "draining is all",
                &[("a", 'D', "n1", "", ""), ("b", 'D', "n2", "", ""), ("c", '-', "n1", "", "")],
                "a b",
                "a",
            ),
            ("serving without readiness is not enough", &[("a", 'S', "n1", "", "")], "", ""),
            ("unready is all", &[("a", '-', "n1", "", "")], "", ""),
            ("no node", &[("a", 'R', "", "", "")], "a", ""),
            ("zone", &[("a", 'R', "n1", "", "z2"), ("b", 'R', "n2", "", "z1"), ("c", 'R', "n3", "", "z1")], "b c", "a"),
            ("zone without endpoint", &[("a", 'R', "n1", "", "z2"), ("b", 'R', "n2", "", "z3")], "a b", "a"),
            ("one without hint", &[("a", 'R', "n1", "", "z1"), ("b", 'R', "n2", "", "")], "a b", "a"),
            (
                "an unready one without hint",
                &[("a", 'R', "n2", "", "z1"), ("b", '-', "n2", "", ""), ("c", 'R', "n3", "", "z2")],
                "a",
                "",
            ),
            ("node before zone", &[("a", 'R', "n1", "n1", "z1"), ("b", 'R', "n2", "n2", "z1")], "a", "a"),
            ("no endpoint on the node: zone", &[("a", 'R', "n3", "n3", "z2"), ("b", 'R', "n2", "n2", "z1")], "b", ""),
        ];
        for (what, endpoints, cluster, local) in table {
            let all: Vec<Backend> = endpoints.iter().map(backend).collect();
            let all: Vec<&Backend> = all.iter().collect();
            let here = Here { node: "n1".into(), zone: "z1".into() };
            assert_eq!(names(&cluster_wide(&all, &here)), cluster, "{what}");
            assert_eq!(names(&node_local(&all, &here)), local, "{what}, local");
        }
    }

    #[test]
    fn a_node_that_does_not_know_where_it_is_prefers_nobody() {
        let all = [backend(&("a", 'R', "", "", "z1")), backend(&("b", 'R', "n2", "", "z2"))];
        let all: Vec<&Backend> = all.iter().collect();
        let nowhere = Here { node: "".into(), zone: "".into() };
        assert_eq!(names(&cluster_wide(&all, &nowhere)), "a b");
        assert_eq!(names(&node_local(&all, &nowhere)), "");
    }

    proptest! {
        /// Topology prefers and never takes the last endpoint away; what is chosen is ready, or nothing is and it
        /// drains; a client that must stay on its node does.
        #[test]
        fn preference_never_refuses(all in prop::collection::vec(a_backend(), 0..8)) {
            let all: Vec<&Backend> = all.iter().collect();
            let here = Here { node: "n1".into(), zone: "z1".into() };
            let any_ready = all.iter().any(|backend| backend.ready);
            let any_draining = all.iter().any(|backend| backend.serving && backend.terminating);
            let cluster = cluster_wide(&all, &here);
            prop_assert_eq!(cluster.is_empty(), !any_ready && !any_draining);
            prop_assert!(cluster.iter().all(|backend| backend.ready == any_ready));
            prop_assert!(node_local(&all, &here).iter().all(|backend| &*backend.node == "n1"));
        }
    }

    fn a_backend() -> impl Strategy<Value = Backend> {
        let nodes = || prop::sample::select(vec!["", "n1", "n2"]);
        let zones = prop::sample::select(vec!["", "z1", "z2"]);
        let conditions = prop::sample::select(vec!['R', 'D', 'S', '-']);
        (conditions, nodes(), nodes(), zones)
            .prop_map(|(conditions, node, hinted, zone)| backend(&("x", conditions, node, hinted, zone)))
    }

    fn backend((name, conditions, node, hinted_node, zone): &Short) -> Backend {
        let hinted = |name: &str| Some(name).filter(|name| !name.is_empty()).map(Arc::from).into_iter().collect();
        Backend {
            port_name: (*name).into(),
            ready: *conditions == 'R',
            serving: *conditions != '-',
            terminating: *conditions == 'D',
            node: (*node).into(),
            hints: Hints { zones: hinted(zone), nodes: hinted(hinted_node) },
            ..Backend::ready(std::net::Ipv4Addr::LOCALHOST.into(), 1)
        }
    }

    fn names(chosen: &[&Backend]) -> String {
        chosen.iter().map(|backend| &*backend.port_name).collect::<Vec<_>>().join(" ")
    }
}
