//! `check`: what the configuration would read. Nothing is changed, no state directory is touched.

use std::io::Write;
use std::process::ExitCode;

use anyhow::Result;

use crate::agent::new_pipeline;
use crate::config::AgentConfig;
use crate::run::clock::own_clock_ms;
use crate::tail::TailSource;

/// Lists every matched file; exit code 1 if anything is wrong.
pub fn run(config: &AgentConfig, out: &mut dyn Write) -> Result<ExitCode> {
    let name = config.agent_name()?;
    let now_us = own_clock_ms() * 1000;
    let mut problems = Vec::new();
    writeln!(out, "agent {name}, state directory {}", config.state_dir.display())?;
    for source in &config.sources {
        let mut pipeline = match new_pipeline(source, config, &name) {
            Ok(pipeline) => pipeline,
            Err(error) => {
                problems.push(format!("{error:#}"));
                continue;
            }
        };
        let mut undated = 0u64;
        let matched = TailSource::matched(&source.tail).map_err(anyhow::Error::msg)?;
        writeln!(out, "source {}: {} files", source.name, matched.files.len())?;
        if matched.files.is_empty() {
            problems.push(format!("source {}: no file matches {:?}", source.name, source.tail.paths));
        }
        for file in &matched.files {
            let time = match &file.first_line {
                None => "(empty)".to_owned(),
                Some(line) => match pipeline.event_time_of(line, now_us) {
                    Some(us) => time_text(us),
                    None => {
                        undated += 1;
                        "(no usable time)".to_owned()
                    }
                },
            };
            writeln!(out, "  {time:<27}  {:>14} bytes  {}", file.bytes, file.path)?;
        }
        if undated > 0 {
            problems.push(format!(
                "source {}: the first line of {undated} files has no time that `time` of this source finds; such events \
                 become dead letters",
                source.name
            ));
        }
        problems.extend(matched.problems.iter().map(|problem| format!("source {}: {problem}", source.name)));
    }
    for problem in &problems {
        writeln!(out, "problem: {problem}")?;
    }
    Ok(if problems.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// `2026-11-20T10:15:30Z`; microseconds since the epoch where that is not possible.
fn time_text(us: i64) -> String {
    jiff::Timestamp::from_microsecond(us).map_or_else(|_| format!("{us} us"), |time| time.to_string())
}
