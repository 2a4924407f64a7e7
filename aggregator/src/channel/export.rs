//! Writes batches out of a channel into files of their own, without changing the channel: each payload exactly as it is
//! stored, one complete frame, with a line of JSON that says what it is.

use std::collections::HashMap;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use common::record_log::{ReadError, RecordAt, RecordReader};
use proto::header::Header;
use proto::ids::{AgentName, BatchId, DatasetName};
use proto::wire::Codec;
use serde::Serialize;

use super::describe;
use super::meta;
use super::segment_view::SegmentView;
use super::survey::ChannelSurvey;

/// What is written out.
#[derive(Debug, Clone, Default)]
pub struct Selection {
    /// Only of this agent.
    pub agent: Option<AgentName>,
    /// Only of this dataset.
    pub dataset: Option<DatasetName>,
    /// Answered batches too.
    pub all: bool,
}

/// Why an export stopped.
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    /// There is something in it.
    #[error("{0} is not empty: give a directory that is empty or does not exist, so that nothing is mixed up")]
    NotEmpty(PathBuf),
    /// The file system.
    #[error("{path} cannot be written: {source}")]
    Io {
        /// What was written.
        path: PathBuf,
        /// The fact.
        source: io::Error,
    },
}

/// One line of `index.jsonl`.
#[derive(Debug, Clone, Serialize)]
pub struct Line {
    /// Its agent.
    pub agent: String,
    /// Its origin.
    pub origin: String,
    /// Its seq.
    pub seq: u64,
    /// `open`, `data`, `void`, `mark` or `close`.
    pub kind: String,
    /// Its dataset, if it has one.
    pub dataset: Option<String>,
    /// `event_date=...`, if it has one.
    pub partition: Option<String>,
    /// The payload is dead letters.
    pub dead_letters: bool,
    /// Events in it.
    pub events: u64,
    /// Bytes of the payload as stored.
    pub payload_bytes: u64,
    /// Bytes of the payload decoded.
    pub raw_bytes: u64,
    /// How it is compressed.
    pub codec: Option<String>,
    /// How events stand in it.
    pub framing: Option<String>,
    /// Earliest event time, microseconds since the epoch.
    pub min_event_time_us: Option<i64>,
    /// Latest event time, microseconds since the epoch.
    pub max_event_time_us: Option<i64>,
    /// `good`, or what is wrong; a payload that is not good is not written.
    pub crc: String,
    /// Not answered; absent when that is not known.
    pub held: Option<bool>,
    /// The segment's file.
    pub segment: String,
    /// Where its record begins there.
    pub offset: u64,
    /// The file of the payload; absent where there is none. Copies of one batch name the same file.
    pub file: Option<String>,
}

/// What was written.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Exported {
    /// Lines of the index.
    pub batches: u64,
    /// Files of payloads.
    pub files: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Damaged batches, not written.
    pub skipped: u64,
}

/// Writes what is selected into `to`.
pub fn export(survey: &ChannelSurvey, selection: &Selection, to: &Path) -> Result<Exported, ExportError> {
    let failed = |path: &Path| {
        let path = path.to_owned();
        move |source| ExportError::Io { path, source }
    };
    if fs::read_dir(to).is_ok_and(|mut entries| entries.next().is_some()) {
        return Err(ExportError::NotEmpty(to.to_owned()));
    }
    make_dir(to).map_err(failed(to))?;
    let index_path = to.join("index.jsonl");
    let mut index = BufWriter::new(create(&index_path).map_err(failed(&index_path))?);
    let reader = RecordReader::new(survey.dir.join("seg"));
    let mut done = Exported::default();
    // A batch may lie in two segments: its file is written once.
    let mut written: HashMap<BatchId, String> = HashMap::new();
    for view in &survey.segments {
        for ordinal in 0..view.index.entries.len() as u32 {
            if !selected(survey, view, ordinal, selection) {
                continue;
            }
            let Some((mut line, payload)) = read(survey, view, ordinal, &reader) else { continue };
            if let Some(payload) = payload.filter(|payload| !payload.is_empty()) {
                let id = view.index.id(ordinal);
                line.file = match written.get(&id) {
                    Some(name) => Some(name.clone()),
                    None => {
                        let name = file_name(&line);
                        let path = to.join(&name);
                        path.parent().map_or(Ok(()), make_dir).map_err(failed(&path))?;
                        create(&path).and_then(|mut file| file.write_all(&payload)).map_err(failed(&path))?;
                        done.files += 1;
                        done.bytes += payload.len() as u64;
                        written.insert(id, name.clone());
                        Some(name)
                    }
                };
            }
            done.skipped += u64::from(line.crc != "good");
            done.batches += 1;
            let text = serde_json::to_string(&line).map_err(io::Error::from).map_err(failed(&index_path))?;
            writeln!(index, "{text}").map_err(failed(&index_path))?;
        }
    }
    index.flush().map_err(failed(&index_path))?;
    Ok(done)
}

fn selected(survey: &ChannelSurvey, view: &SegmentView, ordinal: u32, selection: &Selection) -> bool {
    let entry = &view.index.entries[ordinal as usize];
    let agent = view.index.origin_of(entry).0;
    let dataset = describe::dataset(view.index.route_of(entry));
    (selection.all || survey.is_held(view.id, ordinal) || view.bad.get(ordinal))
        && selection.agent.as_ref().is_none_or(|wanted| wanted == agent)
        && selection.dataset.as_ref().is_none_or(|wanted| wanted.as_str() == dataset)
}

/// A batch and its payload if that is good. None: it was delivered and removed while we looked.
fn read(
    survey: &ChannelSurvey,
    view: &SegmentView,
    ordinal: u32,
    reader: &RecordReader,
) -> Option<(Line, Option<bytes::Bytes>)> {
    let entry = &view.index.entries[ordinal as usize];
    let id = view.index.id(ordinal);
    let held = survey.answers_known().then(|| survey.is_held(view.id, ordinal));
    let mut line = Line {
        agent: id.agent.to_string(),
        origin: id.origin.to_string(),
        seq: id.seq,
        kind: format!("{:?}", entry.kind).to_lowercase(),
        dataset: None,
        partition: None,
        dead_letters: false,
        events: 0,
        payload_bytes: u64::from(entry.payload_bytes),
        raw_bytes: 0,
        codec: None,
        framing: None,
        min_event_time_us: None,
        max_event_time_us: None,
        crc: "good".into(),
        held: if view.bad.get(ordinal) { None } else { held },
        segment: super::segment_view::file_of(view.id),
        offset: u64::from(entry.offset),
        file: None,
    };
    let record = match reader.read(RecordAt { segment: view.id, offset: line.offset }) {
        Ok(record) => record,
        Err(ReadError::NotFound { .. }) => return None,
        Err(error) => {
            line.crc = error.to_string();
            return Some((line, None));
        }
    };
    match meta::decode_header(&record.meta).map(|(_, header)| header) {
        Ok(header) => {
            describe_header(&mut line, &header);
            match header.check_payload(&record.body) {
                Ok(()) => Some((line, Some(record.body))),
                Err(error) => {
                    line.crc = error.to_string();
                    Some((line, None))
                }
            }
        }
        Err(error) => {
            line.crc = error.to_string();
            Some((line, None))
        }
    }
}

fn describe_header(line: &mut Line, header: &Header) {
    let Some(data) = header.data() else { return };
    line.dataset = Some(data.dataset.to_string());
    line.partition = Some(data.partition.path());
    line.dead_letters = data.wire.dead_letters;
    line.events = data.wire.events;
    line.raw_bytes = data.wire.raw_bytes;
    line.codec = Some(data.codec.as_str_name().trim_start_matches("CODEC_").to_lowercase());
    line.framing = Some(data.framing.as_str_name().trim_start_matches("FRAMING_").to_lowercase());
    if !data.wire.dead_letters {
        line.min_event_time_us = Some(data.wire.min_event_time_us);
        line.max_event_time_us = Some(data.wire.max_event_time_us);
    }
}

fn file_name(line: &Line) -> String {
    format!("{}/{}-{}.{}", line.agent, line.origin, line.seq, ending(line.codec.as_deref()))
}

fn ending(codec: Option<&str>) -> &'static str {
    let named = |codec: Codec| codec.as_str_name().trim_start_matches("CODEC_").to_lowercase();
    match codec {
        Some(name) if name == named(Codec::Zstd) => "zst",
        Some(name) if name == named(Codec::Gzip) => "gz",
        _ => "txt",
    }
}

fn make_dir(dir: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(dir)
}

fn create(path: &Path) -> io::Result<File> {
    OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)
}
