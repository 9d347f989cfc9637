//! What agents tell for the map, on the port of certificates: who calls is reviewed as there, and tells of its own node alone.

use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::{Stream, stream};
use tokio::sync::watch;
use tonic::server::StreamingService;
use tonic::{Request, Response, Status, Streaming};

use super::service::Service;
use crate::drain;
use crate::map::{Heard, Report, Wanted, Welcome};

/// Between two reports of a stream that are read: whoever tells more often is held back by its own connection.
pub(super) const BREATH: Duration = Duration::from_secs(1);
/// A stream that tells nothing for so long is ended.
pub(super) const SILENCE: Duration = Duration::from_secs(60);

/// Who listens.
#[derive(Clone)]
pub struct Listening {
    /// What is kept.
    pub heard: Heard,
    /// The name of this replica.
    pub replica: String,
}

/// One call.
pub struct Tell {
    /// Who knows who calls.
    pub service: Arc<Service>,
    /// From where.
    pub peer: SocketAddr,
    /// Who listens.
    pub listening: Listening,
    /// When to stop.
    pub shutdown: drain::Token,
}

type Welcomes = Pin<Box<dyn Stream<Item = Result<Welcome, Status>> + Send>>;

impl StreamingService<Report> for Tell {
    type Response = Welcome;
    type ResponseStream = Welcomes;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Welcomes>, Status>> + Send>>;

    fn call(&mut self, request: Request<Streaming<Report>>) -> Self::Future {
        let Self { service, peer, listening, shutdown } = self;
        let (service, peer, listening, shutdown) = (service.clone(), *peer, listening.clone(), shutdown.clone());
        Box::pin(async move {
            let authorization = request.metadata().get("authorization").map(|value| value.as_bytes());
            let teller = service.teller(peer, authorization).await?;
            Ok(Response::new(hear(listening, teller, request.into_inner(), shutdown)))
        })
    }
}

/// Who tells, as the API server says.
pub struct Teller {
    /// The node of its pod.
    pub node: String,
    /// Its pod.
    pub pod: String,
}

/// Says who this is and what it wants, and listens until either has enough.
pub(super) fn hear(
    listening: Listening,
    teller: Teller,
    reports: Streaming<Report>,
    mut shutdown: drain::Token,
) -> Welcomes {
    let Listening { heard, replica } = listening;
    let mut wanted = heard.wanted();
    // The first is said at once.
    wanted.mark_changed();
    let ended = Box::pin(async move {
        tokio::select! {
            ended = listen(heard, teller, reports) => ended.err(),
            () = shutdown.started() => None,
        }
    });
    Box::pin(stream::unfold(Some(Conversation { replica, wanted, ended }), Conversation::next))
}

/// One stream, for as long as it goes on.
struct Conversation {
    replica: String,
    wanted: watch::Receiver<Wanted>,
    /// Ends with the reason, where there is one to be told.
    ended: Pin<Box<dyn Future<Output = Option<Status>> + Send>>,
}

impl Conversation {
    /// The next word to the agent. While nothing is to be said it listens.
    async fn next(conversation: Option<Self>) -> Option<(Result<Welcome, Status>, Option<Self>)> {
        let mut own = conversation?;
        tokio::select! {
            why = &mut own.ended => why.map(|why| (Err(why), None)),
            asked = own.wanted.changed() => {
                asked.ok()?;
                let Wanted { is_always, edges } = own.wanted.borrow_and_update().clone();
                Some((Ok(Welcome { replica: own.replica.clone(), once: !is_always, edges }), Some(own)))
            }
        }
    }
}

async fn listen(heard: Heard, teller: Teller, mut reports: Streaming<Report>) -> Result<(), Status> {
    let mut telling = None;
    loop {
        let next = tokio::time::timeout(SILENCE, reports.message()).await;
        let next = next.map_err(|_| Status::deadline_exceeded("nothing was told for long"))??;
        let Some(report) = next else { return Ok(()) };
        let telling = telling.get_or_insert_with(|| heard.begin(&teller.node, &teller.pod));
        telling.take(report).map_err(|why| Status::aborted(why.to_string()))?;
        tokio::time::sleep(BREATH).await;
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::convert::Infallible;
    use std::sync::atomic::{AtomicU64, Ordering};

    use bytes::Bytes;
    use hyper_util::rt::{TokioExecutor, TokioIo};
    use serde_json::{Value, json};
    use tokio::io::DuplexStream;
    use tokio::time::Instant;
    use tonic::metadata::AsciiMetadataValue;
    use tonic::server::Grpc;
    use tonic::transport::{Channel, Endpoint};
    use tonic_prost::ProstCodec;

    use super::*;
    use crate::drain::Drain;
    use crate::map::{self, Asked, Cluster, OnNode, Pods, Source};
    use crate::told::{Name, Told};

    struct One;

    impl Cluster for One {
        fn pods(&self) -> Pods {
            let own = ("spiffe://cluster.local/ns/shop/sa/web".to_string(), Vec::new());
            let node = OnNode { pods: BTreeMap::from([("shop/web-0".to_string(), own)]), is_meshed: true };
            Pods::from([("n1".to_string(), node)])
        }

        fn shown(&self) -> Value {
            json!({})
        }
    }

    /// Replicas that are reached in turn, as through a Service, and believe every caller to be the agent of n1.
    #[derive(Clone)]
    struct Replicas {
        listening: Arc<Vec<Listening>>,
        next: Arc<AtomicU64>,
        shutdown: drain::Token,
    }

    struct Believing(Listening, drain::Token);

    impl StreamingService<Report> for Believing {
        type Response = Welcome;
        type ResponseStream = Welcomes;
        type Future = std::future::Ready<Result<Response<Welcomes>, Status>>;

        fn call(&mut self, request: Request<Streaming<Report>>) -> Self::Future {
            let teller = Teller { node: "n1".to_string(), pod: "agent".to_string() };
            std::future::ready(Ok(Response::new(hear(self.0.clone(), teller, request.into_inner(), self.1.clone()))))
        }
    }

    impl Replicas {
        fn new(names: &[&str], drain: &Drain) -> Self {
            let replica = |name: &&str| Listening { heard: Heard::new(One), replica: name.to_string() };
            let listening = Arc::new(names.iter().map(replica).collect());
            Self { listening, next: Arc::default(), shutdown: drain.token() }
        }

        fn serve(&self, io: DuplexStream) {
            let number = self.next.fetch_add(1, Ordering::Relaxed) as usize % self.listening.len();
            let (listening, shutdown) = (self.listening[number].clone(), self.shutdown.clone());
            let answer = hyper::service::service_fn(move |request| {
                let believing = Believing(listening.clone(), shutdown.clone());
                async move {
                    let mut grpc = Grpc::new(ProstCodec::<Welcome, Report>::default())
                        .max_decoding_message_size(map::MAX_REPORT_BYTES);
                    Ok::<_, Infallible>(grpc.streaming(believing, request).await)
                }
            });
            tokio::spawn(async move {
                let builder = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
                let _ = builder.serve_connection(TokioIo::new(io), answer).await;
            });
        }

        async fn worlds(&self) -> Vec<Vec<Told>> {
            let mut all = Vec::new();
            for listening in &*self.listening {
                all.push(listening.heard.ask("/config_dump?sections=agent,discovery,identities,workloads").await);
            }
            all
        }
    }

    impl map::Line for Replicas {
        fn open(&self) -> Asked<'_, Result<(Channel, AsciiMetadataValue), String>> {
            let replicas = self.clone();
            let connector = tower::service_fn(move |_: http::Uri| {
                let (near, far) = tokio::io::duplex(64 << 10);
                replicas.serve(far);
                std::future::ready(Ok::<_, Infallible>(TokioIo::new(near)))
            });
            let channel = Endpoint::from_static("http://controller").connect_with_connector_lazy(connector);
            Box::pin(std::future::ready(Ok((channel, AsciiMetadataValue::from_static("Bearer x")))))
        }
    }

    const QUICK: map::Patience = map::Patience {
        again: Duration::from_millis(100),
        another: Duration::from_millis(200),
        not_wanted: Duration::from_secs(60),
    };

    async fn eventually(what: &str, mut is_so: impl AsyncFnMut() -> bool) {
        let start = Instant::now();
        while !is_so().await {
            assert!(start.elapsed() < Duration::from_secs(30), "not within half a minute: {what}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// An agent, of which each question is counted.
    #[derive(Clone, Default)]
    struct Agent {
        asked: Arc<AtomicU64>,
        padding: usize,
    }

    impl Source for Agent {
        fn ask(&self, path: &'static str) -> Asked<'_, Vec<Told>> {
            let name = Name { node: "a lie".to_string(), pod: None };
            Box::pin(async move { vec![Told { name, answer: self.ask_one(path).await }] })
        }

        fn ask_one(&self, path: &'static str) -> Asked<'_, Result<Bytes, String>> {
            let answer = match path {
                "/metrics" => {
                    self.asked.fetch_add(1, Ordering::Relaxed);
                    "nodemesh_connections_opened_total{direction=\"outbound\",transport=\"tunnel\",source_namespace=\"shop\",\
                     source_service_account=\"web\",destination_namespace=\"shop\",destination_service_account=\"api\"} 7\n"
                        .to_string()
                }
                "/denials" => "[]".to_string(),
                "/connections" => {
                    let id = |account: &str| format!("spiffe://cluster.local/ns/shop/sa/{account}");
                    let to = |account: &str| {
                        json!({"direction": "outbound", "source": {"pod": "shop/web-0", "identity": id("web")},
                               "destination": {"pod": null, "identity": id(account)}})
                    };
                    let many = std::iter::repeat_with(|| to("api")).take(1000);
                    json!(many.chain([to("db")]).collect::<Vec<_>>()).to_string()
                }
                _ => json!({"agent": {"node": "a lie"}, "workloads": [], "padding": "x".repeat(self.padding)})
                    .to_string(),
            };
            Box::pin(std::future::ready(Ok(answer.into())))
        }
    }

    /// Both replicas hear of the node, though each connection meets one by chance; of one replica one stream is told.
    #[tokio::test]
    async fn every_replica_is_told() {
        let drain = Drain::new();
        // Two doors to one of them.
        let replicas = Replicas::new(&["one", "one", "two"], &drain);
        let agent = tokio::spawn(map::tell(Agent::default(), replicas.clone(), QUICK));
        let is_heard = async |number: usize| !replicas.listening[number].heard.counts().await.is_empty();
        eventually("both replicas to be told", async || (is_heard(0).await || is_heard(1).await) && is_heard(2).await)
            .await;
        assert!(!(is_heard(0).await && is_heard(1).await), "two streams to one replica");
        let counts = replicas.listening[2].heard.counts().await;
        let (name, reading) = &counts[0];
        assert_eq!((name.node.as_str(), reading.len()), ("n1", 1), "the node is the token's, whatever it says");
        agent.abort();
    }

    #[tokio::test]
    async fn it_ends_with_the_controller() {
        let drain = Drain::new();
        let replicas = Replicas::new(&["one"], &drain);
        let agent = Agent::default();
        replicas.listening[0].heard.attend(true);
        let telling = tokio::spawn(map::tell(agent.clone(), replicas.clone(), QUICK));
        eventually("a replica to be told", async || agent.asked.load(Ordering::Relaxed) >= 3).await;
        drain.start();
        tokio::time::sleep(Duration::from_millis(200)).await;
        let told = agent.asked.load(Ordering::Relaxed);
        tokio::time::sleep(Duration::from_secs(4)).await;
        // A stream that is begun anew ends before it tells.
        let after = agent.asked.load(Ordering::Relaxed);
        assert!(after <= told + 1, "{told} reports before the end, {after} after");
        telling.abort();
    }

    /// A part that is too large for a report is left out, and the rest is told.
    #[tokio::test]
    async fn what_is_too_much_is_left_out() {
        let drain = Drain::new();
        let replicas = Replicas::new(&["one"], &drain);
        let agent = Agent { padding: map::MAX_REPORT_BYTES, ..Agent::default() };
        let telling = tokio::spawn(map::tell(agent, replicas.clone(), QUICK));
        eventually("counts to be told", async || !replicas.listening[0].heard.counts().await.is_empty()).await;
        assert!(replicas.worlds().await[0][0].answer.is_err(), "the rest is not");
        telling.abort();
    }

    /// Without a looker an agent is asked for each round, and counts nothing in between; with one it tells by itself.
    #[tokio::test]
    async fn what_nobody_looks_at_is_not_made() {
        let drain = Drain::new();
        let replicas = Replicas::new(&["one"], &drain);
        let heard = replicas.listening[0].heard.clone();
        let agent = Agent::default();
        let telling = tokio::spawn(map::tell(agent.clone(), replicas.clone(), QUICK));
        eventually("the first report", async || !heard.counts().await.is_empty()).await;
        let made = || agent.asked.load(Ordering::Relaxed);
        assert_eq!(made(), 1);
        // More than a node may be silent for.
        tokio::time::sleep(Duration::from_secs(12)).await;
        assert_eq!(made(), 1, "nobody looks");
        assert!(!heard.counts().await.is_empty(), "and the node is not silent");
        heard.attend(false);
        eventually("what was asked for", async || made() == 2).await;
        heard.attend(true);
        eventually("what is told by itself", async || made() >= 5).await;
        heard.attend(false);
        tokio::time::sleep(Duration::from_secs(1)).await;
        let before = made();
        tokio::time::sleep(Duration::from_secs(5)).await;
        assert_eq!(made(), before, "they left");
        telling.abort();
    }

    /// Whoever looks at an edge of the controller's map sees what is live there, and no more of it than is shown.
    #[tokio::test]
    async fn live_connections_of_an_edge_are_told() {
        let drain = Drain::new();
        let replicas = Replicas::new(&["one"], &drain);
        let heard = replicas.listening[0].heard.clone();
        heard.attend(true);
        let telling = tokio::spawn(map::tell(Agent::default(), replicas.clone(), QUICK));
        eventually("counts", async || !heard.counts().await.is_empty()).await;
        for (account, expected) in [("db", 1), ("api", 200), ("nobody", 0)] {
            assert!(heard.ask("/connections").await[0].answer.is_err() || account != "db", "nobody asked yet");
            heard.look_at("shop/web", &format!("shop/{account}"));
            let told = async || {
                let told: Vec<Value> =
                    serde_json::from_slice(heard.ask("/connections").await[0].answer.as_ref().ok()?).unwrap();
                let is_of = |one: &&Value| one["destination"]["identity"].as_str().unwrap().ends_with(account);
                Some(told.iter().filter(is_of).count())
            };
            eventually(account, async || told().await == Some(expected)).await;
        }
        telling.abort();
    }

    /// A controller that is older than its agents says no more than who it is, and is told all the time.
    #[tokio::test]
    async fn a_controller_that_does_not_say_is_told() {
        #[derive(Clone, PartialEq, prost::Message)]
        struct OldWelcome {
            #[prost(string, tag = "1")]
            replica: String,
        }
        let old = prost::Message::encode_to_vec(&OldWelcome { replica: "one".to_string() });
        let read: Welcome = prost::Message::decode(&old[..]).unwrap();
        assert!(!read.once);
        // The other way: what an agent does not know it passes over.
        let new = prost::Message::encode_to_vec(&Welcome { replica: "one".to_string(), once: true, edges: Vec::new() });
        let read: OldWelcome = prost::Message::decode(&new[..]).unwrap();
        assert_eq!(read.replica, "one");
    }

    /// Whoever tells as fast as it can is read once a second.
    #[tokio::test]
    async fn who_tells_too_often_is_held_back() {
        let drain = Drain::new();
        let replicas = Replicas::new(&["one"], &drain);
        let (channel, _) = map::Line::open(&replicas).await.unwrap();
        let made = Arc::new(AtomicU64::new(0));
        let counted = made.clone();
        let report = Report { counts: vec![0; 100 << 10].into(), ..Report::default() };
        let reports = stream::repeat_with(move || {
            counted.fetch_add(1, Ordering::Relaxed);
            report.clone()
        });
        let mut grpc = tonic::client::Grpc::new(channel);
        grpc.ready().await.unwrap();
        let path = http::uri::PathAndQuery::from_static(map::TELL);
        let codec = ProstCodec::<Report, Welcome>::default();
        let mut answers = grpc.streaming(Request::new(reports), path, codec).await.unwrap().into_inner();
        assert_eq!(answers.message().await.unwrap().unwrap().replica, "one");
        let reading = tokio::spawn(async move { answers.message().await });
        tokio::time::sleep(Duration::from_secs(4)).await;
        let made = made.load(Ordering::Relaxed);
        // Four are read; what a connection holds is made too.
        assert!((3..40).contains(&made), "in four seconds: {made}");
        reading.abort();
    }
}
