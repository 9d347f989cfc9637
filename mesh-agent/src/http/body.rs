//! Bodies on their way: counted, their trailers cleaned, never gathered. One frame at a time, and only when whoever
//! writes it on has room for it.

use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use tokio::time::Sleep;

use super::exchange::{End, Exchange};
use super::hygiene;
use super::upstream::Lease;

/// Why a body ended before its end.
#[derive(Debug, thiserror::Error)]
pub enum BodyError {
    /// Its sender broke off, or what came was not HTTP.
    #[error("{0}")]
    Broken(#[from] hyper::Error),
    /// The time that the route allows is over.
    #[error("the request's time is over")]
    TimedOut,
}

/// What a client sends to an application.
pub struct UpBody {
    /// None: nothing.
    incoming: Option<Incoming>,
    exchange: Option<Rc<Exchange>>,
}

impl UpBody {
    /// No body.
    pub fn empty() -> Self {
        Self { incoming: None, exchange: None }
    }

    /// A client's body.
    pub fn new(incoming: Incoming, exchange: Rc<Exchange>) -> Self {
        let incoming = (!incoming.is_end_stream()).then_some(incoming);
        Self { incoming, exchange: Some(exchange) }
    }
}

impl Body for UpBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = self.get_mut();
        let Some(incoming) = &mut this.incoming else { return Poll::Ready(None) };
        let frame = ready!(Pin::new(incoming).poll_frame(cx));
        let Some(exchange) = &this.exchange else { return Poll::Ready(None) };
        match frame {
            Some(Ok(frame)) => Poll::Ready(Some(Ok(clean(frame, |bytes| exchange.sent(bytes))))),
            Some(Err(error)) => {
                exchange.end(End::ClientBroke);
                Poll::Ready(Some(Err(error.into())))
            }
            None => Poll::Ready(None),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.incoming.as_ref().is_none_or(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.incoming.as_ref().map_or(SizeHint::with_exact(0), Body::size_hint)
    }
}

/// What a client is answered.
pub struct DownBody {
    source: Source,
    exchange: Option<Rc<Exchange>>,
}

enum Source {
    Text(&'static str),
    Application {
        incoming: Incoming,
        /// The connection that it comes by, given back at its end.
        lease: Option<Lease>,
        /// The end of the time that the route allows.
        deadline: Option<Pin<Box<Sleep>>>,
    },
}

impl DownBody {
    /// A text of our own.
    pub fn text(text: &'static str) -> Self {
        Self { source: Source::Text(text), exchange: None }
    }

    /// Of an exchange, which ends with it.
    pub fn within(mut self, exchange: Rc<Exchange>) -> Self {
        self.exchange = Some(exchange);
        self
    }

    /// An application's body. The connection is given back when it has come to its end.
    pub fn application(
        incoming: Incoming,
        lease: Lease,
        deadline: Option<Pin<Box<Sleep>>>,
        exchange: Rc<Exchange>,
    ) -> Self {
        let mut lease = Some(lease);
        if incoming.is_end_stream()
            && let Some(lease) = lease.take()
        {
            exchange.end(End::Complete);
            lease.give_back();
        }
        Self { source: Source::Application { incoming, lease, deadline }, exchange: Some(exchange) }
    }

    fn end(&mut self, end: End) {
        if let Some(exchange) = &self.exchange {
            exchange.end(end);
        }
        if let Source::Application { lease, .. } = &mut self.source
            && let Some(lease) = lease.take()
            && end == End::Complete
        {
            lease.give_back();
        }
    }
}

impl Body for DownBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = self.get_mut();
        let (frame, is_last) = match &mut this.source {
            Source::Text(text) => match std::mem::take(text) {
                "" => (None, true),
                text => (Some(Ok(Frame::data(Bytes::from_static(text.as_bytes())))), true),
            },
            Source::Application { incoming, deadline, .. } => {
                let deadline = deadline.as_mut().map(|deadline| deadline.as_mut().poll(cx));
                if let Some(Poll::Ready(())) = deadline {
                    this.end(End::TimedOut);
                    return Poll::Ready(Some(Err(BodyError::TimedOut)));
                }
                let frame = ready!(Pin::new(&mut *incoming).poll_frame(cx));
                (frame, incoming.is_end_stream())
            }
        };
        match frame {
            Some(Ok(frame)) => {
                let exchange = this.exchange.clone();
                let frame = clean(frame, |bytes| {
                    if let Some(exchange) = &exchange {
                        exchange.received(bytes);
                    }
                });
                if let (Some(exchange), Some(trailers)) = (&this.exchange, frame.trailers_ref()) {
                    exchange.grpc_status(trailers);
                }
                if is_last || frame.is_trailers() {
                    this.end(End::Complete);
                }
                Poll::Ready(Some(Ok(frame)))
            }
            Some(Err(error)) => {
                this.end(End::ApplicationBroke);
                Poll::Ready(Some(Err(error.into())))
            }
            None => {
                this.end(End::Complete);
                Poll::Ready(None)
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.source {
            Source::Text(text) => text.is_empty(),
            Source::Application { incoming, .. } => incoming.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.source {
            Source::Text(text) => SizeHint::with_exact(text.len() as u64),
            Source::Application { incoming, .. } => incoming.size_hint(),
        }
    }
}

impl Drop for DownBody {
    fn drop(&mut self) {
        let is_whole = self.is_end_stream();
        self.end(if is_whole { End::Complete } else { End::ClientGone });
    }
}

fn clean(mut frame: Frame<Bytes>, count: impl FnOnce(usize)) -> Frame<Bytes> {
    if let Some(data) = frame.data_ref() {
        count(data.len());
    } else if let Some(trailers) = frame.trailers_mut() {
        hygiene::trailers(trailers);
    }
    frame
}
