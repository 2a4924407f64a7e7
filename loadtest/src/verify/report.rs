//! The verdict for people: a table per partition, what was lost or doubled, and how many events were set aside and why.

use std::fmt::Write;

use comfy_table::{CellAlignment, Table, TableComponent, presets::UTF8_HORIZONTAL_ONLY};

use super::Outcome;

/// Above this share of dead letters the verdict ends with them.
const MANY_DEAD_LETTERS: f64 = 0.01;

/// The table of partitions.
pub fn table(outcome: &Outcome) -> String {
    let mut table = Table::new();
    table
        .load_preset(UTF8_HORIZONTAL_ONLY)
        .remove_style(TableComponent::HorizontalLines)
        .remove_style(TableComponent::MiddleIntersections)
        .set_header(["partition", "events", "files", "bytes"]);
    let mut sum = super::found::PartitionCount::default();
    for (partition, count) in &outcome.found.partitions {
        table.add_row([partition.clone(), group(count.events), group(count.files), group(count.bytes)]);
        sum.events += count.events;
        sum.files += count.files;
        sum.bytes += count.bytes;
    }
    table.add_row(["all".to_owned(), group(sum.events), group(sum.files), group(sum.bytes)]);
    for column in 1..4 {
        if let Some(column) = table.column_mut(column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table.to_string()
}

/// The sentences below it. The last line is the one to look at.
pub fn verdict(outcome: &Outcome) -> String {
    let sums = &outcome.sums;
    let mut text = String::new();
    let _ = writeln!(
        text,
        "{} events in, {} published, {} dead-lettered: lost {}, duplicated {}",
        group(sums.events_in),
        group(sums.published),
        group(sums.dead_lettered),
        group(sums.lost),
        group(sums.duplicated)
    );
    if sums.destroyed > 0 {
        let (destroyed, found) = (group(sums.destroyed), group(sums.destroyed_but_found));
        let _ =
            writeln!(text, "{destroyed} lines were destroyed by their own rotation; {found} of them were read in time");
    }
    if sums.unexpected > 0 {
        let _ = writeln!(text, "{} events were found that never went in", group(sums.unexpected));
    }
    if outcome.found.misplaced > 0 {
        let _ = writeln!(text, "{} events lie in a partition of another date", group(outcome.found.misplaced));
    }
    for sample in &outcome.samples {
        let _ = writeln!(text, "  {sample}");
    }
    if sums.quarantined > 0 || !outcome.found.quarantined_batches.is_empty() {
        let batches: u64 = outcome.found.quarantined_batches.values().sum();
        let _ = writeln!(text, "{} events of {batches} batches are in quarantine:", group(sums.quarantined));
        for (reason, batches) in &outcome.found.quarantined_batches {
            let _ = writeln!(text, "  {batches}: {reason}");
        }
    }
    let _ = writeln!(text, "{}", if outcome.is_exact() { "verdict: every event once" } else { "verdict: NOT exact" });
    if let Some(warning) = dead_letter_warning(outcome) {
        let _ = writeln!(text, "{warning}");
    }
    text
}

/// Said last when over 1 % of the events were dead-lettered: the commonest reason, and where one such event stands.
fn dead_letter_warning(outcome: &Outcome) -> Option<String> {
    let sums = &outcome.sums;
    let share = sums.dead_lettered as f64 / sums.events_in.max(1) as f64;
    if share <= MANY_DEAD_LETTERS {
        return None;
    }
    let (reason, count) = outcome.found.reasons.iter().max_by_key(|(_, reason)| reason.events)?;
    Some(format!(
        "{:.1} % of the events are dead letters; the commonest reason is \"{reason}\" ({} events), for one in {}",
        share * 100.0,
        group(count.events),
        count.sample
    ))
}

/// 1234567 as `1,234,567`.
pub fn group(number: u64) -> String {
    let digits = number.to_string();
    let mut out = String::with_capacity(digits.len() + digits.len() / 3);
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::super::found::{Found, Reason};
    use super::super::tally::Sums;
    use super::*;

    #[test]
    fn many_dead_letters_are_said_last() {
        let mut found = Found::default();
        let reason = Reason { events: 2, sample: "a.log at byte 9".into() };
        found.reasons.insert("decode: no usable time".into(), reason);
        let sums = Sums { events_in: 100, published: 98, dead_lettered: 2, ..Sums::default() };
        let mut outcome = Outcome { sums, found, bytes_in: 0, samples: Vec::new() };
        let text = verdict(&outcome);
        let last = text.lines().last().unwrap();
        assert!(
            last.starts_with("2.0 %") && last.contains("no usable time") && last.contains("a.log at byte 9"),
            "{last}"
        );
        outcome.sums.events_in = 1_000;
        assert_eq!(verdict(&outcome).lines().last(), Some("verdict: every event once"));
    }

    #[test]
    fn numbers_are_grouped() {
        assert_eq!([group(0), group(999), group(1_000), group(12_345_678)], ["0", "999", "1,000", "12,345,678"]);
    }
}
