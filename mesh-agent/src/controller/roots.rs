//! Which roots are published, and when a root may sign. Pure: the objects are read and written elsewhere.
//!
//! ```text
//! Secret nodemesh-ca                              ConfigMap nodemesh-ca-roots
//! tls.crt tls.key ca.crt   what signs             roots.pem                  whom every agent trusts
//! next.crt next.key        what will, while a     nodemesh.dev/roots-since   since when each root is in there
//!                          rotation is prepared   nodemesh.dev/signs-since   since when it signs that signs
//! ```
//! A root is added as soon as the Secret has it, and signs only when it has been published for long enough that every
//! agent has it. It leaves when somebody says so (`ca rotate --phase finish`) or when it has ended; never because the
//! Secret has another: cert-manager, or whoever brings the Secret, may replace it at any time.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use crate::identity::{self, NewRoot, Root, RootId, SIGNS};

/// The Secret of what signs.
pub const SECRET: &str = "nodemesh-ca";
/// The ConfigMap of whom agents trust.
pub const CONFIG_MAP: &str = "nodemesh-ca-roots";
/// Its key.
pub const ROOTS_KEY: &str = "roots.pem";
/// Its annotation: JSON, seconds of Unix time by root; 0 is from the beginning.
pub const SINCE: &str = "nodemesh.dev/roots-since";
/// Its annotation: seconds of Unix time.
pub const SIGNS_SINCE: &str = "nodemesh.dev/signs-since";

/// Until every agent has a root that was published: kubelet brings a changed ConfigMap to its pods within its sync period
/// (a minute) and the age of its cache; twice that.
pub const SETTLE: Duration = Duration::from_secs(180);
/// Most of one value of a Secret or ConfigMap that is read.
pub(super) const MAX_PEM_BYTES: usize = 256 << 10;

/// What the Secret holds, not yet judged.
#[derive(Clone, PartialEq, Eq)]
pub struct Material {
    /// The certificate that signs, and those above it.
    pub tls_crt: String,
    /// Its key.
    pub tls_key: String,
    /// The root, or roots.
    pub ca_crt: String,
    /// A root that will sign next.
    pub next: Option<Next>,
}

/// A root that will sign next.
#[derive(Clone, PartialEq, Eq)]
pub struct Next {
    /// Its certificate.
    pub crt: String,
    /// Its key.
    pub key: String,
}

/// What the ConfigMap holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Published {
    /// In the order in which they are written.
    pub roots: Vec<Root>,
    /// Seconds of Unix time; a root that is not in here was there from the beginning.
    pub since: BTreeMap<String, u64>,
    /// At which root certificates end.
    pub signs: Option<RootId>,
    /// Seconds of Unix time since when they do; None is from the beginning.
    pub signs_since: Option<u64>,
}

impl Material {
    /// Of a root that signs by itself.
    pub fn of_root(root: NewRoot) -> Self {
        Self { tls_crt: root.certificate.clone(), tls_key: root.key, ca_crt: root.certificate, next: None }
    }

    /// Reads a Secret.
    ///
    /// # Errors
    /// What is missing, for people.
    pub fn of(secret: &Secret) -> Result<Self, String> {
        let text = |key: &str| -> Result<Option<String>, String> {
            let Some(ByteString(bytes)) = secret.data.as_ref().and_then(|data| data.get(key)) else { return Ok(None) };
            if bytes.len() > MAX_PEM_BYTES {
                return Err(format!("{key} of Secret {SECRET} is longer than {MAX_PEM_BYTES} bytes"));
            }
            let text = std::str::from_utf8(bytes).map_err(|_| format!("{key} of Secret {SECRET} is no PEM"))?;
            Ok(Some(text.to_string()).filter(|text| !text.trim().is_empty()))
        };
        let needed = |key: &str| text(key)?.ok_or_else(|| format!("Secret {SECRET} has no {key}"));
        let next = match (text(NEXT_CRT)?, text(NEXT_KEY)?) {
            (Some(crt), Some(key)) => Some(Next { crt, key }),
            _ => None,
        };
        Ok(Self { tls_crt: needed(TLS_CRT)?, tls_key: needed(TLS_KEY)?, ca_crt: needed(CA_CRT)?, next })
    }

    /// What the Secret holds of this.
    pub fn data(&self) -> BTreeMap<String, ByteString> {
        let Self { tls_crt, tls_key, ca_crt, next } = self;
        let mut texts = vec![(TLS_CRT, tls_crt), (TLS_KEY, tls_key), (CA_CRT, ca_crt)];
        if let Some(Next { crt, key }) = next {
            texts.extend([(NEXT_CRT, crt), (NEXT_KEY, key)]);
        }
        texts.into_iter().map(|(key, text)| (key.to_string(), ByteString(text.clone().into_bytes()))).collect()
    }
}

impl Material {
    /// All keys of a Secret that are read here.
    pub const KEYS: [&str; 5] = [TLS_CRT, TLS_KEY, CA_CRT, NEXT_CRT, NEXT_KEY];
}

const TLS_CRT: &str = "tls.crt";
const TLS_KEY: &str = "tls.key";
const CA_CRT: &str = "ca.crt";
const NEXT_CRT: &str = "next.crt";
const NEXT_KEY: &str = "next.key";

impl Published {
    /// Reads a ConfigMap.
    ///
    /// # Errors
    /// What cannot be read, for people.
    pub fn of(config_map: &ConfigMap) -> Result<Self, String> {
        let unreadable = |what: String| format!("ConfigMap {CONFIG_MAP} cannot be read: {what}");
        let text = config_map.data.as_ref().and_then(|data| data.get(ROOTS_KEY));
        let text = text.ok_or_else(|| unreadable(format!("there is no {ROOTS_KEY}")))?;
        let roots = identity::roots(ROOTS_KEY, text).map_err(|error| unreadable(error.to_string()))?;
        let signs = text.lines().find_map(|line| line.strip_prefix(SIGNS)).map(str::trim);
        let signs = signs.and_then(|signs| roots.iter().map(|root| root.id).find(|id| id.to_string() == signs));
        let annotation = |name: &str| config_map.metadata.annotations.as_ref()?.get(name);
        let since = annotation(SINCE).map(|since| serde_json::from_str(since)).transpose();
        let since = since.map_err(|error| unreadable(format!("{SINCE}: {error}")))?.unwrap_or_default();
        let signs_since = annotation(SIGNS_SINCE).map(|since| since.parse::<u64>()).transpose();
        let signs_since = signs_since.map_err(|error| unreadable(format!("{SIGNS_SINCE}: {error}")))?;
        Ok(Self { roots, since, signs, signs_since })
    }

    /// The text for agents.
    pub fn text(&self) -> String {
        let signs = self.signs.map(|signs| format!("{SIGNS}{signs}\n")).unwrap_or_default();
        self.roots.iter().fold(signs, |text, root| text + &root.pem)
    }

    /// The ConfigMap of this; `metadata` is that of the one that it replaces.
    pub fn config_map(&self, mut metadata: ObjectMeta) -> ConfigMap {
        let since = serde_json::to_string(&self.since).unwrap_or_default();
        metadata.name = Some(CONFIG_MAP.to_string());
        metadata.managed_fields = None;
        let annotations = metadata.annotations.get_or_insert_default();
        annotations.insert(SINCE.to_string(), since);
        match self.signs_since {
            Some(since) => annotations.insert(SIGNS_SINCE.to_string(), since.to_string()),
            None => annotations.remove(SIGNS_SINCE),
        };
        let data = BTreeMap::from([(ROOTS_KEY.to_string(), self.text())]);
        ConfigMap { metadata, data: Some(data), ..ConfigMap::default() }
    }

    /// How long it is until a root may sign, which takes `settle` from its publication on; nothing when it may.
    pub fn wait(&self, root: RootId, settle: Duration, now: SystemTime) -> Option<Duration> {
        if self.roots.iter().all(|published| published.id != root) {
            return Some(settle);
        }
        left(*self.since.get(&root.to_string())?, settle, now)
    }

    /// How long it is until no agent has a certificate of an earlier root, which takes `settle` from the change on.
    pub fn rests(&self, settle: Duration, now: SystemTime) -> Option<Duration> {
        left(self.signs_since?, settle, now)
    }
}

fn left(since: u64, settle: Duration, now: SystemTime) -> Option<Duration> {
    let since = UNIX_EPOCH.checked_add(Duration::from_secs(since))?;
    // A time in the future is one before a clock was put back.
    let age = now.duration_since(since).unwrap_or_default();
    settle.checked_sub(age).filter(|left| !left.is_zero())
}

/// What is to be published, given what is. `wanted` are the roots of the Secret, that which signs first.
pub fn publish(wanted: &[Root], published: &Published, settle: Duration, now: SystemTime) -> Published {
    let mut next = published.clone();
    next.roots.retain(|root| root.not_after > now);
    // The first roots of a mesh: nobody trusts anything else, and nobody can be left behind.
    let is_first = published.roots.is_empty();
    let seconds = now.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    for root in wanted.iter().filter(|root| root.not_after > now) {
        // Agents refuse a bundle with more.
        let has_room = next.roots.len() < identity::MAX_ROOTS;
        if has_room && next.roots.iter().all(|known| known.id != root.id) {
            let since = if is_first { 0 } else { seconds };
            next.since.insert(root.id.to_string(), since);
            next.roots.push(root.clone());
        }
    }
    next.since.retain(|id, _| next.roots.iter().any(|root| root.id.to_string() == *id));
    if let Some(signer) = wanted.first()
        && next.wait(signer.id, settle, now).is_none()
        && next.signs != Some(signer.id)
    {
        next.signs = Some(signer.id);
        next.signs_since = (!is_first).then_some(seconds);
    }
    next.signs = next.signs.filter(|signs| next.roots.iter().any(|root| root.id == *signs));
    next
}

#[cfg(test)]
mod tests {
    use super::*;

    const TRUST_DOMAIN: &str = "cluster.local";

    fn root() -> Root {
        let pem = identity::new_root(TRUST_DOMAIN).unwrap().certificate;
        identity::roots("test", &pem).unwrap().remove(0)
    }

    fn now() -> SystemTime {
        SystemTime::now()
    }

    fn ids(published: &Published) -> Vec<RootId> {
        published.roots.iter().map(|root| root.id).collect()
    }

    #[test]
    fn the_first_root_signs_at_once_and_another_waits() {
        let (a, b) = (root(), root());
        let start = now();
        let first = publish(std::slice::from_ref(&a), &Published::default(), SETTLE, start);
        assert_eq!((ids(&first), first.signs, first.wait(a.id, SETTLE, start)), (vec![a.id], Some(a.id), None));
        assert_eq!(publish(std::slice::from_ref(&a), &first, SETTLE, start), first, "it is not published twice");

        // Somebody puts another into the Secret.
        let second = publish(std::slice::from_ref(&b), &first, SETTLE, start);
        assert_eq!((ids(&second), second.signs), (vec![a.id, b.id], Some(a.id)));
        assert!(second.wait(b.id, SETTLE, start).is_some_and(|left| left <= SETTLE));
        assert_eq!(second.wait(a.id, SETTLE, start), None);
        let just_before = start + SETTLE - Duration::from_secs(2);
        assert_eq!(publish(std::slice::from_ref(&b), &second, SETTLE, just_before), second);
        let settled = publish(std::slice::from_ref(&b), &second, SETTLE, start + SETTLE);
        assert_eq!((ids(&settled), settled.signs), (vec![a.id, b.id], Some(b.id)), "what was signed stays trusted");
    }

    #[test]
    fn a_prepared_root_is_published_and_does_not_sign() {
        let (a, b) = (root(), root());
        let first = publish(std::slice::from_ref(&a), &Published::default(), SETTLE, now());
        let prepared = publish(&[a.clone(), b.clone()], &first, SETTLE, now());
        assert_eq!((ids(&prepared), prepared.signs), (vec![a.id, b.id], Some(a.id)));
        let later = publish(&[a.clone(), b.clone()], &prepared, SETTLE, now() + SETTLE * 2);
        assert_eq!(later, prepared);
    }

    #[test]
    fn roots_that_have_ended_go() {
        let (a, b) = (root(), root());
        let first = publish(std::slice::from_ref(&a), &Published::default(), SETTLE, now());
        let both = publish(std::slice::from_ref(&b), &first, SETTLE, now());
        let ended = Root { not_after: now() - Duration::from_secs(1), ..a };
        let mut both = both;
        both.roots[0] = ended;
        let next = publish(std::slice::from_ref(&b), &both, SETTLE, now());
        assert_eq!(ids(&next), [b.id]);
        assert_eq!(next.since.len(), 1, "what is said of a root that is gone stays");
        assert_eq!(next.signs, None, "certificates end at a root that is gone");
    }

    #[test]
    fn a_root_that_nobody_has_published_does_not_sign() {
        assert_eq!(Published::default().wait(root().id, SETTLE, now()), Some(SETTLE));
    }

    #[test]
    fn what_is_written_is_read_alike() {
        let (a, b) = (root(), root());
        let first = publish(std::slice::from_ref(&a), &Published::default(), SETTLE, now());
        let both = publish(&[a, b], &first, SETTLE, now());
        let written = both.config_map(ObjectMeta::default());
        assert_eq!(Published::of(&written).as_ref(), Ok(&both));
        // What a person added is taken for what it is.
        let mut edited = written.clone();
        edited.metadata.annotations = None;
        let read = Published::of(&edited).unwrap();
        assert_eq!((ids(&read), read.signs), (ids(&both), both.signs));
        assert!(read.since.is_empty());
        // What cannot be read is not taken for nothing: other roots are trusted somewhere.
        for (what, spoil) in SPOILED {
            let mut config_map = written.clone();
            spoil(&mut config_map);
            let error = Published::of(&config_map).unwrap_err();
            assert!(
                error.starts_with("ConfigMap nodemesh-ca-roots cannot be read: ") && error.contains(what),
                "{error}"
            );
        }

        let material = Material { next: Some(Next { crt: "c".into(), key: "k".into() }), ..root_material() };
        let secret = Secret { data: Some(material.data()), ..Secret::default() };
        assert!(Material::of(&secret).is_ok_and(|read| read == material));
        for key in [TLS_CRT, TLS_KEY, CA_CRT] {
            let mut secret = secret.clone();
            secret.data.as_mut().unwrap().insert(key.to_string(), ByteString(b" ".to_vec()));
            let error = Material::of(&secret).err().unwrap();
            assert!(error.ends_with(&format!("has no {key}")), "{error}");
        }
    }

    type Spoil = fn(&mut ConfigMap);

    /// What is named, and what becomes of the ConfigMap.
    const SPOILED: &[(&str, Spoil)] = &[
        ("there is no roots.pem", |it| it.data = None),
        ("roots.pem", |it| it.data.as_mut().unwrap().get_mut(ROOTS_KEY).unwrap().clear()),
        ("roots.pem", |it| it.data.as_mut().unwrap().get_mut(ROOTS_KEY).unwrap().truncate(200)),
        (SINCE, |it| drop(it.metadata.annotations.as_mut().unwrap().insert(SINCE.to_string(), "soon".to_string()))),
        (SIGNS_SINCE, |it| {
            drop(it.metadata.annotations.as_mut().unwrap().insert(SIGNS_SINCE.to_string(), "soon".to_string()));
        }),
    ];

    fn root_material() -> Material {
        Material::of_root(identity::new_root(TRUST_DOMAIN).unwrap())
    }
}
