//! The controller: the authority of a cluster, and what only one replica may write.
//!
//! ```text
//! agent ──TLS, token──► server ─► service: review (who calls?) ─► authorize (may it?) ─► authority (sign) ─► audit
//!                                            TokenReview            pods (watch, look)      Secret nodemesh-ca
//!       └─the same─► telling ─► map::heard: what agents tell for the live map
//! lease (who leads?) ─► keeper: Secret nodemesh-ca, ConfigMap nodemesh-ca-roots
//! ```
//! Every replica serves certificates; the one that holds the Lease writes. What a caller may have is decided in
//! [`authorize`], on facts, without a clock or a client.
//!
//! What is not here: the key of the root goes through as text from the Secret to `identity`, which signs; no traffic of
//! the mesh passes, and the mesh goes on without a controller for as long as its certificates last.

mod audit;
mod authority;
mod authorize;
mod buckets;
mod keeper;
pub mod lease;
mod pods;
mod review;
mod roots;
mod rotation;
mod server;
mod service;
mod status;
mod status_writer;
mod telling;

use std::sync::Arc;
use std::time::Duration;

use kube::Client;
use tokio::net::TcpListener;
use tracing::info;

use crate::discovery::Health;
use crate::drain;
use crate::identity::Clock;
use crate::limit::{Limit, limits};
use crate::map::Heard;
use crate::readiness::Readiness;
use crate::state::StateReader;

pub use audit::Tally;
pub use authorize::ServiceAccount;
pub use review::AUDIENCE;
pub use roots::{CONFIG_MAP, ROOTS_KEY, SECRET, SETTLE};
pub use rotation::{Rotation, RotationError};

use authority::Authority;
use keeper::Keeper;
use lease::{Candidate, Leadership, Pace};
use pods::Pods;
use review::Reviews;
use service::Service;
use status_writer::StatusWriter;
use telling::Listening;

/// What a controller is told.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where its Secret, ConfigMap and Lease are.
    pub namespace: String,
    /// The trust domain of every identity.
    pub trust_domain: String,
    /// The service account of the agents.
    pub agents: ServiceAccount,
    /// Names by which agents call it.
    pub names: Vec<String>,
    /// How long a certificate is good for at most.
    pub longest: Duration,
    /// This replica among the others.
    pub replica: String,
    /// Until every agent has a root that was published.
    pub settle: Duration,
    /// How fast leaders change.
    pub pace: Pace,
}

/// The bounds of this room.
pub fn limits() -> Vec<Limit> {
    limits![
        server::MAX_CONNECTIONS, "connections", "one per agent; more wait in the kernel's queue";
        server::MAX_CONNECTIONS_OF_ONE, "connections", "of one address";
        server::HANDSHAKE_TIMEOUT, "milliseconds", "for the handshake of TLS";
        server::KEEPALIVE, "milliseconds", "between two signs of life of a connection";
        server::KEEPALIVE_TIMEOUT, "milliseconds", "for the answer to one";
        server::CONNECTION_AGE, "milliseconds", "then a connection takes nothing new; agents spread over the replicas again";
        server::MAX_STREAMS, "requests", "at once on one connection";
        server::MAX_HEADER_BYTES, "bytes", "of a request's headers, the token among them";
        server::MAX_REQUEST_BYTES, "bytes", "of a request";
        telling::BREATH, "milliseconds", "between two reports of an agent for the map: more of them wait in its connection";
        telling::SILENCE, "milliseconds", "without a report, then its stream is ended";
        server::REQUEST_TIMEOUT, "milliseconds", "for one request, whatever it waits for";
        server::FAREWELL, "milliseconds", "for what is under way when the process ends";
        server::ACCEPT_PAUSE, "milliseconds", "no spinning when descriptors run out";
        service::CALLER_BURST, "requests", "of one agent at once: a node that starts";
        service::CALLER_RATE, "requests per second", "of one agent after that";
        service::LOOK_BURST, "looks", "at the API server at once, for one agent: pods that started a moment ago";
        service::LOOK_RATE, "looks per second", "for one agent after that";
        service::ADDRESS_BURST, "tokens", "from one address at once that the API server is asked about";
        service::ADDRESS_RATE, "tokens per second", "from one address after that";
        service::LOOK_TIMEOUT, "milliseconds", "for a look at the API server";
        review::BELIEVED, "milliseconds", "that a token is believed without asking again";
        review::DISBELIEVED, "milliseconds", "that a token is refused without asking again";
        review::MAX_REMEMBERED, "tokens", "that are remembered";
        review::MAX_REVIEWS, "questions", "about tokens at once";
        review::REVIEW_TIMEOUT, "milliseconds", "for one";
        review::MAX_TOKEN_BYTES, "bytes", "of a token that is asked about";
        buckets::MAX_BUCKETS, "callers", "whose rate is remembered";
        pods::PAGE, "pods", "of one answer of the API server";
        pods::MOST_BEARERS, "pods", "of one namespace on one node that a look sees";
        roots::SETTLE, "milliseconds", "until every agent has a root that was published";
        roots::MAX_PEM_BYTES, "bytes", "of one value of the Secret";
        authority::SERVING_LIFETIME, "milliseconds", "of the certificate of the port; made anew at two thirds";
        rotation::TRIES, "tries", "of a write by hand that another was faster than";
        keeper::TICK, "milliseconds", "between two looks at what time alone changes";
        status_writer::LOOK, "milliseconds", "between two looks at what status is to say";
        status_writer::LOOK_AGAIN, "milliseconds", "until a kind is looked for again that the API server does not serve";
        status_writer::WAITING, "changes", "that wait to be taken; then the watches wait";
        status_writer::PAUSE, "milliseconds", "after a status that could not be written";
        lease::LEASE, "milliseconds", "that a Lease is unchanged before another replica takes it";
        lease::RENEW_DEADLINE, "milliseconds", "without a renewal after which a leader stops";
        lease::RETRY, "milliseconds", "between two tries for the Lease";
        lease::WRITE_TIMEOUT, "milliseconds", "for one write of the leader: over before another replica leads";
    ]
}

/// A controller, ready to run.
pub struct Controller {
    config: Config,
    client: Client,
    readiness: Readiness,
    authority: Arc<Authority>,
    tally: Arc<Tally>,
    candidate: Candidate,
    leadership: Leadership,
    world: World,
    /// What agents tell for the map, where that is wanted.
    heard: Option<Heard>,
}

/// The world of the whole cluster, for who speaks of it. `app` has it kept.
pub struct World {
    /// Its snapshots.
    pub state: StateReader,
    /// What is wrong in it.
    pub health: Health,
}

impl Controller {
    /// Nothing runs yet.
    pub fn new(config: Config, client: Client, world: World, readiness: Readiness) -> Self {
        let authority = Authority::new(
            &config.trust_domain,
            config.names.clone(),
            config.settle,
            Clock::system(),
            readiness.clone(),
        );
        readiness.waiting(pods::GATE, "the pods of the cluster were not read yet");
        let (candidate, leadership) = Candidate::new(client.clone(), &config.namespace, &config.replica, config.pace);
        let (authority, tally) = (Arc::new(authority), Arc::default());
        Self { config, client, readiness, authority, tally, candidate, leadership, world, heard: None }
    }

    /// Agents may tell what the map is made of.
    pub fn listening(self, heard: Heard) -> Self {
        Self { heard: Some(heard), ..self }
    }

    /// What became of requests.
    pub fn tally(&self) -> Arc<Tally> {
        self.tally.clone()
    }

    /// Whether this replica leads.
    pub fn leadership(&self) -> Leadership {
        self.leadership.clone()
    }

    /// Serves on `listener` and keeps what it leads, until `shutdown` starts.
    pub async fn run(self, listener: TcpListener, shutdown: drain::Token) {
        let Self { config, client, readiness, authority, tally, candidate, leadership, world, heard } = self;
        let listening = heard.map(|heard| Listening { heard, replica: config.replica.clone() });
        let World { state, health } = world;
        let writer =
            StatusWriter::new(client.clone(), &config.replica, &config.trust_domain, leadership.clone(), state, health);
        let pods = Pods::default();
        let service = Service {
            agents: config.agents,
            trust_domain: config.trust_domain.clone(),
            longest: config.longest,
            client: client.clone(),
            authority: authority.clone(),
            reviews: Reviews::new(client.clone()),
            pods: pods.clone(),
            tally,
            limits: service::Limits::default(),
        };
        let keeper =
            Keeper::new(client.clone(), &config.namespace, &config.trust_domain, config.settle, authority, leadership);
        info!(replica = config.replica, namespace = config.namespace, names = ?config.names, "controller");
        let follow = async {
            tokio::join!(pods.follow(client, readiness), keeper.run(), writer.run());
        };
        let serve = async {
            let served = server::serve(listener, Arc::new(service), listening, shutdown.clone());
            tokio::join!(served, candidate.run(shutdown.clone()));
        };
        tokio::select! {
            () = follow => {}
            () = serve => {}
        }
    }
}
