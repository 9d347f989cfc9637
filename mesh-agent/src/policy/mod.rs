//! Who may talk to whom: pure decisions, no clock, no I/O.
//!
//! Order: a policy that could not be read refuses, then PeerAuthentication (is plaintext acceptable at all), then any
//! CUSTOM that matches and was not answered, then any DENY that matches, then, if there is any ALLOW, one of them must match. Only this room can make a [`Permit`], and
//! nothing dials an application without one.
//!
//! The objects come in already parsed ([`PeerAuthentication`], [`AuthorizationPolicy`], [`Unreadable`]); [`PolicySet`]
//! compiles those that select a workload into its [`WorkloadPolicy`]. Nothing here knows Kubernetes types.
//!
//! There is one decision, about what is known so far ([`Asked`]):
//!
//! | asked about | a rule on requests' attributes means, if its sources and ports do | by |
//! |---|---|---|
//! | a connection of bytes | DENY, CUSTOM: everything. ALLOW: nothing. AUDIT: everything | [`authorize`] |
//! | a connection on which requests may be read | perhaps: where that would decide, each request is judged | [`admit`] |
//! | a request | what it says | [`authorize_request`] |

mod authorizer;
mod compile;
mod index;
mod object;
mod pattern;
mod request;
mod selector;
mod source;

#[cfg(test)]
mod request_tests;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use serde::Serialize;

pub use authorizer::{Authorizer, BodyInCheck, CheckProtocol, HttpCheck, Provider};
pub use compile::{PeerModes, PolicySet, Subject};
pub use object::{
    Action, AuthorizationPolicy, Mode, PeerAuthentication, PolicyMeta, RequestAuthentication, Rule, SameNode, Target,
    Unreadable, Weight,
};
pub use pattern::{PathPattern, Pattern, PatternError, Segment};
pub use request::{Attribute, Condition, Operation, Request, normal_host};
pub use selector::{Operator, Requirement, Selector};
pub use source::{IpBlock, Principal, PrincipalError, Source};

use crate::spiffe::SpiffeId;
use crate::tokens::{Issuer, KeySource, KeysUri};
use index::{ITSELF, Index, Number};

/// What is known about a connection when it asks to reach an application.
#[derive(Clone, Debug, PartialEq)]
pub struct Facts {
    /// The authenticated caller; None for plaintext.
    pub source: Option<SpiffeId>,
    /// It is a pod of the same node, known by the kernel and not by TLS.
    pub is_same_node: bool,
    /// The TCP peer's IP (of the tunnel's TCP connection for tunnelled traffic).
    pub source_ip: IpAddr,
    /// The pod IP that is dialled.
    pub destination_ip: IpAddr,
    /// The application's port.
    pub destination_port: u16,
}

/// Everything that decides about connections to one workload, compiled once per change. Two are equal when they decide
/// alike, so a change of the world that leaves it equal needs no new judgement of live connections.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct WorkloadPolicy {
    /// Whether plaintext is acceptable, by port.
    modes: PeerModes,
    /// AuthorizationPolicies that select the workload and cannot be read: they refuse everything on their ports.
    unreadable: Vec<Unread>,
    /// CUSTOM policies, oldest first.
    custom: Vec<Statement>,
    /// DENY policies, oldest first.
    deny: Vec<Statement>,
    /// ALLOW policies, oldest first.
    allow: Vec<Statement>,
    /// AUDIT policies, oldest first. They decide nothing.
    audit: Vec<Statement>,
    /// RequestAuthentications, oldest first.
    tokens: Vec<Believed>,
    /// Where some rule needs what a request alone has.
    #[serde(skip)]
    indexes: Option<Box<Indexes>>,
}

/// The rules of each action, by what requests they mean.
#[derive(Clone, Debug, PartialEq)]
struct Indexes {
    custom: Index,
    deny: Index,
    allow: Index,
    audit: Index,
}

/// One AuthorizationPolicy, as far as it concerns one workload.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
struct Statement {
    /// `namespace/name`
    id: Arc<str>,
    /// The ports of the workload that the policy's targets cover.
    ports: PortScope,
    #[serde(skip)]
    policy: Arc<AuthorizationPolicy>,
}

/// One RequestAuthentication, as far as it concerns one workload.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
struct Believed {
    id: Arc<str>,
    /// The ports of the workload that its targets cover.
    ports: PortScope,
    #[serde(skip)]
    object: Arc<RequestAuthentication>,
}

impl Believed {
    fn covers(&self, port: u16) -> bool {
        self.ports.covers(port) && (self.object.ports.is_empty() || self.object.ports.contains(&port))
    }
}

/// One unreadable AuthorizationPolicy, as far as it concerns one workload.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
struct Unread {
    id: Arc<str>,
    ports: PortScope,
}

/// Which ports of a workload a policy covers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
enum PortScope {
    /// The whole workload is the target.
    All,
    /// A Service is the target: its target ports on this workload.
    Only(BTreeSet<u16>),
}

impl PortScope {
    fn covers(&self, port: u16) -> bool {
        match self {
            PortScope::All => true,
            PortScope::Only(ports) => ports.contains(&port),
        }
    }
}

/// What a decision is about.
#[derive(Clone, Copy, Debug)]
enum Asked<'a> {
    /// A connection of bytes: what requests would say will never be known.
    Bytes,
    /// A connection whose requests will be read.
    Coming,
    /// One of them.
    Request(&'a Request<'a>),
}

/// Proof that policy allowed a connection or a request. Cannot be made outside this room.
#[derive(Clone, Debug, PartialEq)]
pub struct Permit {
    rule: Option<Arc<str>>,
    number: Option<usize>,
}

impl Permit {
    /// The policy that allowed it, as `namespace/name`; None when no ALLOW policy selects the workload.
    pub fn rule(&self) -> Option<&Arc<str>> {
        self.rule.as_ref()
    }

    /// The number of the rule in there, from 0.
    pub fn number(&self) -> Option<usize> {
        self.number
    }
}

/// What may become of a connection that was not refused.
#[derive(Clone, Debug, PartialEq)]
pub enum Admission {
    /// It may carry whatever it carries.
    Bytes(Permit),
    /// It may be made, and each of its requests is judged by itself. What is no request must not pass.
    Requests(Permit),
}

impl Admission {
    /// The proof that the connection may be made.
    pub fn into_permit(self) -> Permit {
        match self {
            Admission::Bytes(permit) | Admission::Requests(permit) => permit,
        }
    }
}

/// A refusal: an answer, not an error.
#[derive(Clone, Debug, PartialEq)]
pub struct Denial {
    /// Why, for metrics and logs.
    pub reason: DenyReason,
    /// The policy that decided, as `namespace/name`, where one did. For [`DenyReason::NoAllowRule`] the oldest of the
    /// ALLOW policies that cover the port.
    pub rule: Option<Arc<str>>,
    /// The number of the rule in there, from 0, where one decided.
    pub number: Option<usize>,
}

impl Denial {
    /// One that no policy decided by a rule.
    pub fn of(reason: DenyReason, rule: Option<Arc<str>>) -> Self {
        Self { reason, rule, number: None }
    }
}

/// Why a connection was refused. The names are metric labels: stable.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DenyReason {
    /// PeerAuthentication STRICT, and the caller came in plaintext.
    StrictPlaintext,
    /// PeerAuthentication asks for TLS on one node too, and the caller came without.
    SameNodePlaintext,
    /// A DENY rule matched.
    DenyRule,
    /// There are ALLOW policies and none matched.
    NoAllowRule,
    /// The policy could not be read, and there is no earlier version of it.
    UnreadablePolicy,
    /// Tokens must be looked at, or somebody asked, and the connection's requests cannot be read.
    RequestsUnread,
    /// Somebody must be asked about the request who was not.
    AuthorizerUnasked,
    /// The pod that is dialled is not, or no longer, known to this node.
    UnknownWorkload,
}

impl DenyReason {
    /// The stable label for metrics and logs.
    pub fn label(self) -> &'static str {
        match self {
            DenyReason::StrictPlaintext => "strict-plaintext",
            DenyReason::SameNodePlaintext => "same-node-plaintext",
            DenyReason::DenyRule => "deny-rule",
            DenyReason::NoAllowRule => "no-allow-rule",
            DenyReason::UnreadablePolicy => "unreadable-policy",
            DenyReason::RequestsUnread => "requests-unread",
            DenyReason::AuthorizerUnasked => "authorizer-unasked",
            DenyReason::UnknownWorkload => "unknown-workload",
        }
    }
}

/// Decides about a connection of bytes.
pub fn authorize(policy: &WorkloadPolicy, facts: &Facts) -> Result<Permit, Denial> {
    decide(policy, facts, Asked::Bytes).map(|(permit, _)| permit)
}

/// Decides about a connection to a port whose requests can be read, if any come: what may be said without them.
pub fn admit(policy: &WorkloadPolicy, facts: &Facts) -> Result<Admission, Denial> {
    decide(policy, facts, Asked::Coming).map(|(permit, is_sure)| match is_sure {
        true => Admission::Bytes(permit),
        false => Admission::Requests(permit),
    })
}

/// Decides about one request on a connection with these facts. `answered` are the CUSTOM policies, as `namespace/name`,
/// whose authorizer lets it pass.
pub fn authorize_request(
    policy: &WorkloadPolicy,
    facts: &Facts,
    request: &Request<'_>,
    answered: &[Arc<str>],
) -> Result<Permit, Denial> {
    let unasked = referrals(policy, facts, request).into_iter().find(|referral| !answered.contains(referral.policy));
    if let Some(Referral { policy, rule, .. }) = unasked {
        return Err(Denial { reason: DenyReason::AuthorizerUnasked, rule: Some(policy.clone()), number: rule });
    }
    decide(policy, facts, Asked::Request(request)).map(|(permit, _)| permit)
}

/// A CUSTOM policy that means a request.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Referral<'a> {
    /// As `namespace/name`.
    pub policy: &'a Arc<str>,
    /// The number of its rule, from 0.
    pub rule: Option<usize>,
    /// Who is to be asked; None: nobody could say.
    pub provider: Option<&'a Provider>,
}

/// Who is to be asked about a request before anything else is decided, the oldest policy's first. Nobody, where it is
/// refused whatever they say.
pub fn referrals<'a>(policy: &'a WorkloadPolicy, facts: &Facts, request: &Request<'_>) -> Vec<Referral<'a>> {
    if policy.custom.is_empty() || refused_outright(policy, facts).is_some() {
        return Vec::new();
    }
    let matching = policy.matching_all(Action::Custom, facts, Asked::Request(request));
    let referral = |(at, rule): (usize, usize)| {
        let statement = policy.custom.get(at)?;
        let rule = (rule != ITSELF).then_some(rule);
        Some(Referral { policy: &statement.id, rule, provider: statement.policy.provider.as_ref() })
    };
    matching.into_iter().filter_map(referral).collect()
}

/// A refusal that nothing else can change.
fn refused_outright(policy: &WorkloadPolicy, facts: &Facts) -> Option<Denial> {
    let port = facts.destination_port;
    if let Some(unread) = policy.unreadable.iter().find(|unread| unread.ports.covers(port)) {
        return Some(Denial::of(DenyReason::UnreadablePolicy, Some(unread.id.clone())));
    }
    if let Some(rule) = policy.modes.encrypted_by().filter(|_| facts.is_same_node) {
        return Some(Denial::of(DenyReason::SameNodePlaintext, Some(rule.clone())));
    }
    let (mode, rule) = policy.modes.at(port);
    let is_refused = facts.source.is_none() && mode == Mode::Strict;
    is_refused.then(|| Denial::of(DenyReason::StrictPlaintext, rule.cloned()))
}

/// The one decision; and whether it stands whatever is learnt yet.
fn decide(policy: &WorkloadPolicy, facts: &Facts, asked: Asked<'_>) -> Result<(Permit, bool), Denial> {
    if let Some(denial) = refused_outright(policy, facts) {
        return Err(denial);
    }
    let port = facts.destination_port;
    // About a request they were asked before.
    let referred = match asked {
        Asked::Bytes | Asked::Coming => policy.search(Action::Custom, facts, asked),
        Asked::Request(_) => Searched { found: None, is_open: false },
    };
    if let (Asked::Bytes, Some((statement, number))) = (asked, referred.found) {
        return Err(Denial { reason: DenyReason::RequestsUnread, rule: Some(statement.id.clone()), number });
    }
    let denied = policy.search(Action::Deny, facts, asked);
    if let Some((statement, number)) = denied.found {
        return Err(Denial { reason: DenyReason::DenyRule, rule: Some(statement.id.clone()), number });
    }
    let tokens = policy.tokens.iter().find(|believed| believed.covers(port));
    if let (Asked::Bytes, Some(believed)) = (asked, tokens) {
        return Err(Denial::of(DenyReason::RequestsUnread, Some(believed.id.clone())));
    }
    let is_referred = referred.is_open || referred.found.is_some();
    let is_sure = !denied.is_open && !is_referred && tokens.is_none();
    let Some(oldest) = policy.allow.iter().find(|statement| statement.ports.covers(port)) else {
        return Ok((Permit { rule: None, number: None }, is_sure));
    };
    let allowed = policy.search(Action::Allow, facts, asked);
    match allowed.found {
        Some((statement, number)) => Ok((Permit { rule: Some(statement.id.clone()), number }, is_sure)),
        None if allowed.is_open => Ok((Permit { rule: None, number: None }, false)),
        None => Err(Denial::of(DenyReason::NoAllowRule, Some(oldest.id.clone()))),
    }
}

/// The AUDIT policies that match a connection of bytes, as `namespace/name`. They change no decision; record them.
pub fn audited(policy: &WorkloadPolicy, facts: &Facts) -> Vec<Arc<str>> {
    policy.audited(facts, Asked::Bytes)
}

/// The AUDIT policies that match a request.
pub fn audited_request(policy: &WorkloadPolicy, facts: &Facts, request: &Request<'_>) -> Vec<Arc<str>> {
    policy.audited(facts, Asked::Request(request))
}

/// What a search among the rules of an action comes to.
struct Searched<'a> {
    /// The oldest policy that matches, and the number of its rule.
    found: Option<(&'a Statement, Option<usize>)>,
    /// Whether a request may yet match another.
    is_open: bool,
}

/// Whether a rule matches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Answer {
    Yes,
    No,
    /// It depends on requests that have not come.
    Perhaps,
}

impl WorkloadPolicy {
    /// The PeerAuthentication mode of a port.
    pub fn mode(&self, port: u16) -> Mode {
        self.modes.at(port).0
    }

    /// Who issues tokens that are believed at a port. Those of requests to it must be looked at, if there is anybody.
    pub fn issuers(&self, port: u16) -> Vec<&Issuer> {
        self.tokens
            .iter()
            .filter(|believed| believed.covers(port))
            .flat_map(|believed| &believed.object.issuers)
            .collect()
    }

    /// Where keys are to be had for what is believed at any port.
    pub fn keys_wanted(&self) -> impl Iterator<Item = &KeysUri> {
        let issuers = self.tokens.iter().flat_map(|believed| &believed.object.issuers);
        issuers.filter_map(|issuer| match &issuer.keys {
            KeySource::Here(_) => None,
            KeySource::At(uri) => Some(uri),
        })
    }

    /// Completes what was put together.
    fn indexed(self) -> Self {
        let mut all = self.custom.iter().chain(&self.deny).chain(&self.allow).chain(&self.audit);
        let needs = all.any(|statement| statement.policy.rules.iter().any(Rule::needs_requests));
        let indexes = needs.then(|| {
            let Self { custom, deny, allow, audit, .. } = &self;
            Box::new(Indexes {
                custom: Index::new(custom),
                deny: Index::new(deny),
                allow: Index::new(allow),
                audit: Index::new(audit),
            })
        });
        Self { indexes, ..self }
    }

    fn of(&self, action: Action) -> (&[Statement], Option<&Index>) {
        let indexes = self.indexes.as_deref();
        match action {
            Action::Custom => (&self.custom, indexes.map(|indexes| &indexes.custom)),
            Action::Deny => (&self.deny, indexes.map(|indexes| &indexes.deny)),
            Action::Allow => (&self.allow, indexes.map(|indexes| &indexes.allow)),
            Action::Audit => (&self.audit, indexes.map(|indexes| &indexes.audit)),
        }
    }

    fn search(&self, action: Action, facts: &Facts, asked: Asked<'_>) -> Searched<'_> {
        let (statements, index) = self.of(action);
        let mut best: Option<Number> = None;
        let mut is_open = false;
        match (asked, index) {
            (Asked::Request(request), Some(index)) => index.visit(facts, request, |numbers| {
                let better = numbers.iter().take_while(|number| best.is_none_or(|best| **number < best));
                best = better.copied().find(|number| matching(statements, *number, facts, asked)).or(best);
            }),
            _ => {
                for (at, statement) in statements.iter().enumerate() {
                    match statement.answer(facts, asked) {
                        (Answer::Yes, number) => {
                            best = Some((at, number));
                            break;
                        }
                        (Answer::Perhaps, _) => is_open = true,
                        (Answer::No, _) => {}
                    }
                }
            }
        }
        let found = best.and_then(|(at, number)| Some((statements.get(at)?, (number != ITSELF).then_some(number))));
        Searched { found, is_open }
    }

    fn audited(&self, facts: &Facts, asked: Asked<'_>) -> Vec<Arc<str>> {
        let found = self.matching_all(Action::Audit, facts, asked);
        found.into_keys().filter_map(|at| self.audit.get(at)).map(|statement| statement.id.clone()).collect()
    }

    /// Every statement of an action that matches, with the number of its first rule that does.
    fn matching_all(&self, action: Action, facts: &Facts, asked: Asked<'_>) -> BTreeMap<usize, usize> {
        let (statements, index) = self.of(action);
        let mut found = BTreeMap::new();
        match (asked, index) {
            (Asked::Request(request), Some(index)) => index.visit(facts, request, |numbers| {
                for (at, number) in numbers.iter().filter(|number| matching(statements, **number, facts, asked)) {
                    let first = found.entry(*at).or_insert(*number);
                    *first = (*first).min(*number);
                }
            }),
            _ => {
                let all = statements.iter().enumerate().map(|(at, one)| (at, one.answer(facts, asked)));
                found.extend(all.filter(|(_, (answer, _))| *answer == Answer::Yes).map(|(at, (_, rule))| (at, rule)));
            }
        }
        found
    }
}

fn matching(statements: &[Statement], (at, number): Number, facts: &Facts, asked: Asked<'_>) -> bool {
    let Some(statement) = statements.get(at) else { return false };
    statement.ports.covers(facts.destination_port)
        && match statement.policy.rules.get(number) {
            Some(rule) => rule.answer(statement.policy.action, facts, asked) == Answer::Yes,
            None => number == ITSELF && statement.policy.action.empty_list_matches(),
        }
}

impl Statement {
    /// The first of its rules that matches, by its number; or whether one may yet.
    fn answer(&self, facts: &Facts, asked: Asked<'_>) -> (Answer, usize) {
        let AuthorizationPolicy { action, rules, .. } = &*self.policy;
        if !self.ports.covers(facts.destination_port) {
            return (Answer::No, ITSELF);
        }
        if rules.is_empty() {
            return (if action.empty_list_matches() { Answer::Yes } else { Answer::No }, ITSELF);
        }
        let mut answer = Answer::No;
        for (number, rule) in rules.iter().enumerate() {
            match rule.answer(*action, facts, asked) {
                Answer::Yes => return (Answer::Yes, number),
                Answer::Perhaps => answer = Answer::Perhaps,
                Answer::No => {}
            }
        }
        (answer, ITSELF)
    }
}

impl Rule {
    fn answer(&self, action: Action, facts: &Facts, asked: Asked<'_>) -> Answer {
        let port_matches = self.ports.is_empty() || self.ports.contains(&facts.destination_port);
        let source_matches = self.sources.iter().any(|source| source.matches(facts))
            || self.sources.is_empty() && action.empty_list_matches();
        if !port_matches || !source_matches || self.not_sources.iter().any(|source| source.matches(facts)) {
            return Answer::No;
        }
        match asked {
            _ if !self.needs_requests() => Answer::Yes,
            // Never the weaker reading of what cannot be known.
            Asked::Bytes if action == Action::Allow => Answer::No,
            Asked::Bytes => Answer::Yes,
            Asked::Coming => Answer::Perhaps,
            Asked::Request(request) if self.means(action, request) => Answer::Yes,
            Asked::Request(_) => Answer::No,
        }
    }

    fn means(&self, action: Action, request: &Request<'_>) -> bool {
        let operations = &self.operations;
        (operations.is_empty() || operations.iter().any(|operation| operation.matches(action, request)))
            && self.conditions.iter().all(|condition| condition.matches(action, request))
    }
}
