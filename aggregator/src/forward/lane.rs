//! One stream to a collector: connects for ever with backoff, sends what it is ordered to, reports what it hears.
//!
//! It decides nothing. Payloads are read from the segments as the collector takes them: at most [`READ_AHEAD_BYTES`] lie
//! between disk and network.

use std::error::Error;
use std::sync::Arc;
use std::time::Duration;

use common::record_log::{RecordAt, RecordReader};
use proto::ids::BatchId;
use proto::wire::{self, collect_client::CollectClient, deliver_request, deliver_response};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_stream::StreamExt;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::Endpoint;
use tonic::{Code, Status};

use super::peer::Lane;
use super::state::Order;
use crate::channel::decode_meta;
use crate::channel::unreadable::Fault;

/// Bytes read from segments and not yet taken by the transport.
const READ_AHEAD_BYTES: usize = 4 * 1024 * 1024;
/// Bytes read in one go.
const READ_CHUNK_BYTES: u64 = 1024 * 1024;
const STREAM_WINDOW: u32 = 1024 * 1024;
const CONNECTION_WINDOW: u32 = 2 * 1024 * 1024;
const KEEP_ALIVE_EVERY: Duration = Duration::from_secs(10);
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(20);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
const HELLO_TIMEOUT: Duration = Duration::from_secs(20);
const BACKOFF_FIRST: Duration = Duration::from_millis(100);
const BACKOFF_MOST: Duration = Duration::from_secs(5);
/// Keys in one listing message.
const LISTED_PER_MESSAGE: usize = 4096;

/// What a stream is told to send, in order.
#[derive(Debug)]
pub enum Command {
    /// What earlier streams left unanswered.
    List(Vec<BatchId>),
    /// Payloads; read with this reader.
    Send(Vec<Order>, RecordReader),
    /// A request for an early roll.
    Roll,
}

/// What a stream reports.
#[derive(Debug)]
pub enum Event {
    /// The collector's hello came. Commands go here; dropping the sender ends the stream.
    Connected(wire::CollectorHello, mpsc::UnboundedSender<Command>),
    /// Answers.
    Answers(Vec<wire::Answer>),
    /// How the collector is.
    Status(wire::CollectorStatus),
    /// A payload could not be read.
    Unreadable {
        /// What was ordered.
        order: Order,
        /// What that says of it.
        fault: Fault,
    },
    /// The stream ended, or could not be opened.
    Broken {
        /// Neither orderly nor by silence.
        unclean: bool,
    },
}

/// What a lane needs.
#[derive(Debug, Clone)]
pub struct LaneTask {
    /// Which.
    pub lane: Lane,
    /// This aggregator's name.
    pub name: String,
    /// Where events go.
    pub events: mpsc::Sender<(Lane, Event)>,
    /// Ends it.
    pub cancel: CancellationToken,
}

type Outgoing = (wire::DeliverRequest, Option<OwnedSemaphorePermit>);

impl LaneTask {
    /// Runs until cancelled.
    pub async fn run(self) {
        let mut backoff = BACKOFF_FIRST;
        let mut told = None;
        loop {
            let ended = tokio::select! {
                () = self.cancel.cancelled() => return,
                ended = self.one_stream(&mut backoff) => ended,
            };
            // A collector that ends its stream in order accuses no batch, whatever it said of itself before.
            let unclean = ended.as_ref().is_err_and(is_unclean);
            let reason = ended.err().map(|status| describe(&status)).unwrap_or_default();
            // A collector that stays away says nothing new.
            if told.as_ref() != Some(&reason) {
                tracing::info!(collector = %self.lane.peer, alone = self.lane.alone, unclean, reason, "no stream to collector");
            }
            told = Some(reason);
            if self.events.send((self.lane.clone(), Event::Broken { unclean })).await.is_err() {
                return;
            }
            let jitter = 0.5 + rand::random::<f64>() / 2.0;
            tokio::select! {
                () = self.cancel.cancelled() => return,
                () = tokio::time::sleep(backoff.mul_f64(jitter)) => {}
            }
            backoff = (backoff * 2).min(BACKOFF_MOST);
        }
    }

    async fn one_stream(&self, backoff: &mut Duration) -> Result<(), Status> {
        let endpoint = Endpoint::from_shared(format!("http://{}", self.lane.peer))
            .map_err(|error| Status::invalid_argument(error.to_string()))?
            .connect_timeout(CONNECT_TIMEOUT)
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .http2_keep_alive_interval(KEEP_ALIVE_EVERY)
            .keep_alive_timeout(KEEP_ALIVE_TIMEOUT)
            .keep_alive_while_idle(true)
            .tcp_nodelay(true);
        let channel = endpoint.connect().await.map_err(|error| Status::unavailable(describe(&error)))?;
        let mut client = CollectClient::new(channel).max_decoding_message_size(proto::MAX_MESSAGE_BYTES);
        let (outgoing, requests) = mpsc::channel::<Outgoing>(64);
        let hello = wire::AggregatorHello { aggregator: self.name.clone(), newest_format: proto::FORMAT };
        let hello = message(deliver_request::Message::Hello(hello));
        outgoing.send((hello, None)).await.map_err(|_| Status::internal("the request stream is closed"))?;
        let requests = ReceiverStream::new(requests).map(|(request, _permit)| request);
        let opening = async {
            let mut stream = client.deliver(requests).await?.into_inner();
            let first = stream.message().await?;
            Ok::<_, Status>((stream, first))
        };
        let (mut stream, first) = tokio::time::timeout(HELLO_TIMEOUT, opening)
            .await
            .map_err(|_| Status::deadline_exceeded("the collector sent no hello"))??;
        let Some(deliver_response::Message::Hello(hello)) = first.and_then(|first| first.message) else {
            return Err(Status::failed_precondition("the collector's first message is not a hello"));
        };
        *backoff = BACKOFF_FIRST;
        tracing::info!(collector = %self.lane.peer, incarnation = hello.incarnation, credit = hello.credit_bytes, "collector connected");
        let (commands, queue) = mpsc::unbounded_channel();
        self.report(Event::Connected(hello, commands)).await?;
        let feed = self.feed(queue, outgoing);
        let listen = async {
            while let Some(response) = stream.message().await? {
                match response.message {
                    Some(deliver_response::Message::Answers(answers)) => {
                        self.report(Event::Answers(answers.answers)).await?
                    }
                    Some(deliver_response::Message::Status(status)) => self.report(Event::Status(status)).await?,
                    Some(deliver_response::Message::Hello(_)) | None => {}
                }
            }
            // A connection that breaks, as at a collector's crash, ends the messages too: only trailers mean order.
            match stream.trailers().await? {
                Some(_) => Ok(()),
                None => Err(Status::unknown("the connection broke")),
            }
        };
        // The feed ends when its commands do; what was sent before is still answered then.
        let feed = async {
            feed.await?;
            std::future::pending::<Result<(), Status>>().await
        };
        tokio::select! {
            result = listen => result,
            result = feed => result,
        }
    }

    async fn report(&self, event: Event) -> Result<(), Status> {
        self.events.send((self.lane.clone(), event)).await.map_err(|_| Status::cancelled("nobody listens any more"))
    }

    /// Turns commands into messages.
    async fn feed(
        &self,
        mut queue: mpsc::UnboundedReceiver<Command>,
        outgoing: mpsc::Sender<Outgoing>,
    ) -> Result<(), Status> {
        let room = Arc::new(Semaphore::new(READ_AHEAD_BYTES));
        let closed = || Status::unavailable("the request stream is closed");
        while let Some(command) = queue.recv().await {
            match command {
                Command::List(ids) => {
                    for ids in ids.chunks(LISTED_PER_MESSAGE) {
                        let keys = ids.iter().map(wire::BatchKey::from).collect();
                        let listing = message(deliver_request::Message::Unanswered(wire::Unanswered { keys }));
                        outgoing.send((listing, None)).await.map_err(|_| closed())?;
                    }
                }
                Command::Roll => {
                    let roll = message(deliver_request::Message::Roll(wire::RollRequest {}));
                    outgoing.send((roll, None)).await.map_err(|_| closed())?;
                }
                Command::Send(orders, reader) => {
                    for orders in chunks(orders) {
                        let bytes: u64 = orders.iter().map(|order| order.bytes).sum();
                        let need = bytes.min(READ_AHEAD_BYTES as u64) as u32;
                        let permit = room.clone().acquire_many_owned(need).await.map_err(|_| closed())?;
                        self.send_chunk(orders, reader.clone(), permit, &outgoing).await?;
                    }
                }
            }
        }
        Ok(())
    }

    async fn send_chunk(
        &self,
        orders: Vec<Order>,
        reader: RecordReader,
        mut permit: OwnedSemaphorePermit,
        outgoing: &mpsc::Sender<Outgoing>,
    ) -> Result<(), Status> {
        let read = move || -> Vec<_> { orders.into_iter().map(|order| read(&reader, order)).collect() };
        let results = tokio::task::spawn_blocking(read).await.map_err(|error| Status::internal(error.to_string()))?;
        for result in results {
            match result {
                Ok((delivery, bytes)) => {
                    let own = permit.split((bytes as usize).min(permit.num_permits()));
                    let delivery = message(deliver_request::Message::Delivery(delivery));
                    outgoing
                        .send((delivery, own))
                        .await
                        .map_err(|_| Status::unavailable("the request stream is closed"))?;
                }
                Err((order, fault)) => self.report(Event::Unreadable { order, fault }).await?,
            }
        }
        Ok(())
    }
}

/// Groups of orders that are read in one go.
fn chunks(orders: Vec<Order>) -> Vec<Vec<Order>> {
    let mut chunks: Vec<Vec<Order>> = Vec::new();
    let mut bytes = u64::MAX;
    for order in orders {
        if bytes.saturating_add(order.bytes) > READ_CHUNK_BYTES {
            chunks.push(Vec::new());
            bytes = 0;
        }
        bytes += order.bytes;
        if let Some(last) = chunks.last_mut() {
            last.push(order);
        }
    }
    chunks
}

fn read(reader: &RecordReader, order: Order) -> Result<(wire::Delivery, u64), (Order, Fault)> {
    let record = match reader.read(RecordAt { segment: order.at.segment, offset: order.offset }) {
        Ok(record) => record,
        Err(error) => {
            tracing::warn!(batch = %order.id, %error, "a payload cannot be read back");
            return Err((order, Fault::from(&error)));
        }
    };
    let Ok((agent, header)) = decode_meta(&record.meta) else { return Err((order, Fault::Damaged)) };
    let delivery = wire::Delivery { agent: agent.to_string(), header, payload: record.body, suspect: order.suspect };
    Ok((delivery, order.bytes))
}

fn message(message: deliver_request::Message) -> wire::DeliverRequest {
    wire::DeliverRequest { message: Some(message) }
}

/// Might a batch be at fault? Not for silence (keep-alive, time-outs), nor when the collector says that it is not
/// available. (A break while it drains is told apart by its last status.)
fn is_unclean(status: &Status) -> bool {
    let text = describe(status).to_lowercase();
    let silent = ["keep-alive", "keepalive", "timed out"].iter().any(|word| text.contains(word));
    let told = status.source().is_none() && matches!(status.code(), Code::Unavailable | Code::DeadlineExceeded);
    !silent && !told
}

fn describe(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}
