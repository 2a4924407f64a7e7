//! The tower layer in front of `Ingest`: takes a request's bytes from a pool before its body is read.
//!
//! Invariant: what all requests together hold in memory is bounded by the pool and by the HTTP/2 windows, whatever
//! agents claim or send; a request that finds no room is answered at once, without reading its body.

use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use bytes::{BufMut, Bytes, BytesMut};
use http::{HeaderMap, HeaderValue, header};
use http_body::{Body as HttpBody, Frame, SizeHint};
use http_body_util::{BodyExt, Full};
use prost::Message;
use proto::wire::{AppendResponse, WrongReason};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tonic::Status;
use tonic::body::Body;
use tower::{Layer, Service};

use super::{Node, draining, no_permit, wrong};

const APPEND_PATH: &str = "/catchment.v1.Ingest/Append";
/// Bytes before a message in a gRPC body.
const PREFIX_BYTES: u64 = 5;
/// Bytes behind one permit.
const UNIT: u64 = 1024;
/// Largest body of any other call: it is outside the pool.
const OTHER_BODY_BYTES: u64 = 64 * 1024;

/// The permit of a request, on its way to the handler. Whoever takes it holds the bytes.
#[derive(Debug, Clone)]
pub struct PermitSlot(Arc<Mutex<Option<OwnedSemaphorePermit>>>);

impl PermitSlot {
    /// The permit, once.
    pub fn take(&self) -> Option<OwnedSemaphorePermit> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

/// Makes [`Permits`].
#[derive(Debug, Clone)]
pub struct PermitLayer {
    pool: Arc<Semaphore>,
    node: Node,
}

impl PermitLayer {
    /// A pool of `bytes`.
    pub fn new(bytes: u64, node: Node) -> Self {
        Self { pool: Arc::new(Semaphore::new((bytes / UNIT) as usize)), node }
    }

    /// Bytes that are free.
    pub fn free_bytes(&self) -> u64 {
        self.pool.available_permits() as u64 * UNIT
    }
}

impl<S> Layer<S> for PermitLayer {
    type Service = Permits<S>;
    fn layer(&self, inner: S) -> Permits<S> {
        Permits { inner, pool: self.pool.clone(), node: self.node.clone() }
    }
}

/// The service behind the layer.
#[derive(Debug, Clone)]
pub struct Permits<S> {
    inner: S,
    pool: Arc<Semaphore>,
    node: Node,
}

type Answer<E> = Pin<Box<dyn Future<Output = Result<http::Response<Body>, E>> + Send>>;

impl<S> Service<http::Request<Body>> for Permits<S>
where
    S: Service<http::Request<Body>, Response = http::Response<Body>, Error = Infallible>,
    S::Future: Send + 'static,
{
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Answer<Infallible>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: http::Request<Body>) -> Answer<Infallible> {
        match self.admit(request) {
            Ok(request) => Box::pin(self.inner.call(request)),
            Err(refused) => Box::pin(std::future::ready(Ok(*refused))),
        }
    }
}

impl<S> Permits<S> {
    fn admit(&self, request: http::Request<Body>) -> Result<http::Request<Body>, Box<http::Response<Body>>> {
        if request.uri().path() != APPEND_PATH {
            return Ok(request.map(|body| Body::new(LimitedBody { body, left: OTHER_BODY_BYTES })));
        }
        let refuse = |answer| Box::new(answered(&self.node.early(answer)));
        if self.node.is_draining() {
            return Err(refuse(draining()));
        }
        let claimed = request.headers().get(proto::PAYLOAD_BYTES_HEADER);
        let claimed = claimed.and_then(|value| value.to_str().ok()).and_then(|text| text.parse::<u64>().ok());
        let Some(claimed) = claimed else {
            let status = Status::invalid_argument(format!(
                "the request has no usable metadata {}; an agent states the length of every request",
                proto::PAYLOAD_BYTES_HEADER
            ));
            return Err(Box::new(status.into_http()));
        };
        if claimed > proto::MAX_MESSAGE_BYTES as u64 {
            let detail = format!("a request of {claimed} bytes, the limit is {}", proto::MAX_MESSAGE_BYTES);
            return Err(refuse(wrong(WrongReason::TooLarge, detail)));
        }
        let units = claimed.div_ceil(UNIT).max(1) as u32;
        let Ok(permit) = self.pool.clone().try_acquire_many_owned(units) else { return Err(refuse(no_permit())) };
        let left = claimed + PREFIX_BYTES;
        let mut request = request.map(|body| Body::new(LimitedBody { body, left }));
        request.extensions_mut().insert(PermitSlot(Arc::new(Mutex::new(Some(permit)))));
        Ok(request)
    }
}

/// A gRPC answer given in place of the service.
fn answered(response: &AppendResponse) -> http::Response<Body> {
    let message = response.encode_to_vec();
    let mut frame = BytesMut::with_capacity(PREFIX_BYTES as usize + message.len());
    frame.put_u8(0);
    frame.put_u32(message.len() as u32);
    frame.put_slice(&message);
    let trailers = async {
        let mut trailers = HeaderMap::new();
        trailers.insert("grpc-status", HeaderValue::from_static("0"));
        Some(Ok(trailers))
    };
    let mut answer = http::Response::new(Body::new(Full::new(frame.freeze()).with_trailers(trailers)));
    answer.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    answer
}

/// A body that fails once it is longer than was said.
struct LimitedBody {
    body: Body,
    left: u64,
}

impl HttpBody for LimitedBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let polled = Pin::new(&mut self.body).poll_frame(cx);
        if let Poll::Ready(Some(Ok(frame))) = &polled
            && let Some(data) = frame.data_ref()
        {
            match self.left.checked_sub(data.len() as u64) {
                Some(left) => self.left = left,
                None => {
                    let status = Status::out_of_range("the request is longer than its metadata says");
                    return Poll::Ready(Some(Err(status)));
                }
            }
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
