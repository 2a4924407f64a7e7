//! Both neighbours of an aggregator for tests: an agent that appends, a collector that follows a script.
#![allow(dead_code)]

use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;
use std::path::Path;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use aggregator::config::Config;
use aggregator::run::Aggregator;
use bytes::Bytes;
use common::supervise::Shutdown;
use proto::header::Header;
use proto::ids::{BatchId, Origin};
use proto::wire::{self, collect_server, deliver_request, deliver_response};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_stream::wrappers::{TcpListenerStream, UnboundedReceiverStream};
use tokio_stream::{Stream, StreamExt};
use tonic::transport::{Channel, Server};
use tonic::{Request, Response, Status, Streaming};

/// Polls until it holds; fails after 20 s.
pub async fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    for _ in 0..1000 {
        if holds() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("never: {what}");
}

pub fn config(dir: &Path, collectors: &[SocketAddr]) -> Config {
    let peers: Vec<String> = collectors.iter().map(|at| format!("\"{at}\"")).collect();
    let text = format!(
        "name = \"agg-1\"\nlisten = \"127.0.0.1:0\"\ndata_dir = \"{}\"\ndrain_deadline = \"10s\"\n\
         [channel]\nkeep_free = \"1MiB\"\nsegment_bytes = \"1MiB\"\ntick = \"50ms\"\nmax_bytes = \"64MiB\"\n\
         [ingest]\nmemory = \"18MiB\"\n[forward]\nfailover_after = \"500ms\"\n\
         [collectors]\npeers = [{}]\n[admin]\nlisten = \"127.0.0.1:0\"\n",
        dir.display(),
        peers.join(", ")
    );
    common::config::parse(&text).unwrap()
}

/// A running aggregator of a test.
pub struct Running {
    pub listen: SocketAddr,
    pub admin: SocketAddr,
    pub sources: aggregator::status::Sources,
    pub shutdown: Shutdown,
    joined: tokio::task::JoinHandle<anyhow::Result<()>>,
}

pub async fn start(config: &Config) -> Running {
    let shutdown = Shutdown::new(Duration::from_secs(10));
    let aggregator = Aggregator::start(config, shutdown.clone()).await.unwrap();
    let (listen, admin, sources) = (aggregator.listen, aggregator.admin, aggregator.sources.clone());
    let joined = tokio::spawn(aggregator.join());
    Running { listen, admin, sources, shutdown, joined }
}

impl Running {
    /// As SIGTERM does.
    pub async fn stop(self) {
        self.shutdown.drain();
        self.joined.await.unwrap().unwrap();
    }

    pub async fn knows_datasets(&self) {
        eventually("declarations known", || self.sources.status().declarations_version > 0).await;
    }
}

pub fn origin(n: u8) -> Origin {
    Origin::mint(1_763_700_000_000, u128::from(n))
}

pub fn data_of(dataset: &str, payload: &[u8]) -> wire::Data {
    wire::Data {
        dataset: dataset.into(),
        partition: Some(wire::Partition { date: 20_777, hour: None }),
        codec: wire::Codec::None as i32,
        framing: wire::Framing::Lines as i32,
        events: 1,
        raw_bytes: payload.len() as u64,
        payload_bytes: payload.len() as u64,
        payload_crc32c: crc32c::crc32c(payload),
        zone: "UTC".into(),
        source: "nginx".into(),
        ..Default::default()
    }
}

pub fn batch(origin: Origin, seq: u64, payload: &[u8]) -> (Bytes, Bytes) {
    let kind = match seq {
        0 => wire::batch_header::Kind::Open(wire::Open::default()),
        _ => wire::batch_header::Kind::Data(data_of("clickstream", payload)),
    };
    let header = Header::encode(origin, seq, kind).unwrap();
    (header.bytes, if seq == 0 { Bytes::new() } else { Bytes::copy_from_slice(payload) })
}

/// An agent.
pub struct Agent {
    pub name: String,
    pub client: wire::ingest_client::IngestClient<Channel>,
}

impl Agent {
    pub async fn connect(name: &str, at: SocketAddr) -> Self {
        let channel = Channel::from_shared(format!("http://{at}")).unwrap().connect().await.unwrap();
        let client = wire::ingest_client::IngestClient::new(channel).max_decoding_message_size(64 * 1024 * 1024);
        Self { name: name.into(), client }
    }

    pub fn request(&self, header: Bytes, payload: Bytes) -> Request<wire::AppendRequest> {
        let message = wire::AppendRequest { agent: self.name.clone(), header, payload, ..Default::default() };
        let bytes = prost::Message::encoded_len(&message) as u64;
        let mut request = Request::new(message);
        request.metadata_mut().insert(proto::PAYLOAD_BYTES_HEADER, bytes.into());
        request.metadata_mut().insert(proto::AGENT_HEADER, self.name.parse().unwrap());
        request
    }

    pub async fn append(&mut self, header: Bytes, payload: Bytes) -> wire::AppendResponse {
        let request = self.request(header, payload);
        self.client.append(request).await.unwrap().into_inner()
    }

    pub async fn append_durable(&mut self, origin: Origin, seq: u64, payload: &[u8]) {
        let (header, payload) = batch(origin, seq, payload);
        let answer = self.append(header, payload).await;
        assert!(matches!(answer.answer, Some(wire::append_response::Answer::Durable(_))), "{answer:?}");
    }

    pub async fn progress(&mut self, origin: Origin) -> wire::ProgressResponse {
        self.progress_knowing(origin, None).await
    }

    /// Some of its quarantined batches are known.
    pub async fn progress_knowing(
        &mut self,
        origin: Origin,
        quarantined_known: Option<wire::IntervalSet>,
    ) -> wire::ProgressResponse {
        let asked = wire::ProgressRequest {
            agent: self.name.clone(),
            origin: origin.to_bytes(),
            declarations_version: 0,
            quarantined_known,
        };
        let mut request = Request::new(asked);
        request.metadata_mut().insert(proto::AGENT_HEADER, self.name.parse().unwrap());
        self.client.progress(request).await.unwrap().into_inner()
    }
}

/// How a collector answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Script {
    /// *staged*, then *committed*.
    Commit,
    /// *staged* only.
    Stage,
    /// Nothing.
    Silent,
    /// The connection breaks at the first payload.
    Break,
    /// The stream ends in order at the first payload.
    End,
    /// *busy* until told otherwise.
    Busy,
    /// Refused for good, all but opens.
    Refuse,
}

#[derive(Debug, Default)]
pub struct Seen {
    /// Deliveries in order.
    pub delivered: Vec<BatchId>,
    pub payloads: HashMap<BatchId, Bytes>,
    pub suspects: HashSet<BatchId>,
    /// Ids listed as unanswered, with the number of payloads that came before on the same stream.
    pub listed: Vec<(BatchId, usize)>,
    pub committed: HashSet<BatchId>,
    pub staged: HashSet<BatchId>,
    pub streams: usize,
    pub rolls: usize,
}

/// A collector.
#[derive(Clone)]
pub struct Collector {
    pub at: SocketAddr,
    pub seen: Arc<Mutex<Seen>>,
    pub script: Arc<Mutex<Script>>,
    pub credit: u64,
    /// Its own, so that a kill takes its connections too.
    runtime: Arc<Mutex<Option<tokio::runtime::Runtime>>>,
}

impl Collector {
    pub async fn start(script: Script) -> Self {
        Self::start_at("127.0.0.1:0".parse().unwrap(), script, Arc::default()).await
    }

    pub async fn start_at(at: SocketAddr, script: Script, seen: Arc<Mutex<Seen>>) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let mut bound = std::net::TcpListener::bind(at);
        for _ in 0..200 {
            // A killed predecessor lets go of the port a little later.
            if bound.is_ok() {
                break;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
            bound = std::net::TcpListener::bind(at);
        }
        let listener = bound.unwrap();
        listener.set_nonblocking(true).unwrap();
        let at = listener.local_addr().unwrap();
        let script = Arc::new(Mutex::new(script));
        let collector = Self { at, seen, script, credit: 1 << 20, runtime: Arc::default() };
        let service = collect_server::CollectServer::new(collector.clone()).max_decoding_message_size(64 << 20);
        runtime.spawn(async move {
            let incoming = TcpListenerStream::new(TcpListener::from_std(listener).unwrap());
            Server::builder().serve_with_incoming(service, incoming).await.unwrap();
        });
        *collector.runtime.lock().unwrap() = Some(runtime);
        collector
    }

    /// Connections break at once.
    pub fn kill(&self) {
        if let Some(runtime) = self.runtime.lock().unwrap().take() {
            runtime.shutdown_background();
        }
    }

    pub fn set(&self, script: Script) {
        *self.script.lock().unwrap() = script;
    }

    fn answer(&self, id: &BatchId) -> Vec<wire::Answer> {
        let script = *self.script.lock().unwrap();
        let mut seen = self.seen.lock().unwrap();
        let staged = || answer(id, wire::answer::Answer::Staged(wire::Staged { incarnation: "i".into() }));
        match script {
            Script::Commit => {
                seen.committed.insert(id.clone());
                vec![staged(), answer(id, wire::answer::Answer::Committed(wire::Committed {}))]
            }
            Script::Stage => {
                seen.staged.insert(id.clone());
                vec![staged()]
            }
            Script::Refuse if id.seq > 0 => {
                seen.committed.insert(id.clone());
                let reason = format!("no \u{1b}[1mgood\n {}", "x".repeat(1000));
                vec![staged(), answer(id, wire::answer::Answer::Refused(wire::Refused { reason }))]
            }
            Script::Refuse => vec![answer(id, wire::answer::Answer::Committed(wire::Committed {}))],
            Script::Busy => vec![answer(id, wire::answer::Answer::Busy(wire::PartitionBusy { delay_ms: 100 }))],
            Script::Silent | Script::Break | Script::End => Vec::new(),
        }
    }

    fn listed(&self, id: &BatchId) -> wire::Answer {
        let seen = self.seen.lock().unwrap();
        if seen.committed.contains(id) {
            answer(id, wire::answer::Answer::Committed(wire::Committed {}))
        } else if seen.staged.contains(id) {
            answer(id, wire::answer::Answer::Staged(wire::Staged { incarnation: "i".into() }))
        } else {
            answer(id, wire::answer::Answer::Again(wire::Again {}))
        }
    }
}

pub fn status() -> wire::CollectorStatus {
    wire::CollectorStatus {
        roll_age_ms: 1000,
        declarations_version: 7,
        declarations: vec![wire::DatasetDeclaration {
            name: "clickstream".into(),
            zone: "UTC".into(),
            codec: wire::Codec::Zstd as i32,
            writers: vec!["web-*".into()],
            ..Default::default()
        }],
        ..Default::default()
    }
}

fn answer(id: &BatchId, answer: wire::answer::Answer) -> wire::Answer {
    let mut intervals = None;
    if matches!(answer, wire::answer::Answer::Committed(_)) {
        intervals = Some(wire::IntervalSet { bounds: vec![id.seq, id.seq + 1] });
    }
    wire::Answer { key: Some(id.into()), answer: Some(answer), intervals }
}

fn response(message: deliver_response::Message) -> Result<wire::DeliverResponse, Status> {
    Ok(wire::DeliverResponse { message: Some(message) })
}

#[tonic::async_trait]
impl collect_server::Collect for Collector {
    type DeliverStream = Pin<Box<dyn Stream<Item = Result<wire::DeliverResponse, Status>> + Send>>;

    async fn deliver(
        &self,
        request: Request<Streaming<wire::DeliverRequest>>,
    ) -> Result<Response<Self::DeliverStream>, Status> {
        let mut requests = request.into_inner();
        let (sender, answers) = mpsc::unbounded_channel();
        let hello = wire::CollectorHello {
            collector: "col-1".into(),
            incarnation: "i".into(),
            newest_format: 1,
            credit_bytes: self.credit,
            status: Some(status()),
        };
        let _ = sender.send(response(deliver_response::Message::Hello(hello)));
        self.seen.lock().unwrap().streams += 1;
        let collector = self.clone();
        tokio::spawn(async move {
            let mut payloads = 0;
            while let Some(Ok(request)) = requests.next().await {
                let mut answers = Vec::new();
                match request.message.unwrap() {
                    deliver_request::Message::Unanswered(list) => {
                        for key in list.keys {
                            let id = BatchId::try_from(&key).unwrap();
                            collector.seen.lock().unwrap().listed.push((id.clone(), payloads));
                            answers.push(collector.listed(&id));
                        }
                    }
                    deliver_request::Message::Delivery(delivery) => {
                        payloads += 1;
                        let header = Header::decode(delivery.header).unwrap();
                        header.check_payload(&delivery.payload).unwrap();
                        let agent = proto::ids::AgentName::new(&delivery.agent).unwrap();
                        let id = BatchId { agent, origin: header.origin, seq: header.seq };
                        {
                            let mut seen = collector.seen.lock().unwrap();
                            seen.delivered.push(id.clone());
                            seen.payloads.insert(id.clone(), delivery.payload);
                            if delivery.suspect {
                                seen.suspects.insert(id.clone());
                            }
                        }
                        let script = *collector.script.lock().unwrap();
                        match script {
                            Script::Break => {
                                collector.kill();
                                // Dropped with its runtime: an answer stream that ended here would end in order.
                                return std::future::pending().await;
                            }
                            Script::End => return,
                            _ => {}
                        }
                        answers.extend(collector.answer(&id));
                    }
                    deliver_request::Message::Roll(_) => collector.seen.lock().unwrap().rolls += 1,
                    deliver_request::Message::Hello(_) => {}
                }
                if !answers.is_empty() {
                    let answers = wire::Answers { answers };
                    let _ = sender.send(response(deliver_response::Message::Answers(answers)));
                }
            }
        });
        Ok(Response::new(Box::pin(UnboundedReceiverStream::new(answers))))
    }
}
