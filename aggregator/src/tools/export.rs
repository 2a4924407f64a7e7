//! `channel export`.

use std::io::Write;
use std::path::{Path, PathBuf};

use proto::ids::{AgentName, DatasetName};
use serde::Serialize;

use super::{CLEAN, FOUND, batches, print, print_findings, size};
use crate::channel::export::{Exported, Selection, export as write_out};
use crate::channel::finding::Finding;
use crate::channel::survey::{ChannelSurvey, Depth};

/// What was asked for.
pub struct Wanted {
    pub to: PathBuf,
    pub agent: Option<String>,
    pub dataset: Option<String>,
    pub all: bool,
}

#[derive(Serialize)]
struct Report<'a> {
    data_dir: &'a Path,
    to: &'a Path,
    answers_known: bool,
    #[serde(flatten)]
    exported: &'a Exported,
    findings: &'a [Finding],
}

/// Exports. The code is 1 when damaged batches were left out.
pub fn export(dir: &Path, wanted: Wanted, json: bool, out: &mut dyn Write) -> anyhow::Result<u8> {
    let selection = Selection {
        agent: wanted.agent.as_deref().map(AgentName::new).transpose()?,
        dataset: wanted.dataset.as_deref().map(DatasetName::new).transpose()?,
        all: wanted.all,
    };
    let survey = ChannelSurvey::of(dir, Depth::Everything)?;
    let exported = write_out(&survey, &selection, &wanted.to)?;
    let findings = &survey.findings;
    if json {
        let to = &wanted.to;
        print(
            out,
            &Report { data_dir: dir, to, answers_known: survey.answers_known(), exported: &exported, findings },
        )?;
    } else {
        print_findings(out, findings)?;
        let (count, files, bytes) = (batches(exported.batches), exported.files, size(exported.bytes));
        writeln!(out, "{}: {count} in index.jsonl, {files} payload files, {bytes}", wanted.to.display())?;
        if exported.skipped > 0 {
            writeln!(out, "{} damaged and not written: see `crc` in index.jsonl", batches(exported.skipped))?;
        }
        if !survey.answers_known() {
            writeln!(
                out,
                "the ledger cannot be read: which of these were delivered is not known, so all were written"
            )?;
        }
    }
    Ok(if exported.skipped == 0 && findings.is_empty() { CLEAN } else { FOUND })
}
