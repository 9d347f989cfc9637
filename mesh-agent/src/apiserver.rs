//! How the Kubernetes API server is reached: by whose word, and how long an answer may take. Whoever has business with it
//! makes a client here.

use std::path::PathBuf;
use std::time::Duration;

use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use kube::Client;
use kube::client::{Body, ClientBuilder, ConfigExt};
use kube::config::{Config, KubeConfigOptions, Kubeconfig};
use tower::limit::RateLimitLayer;
use tower::timeout::TimeoutLayer;
use tower::util::MapResponseLayer;

use crate::limit::{Limit, limits};

/// How long a connection to the API server may take to come into being.
const CONNECT: Duration = Duration::from_secs(10);
/// How long the beginning of an answer may take. An API server itself gives up on a request after 60 s.
const ANSWER: Duration = Duration::from_secs(65);
/// How long a connection may be silent before the kernel asks whether the other end is there. A watch is silent for
/// minutes where nothing happens.
const KEEPALIVE: Duration = Duration::from_secs(15);
/// Between two such questions.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(5);
/// Such questions without an answer that end a connection.
const KEEPALIVE_TRIES: u32 = 3;
/// How long what was sent may wait for the other end's acknowledgement.
const UNACKNOWLEDGED: Duration = Duration::from_secs(30);
/// Requests of one watch in a [`WATCH_WINDOW`]: those of a list of 30 000 objects pass without a wait.
const WATCH_REQUESTS: u64 = 60;
/// See [`WATCH_REQUESTS`].
const WATCH_WINDOW: Duration = Duration::from_secs(15);

/// The bounds of this room.
pub fn limits() -> Vec<Limit> {
    limits![
        CONNECT, "milliseconds", "for a connection to the API server";
        ANSWER, "milliseconds", "for the beginning of its answer; it gives up by itself after 60 s";
        KEEPALIVE, "milliseconds", "of silence before the kernel asks whether the API server is there";
        KEEPALIVE_INTERVAL, "milliseconds", "between two such questions";
        KEEPALIVE_TRIES, "questions", "without an answer that end a connection";
        WATCH_REQUESTS, "requests", "of one watch within WATCH_WINDOW; a list of 30 000 objects is as many";
        WATCH_WINDOW, "milliseconds", "see WATCH_REQUESTS";
        UNACKNOWLEDGED, "milliseconds", "that a request may wait for the other end's acknowledgement";
    ]
}

/// Why there is no client.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// --kubeconfig cannot be used.
    #[error("{path}: {reason}", path = .path.display())]
    Kubeconfig {
        /// Which file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// Nothing says where the API server is.
    #[error(
        "nothing says where the API server is: this is no pod with a service account ({in_cluster}), and there is no \
         --kubeconfig, KUBECONFIG or ~/.kube/config ({kubeconfig})"
    )]
    Unknown {
        /// Why the pod's own account does not do.
        in_cluster: String,
        /// Why the environment's file does not do.
        kubeconfig: String,
    },
    /// What is said of it cannot be used.
    #[error("no client for {server}: {reason}")]
    Client {
        /// Where the API server would be.
        server: String,
        /// What is wrong.
        reason: String,
    },
}

/// Where the API server is and who we are to it.
#[derive(Clone)]
pub struct ApiServer {
    config: Config,
}

impl ApiServer {
    /// By a kubeconfig that was named; else by the service account of the pod that this is; else by KUBECONFIG or
    /// ~/.kube/config.
    pub async fn find(kubeconfig: Option<PathBuf>) -> Result<Self, Error> {
        match kubeconfig {
            Some(path) => Self::of_file(path, &KubeConfigOptions::default()).await,
            None => match Config::incluster() {
                Ok(config) => Ok(Self { config }),
                Err(in_cluster) => Self::of_environment(&KubeConfigOptions::default(), || chain(&in_cluster)).await,
            },
        }
    }

    /// As [`ApiServer::find`], by a context of the kubeconfig that was named, where one was.
    pub async fn find_context(kubeconfig: Option<PathBuf>, context: Option<String>) -> Result<Self, Error> {
        if context.is_none() {
            return Self::find(kubeconfig).await;
        }
        let options = KubeConfigOptions { context, ..KubeConfigOptions::default() };
        match kubeconfig {
            Some(path) => Self::of_file(path, &options).await,
            None => Self::of_environment(&options, || "a context was named".to_string()).await,
        }
    }

    async fn of_file(path: PathBuf, options: &KubeConfigOptions) -> Result<Self, Error> {
        let unusable = |reason: String| Error::Kubeconfig { path: path.clone(), reason };
        let read = Kubeconfig::read_from(&path).map_err(|error| unusable(chain(&error)))?;
        let config = Config::from_custom_kubeconfig(read, options).await;
        Ok(Self { config: config.map_err(|error| unusable(chain(&error)))? })
    }

    async fn of_environment(options: &KubeConfigOptions, in_cluster: impl Fn() -> String) -> Result<Self, Error> {
        let config = Config::from_kubeconfig(options).await;
        let unknown = |error| Error::Unknown { in_cluster: in_cluster(), kubeconfig: chain(&error) };
        Ok(Self { config: config.map_err(unknown)? })
    }

    /// Where it is, for people.
    pub fn address(&self) -> String {
        self.config.cluster_url.to_string().trim_end_matches('/').to_string()
    }

    /// A client. What it asks is asked once: whoever uses it knows better when to ask again.
    pub fn client(&self) -> Result<Client, Error> {
        self.build(None, |_| {})
    }

    /// A client for one watch: it tells of the beginning of every answer, by its status. A watch that is taken and closed at
    /// once, as by a proxy with little patience, is asked for again by the library that follows it, at once; so this one
    /// asks no more often than [`WATCH_REQUESTS`] allows.
    pub fn watching(&self, answered: impl Fn(http::StatusCode) + Clone + Send + 'static) -> Result<Client, Error> {
        self.build(Some(RateLimitLayer::new(WATCH_REQUESTS, WATCH_WINDOW)), answered)
    }

    fn build(
        &self,
        pace: Option<RateLimitLayer>,
        answered: impl Fn(http::StatusCode) + Clone + Send + 'static,
    ) -> Result<Client, Error> {
        self.layered(pace, answered).map_err(|error| Error::Client { server: self.address(), reason: chain(&*error) })
    }

    fn layered(
        &self,
        pace: Option<RateLimitLayer>,
        answered: impl Fn(http::StatusCode) + Clone + Send + 'static,
    ) -> Result<Client, Box<dyn std::error::Error + Send + Sync>> {
        let mut connector = HttpConnector::new();
        connector.enforce_http(false);
        connector.set_nodelay(true);
        connector.set_connect_timeout(Some(CONNECT));
        connector.set_keepalive(Some(KEEPALIVE));
        connector.set_keepalive_interval(Some(KEEPALIVE_INTERVAL));
        connector.set_keepalive_retries(Some(KEEPALIVE_TRIES));
        connector.set_tcp_user_timeout(Some(UNACKNOWLEDGED));
        let connector = self.config.rustls_https_connector_with_connector(connector)?;
        let http: hyper_util::client::legacy::Client<_, Body> =
            hyper_util::client::legacy::Builder::new(TokioExecutor::new()).build(connector);
        let namespace = self.config.default_namespace.clone();
        let builder = ClientBuilder::new(http, namespace)
            .with_layer(&tower::util::MapErrLayer::new(tower::BoxError::from))
            .with_layer(&self.config.extra_headers_layer()?)
            .with_layer(&tower::util::option_layer(self.config.auth_layer()?))
            .with_layer(&TimeoutLayer::new(ANSWER))
            .with_layer(&tower::util::option_layer(pace))
            .with_layer(&MapResponseLayer::new(move |response: http::Response<_>| {
                answered(response.status());
                response
            }))
            .with_layer(&self.config.base_uri_layer());
        Ok(builder.build())
    }
}

/// An error with all that caused it, in one line.
pub fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        // Many repeat what caused them.
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        cause = error.source();
    }
    text
}
