//! A scripted aggregator on 127.0.0.1:0: stores what it gets in memory and answers as the test says.

#![allow(dead_code, reason = "each test file uses a part of it")]

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use proto::header::{Header, Kind};
use proto::ids::Origin;
use proto::intervals::IntervalSet;
use proto::wire;
use proto::wire::append_response::Answer;
use proto::wire::ingest_server::{Ingest, IngestServer};
use tonic::{Request, Response, Status};

/// What the next appends are answered, before the default (`durable`).
#[derive(Debug, Clone)]
pub enum Script {
    Busy(u64),
    Retry,
    /// This batch is called wrong, and whenever it comes again as something else than a void.
    Wrong,
    /// The batch is stored, but the answer is lost.
    StoredNoAnswer,
    /// Nothing is stored, the transport fails.
    Fail,
}

#[derive(Debug, Clone)]
pub struct Stored {
    pub header: Header,
    pub payload: Vec<u8>,
    /// Times it was appended.
    pub times: u32,
}

#[derive(Debug, Default)]
pub struct State {
    pub stored: BTreeMap<(Origin, u64), Stored>,
    /// In the order of arrival, also repeated ones.
    pub arrived: Vec<(Origin, u64)>,
    pub committed: BTreeMap<Origin, IntervalSet>,
    /// Commit everything as it is stored.
    pub commit_at_once: bool,
    /// Commit opens as they are stored, and nothing else.
    pub commit_opens_only: bool,
    pub script: VecDeque<Script>,
    /// Batches that are called wrong.
    pub wrong: BTreeSet<(Origin, u64)>,
    /// Everything that carries events is.
    pub all_data_is_wrong: bool,
    pub declarations: Vec<wire::DatasetDeclaration>,
    pub version: u64,
    pub roll_age_ms: u64,
    pub questions: u32,
    /// Refused for good; told in every answer about their origin but to whom knows them.
    pub quarantined: BTreeMap<(Origin, u64), String>,
    /// Times one of those was told.
    pub told_quarantined: u32,
    /// Payloads that were not what their header says.
    pub unsound: u32,
    /// Requests whose metadata did not give their length.
    pub lengths_wrong: u32,
}

impl State {
    fn status(&self, version: u64) -> wire::NodeStatus {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
        wire::NodeStatus {
            node: "fake".into(),
            time_unix_ms: now.as_millis() as i64,
            roll_age_ms: self.roll_age_ms,
            declarations_version: self.version,
            declarations: if version == self.version { Vec::new() } else { self.declarations.clone() },
        }
    }

    fn quarantined(&mut self, origin: Origin, known: Option<&wire::IntervalSet>) -> Vec<wire::QuarantinedBatch> {
        let known = known.map(|set| IntervalSet::try_from(set).unwrap()).unwrap_or_default();
        let of_origin = self.quarantined.range((origin, 0)..=(origin, u64::MAX));
        let told: Vec<_> = of_origin
            .filter(|((_, seq), _)| !known.contains(*seq))
            .map(|((_, seq), reason)| wire::QuarantinedBatch {
                seq: *seq,
                dataset: "clickstream".into(),
                reason: reason.clone(),
            })
            .collect();
        self.told_quarantined += told.len() as u32;
        told
    }

    pub fn commit_all(&mut self) {
        for (origin, seq) in self.stored.keys() {
            self.committed.entry(*origin).or_default().insert(*seq);
        }
    }

    /// Lines of all data batches, each with the batch it lies in.
    pub fn lines(&self) -> Vec<String> {
        let mut lines = Vec::new();
        for stored in self.stored.values() {
            if let Kind::Data(data) = &stored.header.kind {
                let mut raw = Vec::new();
                common::frame::decode(data.codec, &stored.payload, data.wire.raw_bytes, &mut raw).unwrap();
                lines.extend(String::from_utf8(raw).unwrap().lines().map(str::to_owned));
            }
        }
        lines
    }

    pub fn kinds(&self, origin: Origin) -> String {
        let of_origin = self.stored.range((origin, 0)..=(origin, u64::MAX));
        of_origin
            .map(|(_, stored)| match stored.header.kind {
                Kind::Open(_) => 'o',
                Kind::Data(_) => 'd',
                Kind::Void(_) => 'v',
                Kind::Mark(_) => 'm',
                Kind::Close(_) => 'c',
            })
            .collect()
    }

    /// Kinds of the first origin; empty before its open.
    pub fn first_kinds(&self) -> String {
        self.origins().first().map(|origin| self.kinds(*origin)).unwrap_or_default()
    }

    pub fn origins(&self) -> Vec<Origin> {
        let mut origins: Vec<Origin> = self.stored.keys().map(|(origin, _)| *origin).collect();
        origins.dedup();
        origins
    }
}

#[derive(Debug, Clone)]
pub struct Fake {
    pub at: SocketAddr,
    pub state: Arc<Mutex<State>>,
    pub stop: Arc<tokio::sync::Notify>,
}

impl Fake {
    pub async fn start() -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let at = listener.local_addr().unwrap();
        let declaration = wire::DatasetDeclaration {
            name: "clickstream".into(),
            zone: "UTC".into(),
            codec: wire::Codec::Zstd as i32,
            ..Default::default()
        };
        let state = State {
            commit_at_once: true,
            declarations: vec![declaration],
            version: 1,
            roll_age_ms: 1000,
            ..Default::default()
        };
        let fake = Self { at, state: Arc::new(Mutex::new(state)), stop: Arc::default() };
        fake.serve(listener);
        fake
    }

    fn serve(&self, listener: tokio::net::TcpListener) {
        let (service, stop) = (Service(self.state.clone()), self.stop.clone());
        let incoming = tokio_stream::wrappers::TcpListenerStream::new(listener);
        tokio::spawn(async move {
            tonic::transport::Server::builder()
                .add_service(IngestServer::new(service).max_decoding_message_size(proto::MAX_MESSAGE_BYTES))
                .serve_with_incoming_shutdown(incoming, stop.notified())
                .await
                .unwrap();
        });
    }

    pub fn with<T>(&self, f: impl FnOnce(&mut State) -> T) -> T {
        f(&mut self.state.lock().unwrap())
    }

    /// Waits until the state says so.
    pub async fn until(&self, what: &str, mut done: impl FnMut(&mut State) -> bool) {
        eventually(what, || self.with(&mut done)).await;
    }
}

/// Waits until it is so; fails after 30 s.
pub async fn eventually(what: &str, mut done: impl FnMut() -> bool) {
    for _ in 0..3000 {
        if done() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("waited in vain: {what}");
}

#[derive(Debug)]
struct Service(Arc<Mutex<State>>);

#[tonic::async_trait]
impl Ingest for Service {
    async fn append(&self, request: Request<wire::AppendRequest>) -> Result<Response<wire::AppendResponse>, Status> {
        let declared = request.metadata().get(proto::PAYLOAD_BYTES_HEADER).and_then(|v| v.to_str().ok()?.parse().ok());
        let request = request.into_inner();
        let mut state = self.0.lock().unwrap();
        if declared != Some(prost::Message::encoded_len(&request)) {
            state.lengths_wrong += 1;
        }
        let header = Header::decode(request.header).map_err(|e| Status::internal(e.to_string()))?;
        if let Err(error) = header.check_payload(&request.payload) {
            // As an aggregator does: it cannot know whether the transfer or the copy is bad.
            state.unsound += 1;
            let answer = Some(Answer::Retry(wire::Retry { reason: error.to_string() }));
            let status = Some(state.status(request.declarations_version));
            return Ok(Response::new(wire::AppendResponse { answer, status, ..Default::default() }));
        }
        let id = (header.origin, header.seq);
        let is_void = matches!(header.kind, Kind::Void(_));
        let is_wrong = (state.wrong.contains(&id) && !is_void) || (state.all_data_is_wrong && header.data().is_some());
        let script = if is_wrong { Some(Script::Wrong) } else { state.script.pop_front() };
        if matches!(script, Some(Script::Wrong)) && !is_void {
            state.wrong.insert(id);
        }
        let answer = match &script {
            Some(Script::Busy(delay_ms)) => Answer::Busy(wire::Busy { delay_ms: *delay_ms, ..Default::default() }),
            Some(Script::Retry) => Answer::Retry(wire::Retry { reason: "test".into() }),
            Some(Script::Wrong) => Answer::Wrong(wire::Wrong { reason: 1, detail: "test".into() }),
            Some(Script::Fail) => return Err(Status::unavailable("test")),
            Some(Script::StoredNoAnswer) | None => {
                state.arrived.push(id);
                let payload = request.payload.to_vec();
                let stored = state.stored.entry(id).or_insert_with(|| Stored {
                    header: header.clone(),
                    payload: payload.clone(),
                    times: 0,
                });
                stored.times += 1;
                assert!(stored.header.bytes == header.bytes && stored.payload == payload, "other bytes under {id:?}");
                if (state.commit_at_once && !state.commit_opens_only) || (state.commit_opens_only && header.seq == 0) {
                    state.committed.entry(header.origin).or_default().insert(header.seq);
                }
                Answer::Durable(wire::Durable {})
            }
        };
        if matches!(script, Some(Script::StoredNoAnswer)) {
            return Err(Status::unavailable("answer lost"));
        }
        let committed = state.committed.get(&header.origin).map(Into::into);
        let status = Some(state.status(request.declarations_version));
        let quarantined = state.quarantined(header.origin, request.quarantined_known.as_ref());
        Ok(Response::new(wire::AppendResponse { answer: Some(answer), status, committed, quarantined }))
    }

    async fn progress(
        &self,
        request: Request<wire::ProgressRequest>,
    ) -> Result<Response<wire::ProgressResponse>, Status> {
        let request = request.into_inner();
        let mut state = self.0.lock().unwrap();
        state.questions += 1;
        let status = Some(state.status(request.declarations_version));
        let Ok(origin) = Origin::from_bytes(&request.origin) else {
            return Ok(Response::new(wire::ProgressResponse { status, ..Default::default() }));
        };
        let committed = state.committed.get(&origin).cloned().unwrap_or_default();
        let held: IntervalSet = state
            .stored
            .range((origin, 0)..=(origin, u64::MAX))
            .map(|((_, seq), _)| *seq)
            .filter(|seq| !committed.contains(*seq))
            .collect();
        Ok(Response::new(wire::ProgressResponse {
            status,
            committed: Some((&committed).into()),
            held: Some((&held).into()),
            quarantined: state.quarantined(origin, request.quarantined_known.as_ref()),
        }))
    }
}
