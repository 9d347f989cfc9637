//! Fuzz target: any bytes on an HTTP surface of the agent.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::serve::serve_connection;
use super::{Sources, Surface, hook, provider};
use crate::readiness::Readiness;
use crate::telemetry::Metrics;

/// Whatever takes longer than this hangs; requests are answered at once here.
const FOREVER: Duration = Duration::from_secs(20);

/// It ends when the client does; and nobody changes the agent but by POST on the admin surface.
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
    let sources = Arc::new(Sources {
        readiness: Readiness::default(),
        metrics: Metrics::with_capacity(8),
        config_dump: BTreeMap::from([("fuzz", provider(|| async { serde_json::json!({ "is": "fed" }) }))]),
        connections: provider(|| async { serde_json::json!([]) }),
        rotate: act.clone(),
        drain: act,
        log_filter: None,
        access_log: crate::telemetry::AccessLog::default(),
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
    if surface != Surface::Admin || !bytes.windows(4).any(|word| word == b"POST") {
        assert_eq!(acts.load(Ordering::Relaxed), 0, "the agent was changed without a POST");
    }
}
