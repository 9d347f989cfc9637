//! What a lookup looks at does not grow with what does not match. Counted, not timed.

use std::hint::black_box;
use std::time::Instant;

use super::super::build::{self, Request, exact, get, pattern, prefix, rule};
use super::super::table::Effort;
use super::super::*;

/// A world, what is asked of it, and the rule that has to be found.
struct Case {
    name: &'static str,
    /// The i-th of many matches.
    each: fn(usize) -> Match,
    /// Meets the one in the middle, of so many.
    request: fn(usize) -> Request,
}

const CASES: &[Case] = &[
    Case {
        name: "exact paths",
        each: |i| exact(&format!("/api/{i}")),
        request: |count| get(&format!("/api/{}", count / 2)),
    },
    Case {
        name: "prefixes",
        each: |i| prefix(&format!("/api/{i}")),
        request: |count| get(&format!("/api/{}/x/y", count / 2)),
    },
    Case {
        name: "patterns",
        each: |i| pattern(&format!("/api/{i}/[a-z]+")),
        request: |count| get(&format!("/api/{}/x", count / 2)),
    },
    Case {
        name: "values of a header",
        each: |i| prefix("/").header("x-user", &format!("user-{i}")),
        request: |count| get("/").header("x-user", &format!("user-{}", count / 2)),
    },
    Case {
        name: "hosts",
        each: |i| prefix("/").header("host", &format!("shop-{i}")),
        request: |count| get("/").host(&format!("shop-{}", count / 2)),
    },
    Case {
        name: "names of headers",
        each: |i| prefix("/").header(&format!("x-{i}"), "1"),
        request: |count| get("/").header(&format!("x-{}", count / 2), "1").header("x-none", "1"),
    },
    Case {
        name: "values of a header, and one for all",
        each: |i| {
            prefix("/").header("x-user", &format!("user-{i}")).header("x-version", "v1").method(http::Method::GET)
        },
        request: |count| get("/").header("x-user", &format!("user-{}", count / 2)).header("x-version", "v1"),
    },
    Case {
        name: "values of a parameter",
        each: |i| prefix("/").query("user", &format!("user-{i}")),
        request: |count| get(&format!("/?a=b&user=user-{}", count / 2)),
    },
    Case {
        name: "calls",
        each: |i| {
            grpc::call(Some(grpc::Name::Exact(&format!("shop.S{i}"))), Some(grpc::Name::Exact("Get"))).unwrap().into()
        },
        request: |count| get(&format!("/shop.S{}/Get", count / 2)),
    },
];

/// Routes of 16 rules each, as large as the standard allows.
fn world(case: &Case, count: usize) -> (Vec<Route>, Request) {
    let all: Vec<usize> = (0..count).collect();
    let routes = all.chunks(16).map(|chunk| {
        let rules = chunk.iter().map(|i| rule(&format!("r{i}"), vec![(case.each)(*i)])).collect();
        build::http("default", &format!("r{}", chunk[0]), rules)
    });
    (routes.collect(), (case.request)(count))
}

#[test]
fn a_lookup_does_not_grow_with_what_does_not_match() {
    for case in CASES {
        let mut efforts = Vec::new();
        for count in [16, 1024] {
            let (routes, request) = world(case, count);
            let table = Table::compile(&routes);
            let mut effort = Effort::default();
            let found = table.search(&request.head(), &mut effort).expect(case.name);
            assert_eq!(build::name_of(&found.rule.backends[0]), format!("r{}", count / 2), "{}", case.name);
            efforts.push(effort);
        }
        assert_eq!(efforts[0], efforts[1], "{}", case.name);
        assert!(efforts[1].steps <= 4 && efforts[1].candidates <= 1, "{}: {efforts:?}", case.name);
    }
}

/// `cargo test --release -p mesh-agent --lib -- --ignored --nocapture figures_of_lookups`
#[test]
#[ignore = "prints figures"]
fn figures_of_lookups() {
    let rounds = 100_000;
    println!("{:40} {:>12} {:>12} {:>14}", "", "16 matches", "1024 matches", "compile 1024");
    for case in CASES {
        let mut figures = Vec::new();
        let mut compiled = std::time::Duration::ZERO;
        for count in [16, 1024] {
            let (routes, request) = world(case, count);
            let start = Instant::now();
            let table = Table::compile(&routes);
            compiled = start.elapsed();
            let start = Instant::now();
            for _ in 0..rounds {
                black_box(table.find(black_box(&request.head())));
            }
            figures.push(start.elapsed() / rounds);
        }
        println!("{:40} {:>12?} {:>12?} {:>14?}", case.name, figures[0], figures[1], compiled);
    }
}
