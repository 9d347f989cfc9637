//! What happens to a request on its way, told as events of its span.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use http::StatusCode;
use opentelemetry::KeyValue;
use opentelemetry::trace::Event as Told;
use opentelemetry_sdk::trace::SpanEvents;

/// Events of one request; of more it is told how many they were.
pub const MOST_EVENTS: usize = 32;

/// Something that happened to a request. Words are from the code: none from the network.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// A try failed, and another follows.
    Retry {
        /// Who failed, where it got that far.
        endpoint: Option<SocketAddr>,
        /// What it answered, where it did.
        status: Option<StatusCode>,
        /// Why there was no answer.
        reason: Option<&'static str>,
        /// What is waited before the next.
        pause: Duration,
    },
    /// The application had closed the connection before it answered; the request goes out again at once.
    Resend,
    /// An endpoint could not be reached; the next one is tried.
    Unreached {
        /// Which.
        endpoint: SocketAddr,
        /// Why.
        reason: &'static str,
    },
    /// A TrafficPolicy has it wait, or refused.
    Fault {
        /// The fault's name.
        rule: Arc<str>,
        /// For how long; None: it is refused.
        delay: Option<Duration>,
    },
    /// An authorizer was asked about it, the last if there were several.
    Authorizer {
        /// `namespace/name`
        authorizer: Arc<str>,
        /// What came of it.
        result: &'static str,
    },
}

/// The events of one request. Takes no memory where there are none.
#[derive(Clone, Debug, Default)]
pub struct Events {
    kept: Vec<(SystemTime, Event)>,
    lost: u32,
}

impl Events {
    /// Notes what happens now.
    pub fn add(&mut self, event: Event) {
        if self.kept.len() < MOST_EVENTS {
            self.kept.push((SystemTime::now(), event));
        } else {
            self.lost = self.lost.saturating_add(1);
        }
    }

    /// As the collector is told.
    pub(super) fn told(&self) -> SpanEvents {
        let mut told = SpanEvents::default();
        told.events = self.kept.iter().map(|(at, event)| Told::new(event.name(), *at, event.attributes(), 0)).collect();
        told.dropped_count = self.lost;
        told
    }
}

impl Event {
    fn name(&self) -> &'static str {
        match self {
            Event::Retry { .. } => "nodemesh.retry",
            Event::Resend => "nodemesh.resend",
            Event::Unreached { .. } => "nodemesh.unreached",
            Event::Fault { .. } => "nodemesh.fault",
            Event::Authorizer { .. } => "nodemesh.authorizer",
        }
    }

    fn attributes(&self) -> Vec<KeyValue> {
        let text = |name: &'static str, value: String| KeyValue::new(name, value);
        let peer = |endpoint: &SocketAddr| {
            let port = KeyValue::new("network.peer.port", i64::from(endpoint.port()));
            [text("network.peer.address", endpoint.ip().to_string()), port]
        };
        match self {
            Event::Retry { endpoint, status, reason, pause } => {
                let mut all: Vec<_> = endpoint.as_ref().map(peer).into_iter().flatten().collect();
                // The conventions' word for an answer that was an error is its status.
                let status_word = status.map(|status| status.as_str().to_string());
                all.extend(reason.map(str::to_string).or(status_word).map(|word| text("error.type", word)));
                let code = status.map(|status| i64::from(status.as_u16()));
                all.extend(code.map(|code| KeyValue::new("http.response.status_code", code)));
                all.push(KeyValue::new("nodemesh.pause", pause.as_secs_f64()));
                all
            }
            Event::Resend => Vec::new(),
            Event::Unreached { endpoint, reason } => {
                let reason = KeyValue::new("error.type", *reason);
                peer(endpoint).into_iter().chain([reason]).collect()
            }
            Event::Fault { rule, delay } => {
                let mut all = vec![text("nodemesh.traffic_rule", rule.to_string())];
                all.extend(delay.map(|delay| KeyValue::new("nodemesh.delay", delay.as_secs_f64())));
                all
            }
            Event::Authorizer { authorizer, result } => {
                vec![text("nodemesh.authorizer", authorizer.to_string()), KeyValue::new("nodemesh.result", *result)]
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_bounded_and_what_is_lost_is_told() {
        let mut events = Events::default();
        (0..MOST_EVENTS + 3).for_each(|_| events.add(Event::Resend));
        let told = events.told();
        assert_eq!((told.events.len(), told.dropped_count), (MOST_EVENTS, 3));
    }

    #[test]
    fn what_an_event_says() {
        let endpoint = "[2001:db8::1]:80".parse().unwrap();
        let retry = |status, reason| Event::Retry {
            endpoint: Some(endpoint),
            status,
            reason,
            pause: Duration::from_millis(25),
        };
        let fault = |delay| Event::Fault { rule: "slow".into(), delay };
        for (event, name, expected) in [
            (
                retry(Some(StatusCode::SERVICE_UNAVAILABLE), None),
                "nodemesh.retry",
                "network.peer.address=2001:db8::1 network.peer.port=80 error.type=503 http.response.status_code=503 \
                 nodemesh.pause=0.025",
            ),
            (
                retry(None, Some("timed-out")),
                "nodemesh.retry",
                "network.peer.address=2001:db8::1 network.peer.port=80 error.type=timed-out nodemesh.pause=0.025",
            ),
            (
                Event::Unreached { endpoint, reason: "connect-failed" },
                "nodemesh.unreached",
                "network.peer.address=2001:db8::1 network.peer.port=80 error.type=connect-failed",
            ),
            (fault(None), "nodemesh.fault", "nodemesh.traffic_rule=slow"),
            (fault(Some(Duration::from_secs(2))), "nodemesh.fault", "nodemesh.traffic_rule=slow nodemesh.delay=2"),
            (
                Event::Authorizer { authorizer: "shop/opa".into(), result: "denied" },
                "nodemesh.authorizer",
                "nodemesh.authorizer=shop/opa nodemesh.result=denied",
            ),
        ] {
            let attributes: Vec<_> = event.attributes().iter().map(|of| format!("{}={}", of.key, of.value)).collect();
            assert_eq!((event.name(), attributes.join(" ").as_str()), (name, expected));
        }
    }
}
