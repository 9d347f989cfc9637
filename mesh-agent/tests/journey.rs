//! Ring 2: the life of tunnelled connections, from one application to the other and back.

#[path = "support/frames.rs"]
mod frames;
mod support;

use std::collections::HashMap;
use std::io::ErrorKind;
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, StatusCode};
use mesh_agent::hbone::{Limits, OpenError, ServeError, Status, StreamError};
use mesh_agent::proxy::copy;
use socket2::SockRef;
use support::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};

#[test]
fn echoes_and_closes() {
    local(async {
        let (client, _server) = pair().await;
        let mut near = client.dial(app(echo).await).await;
        near.write_all(b"hello").await.unwrap();
        let mut buffer = [0; 5];
        near.read_exact(&mut buffer).await.unwrap();
        assert_eq!(&buffer, b"hello");
        near.shutdown().await.unwrap();
        assert_eq!(near.read(&mut buffer).await.unwrap(), 0);
    });
}

#[test]
fn the_server_may_speak_first() {
    local(async {
        let (client, _server) = pair().await;
        let app = app(async |mut tcp: TcpStream| tcp.write_all(b"220 ready").await.unwrap()).await;
        let mut near = client.dial(app).await;
        let mut all = Vec::new();
        near.read_to_end(&mut all).await.unwrap();
        assert_eq!(all, b"220 ready");
    });
}

#[test]
fn a_hundred_mebibytes_both_ways_arrive_as_sent() {
    const TOTAL: usize = 100 << 20;
    local(async {
        let (client, _server) = pair().await;
        let near = client.dial(app(echo).await).await;
        let (mut read, mut write) = near.into_split();
        let sender = tokio::task::spawn_local(async move {
            let (mut sent, mut sum, mut generator) = (0, Checksum::default(), Generator(7));
            let mut chunk = vec![0; 100_000];
            while sent < TOTAL {
                let length = chunk.len().min(TOTAL - sent);
                generator.fill(&mut chunk[..length]);
                sum.add(&chunk[..length]);
                write.write_all(&chunk[..length]).await.unwrap();
                sent += length;
            }
            write.shutdown().await.unwrap();
            sum
        });
        let (mut received, mut sum, mut chunk) = (0, Checksum::default(), vec![0; 65_537]);
        loop {
            let length = read.read(&mut chunk).await.unwrap();
            if length == 0 {
                break;
            }
            sum.add(&chunk[..length]);
            received += length;
        }
        assert_eq!(received, TOTAL);
        assert_eq!(sum, sender.await.unwrap());
    });
}

#[test]
fn either_side_may_close_its_half_first() {
    local(async {
        let (client, _server) = pair().await;
        // Answers only after the client has said all.
        let answers_late = app(async |mut tcp: TcpStream| {
            let mut all = Vec::new();
            tcp.read_to_end(&mut all).await.unwrap();
            tcp.write_all(&all).await.unwrap();
        })
        .await;
        let mut near = client.dial(answers_late).await;
        near.write_all(b"question").await.unwrap();
        near.shutdown().await.unwrap();
        let mut answer = Vec::new();
        near.read_to_end(&mut answer).await.unwrap();
        assert_eq!(answer, b"question");

        // Closes its half at once, and goes on listening.
        let (heard, mut hears) = tokio::sync::mpsc::unbounded_channel();
        let closes_early = app(move |mut tcp: TcpStream| {
            let heard = heard.clone();
            async move {
                tcp.shutdown().await.unwrap();
                let mut all = Vec::new();
                tcp.read_to_end(&mut all).await.unwrap();
                heard.send(all).unwrap();
            }
        })
        .await;
        let mut near = client.dial(closes_early).await;
        assert_eq!(near.read(&mut [0; 8]).await.unwrap(), 0);
        near.write_all(b"still here").await.unwrap();
        drop(near);
        assert_eq!(hears.recv().await.unwrap(), b"still here");
    });
}

#[test]
fn a_reset_is_passed_on_in_both_directions() {
    local(async {
        let (client, _server) = pair().await;
        // The application resets: the client sees a reset, not an end.
        let resets = app(async |mut tcp: TcpStream| {
            tcp.read_exact(&mut [0; 1]).await.unwrap();
            SockRef::from(&tcp).set_linger(Some(Duration::ZERO)).unwrap();
        })
        .await;
        let mut near = client.dial(resets).await;
        near.write_all(b"x").await.unwrap();
        assert_eq!(near.read(&mut [0; 8]).await.unwrap_err().kind(), ErrorKind::ConnectionReset);

        // The client resets: the application sees a reset, not an end.
        let (saw, mut sees) = tokio::sync::mpsc::unbounded_channel();
        let waits = app(move |mut tcp: TcpStream| {
            let saw = saw.clone();
            async move {
                tcp.read_exact(&mut [0; 1]).await.unwrap();
                saw.send(None).unwrap();
                saw.send(Some(tcp.read(&mut [0; 8]).await.unwrap_err().kind())).unwrap();
            }
        })
        .await;
        let mut near = client.dial(waits).await;
        near.write_all(b"x").await.unwrap();
        assert_eq!(sees.recv().await.unwrap(), None);
        SockRef::from(&near).set_linger(Some(Duration::ZERO)).unwrap();
        drop(near);
        assert_eq!(sees.recv().await.unwrap(), Some(ErrorKind::ConnectionReset));
    });
}

#[test]
fn a_cut_connection_is_reset_at_both_ends() {
    local(async {
        let (client, _server) = pair().await;
        let (saw, mut sees) = tokio::sync::mpsc::unbounded_channel();
        let waits = app(move |mut tcp: TcpStream| {
            let saw = saw.clone();
            async move { saw.send(tcp.read(&mut [0; 8]).await.map_err(|error| error.kind())).unwrap() }
        })
        .await;
        let (near, accepted) = sockets().await;
        let stream = client.open(waits).await.unwrap();
        let (cut, on_cut) = tokio::sync::oneshot::channel::<()>();
        let counters = copy::Counters::default();
        let pump = copy::tunnel(accepted, stream, &counters, async { drop(on_cut.await) });
        let (end, ()) = tokio::join!(pump, async { cut.send(()).unwrap() });
        assert_eq!(end, copy::End::Cut);
        let mut near = near;
        assert_eq!(near.read(&mut [0; 8]).await.unwrap_err().kind(), ErrorKind::ConnectionReset);
        assert_eq!(sees.recv().await.unwrap(), Err(ErrorKind::ConnectionReset));
    });
}

#[test]
fn a_pump_that_is_dropped_never_looks_like_a_clean_end() {
    local(async {
        let (client, _server) = pair().await;
        let (saw, mut sees) = tokio::sync::mpsc::unbounded_channel();
        let waits = app(move |mut tcp: TcpStream| {
            let saw = saw.clone();
            async move { saw.send(tcp.read(&mut [0; 8]).await.map_err(|error| error.kind())).unwrap() }
        })
        .await;
        drop(client.open(waits).await.unwrap());
        assert_eq!(sees.recv().await.unwrap(), Err(ErrorKind::ConnectionReset));
    });
}

#[test]
fn five_hundred_streams_share_five_tunnels() {
    local(async {
        let (client, _server) = pair().await;
        let app = app(echo).await;
        let mut open = Vec::new();
        let mut opening = tokio::task::JoinSet::new();
        for _ in 0..500 {
            let client = client.clone();
            opening.spawn_local(async move { client.open(app).await.unwrap() });
        }
        while let Some(stream) = opening.join_next().await {
            open.push(stream.unwrap());
        }
        assert_eq!(client.dials.get(), 5);
        assert_eq!(client.pool.status().iter().map(|tunnel| tunnel.streams).sum::<u32>(), 500);
        for (index, stream) in open.iter_mut().enumerate() {
            let text = Bytes::from(format!("stream {index}"));
            stream.send_all(text.clone()).await.unwrap();
            assert_eq!(stream.recv().await.unwrap().unwrap(), text);
        }
    });
}

#[test]
fn pods_of_one_account_do_not_share_a_tunnel_and_a_pod_that_left_has_none() {
    local(async {
        let (client, server) = pair().await;
        let app = app(echo).await;
        let svid = client.identities.svid(&client.id).unwrap();
        let connect = async || TcpStream::connect(server.address).await;
        let mut streams = Vec::new();
        for source in ["pod-1", "pod-2", "pod-1"] {
            let key = key(source, &id("server"));
            streams.push(client.pool.open(&key, &svid, connect, &request(app)).await.unwrap());
        }
        let per_pod: HashMap<_, _> = client
            .pool
            .status()
            .into_iter()
            .map(|tunnel| (tunnel.key.source_uid.to_string(), tunnel.streams))
            .collect();
        assert_eq!(per_pod, HashMap::from([("pod-1".to_string(), 2), ("pod-2".to_string(), 1)]));

        client.pool.drop_source("pod-1");
        streams.retain_mut(|_| false);
        eventually(|| client.pool.status().iter().all(|tunnel| &*tunnel.key.source_uid == "pod-2")).await;
    });
}

/// The lifetime of certificates that shall end, or be renewed, within a test; a busy machine needs some of it.
const SHORT_LIVED: Duration = Duration::from_secs(6);

/// The far side's certificate has ended: the client makes another tunnel rather than rely on it.
#[test]
fn a_tunnel_is_not_used_again_after_the_servers_certificate_has_ended() {
    local(async {
        let ca = TestCa::new();
        let lasting = identities_for(ca.clone(), &["client"], Duration::from_secs(3600)).await;
        let identities = identities_for(ca, &["server"], SHORT_LIVED).await;
        let server = Server::start(&identities, "server", Limits::default(), relay()).await;
        let client = Client::new(&lasting, "client", "server", server.address, Limits::default());
        let app = app(echo).await;
        let svid = identities.svid(&id("server")).unwrap();
        let _stream = client.open(app).await.unwrap();
        client.open(app).await.unwrap();
        assert_eq!(client.dials.get(), 1);
        while !svid.is_expired() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        client.open(app).await.unwrap();
        assert_eq!(client.dials.get(), 2);
    });
}

/// Who has only an old tunnel left, and the certificate that made it has ended, gets nothing new through it.
#[test]
fn a_tunnel_takes_no_requests_after_its_certificate_has_ended() {
    local(async {
        let ca = TestCa::new();
        let identities = identities_for(ca.clone(), &["client"], SHORT_LIVED).await;
        let lasting = identities_for(ca, &["server"], Duration::from_secs(3600)).await;
        let server = Server::start(&lasting, "server", Limits::default(), relay()).await;
        let client = Client::new(&identities, "client", "server", server.address, Limits::default());
        let app = app(echo).await;
        let svid = identities.svid(&id("client")).unwrap();
        let key = key("pod-1", &id("server"));
        let connect = async || TcpStream::connect(server.address).await;
        let mut stream = client.pool.open(&key, &svid, connect, &request(app)).await.unwrap();
        while !svid.is_expired() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        let refused = client.pool.open(&key, &svid, connect, &request(app)).await.err();
        assert!(refused.as_ref().is_some_and(OpenError::is_denied), "{refused:?}");
        assert_eq!(client.pool.status().len(), 1, "it was the same tunnel");
        stream.send_all(Bytes::from_static(b"still here")).await.unwrap();
        assert!(stream.recv().await.unwrap().is_ok(), "what was open goes on");
    });
}

#[test]
fn applications_that_stop_reading_do_not_hold_up_their_neighbours() {
    local(async {
        let (client, _server) = pair().await;
        let deaf = app(async |tcp: TcpStream| {
            std::future::pending::<()>().await;
            drop(tcp);
        })
        .await;
        let echo = app(echo).await;
        let mut stalled = Vec::new();
        for _ in 0..40 {
            let mut near = client.dial(deaf).await;
            stalled.push(tokio::task::spawn_local(async move {
                let block = vec![0; 1 << 20];
                while near.write_all(&block).await.is_ok() {}
            }));
        }
        tokio::time::sleep(Duration::from_millis(1500)).await;
        let mut near = client.dial(echo).await;
        near.write_all(b"hello").await.unwrap();
        let mut buffer = [0; 5];
        tokio::time::timeout(Duration::from_secs(30), near.read_exact(&mut buffer)).await.expect("starved").unwrap();
        assert_eq!(client.dials.get(), 1);
        stalled.iter().for_each(tokio::task::JoinHandle::abort);
    });
}

#[test]
fn streams_that_die_with_undelivered_data_give_their_credit_back() {
    local(async {
        let (client, _server) = pair().await;
        // Speaks at length to a client that never listens and then resets.
        let talks = app(async |mut tcp: TcpStream| {
            let block = vec![7; 256 << 10];
            while tcp.write_all(&block).await.is_ok() {}
        })
        .await;
        for _ in 0..150 {
            let mut stream = client.open(talks).await.unwrap();
            let first = stream.recv().await.unwrap().unwrap();
            assert!(!first.is_empty());
            tokio::time::sleep(Duration::from_millis(2)).await;
            stream.reset();
        }
        let mut near = client.dial(talks).await;
        let mut received = vec![0; 20 << 20];
        near.read_exact(&mut received).await.unwrap();
        assert_eq!(client.dials.get(), 1);
    });
}

/// Half a head keeps no tunnel, however long the peer goes on with it: it is a tunnel that rests.
#[test]
fn a_head_that_trickles_does_not_keep_a_tunnel() {
    use frames::{CONTINUATION, HEADERS, HELLO, field, frame};
    local(async {
        let second = Duration::from_secs(1);
        let limits = Limits { idle_server_tunnel: second, drain_window: second, ..Limits::default() };
        let (client, server) = pair_with(limits).await;
        let fields = field(b"x", b"y").repeat(1000);
        let head = frame(HEADERS, 0, 1, &fields);
        for (what, at_once, then) in [
            ("a head in one frame", &head[..9], &head[9..]),
            ("nothing but a frame's length", &head[..3], &[][..]),
            ("a head, and not its end", &head[..], &frame(CONTINUATION, 0, 1, &fields)[..]),
        ] {
            let mut tls = raw_tls(&client, &server).await;
            let started = std::time::Instant::now();
            tls.write_all(&[HELLO, at_once].concat()).await.unwrap();
            let trickle = async {
                for byte in then {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                    let (Ok(()), Ok(())) = (tls.write_all(&[*byte]).await, tls.flush().await) else { break };
                }
                std::future::pending::<()>().await;
            };
            let ended = tokio::select! { ended = server.first_end() => ended, () = trickle => unreachable!() };
            assert!(matches!(ended, Err(ServeError::Drained)), "{what}: {ended:?}");
            // It rests, is told to go, and a goodbye takes a second at the most; the rest is the machine's.
            assert!((2 * second..15 * second).contains(&started.elapsed()), "{what}: {:?}", started.elapsed());
        }
    });
}

#[test]
fn a_storm_of_resets_leaves_the_neighbours_alone() {
    local(async {
        let (client, server) = pair().await;
        let app = app(echo).await;
        let mut neighbour = client.dial(app).await;
        exchange(&mut neighbour).await;
        // Given up before, during and after the answer, and with data under way.
        for round in 0..60u64 {
            let mut storm = tokio::task::JoinSet::new();
            for index in 0..50u64 {
                let client = client.clone();
                storm.spawn_local(async move {
                    let patience = Duration::from_micros((index * round * 37) % 4000);
                    let script = async {
                        let mut stream = client.open(app).await.unwrap();
                        stream.send_all(Bytes::from_static(&[1; 20_000])).await.unwrap();
                        while stream.recv().await.is_some() {}
                    };
                    let _ = tokio::time::timeout(patience, script).await;
                });
            }
            while let Some(done) = storm.join_next().await {
                done.unwrap();
            }
            exchange(&mut neighbour).await;
        }
        assert_eq!(client.dials.get(), 1, "a tunnel was lost");
        assert!(server.ended.borrow().is_empty());
    });
}

#[test]
fn tiny_frames_to_a_deaf_application_do_not_cost_the_tunnel() {
    local(async {
        // Small socket buffers, so that the bytes wait in the agent.
        let handler: Handler = Rc::new(|incoming| {
            Box::pin(async move {
                let socket = TcpSocket::new_v4().unwrap();
                socket.set_send_buffer_size(4096).unwrap();
                let app = socket.connect(incoming.authority).await.unwrap();
                let stream = incoming.accept("").unwrap();
                copy::tunnel(app, stream, &copy::Counters::default(), std::future::pending()).await;
            })
        });
        let identities = identities(TestCa::new(), &["client", "server"]).await;
        let server = Server::start(&identities, "server", Limits::default(), handler).await;
        let client = Client::new(&identities, "client", "server", server.address, Limits::default());
        let deaf = app(async |tcp: TcpStream| {
            SockRef::from(&tcp).set_recv_buffer_size(4096).unwrap();
            std::future::pending::<()>().await;
            drop(tcp);
        })
        .await;
        let mut neighbour = client.dial(app(echo).await).await;
        exchange(&mut neighbour).await;
        let mut talkers = tokio::task::JoinSet::new();
        for _ in 0..8 {
            let client = client.clone();
            talkers.spawn_local(async move {
                let mut stream = client.open(deaf).await.unwrap();
                stream.send_all(Bytes::from_static(&[0; 500_000])).await.unwrap();
                for _ in 0..10_000 {
                    stream.send_all(Bytes::from_static(b"x")).await.unwrap();
                    tokio::task::yield_now().await;
                }
                stream
            });
        }
        let mut held = Vec::new();
        while let Some(stream) = talkers.join_next().await {
            held.push(stream.unwrap());
        }
        exchange(&mut neighbour).await;
        assert_eq!(client.dials.get(), 1);
        assert!(server.ended.borrow().is_empty());
    });
}

#[test]
fn a_drain_sends_new_streams_elsewhere_and_lets_the_old_ones_finish() {
    local(async {
        let (client, server) = pair().await;
        let app = app(echo).await;
        let mut old = client.dial(app).await;
        exchange(&mut old).await;
        server.drain.start();
        // For the goodbye to arrive, on a busy machine too.
        tokio::time::sleep(Duration::from_secs(1)).await;
        exchange(&mut old).await;
        // The listener is gone too, so a new stream has nowhere to go; it is told so at once and does not hang.
        let refused = client.open(app).await.err().unwrap();
        assert!(matches!(refused, OpenError::Connect { .. }), "{refused:?}");
        exchange(&mut old).await;
        drop(old);
        assert!(server.first_end().await.is_ok(), "the tunnel does not end with its last stream");
    });
}

#[test]
fn what_outlives_the_drain_window_is_cut() {
    local(async {
        let limits = Limits { drain_window: Duration::from_millis(300), ..Limits::default() };
        let (client, server) = pair_with(limits).await;
        let mut old = client.dial(app(echo).await).await;
        exchange(&mut old).await;
        server.drain.start();
        assert_eq!(old.read(&mut [0; 8]).await.unwrap_err().kind(), ErrorKind::ConnectionReset);
        assert!(matches!(server.first_end().await, Err(ServeError::Drained)));
    });
}

#[test]
fn rotation_under_traffic_goes_unnoticed() {
    local(async {
        let (client, _server) = pair().await;
        let app = app(echo).await;
        let mut long_lived = client.dial(app).await;
        exchange(&mut long_lived).await;
        for round in 1..=5 {
            let before = client.identities.svid(&client.id).unwrap().generation;
            client.identities.force_rotate();
            for _ in 0..20 {
                exchange(&mut client.dial(app).await).await;
                exchange(&mut long_lived).await;
            }
            eventually(|| client.identities.svid(&client.id).unwrap().generation > before).await;
            exchange(&mut client.dial(app).await).await;
            assert!(client.dials.get() > round, "new streams stayed on the old certificate");
        }
        // Retired tunnels go with their streams: what is left is the newest and the one of the long-lived stream.
        eventually(|| client.pool.status().len() == 2).await;
        drop(long_lived);
        eventually(|| client.pool.status().len() == 1).await;
    });
}

#[test]
fn certificates_rotate_by_themselves_at_half_life() {
    local(async {
        let identities = identities_for(TestCa::new(), &["client"], SHORT_LIVED).await;
        let first = identities.svid(&id("client")).unwrap();
        eventually(|| identities.svid(&id("client")).is_some_and(|now| now.generation > first.generation)).await;
        assert!(!first.is_expired(), "rotated only once it had expired");
        identities.want(&[id("other")].into());
        assert!(identities.svid(&id("client")).is_none(), "still there without a pod");
        identities.ready(&id("other")).await;
    });
}

#[test]
fn the_far_side_answers_as_ztunnel_does() {
    local(async {
        let identities = identities(TestCa::new(), &["client", "server"]).await;
        for (status, code) in [(Status::BadRequest, 400), (Status::Denied, 401), (Status::Unavailable, 503)] {
            let handler: Handler = Rc::new(move |incoming| Box::pin(async move { incoming.refuse(status) }));
            let server = Server::start(&identities, "server", Limits::default(), handler).await;
            let client = Client::new(&identities, "client", "server", server.address, Limits::default());
            let refused = client.open(loopback_port(80)).await.err().unwrap();
            assert_eq!(refused, OpenError::Refused(StatusCode::from_u16(code).unwrap()));
        }
        let forgets: Handler = Rc::new(|incoming| Box::pin(async move { drop(incoming) }));
        let server = Server::start(&identities, "server", Limits::default(), forgets).await;
        let client = Client::new(&identities, "client", "server", server.address, Limits::default());
        let refused = client.open(loopback_port(80)).await.err().unwrap();
        assert_eq!(refused, OpenError::Refused(StatusCode::SERVICE_UNAVAILABLE));
    });
}

#[test]
fn the_handler_learns_who_asks_for_what() {
    local(async {
        let identities = identities(TestCa::new(), &["client", "server"]).await;
        let (told, mut tells) = tokio::sync::mpsc::unbounded_channel();
        let handler: Handler = Rc::new(move |incoming| {
            let told = told.clone();
            Box::pin(async move {
                told.send((incoming.peer.clone(), incoming.authority, incoming.forwarded, incoming.host.clone()))
                    .unwrap();
                assert!(incoming.traceparent.is_some());
                assert_eq!(incoming.baggage.as_deref(), Some("k8s.namespace.name=default"));
                let mut stream = incoming.accept("service.name=web").unwrap();
                stream.finish().unwrap();
                while stream.recv().await.is_some() {}
            })
        });
        let server = Server::start(&identities, "server", Limits::default(), handler).await;
        let client = Client::new(&identities, "client", "server", server.address, Limits::default());
        let mut stream = client.open("[fd00::7]:8080".parse().unwrap()).await.unwrap();
        assert_eq!(stream.baggage(), Some("service.name=web"));
        stream.finish().unwrap();
        assert!(stream.recv().await.is_none());
        let (peer, authority, forwarded, host) = tells.recv().await.unwrap();
        assert_eq!(peer, id("client"));
        assert_eq!(authority, "[fd00::7]:8080".parse().unwrap());
        assert_eq!(forwarded, Some("10.0.0.1:40000".parse().unwrap()));
        assert_eq!(host.as_deref(), Some("web.default.svc.cluster.local"));
    });
}

#[test]
fn what_is_no_connect_to_an_address_gets_400() {
    local(async {
        let (client, server) = pair().await;
        let mut raw = raw_http2(&client, &server).await;
        let mut ask = async |request: Request<()>| {
            std::future::poll_fn(|cx| raw.poll_ready(cx)).await.unwrap();
            let (response, _body) = raw.send_request(request, false).unwrap();
            response.await.map(|response| response.status().as_u16())
        };
        let with = |method: Method, uri: &str| Request::builder().method(method).uri(uri).body(()).unwrap();
        assert_eq!(ask(with(Method::GET, "https://127.0.0.1:80/")).await.unwrap(), 400);
        for authority in ["localhost:80", "127.0.0.1", "127.0.0.1:0", "web.default.svc:80", "user@127.0.0.1:80"] {
            assert_eq!(ask(with(Method::CONNECT, authority)).await.unwrap(), 400, "{authority}");
        }
        let mut extended = with(Method::CONNECT, "https://127.0.0.1:80/");
        extended.extensions_mut().insert(h2::ext::Protocol::from_static("websocket"));
        // Answered with 400, or not even let in by the HTTP/2 layer, which was never told to expect it.
        assert!(matches!(ask(extended).await, Ok(400) | Err(_)));
    });
}

#[test]
fn a_failed_connect_is_told_to_everyone_who_waited() {
    local(async {
        let identities = identities(TestCa::new(), &["client", "server"]).await;
        let gone = TcpListener::bind(loopback()).await.unwrap().local_addr().unwrap();
        let client = Client::new(&identities, "client", "server", gone, Limits::default());
        let mut opening = tokio::task::JoinSet::new();
        for _ in 0..50 {
            let client = client.clone();
            opening.spawn_local(async move { client.open(loopback_port(80)).await.err().unwrap() });
        }
        while let Some(error) = opening.join_next().await {
            let error = error.unwrap();
            assert!(matches!(error, OpenError::Connect { kind: ErrorKind::ConnectionRefused, .. }), "{error:?}");
        }
        assert_eq!(client.dials.get(), 1);
    });
}

#[test]
fn a_tunnel_that_stops_answering_is_given_up() {
    local(async {
        let limits = Limits {
            ping_interval: Duration::from_millis(300),
            // The machine may stall for some of it.
            ping_timeout: Duration::from_secs(3),
            ..Limits::default()
        };
        let (client, server) = pair_with(limits).await;
        let app = app(echo).await;
        // A hole in the wire: bytes pass through this until it is told to keep them.
        let hole = TcpListener::bind(loopback()).await.unwrap();
        let (blocked, mut block) = tokio::sync::watch::channel(false);
        let address = hole.local_addr().unwrap();
        tokio::task::spawn_local(async move {
            let (mut a, _) = hole.accept().await.unwrap();
            let mut b = TcpStream::connect(server.address).await.unwrap();
            tokio::select! {
                _ = tokio::io::copy_bidirectional(&mut a, &mut b) => {}
                _ = block.wait_for(|blocked| *blocked) => std::future::pending::<()>().await,
            }
        });
        let svid = client.identities.svid(&client.id).unwrap();
        let connect = async || TcpStream::connect(address).await;
        let mut stream = client.pool.open(&client.key, &svid, connect, &request(app)).await.unwrap();
        // Alive well beyond the ping timeout while pings are answered.
        tokio::time::sleep(Duration::from_secs(5)).await;
        stream.send_all(Bytes::from_static(b"x")).await.unwrap();
        stream.recv().await.unwrap().unwrap();
        blocked.send(true).unwrap();
        let lost = stream.recv().await.unwrap().unwrap_err();
        assert!(matches!(lost, StreamError::TunnelLost(_)), "{lost:?}");
        assert!(server.ended.borrow().is_empty() || server.first_end().await.is_err());
    });
}

/// The kernel of the other machine is gone: what arrives there is thrown away before TCP sees it, so nothing is
/// acknowledged, as when a node loses its power.
#[test]
fn a_machine_that_vanishes_is_noticed_and_a_slow_one_is_not() {
    local(async {
        let limits = Limits { dead_peer: Duration::from_millis(1500), ..Limits::default() };
        let (client, server) = pair_with(limits.clone()).await;
        *server.accepted.borrow_mut() = Some(Vec::new());
        // A deaf application fills the windows of its stream; the tunnel lives, for its machine acknowledges.
        let deaf = app(async |tcp: TcpStream| {
            tokio::time::sleep(Duration::from_secs(60)).await;
            drop(tcp);
        })
        .await;
        let mut slow = client.open(deaf).await.unwrap();
        let stuck = tokio::time::timeout(2 * limits.dead_peer, slow.send_all(vec![0; 16 << 20].into())).await;
        assert!(stuck.is_err(), "the windows hold 16 MiB");
        let mut near = client.dial(app(echo).await).await;
        exchange(&mut near).await;
        tokio::time::sleep(2 * limits.dead_peer).await;
        exchange(&mut near).await;

        server.vanish();
        let begin = std::time::Instant::now();
        near.write_all(b"into the void").await.unwrap();
        let mut buffer = [0; 16];
        let reset = near.read(&mut buffer).await.unwrap_err();
        assert_eq!(reset.kind(), ErrorKind::ConnectionReset);
        assert!(begin.elapsed() < Duration::from_secs(20), "{:?}", begin.elapsed());
        drop(slow);
        eventually(|| client.pool.status().is_empty()).await;
    });
}

#[test]
fn an_idle_connection_to_a_machine_that_vanishes_is_reset_too() {
    local(async {
        let limits = Limits { dead_peer: Duration::from_millis(1500), ..Limits::default() };
        let (client, server) = pair_with(limits).await;
        *server.accepted.borrow_mut() = Some(Vec::new());
        let mut near = client.dial(app(echo).await).await;
        exchange(&mut near).await;
        server.vanish();
        let reset = near.read(&mut [0; 8]).await.unwrap_err();
        assert_eq!(reset.kind(), ErrorKind::ConnectionReset);
    });
}

/// The old agent of a node says goodbye while its successor already accepts: nobody's request is lost between them.
#[test]
fn a_peer_that_drains_loses_no_request() {
    local(async {
        let (client, old) = pair().await;
        let new = Server::start(&client.identities, "server", Limits::default(), relay()).await;
        let app = app(echo).await;
        exchange(&mut client.dial(app).await).await;
        let tunnel = Rc::new(std::cell::Cell::new(old.address));
        let mut asking = tokio::task::JoinSet::new();
        for _ in 0..8 {
            let (client, tunnel) = (client.clone(), tunnel.clone());
            asking.spawn_local(async move {
                let svid = client.identities.svid(&client.id).unwrap();
                for _ in 0..50 {
                    let connect = async || TcpStream::connect(tunnel.get()).await;
                    let mut stream = client.pool.open(&client.key, &svid, connect, &request(app)).await.unwrap();
                    stream.send_all(Bytes::from_static(b"x")).await.unwrap();
                    assert_eq!(stream.recv().await.unwrap().unwrap(), "x");
                }
            });
        }
        tokio::time::sleep(Duration::from_millis(30)).await;
        tunnel.set(new.address);
        old.drain.start();
        while let Some(asked) = asking.join_next().await {
            asked.unwrap();
        }
        let end = old.first_end().await;
        assert!(end.is_ok(), "{end:?}");
        assert_eq!(client.pool.status().len(), 1);
    });
}

/// A peer that refuses each request by REFUSED_STREAM until its successor is there.
#[test]
fn a_refused_stream_goes_to_a_new_tunnel() {
    local(async {
        let identities = identities(TestCa::new(), &["client", "server"]).await;
        let app = app(echo).await;
        let refusing = refusing_server(&identities).await;
        let taking = Server::start(&identities, "server", Limits::default(), relay()).await;
        let client = Client::new(&identities, "client", "server", refusing, Limits::default());
        let svid = identities.svid(&client.id).unwrap();
        let dials = std::cell::Cell::new(0);
        let connect = async || {
            dials.set(dials.get() + 1);
            TcpStream::connect(if dials.get() == 1 { refusing } else { taking.address }).await
        };
        let mut stream = client.pool.open(&client.key, &svid, connect, &request(app)).await.unwrap();
        stream.send_all(Bytes::from_static(b"x")).await.unwrap();
        assert_eq!(stream.recv().await.unwrap().unwrap(), "x");
        assert_eq!(dials.get(), 2);

        // One that never takes any is not asked for ever.
        let client = Client::new(&identities, "client", "server", refusing, Limits::default());
        let refused = client.open(app).await.err().unwrap();
        assert_eq!(refused, OpenError::Reset(h2::Reason::REFUSED_STREAM));
        assert_eq!(client.dials.get(), 3);
    });
}

#[test]
fn a_peer_that_cannot_be_reached_is_asked_ever_less_often_and_found_when_it_is_back() {
    local(async {
        let identities = identities(TestCa::new(), &["client", "server"]).await;
        // Held, so that nobody else is given the port, and not listened on.
        let place = tokio::net::TcpSocket::new_v4().unwrap();
        place.set_reuseaddr(true).unwrap();
        place.bind(loopback()).unwrap();
        let address = place.local_addr().unwrap();
        let client = Client::new(&identities, "client", "server", address, Limits::default());
        let app = app(echo).await;
        let (mut refused, mut backed_off) = (0, 0);
        let begin = std::time::Instant::now();
        while begin.elapsed() < Duration::from_secs(2) || (refused < 5 && begin.elapsed() < Duration::from_secs(20)) {
            match client.open(app).await.err().unwrap() {
                OpenError::Connect { .. } => refused += 1,
                OpenError::BackingOff(why) => {
                    backed_off += 1;
                    assert!(why.contains("refused"), "{why}");
                }
                other => panic!("{other}"),
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        assert_eq!(client.dials.get(), refused);
        assert!((5..200).contains(&refused) && backed_off > 2 * refused, "{refused} tries, {backed_off} not tried");
        let server = Server::at(address, &identities, "server", Limits::default(), relay()).await;
        let back = std::time::Instant::now();
        while client.open(app).await.is_err() {
            assert!(back.elapsed() < Duration::from_secs(30), "not found again");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        drop(server);
    });
}

#[test]
fn an_idle_tunnel_is_closed() {
    local(async {
        let limits = Limits { idle_tunnel: Duration::from_millis(200), ..Limits::default() };
        let (client, server) = pair_with(limits).await;
        let app = app(echo).await;
        let mut near = client.dial(app).await;
        exchange(&mut near).await;
        tokio::time::sleep(Duration::from_millis(500)).await;
        assert_eq!(client.pool.status().len(), 1, "closed under its stream");
        exchange(&mut near).await;
        drop(near);
        eventually(|| client.pool.status().is_empty()).await;
        assert!(server.first_end().await.is_ok());
        exchange(&mut client.dial(app).await).await;
        assert_eq!(client.dials.get(), 2);
    });
}

#[test]
fn plain_copies_close_reset_and_count() {
    local(async {
        let (mut near, a) = sockets().await;
        let (mut far, b) = sockets().await;
        let counters = copy::Counters::default();
        let script = async {
            near.write_all(&[1; 100_000]).await.unwrap();
            near.shutdown().await.unwrap();
            let mut all = Vec::new();
            far.read_to_end(&mut all).await.unwrap();
            assert_eq!(all.len(), 100_000);
            far.write_all(b"answer").await.unwrap();
            drop(far);
            let mut all = Vec::new();
            near.read_to_end(&mut all).await.unwrap();
            assert_eq!(all, b"answer");
        };
        let (end, ()) = tokio::join!(copy::plain(a, b, copy::Outer::Second, &counters, std::future::pending()), script);
        assert_eq!((end, counters.forward(), counters.backward()), (copy::End::Finished, 100_000, 6));

        let (near, a) = sockets().await;
        let (mut far, b) = sockets().await;
        let script = async {
            SockRef::from(&near).set_linger(Some(Duration::ZERO)).unwrap();
            drop(near);
        };
        let (end, ()) = tokio::join!(copy::plain(a, b, copy::Outer::Second, &counters, std::future::pending()), script);
        assert_eq!(end, copy::End::FirstReset(ErrorKind::ConnectionReset));
        assert_eq!(far.read(&mut [0; 8]).await.unwrap_err().kind(), ErrorKind::ConnectionReset);
    });
}

async fn exchange(near: &mut TcpStream) {
    near.write_all(b"ping").await.unwrap();
    let mut answer = [0; 4];
    near.read_exact(&mut answer).await.unwrap();
    assert_eq!(&answer, b"ping");
}

async fn eventually(holds: impl Fn() -> bool) {
    for _ in 0..6000 {
        if holds() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    panic!("did not come true within half a minute");
}

/// Two connected sockets.
async fn sockets() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind(loopback()).await.unwrap();
    let near = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    (near, listener.accept().await.unwrap().0)
}

fn loopback_port(port: u16) -> std::net::SocketAddr {
    std::net::SocketAddr::new(loopback().ip(), port)
}

/// Accepts tunnels, and resets each request as not taken.
async fn refusing_server(identities: &mesh_agent::identity::Identities) -> std::net::SocketAddr {
    let listener = TcpListener::bind(loopback()).await.unwrap();
    let address = listener.local_addr().unwrap();
    let svid = identities.svid(&id("server")).unwrap();
    tokio::task::spawn_local(async move {
        while let Ok((tcp, _)) = listener.accept().await {
            let tls = tokio_rustls::TlsAcceptor::from(svid.server.clone()).accept(tcp).await.unwrap();
            tokio::task::spawn_local(async move {
                let mut connection = h2::server::handshake(tls).await.unwrap();
                while let Some(Ok((_, mut respond))) = connection.accept().await {
                    respond.send_reset(h2::Reason::REFUSED_STREAM);
                }
            });
        }
    });
    address
}

async fn raw_http2(client: &Client, server: &Server) -> h2::client::SendRequest<Bytes> {
    let (send, connection) = h2::client::handshake(raw_tls(client, server).await).await.unwrap();
    tokio::task::spawn_local(async { drop(connection.await) });
    send
}

async fn raw_tls(client: &Client, server: &Server) -> tokio_rustls::client::TlsStream<TcpStream> {
    let config = client.identities.svid(&client.id).unwrap().client.clone();
    let tcp = TcpStream::connect(server.address).await.unwrap();
    let name = rustls::pki_types::ServerName::IpAddress(server.address.ip().into());
    tokio_rustls::TlsConnector::from(config).connect(name, tcp).await.unwrap()
}

/// Fletcher's sums: order matters, unlike in a plain sum.
#[derive(Debug, Default, PartialEq, Eq)]
struct Checksum(u64, u64);

impl Checksum {
    fn add(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = self.0.wrapping_add(u64::from(*byte) + 1);
            self.1 = self.1.wrapping_add(self.0);
        }
    }
}

/// Bytes that do not repeat in any period of ours (xorshift).
struct Generator(u64);

impl Generator {
    fn fill(&mut self, bytes: &mut [u8]) {
        for byte in bytes {
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            *byte = self.0 as u8;
        }
    }
}
