//! Whose token is this? The API server is asked (TokenReview), and believed for a short while: a node that starts again
//! with a hundred identities asks once.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec, TokenReviewStatus};
use kube::api::PostParams;
use kube::{Api, Client};
use tokio::sync::Semaphore;
use tokio::time::Instant;

use super::authorize::{Caller, ServiceAccount};
use crate::identity;

/// For whom agents' tokens must be issued.
pub const AUDIENCE: &str = "nodemesh-ca";

/// How long a token is believed without asking again. What matters more, whether the caller's pod lives, is looked at for
/// each certificate.
pub(super) const BELIEVED: Duration = Duration::from_secs(60);
/// How long a token that was not believed is refused without asking again.
pub(super) const DISBELIEVED: Duration = Duration::from_secs(10);
/// Most tokens that are remembered; an agent has one at a time, and a new one every hour.
pub(super) const MAX_REMEMBERED: usize = 8192;
/// Questions to the API server at once; more wait.
pub(super) const MAX_REVIEWS: usize = 16;
/// How long one may take, its wait included.
pub(super) const REVIEW_TIMEOUT: Duration = Duration::from_secs(10);
/// Longest token that is asked about.
pub(super) const MAX_TOKEN_BYTES: usize = 16 << 10;

const SERVICE_ACCOUNT: &str = "system:serviceaccount:";
const POD_NAME: &str = "authentication.kubernetes.io/pod-name";
const POD_UID: &str = "authentication.kubernetes.io/pod-uid";
const NODE_NAME: &str = "authentication.kubernetes.io/node-name";

/// Why a caller is nobody.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Nobody {
    /// No token, or none that could be one.
    #[error("no bearer token")]
    NoToken,
    /// The API server does not believe it.
    #[error("the API server does not believe the token: {0}")]
    Disbelieved(String),
    /// It is of a person or a node, not of a service account.
    #[error("the token is of {0:?}, which is no service account")]
    NoServiceAccount(String),
    /// It is bound to no pod, so nobody knows where its bearer runs.
    #[error("the token is bound to no pod; agents use a projected token")]
    Unbound,
    /// The API server cannot be asked.
    #[error("the API server cannot be asked about the token: {0}")]
    Unasked(String),
}

impl Nobody {
    /// A stable word for metrics and the audit.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::NoToken => "no-token",
            Self::Disbelieved(_) => "token",
            Self::NoServiceAccount(_) => "no-service-account",
            Self::Unbound => "token-unbound",
            Self::Unasked(_) => "unasked",
        }
    }
}

/// Asks, and remembers.
pub struct Reviews {
    client: Client,
    remembered: Mutex<HashMap<identity::Digest, Remembered>>,
    running: Semaphore,
}

struct Remembered {
    answer: Result<Caller, Nobody>,
    until: Instant,
}

impl Reviews {
    /// Nothing is remembered.
    pub fn new(client: Client) -> Self {
        Self { client, remembered: Mutex::default(), running: Semaphore::new(MAX_REVIEWS) }
    }

    /// What is remembered of a token.
    pub fn remembered(&self, token: &str) -> Option<Result<Caller, Nobody>> {
        let remembered = self.remembered.lock().unwrap_or_else(PoisonError::into_inner);
        let known = remembered.get(&identity::digest(token.as_bytes()))?;
        (Instant::now() < known.until).then(|| known.answer.clone())
    }

    /// Asks the API server.
    ///
    /// # Errors
    /// Why the caller is nobody.
    pub async fn ask(&self, token: &str) -> Result<Caller, Nobody> {
        let answer = match tokio::time::timeout(REVIEW_TIMEOUT, self.review(token)).await {
            Ok(Ok(status)) => caller(status),
            Ok(Err(error)) => Err(Nobody::Unasked(error.to_string())),
            Err(_) => Err(Nobody::Unasked(format!("no answer within {} s", REVIEW_TIMEOUT.as_secs()))),
        };
        let believed_for = match &answer {
            Ok(_) => BELIEVED,
            Err(Nobody::Unasked(_)) => return answer,
            Err(_) => DISBELIEVED,
        };
        self.remember(token, &answer, believed_for);
        answer
    }

    async fn review(&self, token: &str) -> kube::Result<TokenReviewStatus> {
        // Never closed; and if it were, asking without a permit is no harm.
        let _permit = self.running.acquire().await;
        let spec = TokenReviewSpec { audiences: Some(vec![AUDIENCE.to_string()]), token: token.to_string() };
        let review = TokenReview { spec, ..TokenReview::default() };
        let review = Api::<TokenReview>::all(self.client.clone()).create(&PostParams::default(), &review).await?;
        Ok(review.status.unwrap_or_default())
    }

    fn remember(&self, token: &str, answer: &Result<Caller, Nobody>, lasts: Duration) {
        let now = Instant::now();
        let mut remembered = self.remembered.lock().unwrap_or_else(PoisonError::into_inner);
        if remembered.len() >= MAX_REMEMBERED {
            remembered.retain(|_, known| now < known.until);
        }
        if remembered.len() < MAX_REMEMBERED {
            let known = Remembered { answer: answer.clone(), until: now + lasts };
            remembered.insert(identity::digest(token.as_bytes()), known);
        }
    }
}

/// The token of an `authorization` header.
///
/// # Errors
/// There is none.
pub fn bearer(authorization: Option<&[u8]>) -> Result<&str, Nobody> {
    let text = authorization.and_then(|value| std::str::from_utf8(value).ok()).ok_or(Nobody::NoToken)?;
    let (scheme, token) = text.split_once(' ').ok_or(Nobody::NoToken)?;
    let token = token.trim();
    let is_one = scheme.eq_ignore_ascii_case("bearer") && !token.is_empty() && token.len() <= MAX_TOKEN_BYTES;
    if is_one { Ok(token) } else { Err(Nobody::NoToken) }
}

/// What the API server's answer says of the caller.
fn caller(status: TokenReviewStatus) -> Result<Caller, Nobody> {
    let TokenReviewStatus { audiences, authenticated, error, user } = status;
    if authenticated != Some(true) {
        return Err(Nobody::Disbelieved(error.unwrap_or_else(|| "it is of no one".to_string())));
    }
    // An API server that knows no audiences would answer with none, and believe tokens that are meant for itself.
    if !audiences.unwrap_or_default().iter().any(|audience| audience == AUDIENCE) {
        return Err(Nobody::Disbelieved(format!("it is not for the audience {AUDIENCE}")));
    }
    let user = user.unwrap_or_default();
    let name = user.username.unwrap_or_default();
    let account = name.strip_prefix(SERVICE_ACCOUNT).and_then(|name| name.split_once(':'));
    let Some((namespace, account)) = account else { return Err(Nobody::NoServiceAccount(name)) };
    let extra = user.extra.unwrap_or_default();
    let word = |key: &str| match extra.get(key).map(Vec::as_slice) {
        Some([one]) if !one.is_empty() => Some(one.clone()),
        Some(_) | None => None,
    };
    match (word(POD_NAME), word(POD_UID)) {
        (Some(pod), Some(pod_uid)) => Ok(Caller {
            account: ServiceAccount { namespace: namespace.to_string(), name: account.to_string() },
            pod,
            pod_uid,
            node: word(NODE_NAME),
        }),
        _ => Err(Nobody::Unbound),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn answer(status: Value) -> Result<Caller, Nobody> {
        caller(serde_json::from_value(status).unwrap())
    }

    fn good() -> Value {
        json!({
            "authenticated": true,
            "audiences": ["nodemesh-ca"],
            "user": {
                "username": "system:serviceaccount:nodemesh-system:nodemesh-agent",
                "extra": {
                    "authentication.kubernetes.io/pod-name": ["agent-1"],
                    "authentication.kubernetes.io/pod-uid": ["uid-1"],
                    "authentication.kubernetes.io/node-name": ["node-1"],
                },
            },
        })
    }

    #[test]
    fn who_a_token_is_of() {
        let caller = answer(good()).unwrap();
        assert_eq!(caller.account.to_string(), "nodemesh-system/nodemesh-agent");
        assert_eq!((caller.pod, caller.pod_uid), ("agent-1".into(), "uid-1".into()));
        assert_eq!(caller.node.as_deref(), Some("node-1"));

        let pod_uid = "authentication.kubernetes.io/pod-uid";
        let rows: [(&str, &str, Value, &str); 9] = [
            ("refused", "/authenticated", json!(false), "token"),
            ("no word", "/authenticated", json!(null), "token"),
            ("no audience", "/audiences", json!(null), "token"),
            ("another audience", "/audiences", json!(["https://kubernetes.default.svc"]), "token"),
            ("a person", "/user/username", json!("alice"), "no-service-account"),
            ("half a name", "/user/username", json!("system:serviceaccount:x"), "no-service-account"),
            ("a node", "/user/username", json!("system:node:node-1"), "no-service-account"),
            ("bound to nothing", "/user/extra", json!({}), "token-unbound"),
            ("bound to two", "/user/extra", json!({ pod_uid: ["1", "2"] }), "token-unbound"),
        ];
        for (what, path, value, reason) in rows {
            let mut status = good();
            *status.pointer_mut(path).unwrap() = value;
            assert_eq!(answer(status).unwrap_err().reason(), reason, "{what}");
        }
    }

    #[test]
    fn what_a_bearer_token_looks_like() {
        for (header, token) in [
            (Some(&b"Bearer abc"[..]), Some("abc")),
            (Some(b"bearer  abc "), Some("abc")),
            (Some(b"Basic abc"), None),
            (Some(b"Bearer "), None),
            (Some(b"Bearer"), None),
            (Some(b"\xff"), None),
            (None, None),
        ] {
            assert_eq!(bearer(header).ok(), token, "{header:?}");
        }
        let long = format!("Bearer {}", "x".repeat(MAX_TOKEN_BYTES + 1));
        assert_eq!(bearer(Some(long.as_bytes())), Err(Nobody::NoToken));
    }
}
