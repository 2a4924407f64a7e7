//! `Collect.Deliver`: one stream per aggregator. A stream's task reads, checks and hands on; it decides nothing about
//! a batch and stores nothing (the owner task does), so a broken stream breaks nothing else.
//!
//! Keeps I7: what is received and not yet staged is taken from two pools of bytes, one per stream and one for all.

pub mod check;

use std::panic::AssertUnwindSafe;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use futures::FutureExt;
use opentelemetry::metrics::Meter;
use proto::ids::BatchId;
use proto::wire::deliver_request::Message;
use proto::wire::{self, DeliverRequest, DeliverResponse, collect_server::Collect};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};

use crate::coordinator::{Delivery, Event};
use crate::ledger::StreamId;
use check::Checked;

/// Messages to a stream that are not sent yet; one that lets more pile up is broken off and comes back.
const OUTBOUND: usize = 512;
/// How long a stream may be silent before its hello.
const HELLO_WITHIN: Duration = Duration::from_secs(10);
/// Permits count kibibytes.
const UNIT: u64 = 1024;

/// To a stream.
pub type Outbound = mpsc::Sender<Result<DeliverResponse, Status>>;

/// What streams tell the owner.
#[derive(Debug)]
pub enum Inbox {
    /// A stream began; its hello was read.
    Connected {
        /// Its number.
        stream: StreamId,
        /// Who it is, for logs.
        aggregator: String,
        /// To it.
        out: Outbound,
        /// Ends its reading half.
        stop: CancellationToken,
    },
    /// A stream ended.
    Disconnected {
        /// Its number.
        stream: StreamId,
    },
    /// Something for the coordinator.
    Event(Event),
}

/// Byte pools.
#[derive(Debug, Clone)]
struct Pool {
    permits: Arc<Semaphore>,
    size: u32,
}

impl Pool {
    fn new(bytes: u64) -> Self {
        let size = u32::try_from(bytes / UNIT).unwrap_or(u32::MAX / 8);
        Self { permits: Arc::new(Semaphore::new(size as usize)), size }
    }

    async fn take(&self, bytes: u64) -> Option<OwnedSemaphorePermit> {
        let wanted = u32::try_from(bytes / UNIT + 1).unwrap_or(self.size).min(self.size);
        Arc::clone(&self.permits).acquire_many_owned(wanted).await.ok()
    }
}

/// The service. Before the owner has read the log every stream is told to come back.
#[derive(Debug, Clone)]
pub struct Receive(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    owner: OnceLock<mpsc::Sender<Inbox>>,
    streams: AtomicU64,
    all: Pool,
    stream_bytes: u64,
    /// Batches that could not be answered, since not even their identity could be read.
    unidentified: AtomicU64,
}

impl Receive {
    /// `all_bytes` for all streams together, `stream_bytes` for one, at most.
    pub fn new(all_bytes: u64, stream_bytes: u64) -> Self {
        // One message more than was promised: credit is shared anew while batches are on their way.
        let spare = proto::MAX_MESSAGE_BYTES as u64;
        Self(Arc::new(Inner {
            owner: OnceLock::new(),
            streams: AtomicU64::new(0),
            all: Pool::new(all_bytes + spare),
            stream_bytes: stream_bytes + spare,
            unidentified: AtomicU64::new(0),
        }))
    }

    /// Streams are taken from now on.
    pub fn begin(&self, owner: mpsc::Sender<Inbox>) {
        // A second owner in one process would be a wiring error; the first one stays.
        let _ = self.0.owner.set(owner);
    }

    /// Registers what is counted here. Once per process.
    pub fn register(&self, meter: &Meter) {
        let receive = self.clone();
        let _registered = meter
            .u64_observable_counter("collector_unidentified_batches")
            .with_description("Batches without a readable identity: each broke off the stream that brought it")
            .with_callback(move |to| to.observe(receive.0.unidentified.load(Ordering::Relaxed), &[]))
            .build();
    }
}

#[tonic::async_trait]
impl Collect for Receive {
    type DeliverStream = ReceiverStream<Result<DeliverResponse, Status>>;

    async fn deliver(
        &self,
        request: Request<Streaming<DeliverRequest>>,
    ) -> Result<Response<Self::DeliverStream>, Status> {
        let Some(owner) = self.0.owner.get().cloned() else {
            return Err(Status::unavailable("the collector is starting: it has not read the commit log yet"));
        };
        let (out, outbound) = mpsc::channel(OUTBOUND);
        let stream = self.0.streams.fetch_add(1, Ordering::Relaxed);
        let reader = Reader {
            inner: Arc::clone(&self.0),
            own: Pool::new(self.0.stream_bytes),
            stop: CancellationToken::new(),
            stream,
            owner,
            out,
        };
        tokio::spawn(reader.run(request.into_inner()));
        Ok(Response::new(ReceiverStream::new(outbound)))
    }
}

/// The reading half of one stream.
struct Reader {
    inner: Arc<Inner>,
    own: Pool,
    stop: CancellationToken,
    stream: StreamId,
    owner: mpsc::Sender<Inbox>,
    out: Outbound,
}

impl Reader {
    async fn run(self, mut inbound: Streaming<DeliverRequest>) {
        let aggregator = match tokio::time::timeout(HELLO_WITHIN, inbound.message()).await {
            Ok(Ok(Some(DeliverRequest { message: Some(Message::Hello(hello)) }))) => hello.aggregator,
            Ok(Ok(_)) => return self.refuse(Status::invalid_argument("the first message must be the hello")).await,
            Ok(Err(_)) => return,
            Err(_) => return self.refuse(Status::deadline_exceeded("no hello within 10 s")).await,
        };
        tracing::info!(stream = self.stream, aggregator, "aggregator connected");
        let (out, stop, stream) = (self.out.clone(), self.stop.clone(), self.stream);
        let connected = Inbox::Connected { stream, aggregator, out, stop };
        if self.owner.send(connected).await.is_err() {
            return self.refuse(Status::unavailable("the collector is stopping")).await;
        }
        let stop = self.stop.clone();
        let end = tokio::select! {
            // A panic over a batch has to break the stream like any other end, else its sender waits for ever.
            end = AssertUnwindSafe(self.read(&mut inbound)).catch_unwind() => {
                end.unwrap_or_else(|_| Err(Status::internal("the collector panicked over what was sent")))
            }
            () = stop.cancelled() => Ok(()),
        };
        tracing::info!(stream = self.stream, clean = end.is_ok(), "aggregator disconnected");
        // The owner is gone only when the process ends.
        let _ = self.owner.send(Inbox::Disconnected { stream: self.stream }).await;
        if let Err(status) = end {
            self.refuse(status).await;
        }
    }

    async fn refuse(&self, status: Status) {
        // A stream whose other end is gone needs no reason.
        let _ = self.out.send(Err(status)).await;
    }

    async fn read(&self, inbound: &mut Streaming<DeliverRequest>) -> Result<(), Status> {
        while let Some(request) = inbound.message().await? {
            let event = match request.message {
                Some(Message::Delivery(delivery)) => self.delivery(delivery).await?,
                Some(Message::Unanswered(list)) => Some(self.unanswered(&list)),
                Some(Message::Roll(_)) => Some(Event::Roll { stream: self.stream }),
                Some(Message::Hello(_)) => return Err(Status::invalid_argument("a second hello")),
                None => None,
            };
            if let Some(event) = event
                && self.owner.send(Inbox::Event(event)).await.is_err()
            {
                return Err(Status::unavailable("the collector is stopping"));
            }
        }
        Ok(())
    }

    /// An identity that is none of ours cannot be staged here: left out, as it has no answer.
    fn unanswered(&self, list: &wire::Unanswered) -> Event {
        let keys = list.keys.iter().filter_map(|key| BatchId::try_from(key).ok()).collect();
        Event::Unanswered { stream: self.stream, keys }
    }

    async fn delivery(&self, delivery: wire::Delivery) -> Result<Option<Event>, Status> {
        let bytes = (delivery.header.len() + delivery.payload.len()) as u64;
        let mut hold = Vec::with_capacity(2);
        for pool in [&self.own, &self.inner.all] {
            hold.extend(pool.take(bytes).await);
        }
        match check::check(&delivery) {
            Checked::Usable(id, content) => {
                let wire::Delivery { header, payload, .. } = delivery;
                let delivery = Box::new(Delivery { id, header, payload, content, hold });
                Ok(Some(Event::Arrived { stream: self.stream, delivery }))
            }
            Checked::Newer(key) => {
                let newest_format = proto::FORMAT;
                let kind = wire::answer::Answer::Unsupported(wire::NotSupported { newest_format });
                let answer = wire::Answer { key: Some(key), answer: Some(kind), intervals: None };
                let answers = wire::Answers { answers: vec![answer] };
                let message = Some(wire::deliver_response::Message::Answers(answers));
                // A stream that is gone is noticed by the next read.
                let _ = self.out.send(Ok(DeliverResponse { message })).await;
                Ok(None)
            }
            Checked::Unidentified(reason) => {
                self.inner.unidentified.fetch_add(1, Ordering::Relaxed);
                tracing::error!(
                    stream = self.stream,
                    bytes,
                    reason,
                    "batch without a readable identity, stream broken off"
                );
                Err(Status::invalid_argument(format!("a batch has no readable identity: {reason}")))
            }
        }
    }
}

/// Bytes of credit for one of `streams` streams.
pub fn credit(all_bytes: u64, stream_bytes: u64, streams: usize) -> u64 {
    (all_bytes / streams.max(1) as u64).min(stream_bytes)
}
