//! What is decided about an install before anybody is asked.

use serde_json::json;

use super::*;

fn set(image: &str, authority: &str, containers: &[&str]) -> DaemonSet {
    let mut all = vec![json!({"name": "agent", "image": image, "env": [{"name": "NODEMESH_CA", "value": authority}]})];
    all.extend(containers.iter().map(|name| json!({"name": name, "image": image})));
    serde_json::from_value(json!({
        "metadata": {},
        "spec": {"selector": {}, "template": {"spec": {"containers": all}}},
    }))
    .unwrap()
}

#[test]
fn what_is_installed_is_told_by_what_is_there() {
    let controller = "https://nodemesh-controller.nodemesh-system.svc:15012";
    let table = [
        (set("i", controller, &[]), Profile::Default),
        (set("i", controller, &["cni"]), Profile::Cni),
        (set("i", "dir:/var/lib/nodemesh/ca", &[]), Profile::Standalone),
    ];
    for (set, expected) in table {
        assert_eq!(profile_of(&set), expected);
        assert_eq!(image_of(&set), Some("i"));
    }
}

#[test]
fn an_upgrade_takes_its_image_from_the_same_place() {
    let own = env!("CARGO_PKG_VERSION");
    let table = [
        ("localhost/nodemesh:0.0.9", Some(format!("localhost/nodemesh:{own}"))),
        ("registry:5000/mesh/nodemesh", Some(format!("registry:5000/mesh/nodemesh:{own}"))),
        ("nodemesh:1", Some(format!("nodemesh:{own}"))),
        ("registry/nodemesh@sha256:abc", None),
    ];
    for (image, expected) in table {
        assert_eq!(upgraded(image), expected, "{image}");
    }
}

#[test]
fn versions_that_are_near() {
    let table = [
        ("1.4.0", "1.4.7", true),
        ("1.4.0", "1.3.0", true),
        ("1.4.0", "1.5.0-rc1", true),
        ("1.4.0", "1.2.9", false),
        ("1.4.0", "2.4.0", false),
        ("1.4.0", "unknown", false),
    ];
    for (own, theirs, is_near) in table {
        assert_eq!(skew(own, theirs).is_none(), is_near, "{own} {theirs}");
    }
}

#[tokio::test]
async fn what_is_waited_for_is_told_when_it_changes() {
    let steps = std::cell::RefCell::new(vec!["1 of 2", "away", "2 of 2"].into_iter());
    let look = || async {
        match steps.borrow_mut().next().unwrap() {
            "away" => Err(anyhow::anyhow!("nobody answers")),
            told => Ok(Step { is_done: told == "2 of 2", told: told.into() }),
        }
    };
    let mut out = Vec::new();
    let mut screen = Screen { out: &mut out, is_terminal: false, paint: crate::ctl::table::Paint::Plain };
    let is_there = awaited("agents", Instant::now() + Duration::from_secs(60), &mut screen, look).await.unwrap();
    assert!(is_there);
    assert_eq!(String::from_utf8(out).unwrap(), "agents: 1 of 2\nagents: nobody answers\nagents: 2 of 2\n");
}
