//! `outbox export`: the payload of every kept batch as a file of its own, exactly as stored (a whole zstd frame or gzip
//! member, so `zstd -dc` and `zcat` read it), and one JSON line per batch in `index.jsonl`.

use std::fs::{self, File, OpenOptions};
use std::io::{BufWriter, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use proto::wire::Codec;
use serde::Serialize;

use super::outbox::{code, owner_name, print_findings, print_json, stored_at};
use crate::config::AgentConfig;
use crate::outbox::look::{Look, look};
use crate::outbox::read::{BatchReadError, BatchReader};
use crate::outbox::view::{BatchView, batches};

#[derive(Debug, Serialize)]
struct Line<'a> {
    #[serde(flatten)]
    batch: &'a BatchView,
    /// File beside the index; none for a batch without payload, or one that is damaged.
    payload: Option<String>,
    /// Why there is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
}

#[derive(Debug, Default, Serialize)]
struct Exported {
    batches: u64,
    payload_files: u64,
    payload_bytes: u64,
    events: u64,
    damaged: u64,
    /// Acked and released by the running agent while this command read them.
    released: u64,
}

/// Exports everything that is kept.
pub fn run(config: &AgentConfig, to: &Path, json: bool, out: &mut dyn Write) -> Result<ExitCode> {
    let dir = config.state_dir.join("outbox");
    let look = look(&dir, true)?;
    make_empty(to)?;
    let reader = BatchReader::of_dir(dir);
    let agent = owner_name(config)?;
    let views = batches(&look, &agent, stored_at(config).as_ref());
    let mut index = BufWriter::new(create(&to.join("index.jsonl"))?);
    let mut exported = Exported::default();
    for (view, place) in views.iter().zip(look.index.rows().iter().flat_map(|row| row.kept.values())) {
        let read = reader.read(*place);
        if matches!(read, Err(BatchReadError::Gone)) {
            exported.released += 1;
            continue;
        }
        exported.batches += 1;
        let (mut payload, mut error) = (None, None);
        match read {
            Ok(bytes) if bytes.payload.is_empty() => {}
            Ok(bytes) => {
                let name = format!("{}-{}.{}", view.origin, view.seq, extension(&look, *place));
                let path = to.join(&name);
                create(&path)?.write_all(&bytes.payload).with_context(|| format!("writing {}", path.display()))?;
                exported.payload_files += 1;
                exported.payload_bytes += bytes.payload.len() as u64;
                exported.events += view.events;
                payload = Some(name);
            }
            Err(found) => {
                exported.damaged += 1;
                error = Some(found.to_string());
            }
        }
        serde_json::to_writer(&mut index, &Line { batch: view, payload, error })?;
        index.write_all(b"\n")?;
    }
    index.flush()?;
    if json {
        print_json(&exported, out)?;
    } else {
        exported.print(to, out)?;
        print_findings(&look.findings, out)?;
    }
    Ok(code(&look))
}

impl Exported {
    fn print(&self, to: &Path, out: &mut dyn Write) -> Result<()> {
        writeln!(
            out,
            "{} batches in {}: {} payload files of {} bytes with {} events, and index.jsonl",
            self.batches,
            to.display(),
            self.payload_files,
            self.payload_bytes,
            self.events
        )?;
        if self.damaged > 0 {
            writeln!(out, "{} batches are damaged and have no payload file: index.jsonl says which", self.damaged)?;
        }
        if self.released > 0 {
            writeln!(out, "{} batches were acked and removed by the running agent meanwhile", self.released)?;
        }
        Ok(())
    }
}

fn extension(look: &Look, place: crate::outbox::index::Place) -> &'static str {
    let header = look.header(place);
    match header.as_ref().and_then(|header| header.data()).map(|data| data.codec) {
        Some(Codec::Zstd) => "zst",
        Some(Codec::Gzip) => "gz",
        _ => "log",
    }
}

/// What is exported may name people: 0700.
fn make_empty(to: &Path) -> Result<()> {
    match fs::read_dir(to).map(|mut entries| entries.next().is_none()) {
        Ok(true) => Ok(()),
        Ok(false) => bail!("{} is not empty: give a directory that is, or that does not exist yet", to.display()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(to)
            .with_context(|| format!("{} cannot be made", to.display())),
        Err(error) => Err(error).with_context(|| format!("{} cannot be used", to.display())),
    }
}

fn create(path: &Path) -> Result<File> {
    let mut options = OpenOptions::new();
    options.write(true).create_new(true).mode(0o600).open(path).with_context(|| format!("making {}", path.display()))
}
