//! PeerAuthentication and AuthorizationPolicy, and what to take from those that cannot be read.

mod authorizer;
mod request;
mod token;

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde_json::Value;

use super::{FieldPath, Item, MESH_NAMESPACE, Problem};
use crate::discovery::crd;
use crate::discovery::object::{self, Key, Kind};
use crate::policy::{
    Action, AuthorizationPolicy, IpBlock, Mode, Operator, PeerAuthentication, PolicyMeta, Principal, Provider,
    Requirement, Rule, SameNode, Selector, Source, Target, Unreadable, Weight,
};
use crate::spiffe::SpiffeId;

pub use authorizer::{CHECK_TIMEOUT, MAX_CHECK_BODY, MAX_CHECK_TIMEOUT, external_authorizer};
pub use token::request_authentication;

/// Checks what the type cannot say, and works the namespace in.
pub fn peer_authentication(peer: &crd::PeerAuthentication, key: &Key) -> Result<Item, Problem> {
    let crd::PeerAuthenticationSpec { target_refs, mode, port_overrides, same_node } = &peer.spec;
    let targets = targets(target_refs, key)?;
    let mut ports = BTreeMap::new();
    for (index, port) in port_overrides.iter().enumerate() {
        let path = FieldPath::of("spec.portOverrides").index(index).key("port");
        if !targets.iter().all(|target| matches!(target, Target::Pods { .. })) {
            return Err(Problem::new(path, "port overrides need targets of kind Pod with a selector, and no others"));
        }
        if ports.insert(checked_port(port.port, &path)?, peer_mode(port.mode)).is_some() {
            return Err(Problem::new(path, "this port has an override already"));
        }
    }
    if mode.is_none() && ports.is_empty() && same_node.is_none() {
        let missing = "missing: none of mode, portOverrides and sameNode is set";
        return Err(Problem::new(FieldPath::of("spec.mode"), missing));
    }
    let (meta, mode) = (meta(key, &peer.metadata), mode.map(peer_mode));
    let same_node = same_node.map(|wanted| match wanted {
        crd::SameNode::KernelIdentity => SameNode::KernelIdentity,
        crd::SameNode::Encrypt => SameNode::Encrypt,
    });
    Ok(Item::PeerAuthentication(PeerAuthentication { meta, targets, mode, ports, same_node }.into()))
}

fn peer_mode(mode: crd::PeerMode) -> Mode {
    match mode {
        crd::PeerMode::Strict => Mode::Strict,
        crd::PeerMode::Permissive => Mode::Permissive,
        crd::PeerMode::Disable => Mode::Disable,
    }
}

/// Checks what the type cannot say, and works namespace and trust domain in.
pub fn authorization_policy(policy: &crd::AuthorizationPolicy, key: &Key, trust_domain: &str) -> Result<Item, Problem> {
    let crd::AuthorizationPolicySpec { target_refs, action, provider, rules } = &policy.spec;
    let rules = rules.iter().enumerate().map(|(index, rule)| {
        let path = FieldPath::of("spec.rules").index(index);
        read_rule(rule, &path, key, trust_domain)
    });
    let policy = AuthorizationPolicy {
        meta: meta(key, &policy.metadata),
        targets: targets(target_refs, key)?,
        action: match action {
            crd::PolicyAction::Allow => Action::Allow,
            crd::PolicyAction::Deny => Action::Deny,
            crd::PolicyAction::Audit => Action::Audit,
            crd::PolicyAction::Custom => Action::Custom,
        },
        provider: read_provider(*action, provider.as_ref(), key)?,
        rules: rules.collect::<Result<_, _>>()?,
    };
    Ok(Item::AuthorizationPolicy(policy.into()))
}

/// Who is asked goes with being asked.
fn read_provider(
    action: crd::PolicyAction,
    provider: Option<&crd::PolicyProvider>,
    key: &Key,
) -> Result<Option<Provider>, Problem> {
    let path = FieldPath::of("spec.provider");
    match (action, provider) {
        (crd::PolicyAction::Custom, Some(provider)) => authorizer::provider(provider, key, &path).map(Some),
        (crd::PolicyAction::Custom, None) => Err(Problem::new(path, "missing: action CUSTOM needs it")),
        (_, Some(_)) => Err(Problem::new(path, "goes with action CUSTOM only")),
        (_, None) => Ok(None),
    }
}

fn meta(key: &Key, metadata: &ObjectMeta) -> PolicyMeta {
    let created = metadata.creation_timestamp.as_ref().map(|time| time.0.as_second());
    PolicyMeta { id: key.object().into(), created }
}

/// An empty list of sources is taken as it stands (nobody in ALLOW, everybody in DENY): the API server refuses it at
/// the border, and so does the reader of files.
fn read_rule(rule: &crd::PolicyRule, path: &FieldPath, key: &Key, trust_domain: &str) -> Result<Rule, Problem> {
    let crd::PolicyRule { sources, not_sources, ports, .. } = rule;
    let read_sources = |sources: &[crd::PolicySource], path: FieldPath| {
        let sources = sources.iter().enumerate();
        let sources = sources.map(|(index, source)| read_source(source, &path.index(index), key, trust_domain));
        sources.collect::<Result<Vec<_>, _>>()
    };
    let not_sources = not_empty(not_sources.as_deref(), &path.key("notSources"))?.unwrap_or_default();
    let ports = ports.iter().enumerate();
    let ports = ports.map(|(index, port)| checked_port(*port, &path.key("ports").index(index)));
    Ok(Rule {
        sources: read_sources(sources, path.key("sources"))?,
        not_sources: read_sources(not_sources, path.key("notSources"))?,
        ports: ports.collect::<Result<_, _>>()?,
        operations: request::operations(rule, path)?,
        conditions: request::conditions(rule, path)?,
    })
}

/// A list that is there and has nothing in it restricts nothing, which nobody can have meant.
fn not_empty<'a, T>(list: Option<&'a [T]>, path: &FieldPath) -> Result<Option<&'a [T]>, Problem> {
    match list {
        Some([]) => Err(Problem::new(path.clone(), "empty: leave it out, or name what is meant")),
        list => Ok(list),
    }
}

fn checked_port(port: u16, path: &FieldPath) -> Result<u16, Problem> {
    if port == 0 { Err(Problem::new(path.clone(), "0 is not a port: 1 to 65535")) } else { Ok(port) }
}

fn read_source(source: &crd::PolicySource, path: &FieldPath, key: &Key, trust_domain: &str) -> Result<Source, Problem> {
    let crd::PolicySource { source_type, service_account, spiffe, namespace, ip_block } = source;
    let given = [
        ("serviceAccount", service_account.is_some()),
        ("spiffe", spiffe.is_some()),
        ("namespace", namespace.is_some()),
        ("ipBlock", ip_block.is_some()),
    ];
    let own = match source_type {
        crd::SourceType::ServiceAccount => "serviceAccount",
        crd::SourceType::Spiffe => "spiffe",
        crd::SourceType::Namespace => "namespace",
        crd::SourceType::IpBlock => "ipBlock",
        crd::SourceType::Any => "",
    };
    if let Some((field, _)) = given.into_iter().find(|(field, set)| *set && *field != own) {
        return Err(Problem::new(path.key(field), format!("does not go with type {source_type:?}")));
    }
    let missing = || Problem::new(path.key(own), format!("missing: type {source_type:?} needs it"));
    match source_type {
        crd::SourceType::ServiceAccount => {
            let account = service_account.as_ref().ok_or_else(missing)?;
            service_account_source(account, &path.key(own), key, trust_domain)
        }
        crd::SourceType::Spiffe => {
            let principal = Principal::parse(spiffe.as_ref().ok_or_else(missing)?);
            principal.map(Source::Principal).map_err(|error| Problem::new(path.key(own), error.to_string()))
        }
        crd::SourceType::Namespace => {
            let namespace = plain_name(namespace.as_ref().ok_or_else(missing)?, &path.key(own))?;
            Ok(Source::Namespace { trust_domain: trust_domain.into(), namespace: namespace.into() })
        }
        crd::SourceType::IpBlock => {
            ip_block_source(ip_block.as_ref().ok_or_else(missing)?, &path.key(own)).map(Source::IpBlock)
        }
        crd::SourceType::Any => Ok(Source::Any),
    }
}

fn service_account_source(
    account: &crd::ServiceAccountSource,
    path: &FieldPath,
    key: &Key,
    trust_domain: &str,
) -> Result<Source, Problem> {
    let crd::ServiceAccountSource { name, namespace } = account;
    let name = plain_name(name, &path.key("name"))?;
    let namespace = match namespace {
        Some(namespace) => plain_name(namespace, &path.key("namespace"))?,
        None => &key.namespace,
    };
    let id = SpiffeId::new(trust_domain, namespace, name);
    let id = id.map_err(|error| Problem::new(path.clone(), error.to_string()))?;
    Ok(Source::Principal(Principal::Exact(id)))
}

/// A name of Kubernetes. A wildcard would be a name that nobody has: a DENY on it would deny nobody.
pub(super) fn plain_name<'a>(name: &'a str, path: &FieldPath) -> Result<&'a str, Problem> {
    let legal = |letter: char| letter.is_ascii_lowercase() || letter.is_ascii_digit() || "-.".contains(letter);
    if name.is_empty() || !name.chars().all(legal) {
        let reason = format!("{name:?} is not a Kubernetes name; wildcards are for type SPIFFE");
        return Err(Problem::new(path.clone(), reason));
    }
    Ok(name)
}

fn ip_block_source(block: &crd::IpBlockSource, path: &FieldPath) -> Result<IpBlock, Problem> {
    let crd::IpBlockSource { cidr, except } = block;
    let cidr = parse_cidr(cidr, &path.key("cidr"))?;
    let except = except.iter().enumerate().map(|(index, hole)| {
        let path = path.key("except").index(index);
        let hole = parse_cidr(hole, &path)?;
        if cidr.contains(&hole) { Ok(hole) } else { Err(Problem::new(path, format!("{hole} is not within {cidr}"))) }
    });
    Ok(IpBlock { cidr, except: except.collect::<Result<_, _>>()? })
}

/// A range, or one address. IPv4-mapped ranges become IPv4, because addresses are canonical everywhere.
fn parse_cidr(text: &str, path: &FieldPath) -> Result<IpNet, Problem> {
    let wrong = || Problem::new(path.clone(), format!("{text:?} is not a range such as 10.0.0.0/8 or fd00::/8"));
    let range: IpNet = match text.parse::<IpAddr>() {
        Ok(address) => address.into(),
        Err(_) => text.parse().map_err(|_| wrong())?,
    };
    match (range.addr().to_canonical(), range) {
        (IpAddr::V4(mapped), IpNet::V6(_)) => {
            let length = range.prefix_len().checked_sub(96).ok_or_else(wrong)?;
            IpNet::new(IpAddr::V4(mapped), length).map(|range| range.trunc()).map_err(|_| wrong())
        }
        _ => Ok(range.trunc()),
    }
}

fn targets(refs: &[crd::TargetRef], key: &Key) -> Result<Vec<Target>, Problem> {
    let path = FieldPath::of("spec.targetRefs");
    if refs.is_empty() {
        return Err(Problem::new(path, "empty: name what the policy applies to; kind Namespace for all pods here"));
    }
    refs.iter().enumerate().map(|(index, target)| read_target(target, &path.index(index), key)).collect()
}

fn read_target(target: &crd::TargetRef, path: &FieldPath, key: &Key) -> Result<Target, Problem> {
    let crd::TargetRef { group, kind, name, selector } = target;
    if !group.is_empty() {
        return Err(Problem::new(path.key("group"), format!("{group:?}: only kinds of the core group can be targets")));
    }
    match (kind, name, selector) {
        (crd::TargetKind::Pod, Some(_), _) => {
            Err(Problem::new(path.key("name"), "pods are selected by labels, not by name"))
        }
        (crd::TargetKind::Pod, None, None) => {
            Err(Problem::new(path.key("selector"), "missing: kind Pod needs it; {} selects all pods"))
        }
        (crd::TargetKind::Pod, None, Some(selector)) => Ok(pods(read_selector(selector, &path.key("selector"))?, key)),
        (_, _, Some(_)) => Err(Problem::new(path.key("selector"), "goes with kind Pod only")),
        (crd::TargetKind::Service, _, None) if key.kind == Kind::PeerAuthentication => {
            Err(Problem::new(path.key("kind"), "a PeerAuthentication applies to kind Pod or Namespace"))
        }
        (crd::TargetKind::Service, Some(name), None) => {
            let name = plain_name(name, &path.key("name"))?;
            Ok(Target::Service { namespace: key.namespace.as_str().into(), name: name.into() })
        }
        (crd::TargetKind::Service, None, None) => Err(Problem::new(path.key("name"), "missing: kind Service needs it")),
        (crd::TargetKind::Namespace, Some(name), None) if *name != key.namespace => {
            Err(Problem::new(path.key("name"), "a policy applies to its own namespace; leave the name out"))
        }
        (crd::TargetKind::Namespace, _, None) => Ok(whole_namespace(&key.namespace)),
    }
}

fn pods(selector: Selector, key: &Key) -> Target {
    if selector.is_empty() {
        return whole_namespace(&key.namespace);
    }
    let namespace = (key.namespace != MESH_NAMESPACE).then(|| key.namespace.as_str().into());
    Target::Pods { namespace, selector }
}

fn whole_namespace(namespace: &str) -> Target {
    if namespace == MESH_NAMESPACE { Target::Mesh } else { Target::Namespace(namespace.into()) }
}

fn read_selector(selector: &crd::PodSelector, path: &FieldPath) -> Result<Selector, Problem> {
    let crd::PodSelector { match_labels, match_expressions } = selector;
    let equal = |(key, value): (&String, &String)| Requirement {
        key: key.clone(),
        operator: Operator::In(vec![value.clone()]),
    };
    let mut requirements: Vec<Requirement> = match_labels.iter().map(equal).collect();
    for (index, expression) in match_expressions.iter().enumerate() {
        let path = path.key("matchExpressions").index(index).key("values");
        let crd::LabelExpression { key, operator, values } = expression;
        let operator = match (operator, values.is_empty()) {
            (crd::LabelOperator::In, false) => Operator::In(values.clone()),
            (crd::LabelOperator::NotIn, false) => Operator::NotIn(values.clone()),
            (crd::LabelOperator::Exists, true) => Operator::Exists,
            (crd::LabelOperator::DoesNotExist, true) => Operator::DoesNotExist,
            (crd::LabelOperator::In | crd::LabelOperator::NotIn, true) => {
                return Err(Problem::new(path, "missing: In and NotIn need at least one value"));
            }
            (crd::LabelOperator::Exists | crd::LabelOperator::DoesNotExist, false) => {
                return Err(Problem::new(path, "Exists and DoesNotExist take no values"));
            }
        };
        requirements.push(Requirement { key: key.clone(), operator });
    }
    Ok(Selector { requirements })
}

/// What stands for a policy that cannot be read: the strictest that it could have said, for its targets if these can be
/// read, else for its namespace, else (`key` could not be read either) for the mesh. None for an AUDIT policy, which
/// cannot refuse anything.
pub fn unreadable(kind: Kind, key: Option<&Key>, value: &Value) -> Option<Unreadable> {
    let weight = match kind {
        Kind::PeerAuthentication => Weight::Strict,
        Kind::AuthorizationPolicy | Kind::RequestAuthentication => Weight::DenyAll,
        Kind::Namespace
        | Kind::Node
        | Kind::Pod
        | Kind::Service
        | Kind::EndpointSlice
        | Kind::HttpRoute
        | Kind::GrpcRoute
        | Kind::TcpRoute
        | Kind::TlsRoute
        | Kind::ReferenceGrant
        | Kind::TrafficPolicy
        // Who names it refuses while it is not there.
        | Kind::ExternalAuthorizer => return None,
    };
    if kind == Kind::AuthorizationPolicy && object::text(value, &["spec", "action"]) == Some("AUDIT") {
        return None;
    }
    let Some(key) = key else {
        let meta = PolicyMeta { id: format!("({kind} without a name)").into(), created: None };
        return Some(Unreadable { meta, targets: vec![Target::Mesh], weight });
    };
    let refs = value.get("spec").and_then(|spec| spec.get("targetRefs")).cloned().unwrap_or_default();
    let refs: Option<Vec<crd::TargetRef>> = serde_json::from_value(refs).ok();
    let targets = refs.and_then(|refs| targets(&refs, key).ok());
    Some(Unreadable {
        meta: PolicyMeta { id: key.object().into(), created: None },
        targets: targets.unwrap_or_else(|| vec![whole_namespace(&key.namespace)]),
        weight,
    })
}
