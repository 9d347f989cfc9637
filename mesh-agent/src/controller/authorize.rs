//! May this caller have this certificate? Pure: whoever asks brings what is known of pods, and the time.
//!
//! An agent has nothing that is worth stealing beyond its node: it gets certificates for service accounts of which a pod
//! lives on the node where the agent itself runs, and for no other.

use std::fmt;
use std::time::SystemTime;

use crate::spiffe::SpiffeId;

/// A service account.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ServiceAccount {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

/// Who calls, as the API server says of its token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Caller {
    /// Whose token it is.
    pub account: ServiceAccount,
    /// The pod that the token is bound to.
    pub pod: String,
    /// Its uid.
    pub pod_uid: String,
    /// The node that the token is bound to; older API servers say none.
    pub node: Option<String>,
}

/// What is known of a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodFacts {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Unlike the name, not given twice.
    pub uid: String,
    /// Where it runs; none before it is scheduled.
    pub node: Option<String>,
    /// The name of its service account.
    pub service_account: String,
    /// Where it is in its life.
    pub phase: Phase,
    /// When it is to be gone, if it was deleted: the end of its grace.
    pub gone_at: Option<SystemTime>,
}

/// Where a pod is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Containers are being prepared.
    Pending,
    /// One runs at least.
    Running,
    /// All have ended, or nobody knows.
    Over,
}

/// What is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Asked {
    /// The identity.
    pub id: SpiffeId,
    /// The names in the signing request.
    pub names: Vec<String>,
}

/// What pods are known that matter for a question.
#[derive(Clone, Debug, Default)]
pub struct Known {
    /// The caller's pod, found by its namespace and name.
    pub caller: Option<PodFacts>,
    /// Pods of the service account that is asked for, wherever they run.
    pub bearers: Vec<PodFacts>,
}

/// Why it may.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Grant {
    /// The node of the caller and of the pod.
    pub node: String,
    /// The pod that bears the identity there.
    pub pod: String,
    /// Its uid.
    pub pod_uid: String,
}

/// Why it may not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// The caller is somebody else than an agent.
    NotAnAgent(ServiceAccount),
    /// The caller's pod is not known, has another uid, or has ended.
    CallerGone {
        /// What is wrong.
        why: &'static str,
    },
    /// The caller's pod is not where its token says.
    CallerNode {
        /// The token's.
        token: String,
        /// The pod's.
        pod: String,
    },
    /// An identity of another mesh.
    TrustDomain(String),
    /// The signing request names something else.
    Names(Vec<String>),
    /// No live pod of that service account is on the caller's node.
    NoBearer {
        /// The caller's node.
        node: String,
        /// How many pods of that service account are known at all.
        elsewhere: usize,
    },
}

impl Refusal {
    /// A stable word for metrics and the audit.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::NotAnAgent(_) => "not-an-agent",
            Self::CallerGone { .. } => "caller-gone",
            Self::CallerNode { .. } => "caller-node",
            Self::TrustDomain(_) => "trust-domain",
            Self::Names(_) => "csr-names",
            Self::NoBearer { .. } => "no-pod",
        }
    }

    /// Whether newer knowledge of pods could change it.
    pub fn may_be_stale(&self) -> bool {
        match self {
            Self::CallerGone { .. } | Self::CallerNode { .. } | Self::NoBearer { .. } => true,
            Self::NotAnAgent(_) | Self::TrustDomain(_) | Self::Names(_) => false,
        }
    }
}

/// Decides. `agents` is the service account of the mesh's agents.
///
/// # Errors
/// Why not.
pub fn decide(
    agents: &ServiceAccount,
    trust_domain: &str,
    caller: &Caller,
    asked: &Asked,
    known: &Known,
    now: SystemTime,
) -> Result<Grant, Refusal> {
    if caller.account != *agents {
        return Err(Refusal::NotAnAgent(caller.account.clone()));
    }
    if asked.id.trust_domain() != trust_domain {
        return Err(Refusal::TrustDomain(asked.id.trust_domain().to_string()));
    }
    // None is what a caller says who leaves the naming to us.
    if !asked.names.is_empty() && asked.names != [asked.id.as_str()] {
        return Err(Refusal::Names(asked.names.clone()));
    }
    let node = callers_node(caller, known.caller.as_ref(), now)?;
    let is_bearer = |pod: &&PodFacts| {
        pod.namespace == asked.id.namespace()
            && pod.service_account == asked.id.service_account()
            && pod.node.as_deref() == Some(node)
            && life(pod, now).is_ok()
    };
    match known.bearers.iter().find(is_bearer) {
        Some(pod) => Ok(Grant { node: node.to_string(), pod: pod.name.clone(), pod_uid: pod.uid.clone() }),
        None => Err(Refusal::NoBearer { node: node.to_string(), elsewhere: known.bearers.len() }),
    }
}

/// Of which node a caller may tell: where it runs, if it is an agent.
///
/// # Errors
/// It is none, or it is gone.
pub fn agents_node<'a>(
    agents: &ServiceAccount,
    caller: &Caller,
    pod: Option<&'a PodFacts>,
    now: SystemTime,
) -> Result<&'a str, Refusal> {
    if caller.account != *agents {
        return Err(Refusal::NotAnAgent(caller.account.clone()));
    }
    callers_node(caller, pod, now)
}

/// Where the caller runs: by its pod, which must be the one that its token is bound to.
fn callers_node<'a>(caller: &Caller, pod: Option<&'a PodFacts>, now: SystemTime) -> Result<&'a str, Refusal> {
    let gone = |why| Refusal::CallerGone { why };
    let pod = pod.ok_or(gone("its pod is not known"))?;
    let is_its_pod = pod.namespace == caller.account.namespace && pod.name == caller.pod;
    if !is_its_pod || pod.uid != caller.pod_uid {
        return Err(gone("a pod of that name has another uid"));
    }
    if pod.service_account != caller.account.name {
        return Err(gone("its pod has another service account"));
    }
    life(pod, now).map_err(gone)?;
    let node = pod.node.as_deref().ok_or(gone("its pod is on no node"))?;
    match &caller.node {
        Some(token) if token != node => Err(Refusal::CallerNode { token: token.clone(), pod: node.to_string() }),
        Some(_) | None => Ok(node),
    }
}

/// Whether a pod lives; else why not.
fn life(pod: &PodFacts, now: SystemTime) -> Result<(), &'static str> {
    if pod.uid.is_empty() {
        return Err("its pod has no uid");
    }
    match (pod.phase, pod.gone_at) {
        (Phase::Over, _) => Err("its pod has ended"),
        (Phase::Pending | Phase::Running, Some(gone_at)) if gone_at <= now => Err("its pod was deleted"),
        (Phase::Pending | Phase::Running, _) => Ok(()),
    }
}

impl fmt::Display for ServiceAccount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotAnAgent(account) => write!(f, "service account {account} is not that of the mesh's agents"),
            Self::CallerGone { why } => write!(f, "the caller is no live pod: {why}"),
            Self::CallerNode { token, pod } => {
                write!(f, "the caller's token is bound to node {token:?}, its pod is on {pod:?}")
            }
            Self::TrustDomain(other) => write!(f, "trust domain {other:?} is not that of this mesh"),
            Self::Names(names) => write!(f, "the signing request names {names:?} instead of the identity asked for"),
            Self::NoBearer { node, elsewhere } => {
                write!(
                    f,
                    "no live pod of that service account is on node {node:?} ({elsewhere} known elsewhere or ended)"
                )
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, UNIX_EPOCH};

    use super::*;

    const ID: &str = "spiffe://cluster.local/ns/shop/sa/web";

    fn now() -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(1_000_000)
    }

    fn account(namespace: &str, name: &str) -> ServiceAccount {
        ServiceAccount { namespace: namespace.to_string(), name: name.to_string() }
    }

    fn pod(namespace: &str, name: &str, account: &str, node: &str) -> PodFacts {
        PodFacts {
            namespace: namespace.to_string(),
            name: name.to_string(),
            uid: format!("uid-{name}"),
            node: (!node.is_empty()).then(|| node.to_string()),
            service_account: account.to_string(),
            phase: Phase::Running,
            gone_at: None,
        }
    }

    /// A question that is answered by yes.
    struct Question {
        caller: Caller,
        asked: Asked,
        known: Known,
    }

    fn question() -> Question {
        Question {
            caller: Caller {
                account: account("nodemesh-system", "nodemesh-agent"),
                pod: "agent-1".to_string(),
                pod_uid: "uid-agent-1".to_string(),
                node: Some("node-1".to_string()),
            },
            asked: Asked { id: SpiffeId::parse(ID).unwrap(), names: vec![ID.to_string()] },
            known: Known {
                caller: Some(pod("nodemesh-system", "agent-1", "nodemesh-agent", "node-1")),
                bearers: vec![pod("shop", "web-2", "web", "node-2"), pod("shop", "web-1", "web", "node-1")],
            },
        }
    }

    fn answer(question: &Question) -> Result<Grant, Refusal> {
        let agents = account("nodemesh-system", "nodemesh-agent");
        decide(&agents, "cluster.local", &question.caller, &question.asked, &question.known, now())
    }

    /// What is changed of the question, by name, and the word of the refusal; none is a grant.
    type Row = (&'static str, fn(&mut Question), Option<&'static str>);

    const TABLE: &[Row] = &[
        ("as it should be", |_| {}, None),
        ("a token of an older API server names no node", |q| q.caller.node = None, None),
        ("the request carries no name", |q| q.asked.names.clear(), None),
        ("the pod is pending on its node", |q| bearer(q).phase = Phase::Pending, None),
        ("the pod is in its grace", |q| bearer(q).gone_at = Some(now() + Duration::from_secs(1)), None),
        ("the agent is in its grace", |q| agent(q).gone_at = Some(now() + Duration::from_secs(1)), None),
        ("another service account calls", |q| q.caller.account.name = "default".to_string(), Some("not-an-agent")),
        ("one of that name elsewhere", |q| q.caller.account.namespace = "shop".to_string(), Some("not-an-agent")),
        ("the agent's pod is not known", |q| q.known.caller = None, Some("caller-gone")),
        ("its name was given again", |q| agent(q).uid = "uid-later".to_string(), Some("caller-gone")),
        ("the token has no uid, nor has the pod", no_uid, Some("caller-gone")),
        ("the agent's pod has ended", |q| agent(q).phase = Phase::Over, Some("caller-gone")),
        ("the agent's pod was deleted", |q| agent(q).gone_at = Some(now()), Some("caller-gone")),
        ("its pod has another account", |q| agent(q).service_account = "web".to_string(), Some("caller-gone")),
        ("its pod is on no node", |q| agent(q).node = None, Some("caller-gone")),
        ("it is another pod", |q| agent(q).name = "agent-2".to_string(), Some("caller-gone")),
        ("a pod of another namespace", |q| agent(q).namespace = "shop".to_string(), Some("caller-gone")),
        ("its token is for another node", |q| q.caller.node = Some("node-2".to_string()), Some("caller-node")),
        ("an identity of another mesh", |q| ask(q, "spiffe://elsewhere/ns/shop/sa/web"), Some("trust-domain")),
        ("the request names another", |q| q.asked.names = vec![format!("{ID}2")], Some("csr-names")),
        ("the request names two", |q| q.asked.names.push(format!("{ID}2")), Some("csr-names")),
        ("the request names the same twice", |q| q.asked.names.push(ID.to_string()), Some("csr-names")),
        ("the request names a host", |q| q.asked.names = vec!["DNS:web".to_string()], Some("csr-names")),
        ("the pod is on another node", |q| bearer(q).node = Some("node-2".to_string()), Some("no-pod")),
        ("the pod is on no node yet", |q| bearer(q).node = None, Some("no-pod")),
        ("the pod has ended", |q| bearer(q).phase = Phase::Over, Some("no-pod")),
        ("the pod was deleted", |q| bearer(q).gone_at = Some(now()), Some("no-pod")),
        ("the pod has no uid", |q| bearer(q).uid.clear(), Some("no-pod")),
        ("the pod is of another account", |q| bearer(q).service_account = "api".to_string(), Some("no-pod")),
        ("the pod is of another namespace", |q| bearer(q).namespace = "test".to_string(), Some("no-pod")),
        ("no pod is known", |q| q.known.bearers.clear(), Some("no-pod")),
        ("the agent moved", |q| moved(q, "node-3"), Some("no-pod")),
    ];

    fn agent(question: &mut Question) -> &mut PodFacts {
        question.known.caller.as_mut().unwrap()
    }

    fn bearer(question: &mut Question) -> &mut PodFacts {
        question.known.bearers.last_mut().unwrap()
    }

    fn ask(question: &mut Question, id: &str) {
        question.asked = Asked { id: SpiffeId::parse(id).unwrap(), names: vec![id.to_string()] };
    }

    fn no_uid(question: &mut Question) {
        question.caller.pod_uid.clear();
        agent(question).uid.clear();
    }

    fn moved(question: &mut Question, node: &str) {
        question.caller.node = Some(node.to_string());
        agent(question).node = Some(node.to_string());
    }

    #[test]
    fn who_may_have_which_certificate() {
        for (what, change, refused) in TABLE {
            let mut question = question();
            change(&mut question);
            match (answer(&question), refused) {
                (Ok(grant), None) => {
                    let expected = Grant {
                        node: "node-1".to_string(),
                        pod: "web-1".to_string(),
                        pod_uid: "uid-web-1".to_string(),
                    };
                    assert_eq!(grant, expected, "{what}");
                }
                (Err(refusal), Some(word)) => assert_eq!(refusal.reason(), *word, "{what}: {refusal}"),
                (answer, _) => panic!("{what}: {answer:?}"),
            }
        }
    }

    #[test]
    fn only_what_pods_are_known_can_be_stale() {
        for (what, change, refused) in TABLE {
            let mut question = question();
            change(&mut question);
            let may_be_stale = answer(&question).err().is_some_and(|refusal| refusal.may_be_stale());
            let is_of_pods = matches!(refused, Some("caller-gone" | "caller-node" | "no-pod"));
            assert_eq!(may_be_stale, is_of_pods, "{what}");
        }
    }
}
