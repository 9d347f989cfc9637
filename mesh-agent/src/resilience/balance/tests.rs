//! The balancer as a whole, with a clock and chance of the test's.

use fastrand::Rng;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use proptest::prelude::*;

use super::*;
use crate::resilience::policy::{Locality, Outlier, Panic, PoolLimits, Settings};
use crate::resilience::request::tests::get;

const PLACES: [Place; 3] = [Place::Node, Place::Zone, Place::Elsewhere];

struct Bench {
    balancer: Balancer,
    policy: Endpoints,
    now: Instant,
    rng: Rng,
}

fn address(number: u8) -> SocketAddr {
    SocketAddr::from(([10, 0, 0, number], 8080))
}

fn candidates(numbers: impl IntoIterator<Item = u8>) -> Vec<Candidate> {
    numbers.into_iter().map(|number| Candidate { address: address(number), place: Place::Node }).collect()
}

impl Bench {
    fn new(policy: Endpoints, count: u8) -> Self {
        let balancer = Balancer::new(&Pools::default(), &"shop/web".into(), 80);
        let mut bench = Self { balancer, policy, now: Instant::now(), rng: Rng::with_seed(7) };
        bench.set(candidates(0..count));
        bench
    }

    fn set(&mut self, candidates: Vec<Candidate>) {
        let settings = Settings { endpoints: self.policy.clone(), ..Settings::default() };
        let traffic = Traffic::of(Some(&Arc::new(settings)), None);
        self.balancer.set(&traffic, &candidates, self.now, &mut self.rng);
    }

    fn pick(&mut self, ask: &Ask<'_>) -> Result<Lease, NoEndpoint> {
        self.balancer.pick(ask, self.now, &mut self.rng)
    }

    fn any(&mut self) -> Lease {
        self.pick(&Ask::default()).unwrap_or_else(|error| panic!("{error:?}"))
    }

    /// Requests to an endpoint until it answered so often.
    fn answer(&mut self, number: u8, outcome: Outcome, times: u32) -> Option<Ejection> {
        let mut ejection = None;
        let mut left = times;
        while left > 0 {
            let lease = self.any();
            if lease.address() == address(number) {
                ejection = lease.answered(&outcome, self.now);
                left -= 1;
            }
        }
        ejection
    }

    /// Of so many picks, how many go to each endpoint.
    fn spread(&mut self, picks: u32, took: Duration) -> HashMap<SocketAddr, u32> {
        let mut counts = HashMap::new();
        for _ in 0..picks {
            let lease = self.any();
            *counts.entry(lease.address()).or_default() += 1;
            self.now += took;
            lease.answered(&Outcome::status(StatusCode::OK), self.now);
        }
        counts
    }
}

fn down() -> Outcome {
    Outcome::status(StatusCode::SERVICE_UNAVAILABLE)
}

fn with(balance: Balance) -> Endpoints {
    Endpoints { balance, ..Endpoints::default() }
}

fn ejecting() -> Endpoints {
    let outlier = Outlier { consecutive_gateway: Some(2), ..Outlier::default() };
    Endpoints { outlier: Some(outlier), ..with(Balance::Random) }
}

#[test]
fn equal_endpoints_get_equal_load() {
    for (balance, slack) in
        [(Balance::PeakEwma, 250), (Balance::LeastRequest, 150), (Balance::Random, 150), (Balance::RoundRobin, 1)]
    {
        let counts = Bench::new(with(balance.clone()), 4).spread(4000, Duration::from_millis(1));
        assert_eq!(counts.len(), 4, "{balance:?}");
        assert!(counts.values().all(|count| count.abs_diff(1000) <= slack), "{balance:?}: {counts:?}");
    }
}

#[test]
fn the_slow_endpoint_gets_less() {
    let mut bench = Bench::new(with(Balance::PeakEwma), 3);
    let mut counts = HashMap::<SocketAddr, u32>::new();
    for _ in 0..2000 {
        let lease = bench.any();
        *counts.entry(lease.address()).or_default() += 1;
        let took = Duration::from_millis(if lease.address() == address(0) { 200 } else { 2 });
        lease.answered(&Outcome::status(StatusCode::OK), bench.now + took);
        bench.now += Duration::from_millis(3);
    }
    assert!(counts.get(&address(0)).copied().unwrap_or_default() < 100, "{counts:?}");
}

#[test]
fn failing_fast_does_not_attract_load() {
    let mut bench = Bench::new(with(Balance::PeakEwma), 2);
    let mut failed = 0;
    for _ in 0..1000 {
        let lease = bench.any();
        let bad = lease.address() == address(0);
        failed += u32::from(bad);
        bench.now += Duration::from_millis(2);
        let outcome =
            if bad { Outcome::status(StatusCode::INTERNAL_SERVER_ERROR) } else { Outcome::status(StatusCode::OK) };
        lease.answered(&outcome, bench.now);
    }
    assert!(failed < 50, "{failed} of 1000 went to the endpoint that fails at once");
}

#[test]
fn requests_under_way_count() {
    let mut bench = Bench::new(with(Balance::LeastRequest), 2);
    let held: Vec<Lease> = (0..10).map(|_| bench.any()).collect();
    let first = held.iter().filter(|lease| lease.address() == address(0)).count();
    assert_eq!(first, 5);
    drop(held);
    assert!(bench.balancer.endpoints().iter().all(|endpoint| endpoint.in_flight() == 0));
}

#[test]
fn an_endpoint_that_asks_for_less_gets_less_and_is_not_ejected() {
    let busy = Outcome::Answered {
        status: StatusCode::TOO_MANY_REQUESTS,
        grpc: None,
        retry_after: Some(Duration::from_secs(20)),
    };
    for balance in [Balance::PeakEwma, Balance::LeastRequest, Balance::RoundRobin, Balance::Random] {
        let mut bench = Bench::new(Endpoints { balance: balance.clone(), ..ejecting() }, 2);
        bench.answer(0, busy, 5);
        assert!(bench.balancer.endpoints().iter().all(|endpoint| !endpoint.is_ejected()), "{balance:?}");
        let during = bench.spread(1000, Duration::from_millis(5));
        let got = during.get(&address(0)).copied().unwrap_or_default();
        assert!(got > 10 && got < 260, "{balance:?}: {got} of 1000");
        bench.now += Duration::from_secs(60);
        let after = bench.spread(1000, Duration::from_millis(5))[&address(0)];
        assert!(after > 300, "{balance:?}: {after} of 1000 when it is over");
    }
}

#[test]
fn a_new_endpoint_starts_slowly() {
    let policy = Endpoints { slow_start: Some(Duration::from_secs(100)), ..with(Balance::Random) };
    let mut bench = Bench::new(policy, 2);
    let early = bench.spread(1000, Duration::ZERO);
    assert!(early.values().all(|count| *count > 400), "the first ones are no newcomers: {early:?}");
    bench.set(candidates(0..3));
    let mut share = |after| {
        bench.now += Duration::from_secs(after);
        bench.spread(3000, Duration::ZERO).get(&address(2)).copied().unwrap_or_default()
    };
    let (first, half, whole) = (share(1), share(49), share(60));
    assert!(first < 200, "{first} of 3000 at first");
    assert!(half > 400 && half < 850, "{half} of 3000 after half the time");
    assert!(whole > 900, "{whole} of 3000 after the time");
}

#[test]
fn ejected_endpoints_rest_and_come_back_on_probation() {
    let mut bench = Bench::new(ejecting(), 4);
    let ejection = bench.answer(0, down(), 2).unwrap();
    assert_eq!((ejection.address, ejection.cause), (address(0), Cause::ConsecutiveGateway));
    assert_eq!(ejection.length, Duration::from_secs(30));
    assert!(!bench.spread(500, Duration::ZERO).contains_key(&address(0)));
    bench.now += Duration::from_secs(31);
    let again = bench.answer(0, down(), 1).unwrap();
    assert_eq!((again.cause, again.length), (Cause::Probation, Duration::from_secs(60)), "one failure on probation");
    bench.now += Duration::from_secs(61);
    assert_eq!(bench.answer(0, Outcome::status(StatusCode::OK), 1), None);
    let healthy = bench.spread(1000, Duration::ZERO)[&address(0)];
    assert!(healthy > 180, "{healthy} of 1000, four endpoints");
}

#[test]
fn only_so_many_are_ejected() {
    let mut bench = Bench::new(ejecting(), 4);
    for number in 0..4 {
        bench.answer(number, down(), if number < 2 { 2 } else { 5 });
    }
    let ejected = bench.balancer.endpoints().iter().filter(|endpoint| endpoint.is_ejected()).count();
    assert_eq!(ejected, 2, "half of four");
}

#[test]
fn panic_ignores_ejections() {
    let all = Outlier { consecutive_gateway: Some(1), share: 100, ..Outlier::default() };
    for (panic, expected) in [(30, Ok(4)), (0, Err(NoEndpoint::AllEjected))] {
        let mut bench =
            Bench::new(Endpoints { outlier: Some(all), panic_percent: Panic(panic), ..with(Balance::RoundRobin) }, 4);
        while bench.balancer.endpoints().iter().any(|endpoint| !endpoint.is_ejected()) {
            bench.any().answered(&down(), bench.now);
        }
        let reached = bench.pick(&Ask::default()).map(|_| ());
        let reached = reached.map(|()| bench.spread(400, Duration::ZERO).len());
        assert_eq!(reached, expected, "threshold {panic} %");
    }
}

#[test]
fn without_outlier_detection_nobody_stays_ejected() {
    let mut bench = Bench::new(ejecting(), 4);
    bench.answer(0, down(), 2).unwrap();
    bench.policy.outlier = None;
    bench.set(candidates(0..4));
    assert!(bench.spread(400, Duration::ZERO).contains_key(&address(0)));
}

#[test]
fn a_laggard_is_ejected_by_its_success_rate() {
    let outlier = Outlier { consecutive_gateway: None, success_rate: Some(Default::default()), ..Outlier::default() };
    let mut bench = Bench::new(Endpoints { outlier: Some(outlier), ..with(Balance::RoundRobin) }, 6);
    let mut of_the_bad_one = 0;
    for _ in 0..6 * 120 {
        let lease = bench.any();
        let bad = lease.address() == address(3);
        of_the_bad_one += u32::from(bad);
        let fails = bad && of_the_bad_one % 2 == 0;
        let status = if fails { StatusCode::INTERNAL_SERVER_ERROR } else { StatusCode::OK };
        lease.answered(&Outcome::status(status), bench.now);
        bench.now += Duration::from_millis(10);
    }
    bench.now += Duration::from_secs(10);
    bench.any();
    let ejected: Vec<SocketAddr> =
        bench.balancer.endpoints().iter().filter(|e| e.is_ejected()).map(|e| e.address()).collect();
    assert_eq!(ejected, [address(3)]);
}

#[test]
fn what_is_known_stays_with_the_address() {
    let mut bench = Bench::new(ejecting(), 3);
    bench.answer(0, down(), 2).unwrap();
    let held = bench.any();
    bench.set(candidates([2, 0, 5, 1]));
    let endpoints = bench.balancer.endpoints();
    let of = |number| endpoints.iter().find(|endpoint| endpoint.address() == address(number)).unwrap();
    assert!(of(0).is_ejected() && !of(5).is_ejected());
    assert_eq!(endpoints.iter().map(|endpoint| endpoint.in_flight()).sum::<u32>(), 1);
    bench.set(Vec::new());
    held.answered(&down(), bench.now);
    drop(held);
    assert_eq!(
        bench.pick(&Ask::default()).err(),
        Some(NoEndpoint::None),
        "an answer from one that is gone is harmless"
    );
}

#[test]
fn a_retry_goes_elsewhere_if_there_is_an_elsewhere() {
    for balance in [Balance::PeakEwma, Balance::RoundRobin, Balance::ConsistentHash(HashKey::SourceIp)] {
        let mut bench = Bench::new(with(balance.clone()), 3);
        for _ in 0..100 {
            let tried = [address(0), address(2)];
            let ask = Ask { key: Some(5), session: None, tried: &tried };
            assert_eq!(bench.pick(&ask).ok().unwrap().address(), address(1), "{balance:?}");
            let tried: Vec<SocketAddr> = (0..3).map(address).collect();
            assert!(bench.pick(&Ask { tried: &tried, ..ask }).is_ok(), "{balance:?}: better the same than none");
        }
    }
}

#[test]
fn limits_of_an_endpoint_send_requests_to_others_and_then_back() {
    let one_each = PoolLimits { requests: Some(1), ..PoolLimits::default() };
    for balance in [Balance::PeakEwma, Balance::Random, Balance::ConsistentHash(HashKey::SourceIp)] {
        let mut bench = Bench::new(Endpoints { of_endpoint: one_each, ..with(balance.clone()) }, 3);
        let ask = Ask { key: Some(1), ..Ask::default() };
        let held: Vec<Lease> = (0..3).map(|_| bench.pick(&ask).ok().unwrap()).collect();
        let distinct: std::collections::BTreeSet<_> = held.iter().map(Lease::address).collect();
        assert_eq!(distinct.len(), 3, "{balance:?}");
        assert_eq!(bench.pick(&ask).err(), Some(NoEndpoint::Overflow(Counted::Requests)));
        drop(held);
        assert!(bench.pick(&ask).is_ok());
    }
    let of_service = PoolLimits { requests: Some(2), ..PoolLimits::default() };
    let mut bench = Bench::new(Endpoints { of_service, ..Endpoints::default() }, 3);
    let _held = [bench.any(), bench.any()];
    assert_eq!(bench.pick(&Ask::default()).err(), Some(NoEndpoint::Overflow(Counted::Requests)));
}

#[test]
fn a_session_comes_to_its_endpoint_unless_that_is_ejected() {
    let mut bench = Bench::new(ejecting(), 4);
    let session = read_session_token(&session_token(&address(0)));
    let ask = Ask { session, ..Ask::default() };
    for _ in 0..50 {
        assert_eq!(bench.pick(&ask).ok().unwrap().address(), address(0));
    }
    bench.answer(0, down(), 2).unwrap();
    assert_ne!(bench.pick(&ask).ok().unwrap().address(), address(0));
    for foreign in ["", "zz", "10.0.0.1:80", "00000000000000000", "+000000000000001"] {
        assert_eq!(read_session_token(foreign), None, "{foreign}");
    }
    let unknown = Ask { session: Some(1), ..Ask::default() };
    assert!(bench.pick(&unknown).is_ok());
}

#[test]
fn a_hash_leads_a_key_to_one_endpoint_and_a_request_without_it_anywhere() {
    let policy = with(Balance::ConsistentHash(HashKey::Header(HeaderName::from_static("x-user"))));
    let mut bench = Bench::new(policy.clone(), 5);
    let mut users = HashMap::new();
    for round in 0..300 {
        let user = HeaderValue::from_str(&format!("u{}", round % 100)).unwrap();
        let headers = HeaderMap::from_iter([(HeaderName::from_static("x-user"), user.clone())]);
        let key = key_of(&policy, &get("/", &headers));
        assert!(key.is_some());
        let address = bench.pick(&Ask { key, ..Ask::default() }).ok().unwrap().address();
        assert_eq!(*users.entry(user).or_insert(address), address);
    }
    assert_eq!(users.values().collect::<std::collections::BTreeSet<_>>().len(), 5);
    assert_eq!(key_of(&policy, &get("/", &HeaderMap::new())), None);
    assert_eq!(bench.spread(500, Duration::ZERO).len(), 5);
}

#[test]
fn near_endpoints_first() {
    let policy = Endpoints { locality: Locality::Failover, ..ejecting() };
    let mut bench = Bench::new(policy, 0);
    let at = |number: u8| Candidate { address: address(number), place: PLACES[usize::from(number) / 2] };
    bench.set((0..6).map(at).collect());
    let near = bench.spread(300, Duration::ZERO);
    assert!(near.keys().all(|endpoint| [address(0), address(1)].contains(endpoint)), "{near:?}");
    bench.answer(0, down(), 2).unwrap();
    let spilled = bench.spread(1000, Duration::ZERO);
    let zone: u32 = [2, 3].iter().filter_map(|number| spilled.get(&address(*number))).sum();
    assert!(zone > 200 && zone < 420, "half of this node's endpoints: about 306 of 1000 go on: {spilled:?}");
}

proptest! {
    /// Whatever was answered by whom and when: an ejected endpoint is never chosen while enough others are in use, and
    /// while the Service has endpoints there is a choice.
    #[test]
    fn an_ejected_endpoint_rests(
        count in 1_u8..12,
        share in 0_u32..=100,
        panic in 1_u32..=100,
        balance in prop::sample::select(vec![
            Balance::PeakEwma,
            Balance::LeastRequest,
            Balance::RoundRobin,
            Balance::Random,
            Balance::ConsistentHash(HashKey::SourceIp),
        ]),
        near in any::<bool>(),
        steps in prop::collection::vec((any::<u8>(), 0_u8..5, 0_u64..20, any::<u64>()), 1..300),
    ) {
        let outlier = Outlier {
            consecutive_gateway: Some(1),
            consecutive_5xx: Some(2),
            success_rate: Some(Default::default()),
            share,
            ..Outlier::default()
        };
        let locality = if near { Locality::Failover } else { Locality::Ignore };
        let policy = Endpoints { balance, locality, outlier: Some(outlier), panic_percent: Panic(panic), ..Default::default() };
        let mut bench = Bench::new(policy, 0);
        let all: Vec<Candidate> = (0..count)
            .map(|number| Candidate { address: address(number), place: PLACES[usize::from(number) % 3] })
            .collect();
        bench.set(all);
        for (number, kind, seconds, key) in steps {
            bench.now += Duration::from_secs(seconds);
            let session = Some(session_of(&address(number))).filter(|_| kind == 4);
            let tried = [address(number)];
            let lease = bench.pick(&Ask { key: Some(key), session, tried: &tried[..usize::from(kind % 2)] });
            let lease = lease.map_err(|error| TestCaseError::fail(format!("{error:?}")))?;
            let endpoints = bench.balancer.endpoints();
            let ejected = endpoints.iter().filter(|endpoint| endpoint.is_ejected()).count();
            let in_use = endpoints.len() - ejected;
            let chosen = endpoints.iter().find(|endpoint| endpoint.address() == lease.address()).unwrap();
            let panicking = in_use * 100 < endpoints.len() * panic as usize;
            prop_assert!(panicking || !chosen.is_ejected());
            prop_assert!(ejected <= (endpoints.len() * share as usize / 100).max(1));
            let status = [200_u16, 503, 500, 200, 429][usize::from(kind)];
            lease.answered(&Outcome::status(StatusCode::from_u16(status).unwrap()), bench.now);
        }
        prop_assert!(bench.balancer.endpoints().iter().all(|endpoint| endpoint.in_flight() == 0));
    }
}
