//! HTTP/1.1 connections on which nothing is asked for longer than their parser is kept: whoever is on them notices nothing.

use std::time::Duration;

use http::{Response, Version};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::requests::{app, mirror, pair, text, until};
use super::support::*;
use super::{Pair, guard, vip};

/// Longer than a parser is kept (2 s), twice.
const LONG: Duration = Duration::from_millis(4500);

/// A large answer, more than all buffers on the way take.
const LARGE: usize = 32 << 20;

enum Step {
    Say(&'static str),
    Rest,
    Hear(&'static str),
    /// Reads the large answer.
    HearLarge,
    /// The other end closes.
    HearEnd,
    /// Half-closes.
    End,
}

use Step::{End, Hear, HearEnd, HearLarge, Rest, Say};

const GET: Step = Say("GET /get HTTP/1.1\r\nHost: w\r\n\r\n");
const GOT: Step = Hear("\nbody: ");

const STORIES: &[(&str, &[Step])] = &[
    ("goes on, time and again", &[GET, GOT, Rest, GET, GOT, Rest, GET, GOT]),
    ("two at once after a rest", &[GET, GOT, Rest, GET, GET, GOT, GOT]),
    (
        "a head in pieces, with a rest between",
        &[GET, GOT, Say("GET /pieces HTTP/1.1\r\nHo"), Rest, Say("st: w\r\n\r\n"), Hear("GET /pieces")],
    ),
    ("an empty line before a rest", &[GET, GOT, Say("\r\n"), Rest, GET, GOT]),
    (
        "a body in pieces, with a rest between",
        &[
            GET,
            GOT,
            Say("POST /b HTTP/1.1\r\nHost: w\r\nContent-Length: 8\r\n\r\nfour"),
            Rest,
            Say("more"),
            Hear("body: fourmore"),
        ],
    ),
    (
        "a chunked body, the same",
        &[
            GET,
            GOT,
            Say("POST /b HTTP/1.1\r\nHost: w\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nfo"),
            Rest,
            Say("ur\r\n0\r\n\r\n"),
            Hear("body: four"),
            Rest,
            GET,
            GOT,
        ],
    ),
    (
        "an answer that nobody reads for long",
        &[Say("GET /large HTTP/1.1\r\nHost: w\r\n\r\n"), Rest, HearLarge, Rest, GET, GOT],
    ),
    (
        "an answer that is long in coming",
        &[Say("GET /slow HTTP/1.1\r\nHost: w\r\n\r\n"), Rest, Hear("slow"), Rest, GET, GOT],
    ),
    ("ends while it rests", &[GET, GOT, Rest, End, HearEnd]),
    ("what is no request, after a rest", &[GET, GOT, Rest, Say("\0\r\n\r\n"), Hear("HTTP/1.1 400"), HearEnd]),
    (
        "asks for the last time after a rest",
        &[GET, GOT, Rest, Say("GET / HTTP/1.1\r\nHost: w\r\nConnection: close\r\n\r\n"), GOT, HearEnd],
    ),
    (
        "another protocol after a rest",
        &[
            GET,
            GOT,
            Rest,
            Say("GET /ws HTTP/1.1\r\nHost: w\r\nConnection: Upgrade\r\nUpgrade: chat\r\n\r\n"),
            Hear("101"),
            Hear("welcome"),
            Rest,
            Say("hello"),
            Hear("HELLO"),
        ],
    ),
];

/// A client's end, and what it has heard and was not asked about yet.
struct Ear {
    tcp: TcpStream,
    heard: Vec<u8>,
}

impl Ear {
    /// Takes what was heard up to a text and with it.
    async fn hear(&mut self, awaited: &str) {
        let find = |heard: &[u8]| heard.windows(awaited.len()).position(|part| part == awaited.as_bytes());
        let at = loop {
            if let Some(at) = find(&self.heard) {
                break at;
            }
            let read = tokio::time::timeout(PATIENCE, self.tcp.read_buf(&mut self.heard)).await;
            let is_more = matches!(read, Ok(Ok(read)) if read > 0);
            assert!(is_more, "{awaited:?}: {read:?} after {:?}", String::from_utf8_lossy(&self.heard));
        };
        self.heard.drain(..at + awaited.len());
    }

    async fn hear_exactly(&mut self, length: usize) -> Vec<u8> {
        while self.heard.len() < length {
            assert!(self.tcp.read_buf(&mut self.heard).await.unwrap() > 0, "closed after {}", self.heard.len());
        }
        self.heard.drain(..length).collect()
    }
}

async fn tell(tcp: TcpStream, steps: &[Step]) {
    let mut ear = Ear { tcp, heard: Vec::new() };
    for step in steps {
        match step {
            Say(said) => ear.tcp.write_all(said.as_bytes()).await.unwrap(),
            Rest => tokio::time::sleep(LONG).await,
            Hear(awaited) => ear.hear(awaited).await,
            HearLarge => {
                ear.hear("begins").await;
                assert!(ear.hear_exactly(LARGE).await.iter().all(|byte| *byte == b'.'), "as it was sent");
            }
            HearEnd => {
                let ended = tokio::time::timeout(PATIENCE, ear.tcp.read_to_end(&mut ear.heard)).await;
                ended.expect("the connection is closed").expect("in order");
            }
            End => ear.tcp.shutdown().await.unwrap(),
        }
    }
}

fn answering(pair: &Pair) {
    app((pair.server.ip, 8080), Version::HTTP_11, |mut request| {
        Box::pin(async move {
            match request.uri().path() {
                "/large" => Response::new(text([b"begins".as_slice(), &[b'.'; LARGE]].concat())),
                "/slow" => {
                    tokio::time::sleep(LONG).await;
                    Response::new(text("slow"))
                }
                "/ws" => {
                    let upgraded = hyper::upgrade::on(&mut request);
                    tokio::spawn(async move {
                        let mut io = hyper_util::rt::TokioIo::new(upgraded.await.unwrap());
                        io.write_all(b"welcome").await.unwrap();
                        let mut said = [0; 5];
                        io.read_exact(&mut said).await.unwrap();
                        io.write_all(&said.to_ascii_uppercase()).await.unwrap();
                    });
                    let switches =
                        Response::builder().status(101).header("connection", "upgrade").header("upgrade", "chat");
                    switches.body(super::requests::nothing()).unwrap()
                }
                _ => mirror(request).await,
            }
        })
    });
}

/// All stories side by side, each on a connection of its own.
async fn tell_all(pair: &Pair) {
    let stories = STORIES.iter().map(async |(name, steps)| {
        let tcp = pair.client.connect(vip()).await.unwrap();
        tell(tcp, steps).await;
        println!("well: {name}");
    });
    futures_util::future::join_all(stories).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_rested_goes_on_as_if_it_had_not() {
    let pair = pair("http").await;
    answering(&pair);
    tell_all(&pair).await;
}

/// The same on the application's node, where the connection is one within a tunnel.
#[tokio::test(flavor = "multi_thread")]
async fn a_judged_connection_that_rested_goes_on_as_if_it_had_not() {
    let pair = Pair::start().await;
    pair.mesh.apply(
        "policy.yaml",
        &guard(
            "guard",
            "DENY",
            "{sources: [{type: ServiceAccount, serviceAccount: {name: client}}], requests: [{paths: ['/never']}]}",
        ),
    );
    answering(&pair);
    tell_all(&pair).await;
}

/// A connection that has asked once, and rests.
async fn resting(pair: &Pair) -> TcpStream {
    let mut tcp = pair.client.connect(vip()).await.unwrap();
    tcp.write_all(b"GET / HTTP/1.1\r\nHost: w\r\n\r\n").await.unwrap();
    until(&mut tcp, "\nbody: ").await;
    tokio::time::sleep(LONG).await;
    tcp
}

#[tokio::test(flavor = "multi_thread")]
async fn who_rests_is_let_go_when_the_agent_leaves() {
    let pair = pair("http").await;
    answering(&pair);
    let mut tcp = resting(&pair).await;
    pair.mesh.nodes[0].leaving.start();
    assert_eq!(tokio::time::timeout(PATIENCE, tcp.read(&mut [0])).await.unwrap().unwrap(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_rests_is_cut_when_its_pod_leaves() {
    let pair = pair("http").await;
    answering(&pair);
    let _tcp = resting(&pair).await;
    pair.mesh.unenrol(&pair.client).await;
    for node in &pair.mesh.nodes {
        node.until_live("nothing is left", <[_]>::is_empty).await;
    }
}
