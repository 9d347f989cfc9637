//! Tokens that are signed here, by keys that are made here.

use std::sync::LazyLock;

use http::header::{AUTHORIZATION, COOKIE, HeaderName, HeaderValue};
use http::{Request, request};
use jsonwebtoken::jwk::Jwk;
use jsonwebtoken::{Algorithm, EncodingKey, Header, encode};
use serde_json::{Value, json};

use super::*;

/// Seconds since 1970.
const NOW: u64 = 1_700_000_000;

/// A key of an issuer: P-256.
struct Signer {
    key: EncodingKey,
    jwk: Value,
}

impl Signer {
    fn new(id: &str) -> Self {
        let pair = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
        let key = EncodingKey::from_ec_der(&pair.serialize_der());
        let mut jwk = serde_json::to_value(Jwk::from_encoding_key(&key, Algorithm::ES256).unwrap()).unwrap();
        jwk["kid"] = id.into();
        Self { key, jwk }
    }

    fn sign(&self, id: Option<&str>, claims: &Value) -> String {
        let header = Header { kid: id.map(str::to_string), ..Header::new(Algorithm::ES256) };
        encode(&header, claims, &self.key).unwrap()
    }
}

static SIGNER: LazyLock<Signer> = LazyLock::new(|| Signer::new("one"));
static OTHER: LazyLock<Signer> = LazyLock::new(|| Signer::new("two"));

fn keys(signers: &[&Signer]) -> Keys {
    let keys: Vec<&Value> = signers.iter().map(|signer| &signer.jwk).collect();
    Keys::parse(&json!({ "keys": keys }).to_string()).unwrap()
}

fn issuer() -> Issuer {
    Issuer {
        name: "https://issuer".into(),
        audiences: vec!["shop".into()],
        keys: KeySource::Here(keys(&[&SIGNER])),
        places: vec![
            Place::Header { name: AUTHORIZATION, prefix: "Bearer ".into() },
            Place::Cookie("session".into()),
            Place::Query("access_token".into()),
        ],
        skew: 60,
        forward: false,
        outputs: vec![Output {
            header: HeaderName::from_static("x-groups"),
            claim: vec!["realm".into(), "groups".into()],
        }],
    }
}

fn claims() -> Value {
    json!({
        "iss": "https://issuer", "sub": "alice", "aud": ["shop", "web"], "exp": NOW + 600,
        "realm": {"groups": ["dev", "ops"]}
    })
}

fn with(change: Value) -> Value {
    let mut claims = claims();
    for (name, value) in change.as_object().unwrap() {
        claims[name] = value.clone();
    }
    claims
}

fn head(target: &str, headers: &[(&str, &str)]) -> request::Parts {
    let mut builder = Request::get(target);
    for (name, value) in headers {
        builder = builder.header(*name, *value);
    }
    builder.body(()).unwrap().into_parts().0
}

fn bearer(token: &str) -> request::Parts {
    head("/", &[("authorization", &format!("Bearer {token}"))])
}

/// As the agent does it, with no keys that were fetched.
fn authenticate(issuers: &[&Issuer], head: &mut request::Parts, now: u64) -> Result<Option<Found>, Invalid> {
    let verified = Verified::default();
    let asked = Asked { issuers, fetched: &|_| None, verified: &verified, now };
    let found = find(&asked, head).map_err(|refused| refused.why)?;
    tell(issuers, head, found.as_ref());
    strip(issuers, head);
    Ok(found)
}

fn ask(head: &mut request::Parts) -> Result<Option<String>, Invalid> {
    let issuer = issuer();
    authenticate(&[&issuer], head, NOW).map(|found| found.map(|found| found.token.principal.clone()))
}

#[test]
fn a_token_is_good_or_refused() {
    let signed = |claims: &Value| SIGNER.sign(Some("one"), claims);
    let without = |name: &str| {
        let mut claims = claims();
        claims.as_object_mut().unwrap().remove(name);
        claims
    };
    for (what, token, expected) in [
        ("good", signed(&claims()), Ok("https://issuer/alice")),
        ("no kid", SIGNER.sign(None, &claims()), Ok("https://issuer/alice")),
        ("no subject", signed(&without("sub")), Ok("")),
        ("one audience", signed(&with(json!({"aud": "shop"}))), Ok("https://issuer/alice")),
        ("ended within the skew", signed(&with(json!({"exp": NOW - 59}))), Ok("https://issuer/alice")),
        ("begins within the skew", signed(&with(json!({"nbf": NOW + 59}))), Ok("https://issuer/alice")),
        ("a fraction", signed(&with(json!({"exp": NOW as f64 + 0.5}))), Ok("https://issuer/alice")),
        ("ended", signed(&with(json!({"exp": NOW - 60}))), Err(Invalid::Expired)),
        ("no end", signed(&without("exp")), Err(Invalid::Expired)),
        ("an end that is no time", signed(&with(json!({"exp": "never"}))), Err(Invalid::Expired)),
        ("not yet", signed(&with(json!({"nbf": NOW + 61}))), Err(Invalid::NotYet)),
        ("for another", signed(&with(json!({"aud": "other"}))), Err(Invalid::Audience)),
        ("for nobody", signed(&without("aud")), Err(Invalid::Audience)),
        ("of another issuer", signed(&with(json!({"iss": "https://other"}))), Err(Invalid::Issuer)),
        ("of nobody", signed(&without("iss")), Err(Invalid::Issuer)),
        ("of two", signed(&with(json!({"iss": ["https://issuer"]}))), Err(Invalid::Issuer)),
        ("by another key", OTHER.sign(Some("one"), &claims()), Err(Invalid::Signature)),
        ("by a key that is not there", OTHER.sign(Some("two"), &claims()), Err(Invalid::Key)),
        ("no token", "abc".to_string(), Err(Invalid::Malformed)),
        ("nothing", String::new(), Err(Invalid::Malformed)),
        ("too large", "a".repeat(limits::MAX_TOKEN_BYTES + 1), Err(Invalid::Malformed)),
    ] {
        let seen = ask(&mut bearer(&token));
        assert_eq!(seen, expected.map(|principal| Some(principal.to_string())), "{what}");
    }
    assert_eq!(ask(&mut head("/", &[])), Ok(None));
    assert_eq!(ask(&mut head("/", &[("authorization", "Basic YTpi")])), Ok(None), "another scheme is no token");
    let lower = format!("bearer {}", signed(&claims()));
    assert!(ask(&mut head("/", &[("authorization", &lower)])).unwrap().is_some());
}

/// What may sign is the key's to say.
#[test]
fn the_algorithm_is_the_keys() {
    let encoded = |value: &Value| {
        let text =
            jsonwebtoken::encode(&Header::new(Algorithm::HS256), value, &EncodingKey::from_secret(b"x")).unwrap();
        text.split('.').nth(1).unwrap().to_string()
    };
    let body = encoded(&claims());
    for header in [json!({"alg": "none"}), json!({"alg": "None", "typ": "JWT"}), json!({"alg": ""})] {
        for signature in ["", "AA"] {
            let seen = ask(&mut bearer(&format!("{}.{body}.{signature}", encoded(&header))));
            assert!(seen.is_err(), "{header}: {seen:?}");
        }
    }
    // The public key as the secret of an HMAC.
    let public = SIGNER.jwk.to_string();
    let header = Header { kid: Some("one".into()), ..Header::new(Algorithm::HS256) };
    let forged = encode(&header, &claims(), &EncodingKey::from_secret(public.as_bytes())).unwrap();
    assert_eq!(ask(&mut bearer(&forged)), Err(Invalid::Algorithm));
    let critical = Header { crit: Some(vec!["x".into()]), ..Header::new(Algorithm::ES256) };
    let token = encode(&critical, &claims(), &SIGNER.key).unwrap();
    assert_eq!(ask(&mut bearer(&token)), Err(Invalid::Malformed));
    // One letter of the signature, or of what it is about.
    let good = SIGNER.sign(Some("one"), &claims());
    let (about, signature) = good.rsplit_once('.').unwrap();
    let flip = |text: &str| format!("{}{}", if text.starts_with('A') { 'B' } else { 'A' }, &text[1..]);
    assert!(ask(&mut bearer(&format!("{about}.{}", flip(signature)))).is_err());
    let (header, claims) = about.split_once('.').unwrap();
    assert!(ask(&mut bearer(&format!("{header}.{}.{signature}", flip(claims)))).is_err());
}

#[test]
fn keys_that_are_none_are_refused() {
    let set = |key: Value| Keys::parse(&json!({ "keys": [key] }).to_string()).err();
    assert_eq!(set(json!({"kty": "oct", "k": "c2VjcmV0"})), Some(KeysError::Symmetric));
    assert_eq!(set(with_field(&SIGNER.jwk, "use", "enc".into())), Some(KeysError::None));
    assert_eq!(set(with_field(&SIGNER.jwk, "alg", "RS256".into())), Some(KeysError::None));
    assert_eq!(set(with_field(&SIGNER.jwk, "alg", "HS256".into())), Some(KeysError::None));
    assert_eq!(set(SIGNER.jwk.clone()), None);
    assert!(matches!(Keys::parse("{}"), Err(KeysError::Form(_))));
    assert!(matches!(Keys::parse("{\"keys\": []}"), Err(KeysError::None)));
    let many: Vec<&Value> = std::iter::repeat_n(&SIGNER.jwk, limits::MAX_KEYS + 1).collect();
    assert_eq!(Keys::parse(&json!({ "keys": many }).to_string()).err(), Some(KeysError::TooMany));
}

fn with_field(key: &Value, name: &str, value: Value) -> Value {
    let mut key = key.clone();
    key[name] = value;
    key
}

/// Both keys are there while an issuer goes from one to the other.
#[test]
fn keys_rotate() {
    let both = Issuer { keys: KeySource::Here(keys(&[&SIGNER, &OTHER])), ..issuer() };
    for (signer, id) in [(&*SIGNER, Some("one")), (&*OTHER, Some("two")), (&*OTHER, None)] {
        let found = authenticate(&[&both], &mut bearer(&signer.sign(id, &claims())), NOW);
        assert!(found.unwrap().is_some(), "{id:?}");
    }
    let swapped = OTHER.sign(Some("one"), &claims());
    assert_eq!(authenticate(&[&both], &mut bearer(&swapped), NOW), Err(Invalid::Signature), "the kid is another's");
}

#[test]
fn tokens_are_found_taken_out_and_told() {
    let token = SIGNER.sign(Some("one"), &claims());
    for (target, headers, left) in [
        ("/", vec![("authorization", format!("Bearer {token}"))], vec![]),
        ("/", vec![("cookie", format!("a=1; session={token}; b=2"))], vec![("cookie", "a=1; b=2")]),
        (&*format!("/x?a=1&access_token={token}&b=%20"), vec![], vec![]),
        ("/", vec![("x-groups", "root".into()), ("x_groups", "root".into())], vec![]),
        ("/", vec![("authorization", "Basic YTpi".into())], vec![("authorization", "Basic YTpi")]),
    ] {
        let headers: Vec<(&str, &str)> = headers.iter().map(|(name, value)| (*name, value.as_str())).collect();
        let mut head = head(target, &headers);
        let found = ask(&mut head).unwrap();
        let told = head.headers.remove("x-groups");
        assert_eq!(told, found.map(|_| HeaderValue::from_static("dev,ops")), "{target} {headers:?}");
        let seen: Vec<(&str, &str)> =
            head.headers.iter().map(|(name, value)| (name.as_str(), value.to_str().unwrap())).collect();
        assert_eq!(seen, left, "{target} {headers:?}");
        if target.len() > 1 {
            assert_eq!(head.uri.to_string(), "/x?a=1&b=%20");
        }
    }
    let forward = Issuer { forward: true, ..issuer() };
    let mut head = bearer(&token);
    authenticate(&[&forward], &mut head, NOW).unwrap();
    assert!(head.headers.contains_key(AUTHORIZATION));
    assert!(!head.headers.contains_key(COOKIE));
}

/// One bad token among good ones is refused, and so are two principals.
#[test]
fn all_tokens_of_a_request_must_be_good_and_agree() {
    let alice = SIGNER.sign(Some("one"), &claims());
    let bob = SIGNER.sign(Some("one"), &with(json!({"sub": "bob"})));
    let again = SIGNER.sign(Some("one"), &with(json!({"jti": "2"})));
    let bad = OTHER.sign(Some("one"), &claims());
    let two = |first: &str, second: &str| {
        ask(&mut head("/", &[("authorization", &format!("Bearer {first}")), ("cookie", &format!("session={second}"))]))
    };
    assert_eq!(two(&alice, &alice), Ok(Some("https://issuer/alice".into())));
    assert_eq!(two(&alice, &again), Ok(Some("https://issuer/alice".into())));
    assert_eq!(two(&alice, &bob), Err(Invalid::Disagree));
    assert_eq!(two(&alice, &bad), Err(Invalid::Signature));
    assert_eq!(two(&bad, &alice), Err(Invalid::Signature));
    let lines: Vec<String> = (0..8).map(|number| format!("Bearer a{number}")).collect();
    let lines: Vec<(&str, &str)> = lines.iter().map(|line| ("authorization", line.as_str())).collect();
    assert_eq!(ask(&mut head("/", &lines)), Err(Invalid::Malformed), "too many");
}

/// Where the keys are is no part of what a token is worth; that they are not there is.
#[test]
fn keys_may_be_elsewhere() {
    let uri = KeysUri::parse("https://issuer/keys").unwrap();
    let elsewhere = Issuer { keys: KeySource::At(uri.clone()), ..issuer() };
    let token = SIGNER.sign(Some("one"), &claims());
    let strange = OTHER.sign(Some("two"), &claims());
    let forged = OTHER.sign(Some("one"), &claims());
    let fetched = keys(&[&SIGNER]);
    let ask = |keys: Option<&Keys>, token: &str| {
        let verified = Verified::default();
        let asked = |asked: &KeysUri| keys.filter(|_| *asked == uri).cloned();
        let issuers = [&elsewhere];
        let asked = Asked { issuers: &issuers, fetched: &asked, verified: &verified, now: NOW };
        find(&asked, &bearer(token)).map(|found| found.map(|found| found.token.principal.clone()))
    };
    let alice = Ok(Some("https://issuer/alice".to_string()));
    let lacks = |why| Err(Refused { why, lacking: Some(uri.clone()) });
    assert_eq!(ask(None, &token), lacks(Invalid::NoKeys));
    assert_eq!(ask(Some(&fetched), &token), alice);
    assert_eq!(ask(Some(&fetched), &strange), lacks(Invalid::Key), "other keys may know it");
    assert_eq!(ask(Some(&fetched), &forged), Err(Invalid::Signature.into()), "no other keys are asked for");
    assert_eq!(ask(Some(&fetched), "abc"), Err(Invalid::Malformed.into()));
}

/// A signature is remembered; nothing else is.
#[test]
fn a_token_is_verified_once() {
    let (verified, both) = (Verified::default(), keys(&[&SIGNER, &OTHER]));
    let with_keys = |keys: &Keys| Issuer { keys: KeySource::Here(keys.clone()), ..issuer() };
    let token = SIGNER.sign(Some("one"), &claims());
    let ask = |issuer: &Issuer, now| {
        let before = verified.hits();
        let issuers = [issuer];
        let asked = Asked { issuers: &issuers, fetched: &|_| None, verified: &verified, now };
        let found = find(&asked, &bearer(&token)).map(|found| found.is_some()).map_err(|refused| refused.why);
        (found, verified.hits() - before)
    };
    let first = with_keys(&both);
    // (what changes, issuer, now, found, signatures saved)
    for (what, issuer, now, found, saved) in [
        ("nothing yet", first.clone(), NOW, Ok(true), 0),
        ("again", first.clone(), NOW, Ok(true), 1),
        ("its time", first.clone(), NOW + 660, Err(Invalid::Expired), 1),
        ("the audience", Issuer { audiences: vec!["other".into()], ..first.clone() }, NOW, Err(Invalid::Audience), 1),
        ("the skew", Issuer { skew: 0, ..first.clone() }, NOW + 600, Err(Invalid::Expired), 1),
        ("the issuer", Issuer { name: "https://other".into(), ..first.clone() }, NOW, Err(Invalid::Issuer), 0),
        (
            "where it is looked for",
            Issuer { places: vec![Place::Query("t".into())], ..first.clone() },
            NOW,
            Ok(false),
            0,
        ),
        ("the keys, alike", with_keys(&keys(&[&SIGNER, &OTHER])), NOW, Ok(true), 0),
        ("the keys, others", with_keys(&keys(&[&OTHER])), NOW, Err(Invalid::Key), 0),
        ("and back", first.clone(), NOW, Ok(true), 0),
        ("again", first.clone(), NOW, Ok(true), 1),
    ] {
        assert_eq!(ask(&issuer, now), (found, saved), "{what}");
    }
}

/// However many come, and however large they are.
#[test]
fn what_is_remembered_is_bounded() {
    let verified = Verified::default();
    let (keys, token) = (keys(&[&SIGNER]), std::sync::Arc::new(Token::default()));
    let hash = |number: usize| Verified::hash(&number.to_string()).unwrap();
    for number in 0..3 * limits::MAX_REMEMBERED_TOKENS {
        verified.remember(hash(number), &keys, &token);
        // One that is asked for all the time stays.
        assert!(verified.get(&hash(0), |_, _| true).is_some(), "{number}");
        assert!(verified.len() <= limits::MAX_REMEMBERED_TOKENS, "{number}: {}", verified.len());
    }
    assert!(verified.get(&hash(1), |_, _| true).is_none());
    assert!(Verified::hash(&"a".repeat(limits::MAX_REMEMBERED_BYTES + 1)).is_none());
}

/// What the memory saves: `cargo test --release -p mesh-agent --lib -- --ignored --nocapture figures_of_tokens`.
#[test]
#[ignore = "prints figures"]
fn figures_of_tokens() {
    const ROUNDS: u32 = 20_000;
    let issuer = issuer();
    let head = bearer(&SIGNER.sign(Some("one"), &claims()));
    for (what, keeps) in [("a signature each", false), ("remembered", true)] {
        let mut verified = Verified::default();
        let begun = std::time::Instant::now();
        for _ in 0..ROUNDS {
            let issuers = [&issuer];
            let asked = Asked { issuers: &issuers, fetched: &|_| None, verified: &verified, now: NOW };
            assert!(find(&asked, &head).unwrap().is_some());
            if !keeps {
                verified = Verified::default();
            }
        }
        println!("{what}: {:?} a token (ES256)", begun.elapsed() / ROUNDS);
    }
}
