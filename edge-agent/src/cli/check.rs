//! `check`: what the configuration would read. Nothing is changed, no state directory is touched.

use std::io::Write;
use std::process::ExitCode;

use anyhow::Result;

use crate::config::AgentConfig;
use crate::tail::TailSource;

/// Lists every matched file; exit code 1 if anything is wrong.
pub fn run(config: &AgentConfig, out: &mut dyn Write) -> Result<ExitCode> {
    let name = config.agent_name()?;
    let mut problems = Vec::new();
    writeln!(out, "agent {name}, state directory {}", config.state_dir.display())?;
    for source in &config.sources {
        let matched = TailSource::matched(&source.tail).map_err(anyhow::Error::msg)?;
        writeln!(out, "source {}: {} files", source.name, matched.files.len())?;
        if matched.files.is_empty() {
            problems.push(format!("source {}: no file matches {:?}", source.name, source.tail.paths));
        }
        for file in &matched.files {
            let time = match &file.first_line {
                None => "empty".to_owned(),
                Some(_) => "-".to_owned(),
            };
            writeln!(out, "  {time}  {:>12} bytes  {}", file.bytes, file.path)?;
        }
        problems.extend(matched.problems.iter().map(|problem| format!("source {}: {problem}", source.name)));
    }
    for problem in &problems {
        writeln!(out, "problem: {problem}")?;
    }
    Ok(if problems.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
