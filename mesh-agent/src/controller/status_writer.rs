//! Follows routes and policies, and writes what [`status`] says of them while this replica leads. Refusals become events.
//!
//! A write names the version of the object that it is about, so a change in between makes it fail, and the next look is
//! at the changed object. What is as it should be is not written.

use std::collections::HashMap;
use std::sync::OnceLock;
use std::time::{Duration, SystemTime};

use futures_util::TryStreamExt as _;
use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::jiff::Timestamp;
use kube::api::{ApiResource, DynamicObject, GroupVersionKind, Patch, PatchParams};
use kube::runtime::events::{Event as Told, EventType, Recorder, Reporter};
use kube::runtime::watcher::{self, Event};
use kube::runtime::{WatchStreamExt as _, watcher as watch};
use kube::{Api, Client, ResourceExt as _};
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tracing::{debug, warn};

use super::lease::{Leadership, WRITE_TIMEOUT};
use super::status::{self, CONTROLLER, Lacks, Lost, Object};
use crate::discovery::{self, Effect, Finding, Health, Judgement, Report};
use crate::named::named;
use crate::state::{Kind, MeshState, StateReader};

/// Between two looks at what is to be said: several changes come in one.
pub(super) const LOOK: Duration = Duration::from_millis(500);
/// Between two lists of a kind that the API server does not serve.
pub(super) const LOOK_AGAIN: Duration = Duration::from_secs(30);
/// Objects of one answer of the API server while a watch begins.
pub(super) const PAGE: u32 = 500;
/// Changes that wait to be taken; then the watches wait.
pub(super) const WAITING: usize = 1024;
/// After a write that failed, until the next look at that object.
pub(super) const PAUSE: Duration = Duration::from_secs(5);

/// What is spoken of.
const KINDS: [(Kind, &str, &str, &str); 9] = [
    (Kind::HttpRoute, GATEWAY, "v1", "httproutes"),
    (Kind::GrpcRoute, GATEWAY, "v1", "grpcroutes"),
    (Kind::TcpRoute, GATEWAY, "v1", "tcproutes"),
    (Kind::TlsRoute, GATEWAY, "v1", "tlsroutes"),
    (Kind::PeerAuthentication, OURS, "v1alpha1", "peerauthentications"),
    (Kind::AuthorizationPolicy, OURS, "v1alpha1", "authorizationpolicies"),
    (Kind::RequestAuthentication, OURS, "v1alpha1", "requestauthentications"),
    (Kind::TrafficPolicy, OURS, "v1alpha1", "trafficpolicies"),
    (Kind::ExternalAuthorizer, OURS, "v1alpha1", "externalauthorizers"),
];
const GATEWAY: &str = "gateway.networking.k8s.io";
const OURS: &str = "nodemesh.dev";

type Key = (Kind, String, String);

/// Writes status.
pub struct StatusWriter {
    client: Client,
    trust_domain: String,
    leadership: Leadership,
    state: StateReader,
    health: Health,
    recorder: Recorder,
}

/// What a watch tells: of which kind, and what.
type Heard = (Kind, Event<DynamicObject>);

/// An object, and when it is looked at again after a failed write.
struct Followed {
    object: DynamicObject,
    /// What is to be said of it by itself, which is as long as it is not another; None for what the mesh does not read.
    judged: OnceLock<Option<Judgement>>,
    /// The refusal that an event told of last.
    told: Option<String>,
    rests_until: Option<tokio::time::Instant>,
    listed: bool,
}

impl StatusWriter {
    /// Has seen nothing yet. `state` and `health` are those of the whole cluster.
    pub fn new(
        client: Client,
        replica: &str,
        trust_domain: &str,
        leadership: Leadership,
        state: StateReader,
        health: Health,
    ) -> Self {
        let reporter = Reporter { controller: CONTROLLER.to_string(), instance: Some(replica.to_string()) };
        let recorder = Recorder::new(client.clone(), reporter);
        Self { client, trust_domain: trust_domain.to_string(), leadership, state, health, recorder }
    }

    /// Follows and writes until dropped.
    pub async fn run(mut self) {
        let (tell, mut told) = mpsc::channel(WAITING);
        let mut followers = JoinSet::new();
        for (kind, group, version, plural) in KINDS {
            let kind_name = GroupVersionKind::gvk(group, version, &kind.to_string());
            let resource = ApiResource::from_gvk_with_plural(&kind_name, plural);
            followers.spawn(follow(self.client.clone(), kind, resource, tell.clone()));
        }
        drop(tell);
        let mut objects: HashMap<Key, Followed> = HashMap::new();
        let mut tick = tokio::time::interval(LOOK);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let (mut is_news, mut has_world) = (false, true);
        // A replica that begins to lead looks at everything.
        let mut led = false;
        loop {
            tokio::select! {
                heard = told.recv() => match heard {
                    Some(heard) => { take(&mut objects, heard); is_news = true; }
                    None => return,
                },
                changed = self.state.changed(), if has_world => {
                    // The world is kept for as long as the process lives.
                    has_world = changed;
                    is_news = true;
                }
                _ = tick.tick() => {
                    let leads = self.leadership.is_held();
                    let rests = objects.values().any(|followed| followed.rests_until.is_some());
                    if leads && (is_news || !led || rests) {
                        is_news = false;
                        self.look(&mut objects).await;
                    }
                    led = leads;
                }
            }
        }
    }

    /// One look at everything.
    async fn look(&self, objects: &mut HashMap<Key, Followed>) {
        let state = self.state.current();
        let routes: HashMap<Key, _> = state
            .route_status()
            .into_iter()
            .map(|route| ((route.kind, route.namespace.to_string(), route.name.to_string()), route))
            .collect();
        let report = self.health.report();
        let findings = by_object(&report);
        let is_known = state.version > 0;
        for (key, followed) in objects {
            // There may be ten thousand of them, and others wait for this thread.
            tokio::task::consume_budget().await;
            if followed.rests_until.is_some_and(|until| tokio::time::Instant::now() < until) {
                continue;
            }
            followed.rests_until = None;
            if !self.leadership.is_held() {
                return;
            }
            let (kind, namespace, _) = key;
            let judged = followed.judged.get_or_init(|| self.judge(&followed.object, *kind));
            let Some(judged) = judged.clone() else { continue };
            let now = Timestamp::try_from(SystemTime::now()).unwrap_or_default().strftime("%Y-%m-%dT%H:%M:%SZ");
            let (spec, status) = (&followed.object.data["spec"], &followed.object.data["status"]);
            let generation = followed.object.metadata.generation.unwrap_or_default();
            let object = Object { namespace, generation, spec, status };
            let now = now.to_string();
            let wanted = match kind {
                Kind::HttpRoute | Kind::GrpcRoute | Kind::TcpRoute | Kind::TlsRoute => {
                    status::route(object, &judged, routes.get(key), &now)
                }
                Kind::ExternalAuthorizer => status::plain(object, &judged, &now),
                // The world is on its way: what is not in it may be there.
                _ if !is_known => None,
                _ => status::policy(object, &judged, &lacks(&findings, key, spec, &state), &now),
            };
            if let Some(wanted) = wanted {
                self.write(key, followed, wanted).await;
            }
            let refusal = status::refusal(&judged);
            if refusal != followed.told {
                self.tell(*kind, followed, refusal.as_deref()).await;
                followed.told = refusal;
            }
        }
    }

    fn judge(&self, object: &DynamicObject, kind: Kind) -> Option<Judgement> {
        let (_, group, version, _) = KINDS.iter().find(|(known, ..)| *known == kind)?;
        let mut value = serde_json::to_value(object).ok()?;
        let fields = value.as_object_mut()?;
        fields.remove("status");
        fields.insert("apiVersion".to_string(), format!("{group}/{version}").into());
        fields.insert("kind".to_string(), kind.to_string().into());
        discovery::judge(&value, &self.trust_domain)
    }

    async fn write(&self, key: &Key, followed: &mut Followed, wanted: Value) {
        let (kind, namespace, name) = key;
        let Some(resource) = resource(*kind) else { return };
        let api: Api<DynamicObject> = Api::namespaced_with(self.client.clone(), namespace, &resource);
        let version = followed.object.metadata.resource_version.clone();
        let patch = Patch::Merge(json!({ "metadata": { "resourceVersion": version }, "status": wanted }));
        let parameters = PatchParams::default();
        let patched = api.patch_status(name, &parameters, &patch);
        match tokio::time::timeout(WRITE_TIMEOUT, patched).await {
            // The watch tells it too.
            Ok(Ok(object)) => followed.object = object,
            Ok(Err(kube::Error::Api(answer))) if answer.is_conflict() || answer.is_not_found() => {
                debug!(%kind, namespace, name, "changed in between: status is said of what it is now");
                followed.rests_until = Some(tokio::time::Instant::now() + LOOK);
            }
            Ok(Err(error)) => {
                let (namespace, name, reason) = (named(namespace), named(name), reason(&error));
                warn!(%kind, namespace, name, reason, error = named(&error), "status cannot be written: trying again");
                followed.rests_until = Some(tokio::time::Instant::now() + PAUSE);
            }
            Err(_) => {
                let (namespace, name) = (named(namespace), named(name));
                warn!(%kind, namespace, name, "status cannot be written: the API server does not answer");
                followed.rests_until = Some(tokio::time::Instant::now() + PAUSE);
            }
        }
    }

    async fn tell(&self, kind: Kind, followed: &Followed, refusal: Option<&str>) {
        let Some(refusal) = refusal else { return };
        let metadata = &followed.object.metadata;
        let Some(resource) = resource(kind) else { return };
        let regarding = ObjectReference {
            api_version: Some(resource.api_version),
            kind: Some(resource.kind),
            namespace: metadata.namespace.clone(),
            name: metadata.name.clone(),
            uid: metadata.uid.clone(),
            ..ObjectReference::default()
        };
        let event = Told {
            type_: EventType::Warning,
            reason: "Refused".to_string(),
            note: Some(refusal.chars().take(NOTE).collect()),
            action: "Read".to_string(),
            secondary: None,
        };
        match tokio::time::timeout(WRITE_TIMEOUT, self.recorder.publish(&event, &regarding)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => warn!(reason = reason(&error), error = named(&error), "an event cannot be written"),
            Err(_) => warn!("an event cannot be written: the API server does not answer"),
        }
    }
}

/// Why the API server did not do it, without the object's name, which its message has.
fn reason(error: &kube::Error) -> &str {
    match error {
        kube::Error::Api(status) => &status.reason,
        _ => "the API server was not reached",
    }
}

/// Findings, by kind and `namespace/name` of what they are about.
type Findings<'a> = HashMap<(&'a str, &'a str), Vec<&'a Finding>>;

fn by_object(report: &Report) -> Findings<'_> {
    let mut findings = Findings::new();
    for finding in &report.findings {
        findings.entry((&finding.kind, &finding.object)).or_default().push(finding);
    }
    findings
}

/// What a policy lacks, as the whole of the cluster has it.
fn lacks(findings: &Findings<'_>, (kind, namespace, name): &Key, spec: &Value, state: &MeshState) -> Lacks {
    let (kind, shown) = (kind.to_string(), format!("{namespace}/{name}"));
    let about = findings.get(&(&*kind, &*shown)).into_iter().flatten();
    let mut lacks = Lacks { provider: None, targets: status::missing(namespace, spec, state) };
    for finding in about {
        let place = || finding.field.strip_prefix("spec.targetRefs[")?.strip_suffix(']')?.parse::<usize>().ok();
        match (finding.effect, place()) {
            (Effect::RefusesUnasked, _) => lacks.provider = Some(finding.reason.clone()),
            (Effect::OlderCounts, Some(place)) => {
                lacks.targets.entry(place).or_insert_with(|| Lost::Conflicted(finding.reason.clone()));
            }
            _ => {}
        }
    }
    lacks
}

/// Longest note of an event, in characters: the API's own bound is 1024 bytes.
const NOTE: usize = 256;

fn resource(kind: Kind) -> Option<ApiResource> {
    let (kind, group, version, plural) = KINDS.iter().find(|(known, ..)| *known == kind)?;
    let kind = GroupVersionKind::gvk(group, version, &kind.to_string());
    Some(ApiResource::from_gvk_with_plural(&kind, plural))
}

fn take(objects: &mut HashMap<Key, Followed>, (kind, event): Heard) {
    let key = |object: &DynamicObject| (kind, object.namespace().unwrap_or_default(), object.name_any());
    match event {
        Event::Init => objects.iter_mut().filter(|(key, _)| key.0 == kind).for_each(|(_, one)| one.listed = false),
        Event::InitApply(object) | Event::Apply(object) => {
            let key = key(&object);
            let told = objects.get_mut(&key).and_then(|followed| followed.told.take());
            objects.insert(key, Followed { object, judged: OnceLock::new(), told, rests_until: None, listed: true });
        }
        Event::InitDone => objects.retain(|key, followed| key.0 != kind || followed.listed),
        Event::Delete(object) => drop(objects.remove(&key(&object))),
    }
}

/// Tells of one kind, for as long as somebody listens. A kind that is not served is asked for again and again.
async fn follow(client: Client, kind: Kind, resource: ApiResource, tell: mpsc::Sender<Heard>) {
    let api: Api<DynamicObject> = Api::all_with(client, &resource);
    loop {
        let config = watcher::Config::default().page_size(PAGE);
        let mut events = std::pin::pin!(watch(api.clone(), config).default_backoff());
        loop {
            match events.try_next().await {
                Ok(Some(mut event)) => {
                    event = event.modify(|object| object.metadata.managed_fields = None);
                    if tell.send((kind, event)).await.is_err() {
                        return;
                    }
                }
                Ok(None) => break,
                Err(watcher::Error::InitialListFailed(kube::Error::Api(status))) if status.is_not_found() => {
                    debug!(%kind, "not served");
                    tokio::time::sleep(LOOK_AGAIN).await;
                }
                Err(error) => warn!(%kind, %error, "cannot be watched for its status"),
            }
        }
        tokio::time::sleep(LOOK_AGAIN).await;
    }
}
