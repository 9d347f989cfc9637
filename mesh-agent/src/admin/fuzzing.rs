//! Fuzz target: any bytes on an HTTP surface of the agent.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::serve::serve_connection;
use super::{Sources, Surface, hook, provider};
use crate::readiness::Readiness;
use crate::telemetry::access_log::Filter as AccessFilter;
use crate::telemetry::{AccessLog, Metrics, logs};

/// Whatever takes longer than this hangs; requests are answered at once here.
const FOREVER: Duration = Duration::from_secs(20);

/// The log filter and the access log's before each input.
const LOG_LEVEL: &str = "info";

/// It ends when the client does; nobody changes the agent but by POST and PUT on the admin surface; and a filter that was
/// put shows itself as one that can be put again.
pub fn requests(input: &[u8]) {
    let (choice, bytes) = input.split_first().map_or((0, input), |(choice, bytes)| (*choice, bytes));
    let surface = match choice % 3 {
        0 => Surface::Admin,
        1 => Surface::Metrics,
        _ => Surface::Readiness,
    };
    let acts = Arc::new(AtomicUsize::new(0));
    let act = {
        let acts = acts.clone();
        hook(move || {
            acts.fetch_add(1, Ordering::Relaxed);
            async { Ok("done".to_string()) }
        })
    };
    let levels = log_filter();
    levels.set(LOG_LEVEL).expect("a filter to begin with");
    let access_log = AccessLog::default();
    let sources = Arc::new(Sources {
        readiness: Readiness::default(),
        metrics: Metrics::with_capacity(8),
        config_dump: BTreeMap::from([("fuzz", provider(|| async { serde_json::json!({ "is": "fed" }) }))]),
        connections: provider(|| async { serde_json::json!([]) }),
        rotate: act.clone(),
        drain: act,
        log_filter: Some(levels.clone()),
        access_log: access_log.clone(),
    });
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime for fuzzing");
    let ended = runtime.block_on(async {
        let (near, mut far) = tokio::io::duplex(1 << 20);
        let serving = tokio::spawn(serve_connection(near, surface, sources));
        let _ = far.write_all(bytes).await;
        let _ = far.shutdown().await;
        let mut answer = Vec::new();
        let exchange = async {
            let _ = far.read_to_end(&mut answer).await;
            serving.await
        };
        let ended = tokio::time::timeout(FOREVER, exchange).await;
        assert!(answer.is_empty() || answer.starts_with(b"HTTP/1."), "an answer that is no HTTP");
        ended
    });
    assert!(matches!(ended, Ok(Ok(()))), "it goes on although the client is gone, or it panicked");
    let says = |word: &[u8]| surface == Surface::Admin && bytes.windows(word.len()).any(|part| part == word);
    if !says(b"POST") {
        assert_eq!(acts.load(Ordering::Relaxed), 0, "the agent was changed without a POST");
    }
    let (level, filter) = (levels.current(), access_log.filter());
    if !says(b"PUT") {
        assert_eq!((level.as_str(), &*filter), (LOG_LEVEL, &AccessFilter::default()), "a filter changed without a PUT");
    }
    assert!(logs::parse_filter(&level).is_ok(), "the log filter shows itself as {level:?}, which is none");
    assert_eq!(
        filter.to_string().parse().ok(),
        Some((*filter).clone()),
        "the access log's filter shows itself as another"
    );
}

/// That of a log which nobody reads; one for the process, as in an agent.
fn log_filter() -> logs::Filter {
    static LOG: OnceLock<(Box<dyn tracing::Subscriber + Send + Sync>, logs::Filter)> = OnceLock::new();
    let log = LOG.get_or_init(|| {
        let level = logs::parse_filter(LOG_LEVEL).expect("a filter to begin with");
        let (subscriber, filter) = logs::subscriber(logs::Format::Text, level, std::io::sink);
        (Box::new(subscriber), filter)
    });
    log.1.clone()
}
