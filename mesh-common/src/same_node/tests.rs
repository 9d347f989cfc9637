extern crate std;

use core::net::IpAddr;
use std::collections::{HashMap, HashSet};
use std::vec::Vec;

use super::*;

const CLIENT: u64 = 7;
const SERVER: u64 = 9;
const OTHER: u64 = 11;
const LINK: u32 = 4;
const NOW: u64 = 1_000;

fn ip(text: &str) -> Ip {
    text.parse::<IpAddr>().expect("an address").into()
}

fn at(address: &str, port: u16) -> Endpoint {
    Endpoint::new(ip(address), port)
}

fn pod(v4: &str, gate: Gate) -> PodConfig {
    PodConfig::new(PodAddresses::new(ip(v4), Ip::UNSPECIFIED), gate)
}

/// The maps as a model.
#[derive(Clone)]
struct Maps {
    paths: HashMap<PathKey, Path>,
    lease: u64,
    interfaces: HashSet<u32>,
    pods: HashMap<u64, PodConfig>,
    live: HashMap<u64, i64>,
    room: HashMap<u64, i64>,
}

impl Published for Maps {
    fn path(&self, key: &PathKey) -> Option<Path> {
        self.paths.get(key).copied()
    }

    fn lease(&self) -> u64 {
        self.lease
    }

    fn has_interface(&self, index: u32) -> bool {
        self.interfaces.contains(&index)
    }

    fn pod(&self, netns: u64) -> Option<PodConfig> {
        self.pods.get(&netns).copied()
    }

    fn live(&self, netns: u64) -> Option<i64> {
        self.live.get(&netns).copied()
    }

    fn room(&self, netns: u64) -> Option<i64> {
        self.room.get(&netns).copied()
    }
}

fn vip() -> Endpoint {
    at("10.96.0.7", 80)
}

fn endpoint() -> Endpoint {
    at("10.0.0.3", 8080)
}

fn maps() -> Maps {
    Maps {
        paths: [(PathKey::new(CLIENT, vip(), 0), Path::new(endpoint(), SERVER, LINK, 1))].into(),
        lease: NOW + 1,
        interfaces: [LINK].into(),
        pods: [(CLIENT, pod("10.0.0.2", Gate::Open)), (SERVER, pod("10.0.0.3", Gate::Open))].into(),
        live: [(NODE, 5), (CLIENT, 2), (SERVER, 3), (OTHER, 0)].into(),
        room: [(NODE, 6), (CLIENT, 3), (SERVER, 4), (OTHER, 1)].into(),
    }
}

fn tuple() -> FourTuple {
    FourTuple::new(at("10.0.0.2", 40_000), endpoint())
}

fn chosen() -> StraightSocket {
    choose(&maps(), CLIENT, vip(), NOW, 0).expect("a path")
}

fn record() -> StraightRecord {
    StraightRecord::new(chosen(), 5, NOW, Standing::Good)
}

/// What ends a path, one by one.
fn endings() -> Vec<(&'static str, Maps)> {
    let mut all = Vec::new();
    let mut add = |name, change: fn(&mut Maps)| {
        let mut maps = maps();
        change(&mut maps);
        all.push((name, maps));
    };
    add("removed", |maps| maps.paths.clear());
    add("the lease is over", |maps| maps.lease = NOW);
    add("no lease", |maps| maps.lease = 0);
    add("its interface went", |maps| maps.interfaces.clear());
    all
}

#[test]
fn a_path_holds_until_one_thing_ends_it() {
    assert_eq!(chosen().endpoint(), endpoint());
    assert_eq!(file(&maps(), &chosen(), &tuple(), NOW), Some(Standing::Good));
    for (name, maps) in endings() {
        assert_eq!(choose(&maps, CLIENT, vip(), NOW, 0), Err(Not::NoPath), "{name}");
        // Between connect() and the SYN.
        assert_eq!(file(&maps, &chosen(), &tuple(), NOW), Some(Standing::Refused), "{name}");
    }
}

#[test]
fn a_path_is_one_pods_to_one_destination() {
    let table = [
        (CLIENT, vip(), true),
        (OTHER, vip(), false),
        (CLIENT, at("10.96.0.7", 81), false),
        (CLIENT, at("10.96.0.8", 80), false),
        // The endpoint itself is another destination.
        (CLIENT, endpoint(), false),
    ];
    for (netns, dialled, expected) in table {
        assert_eq!(choose(&maps(), netns, dialled, NOW, 0).is_ok(), expected, "{netns} {dialled:?}");
    }
}

#[test]
fn several_endpoints_are_met_by_chance_and_a_gap_is_the_agents() {
    let mut maps = maps();
    let other = at("10.0.0.4", 8080);
    maps.paths.insert(PathKey::new(CLIENT, vip(), 0), Path::new(endpoint(), SERVER, LINK, 3));
    maps.paths.insert(PathKey::new(CLIENT, vip(), 2), Path::new(other, OTHER, LINK, 3));
    let by_chance = |chance| choose(&maps, CLIENT, vip(), NOW, chance).ok().map(|socket| socket.endpoint());
    assert_eq!([0, 1, 2, 3, 4, 5].map(by_chance), [Some(endpoint()), None, Some(other)].repeat(2)[..]);
}

/// The agent carries what is more than the caller, the other pod or the node may have; also where nobody counts.
#[test]
fn who_has_as_many_as_may_be_goes_by_the_agent() {
    type Change = fn(&mut Maps);
    let table: [(&str, Change, bool); 10] = [
        ("room for one", |_| (), true),
        ("the caller has all", |maps| _ = maps.live.insert(CLIENT, 3), false),
        ("the other pod has all", |maps| _ = maps.live.insert(SERVER, 4), false),
        ("the node has all", |maps| _ = maps.live.insert(NODE, 6), false),
        ("more than may be", |maps| _ = maps.live.insert(CLIENT, i64::MAX), false),
        ("filed by who did not count", |maps| _ = maps.live.insert(CLIENT, -4), true),
        ("a pod that has nothing to do with it has all", |maps| _ = maps.live.insert(OTHER, 1), true),
        ("not counted", |maps| _ = maps.live.remove(&SERVER), false),
        ("no room was given", |maps| _ = maps.room.remove(&CLIENT), false),
        ("nothing may go", |maps| maps.room.clear(), false),
    ];
    for (name, change, goes) in table {
        let mut maps = maps();
        change(&mut maps);
        let expected = if goes { Ok(chosen()) } else { Err(Not::NoRoom) };
        assert_eq!(choose(&maps, CLIENT, vip(), NOW, 0), expected, "{name}");
        // What is open, or about to be, stays.
        assert_eq!(file(&maps, &chosen(), &tuple(), NOW), Some(Standing::Good), "{name}");
    }
}

/// A path that was published anew, to another pod, is not the one that connect() took.
#[test]
fn a_socket_keeps_to_the_pod_that_it_chose() {
    for path in [Path::new(endpoint(), OTHER, LINK, 1), Path::new(at("10.0.0.4", 8080), SERVER, LINK, 1)] {
        let mut maps = maps();
        maps.paths.insert(PathKey::new(CLIENT, vip(), 0), path);
        assert_eq!(file(&maps, &chosen(), &tuple(), NOW), Some(Standing::Refused), "{path:?}");
    }
}

#[test]
fn only_what_connect_chose_from_the_pods_own_address_is_filed() {
    let table = [
        (at("10.0.0.2", 40_000), endpoint(), Some(Standing::Good)),
        (at("10.9.9.9", 40_000), endpoint(), Some(Standing::Refused)),
        // The socket went elsewhere after all: captured, or to loopback.
        (at("10.0.0.2", 40_000), at("127.128.0.1", 8080), None),
        (at("10.0.0.2", 40_000), at("10.0.0.3", 8081), None),
    ];
    for (source, destination, expected) in table {
        assert_eq!(file(&maps(), &chosen(), &FourTuple::new(source, destination), NOW), expected, "{destination:?}");
    }
    let mut left = maps();
    left.pods.remove(&CLIENT);
    assert_eq!(file(&left, &chosen(), &tuple(), NOW), Some(Standing::Refused));
}

#[test]
fn the_callers_link() {
    let client = *pod("10.0.0.2", Gate::Open).addresses();
    let stranger = *pod("10.0.0.9", Gate::Open).addresses();
    let mut gone = maps();
    gone.interfaces.clear();
    let table = [
        ("its own", maps(), record(), client, true),
        ("forged on another link", maps(), record(), stranger, false),
        ("refused", maps(), record().refused(), client, false),
        ("the other pod's link went", gone, record(), client, false),
    ];
    for (name, maps, record, pod, expected) in table {
        assert_eq!(may_leave(&maps, &record, &pod, &ip("10.0.0.2")), expected, "{name}");
    }
}

#[test]
fn the_other_pod() {
    let with = |netns, config: Option<PodConfig>| {
        let mut maps = maps();
        maps.pods.remove(&SERVER);
        maps.pods.extend(config.map(|config| (netns, config)));
        maps
    };
    let table = [
        ("there", maps(), record(), true),
        ("refused", maps(), record().refused(), false),
        ("left", with(SERVER, None), record(), false),
        ("not ready", with(SERVER, Some(pod("10.0.0.3", Gate::Closed))), record(), false),
        ("its address is another pod's", with(OTHER, Some(pod("10.0.0.3", Gate::Open))), record(), false),
        ("it has another address", with(SERVER, Some(pod("10.0.0.4", Gate::Open))), record(), false),
    ];
    for (name, maps, record, expected) in table {
        assert_eq!(may_arrive(&maps, &record, &ip("10.0.0.3")), expected, "{name}");
    }
}

#[test]
fn the_agent_decides() {
    let good = Facts {
        is_near: true,
        is_held: true,
        is_its_address: true,
        port: 8080,
        is_read: false,
        is_regulated: false,
        has_affinity: false,
        policy: Said::Allowed,
        is_audited: false,
    };
    let table = [
        (good, Ok(())),
        (Facts { is_near: false, ..good }, Err(Carried::NotNear)),
        (Facts { is_held: false, ..good }, Err(Carried::NotHeld)),
        (Facts { is_its_address: false, ..good }, Err(Carried::OtherAddress)),
        (Facts { port: TUNNEL_PORT, ..good }, Err(Carried::TunnelPort)),
        (Facts { port: 0, ..good }, Err(Carried::TunnelPort)),
        (Facts { is_read: true, ..good }, Err(Carried::Read)),
        (Facts { is_regulated: true, ..good }, Err(Carried::Regulated)),
        (Facts { has_affinity: true, ..good }, Err(Carried::Affinity)),
        (Facts { policy: Said::Denied, ..good }, Err(Carried::Policy)),
        (Facts { policy: Said::Depends, ..good }, Err(Carried::Policy)),
        (Facts { is_audited: true, ..good }, Err(Carried::Audited)),
    ];
    for (facts, expected) in table {
        assert_eq!(decide(&facts), expected, "{facts:?}");
    }
}

/// The agent takes paths away and then looks through the records; a pod connects meanwhile, in every order of the steps.
/// No connection is left that is good and was not found.
#[test]
fn a_path_that_is_taken_away_leaves_no_connection_behind() {
    // The caller's: connect(), the record, the second look, which refuses. The agent's: away, the walk.
    for order in interleavings(3, 2) {
        let (mut maps, mut filed, mut found) = (maps(), None::<StraightRecord>, false);
        let mut socket = None;
        let (mut caller, mut agent) = (0, 0);
        for is_callers in order.iter().copied() {
            if is_callers {
                match caller {
                    0 => socket = choose(&maps, CLIENT, vip(), NOW, 0).ok(),
                    1 => filed = socket.map(|socket| StraightRecord::new(socket, 5, NOW, Standing::Good)),
                    _ => {
                        if let Some(socket) = socket
                            && file(&maps, &socket, &tuple(), NOW) != Some(Standing::Good)
                        {
                            filed = filed.map(StraightRecord::refused);
                        }
                    }
                }
                caller += 1;
            } else {
                match agent {
                    0 => maps.paths.clear(),
                    _ => found = filed.is_some(),
                }
                agent += 1;
            }
        }
        assert!(found || filed.is_none_or(|record| !record.is_good()), "{order:?}");
    }
}

/// Every order of `a` steps of the one and `b` of the other.
fn interleavings(a: usize, b: usize) -> Vec<Vec<bool>> {
    if a == 0 && b == 0 {
        return std::vec![Vec::new()];
    }
    let mut all = Vec::new();
    for (first, a, b) in [(true, a.checked_sub(1), Some(b)), (false, Some(a), b.checked_sub(1))] {
        if let (Some(a), Some(b)) = (a, b) {
            for mut rest in interleavings(a, b) {
                rest.insert(0, first);
                all.push(rest);
            }
        }
    }
    all
}

/// As a socket that sent "hello\n" and received 17 bytes was seen to count.
#[test]
fn bytes_are_the_applications() {
    let table = [
        ("both ended", (8, 18), 5, (6, 17), true),
        ("the other end first", (8, 18), 9, (6, 17), true),
        ("at once", (8, 18), 11, (6, 17), true),
        ("the other end, and a reset", (7, 18), 8, (6, 17), true),
        ("cut while it was open", (7, 17), 1, (6, 17), true),
        ("never answered", (0, 0), 2, (0, 0), false),
    ];
    for (name, counted, state, bytes, was_open) in table {
        let end = StraightEnd::new(tuple(), record(), NOW, counted, state).measured(8 * 250, 3);
        assert_eq!(end.network(), (250, 3), "{name}");
        assert_eq!((end.bytes(), end.was_open()), (bytes, was_open), "{name}");
    }
}

#[test]
fn layouts_have_no_padding() {
    assert_eq!(size_of::<PathKey>(), 8 + 20 + 4);
    assert_eq!(size_of::<Path>(), 8 + 20 + 4 + 4 + 4);
    assert_eq!(size_of::<StraightSocket>(), 32 + 40);
    assert_eq!(size_of::<StraightRecord>(), 72 + 8 + 8 + 4 + 4);
    assert_eq!(size_of::<StraightEnd>(), 36 + 4 + 96 + 8 * 4 + 4 * 2);
}
