//! Where the files of a group lie while they are staged and when they are published. Pure; readers see nothing under
//! names that begin with `_`, so staged files, dead letters and quarantine are invisible to them.

use proto::ids::date_text;
use proto::wire::{self, FileKind};

use super::{GroupKind, GroupSpec};
use crate::format::{data_extension, dead_letter_extension};

/// Mode of dead letters and quarantine: they hold what nobody has looked at.
const PRIVATE_MODE: u32 = 0o600;

/// Which of a group's files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Which {
    /// Data, or quarantine.
    Main,
    /// Dead letters.
    Dead,
}

/// Everything a commit record says of a file but its sizes and counts.
pub(super) fn published(spec: &GroupSpec, which: Which) -> wire::PublishedFile {
    let (kind, extension) = match (spec.kind, which) {
        (GroupKind::Quarantine, _) => (FileKind::Quarantine, "cq"),
        (GroupKind::DeadLetters, _) | (GroupKind::Data, Which::Dead) => {
            (FileKind::DeadLetter, dead_letter_extension(&spec.dataset))
        }
        (GroupKind::Data, Which::Main) => (FileKind::Data, data_extension(&spec.dataset)),
    };
    let (incarnation, number) = (&spec.incarnation, spec.number);
    let name = format!("{incarnation}-{number}.{extension}");
    let dataset = if spec.kind == GroupKind::Quarantine { "" } else { spec.dataset.name.as_str() };
    // A dead-letter batch of the edge carries the day it was made; letters made here are dated by the group.
    let made = if spec.kind == GroupKind::DeadLetters { spec.partition.date() } else { spec.opened_day_utc };
    let made_only = wire::Partition { date: made, hour: None };
    let (path, partition) = match kind {
        FileKind::Data | FileKind::Unspecified => {
            let prefix = spec.dataset.prefix.as_ref().map_or(String::new(), |prefix| format!("{prefix}-"));
            (format!("{dataset}/{}/{prefix}{name}", spec.partition.path()), spec.partition.into())
        }
        FileKind::DeadLetter => {
            (format!("_catchment/dead-letter/{dataset}/cut_date={}/{name}", date_text(made)), made_only)
        }
        FileKind::Quarantine => (format!("_catchment/quarantine/{}/{name}", date_text(made)), made_only),
    };
    let data = kind == FileKind::Data;
    wire::PublishedFile {
        kind: kind.into(),
        staged: format!("_catchment/staging/{incarnation}/{number}.{extension}"),
        r#final: path,
        dataset: dataset.to_owned(),
        partition: Some(partition),
        mode: if data { spec.dataset.file_mode } else { PRIVATE_MODE },
        group: spec.dataset.group.clone().filter(|_| data).unwrap_or_default(),
        ..Default::default()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use proto::ids::Partition;

    use super::*;
    use crate::config::dataset::{Compression, DatasetConfig};

    fn spec(kind: GroupKind) -> GroupSpec {
        let mut dataset = DatasetConfig::named("clickstream");
        dataset.prefix = Some("web".into());
        dataset.group = Some("analysts".into());
        GroupSpec {
            number: 7,
            incarnation: "col-1-20261121T090000Z-0badcafe".into(),
            kind,
            dataset: Arc::new(dataset),
            partition: Partition::new(20_000, Some(5)).unwrap(),
            opened_day_utc: 20_778,
        }
    }

    #[test]
    fn paths_are_as_documented() {
        let data = published(&spec(GroupKind::Data), Which::Main);
        assert_eq!(data.staged, "_catchment/staging/col-1-20261121T090000Z-0badcafe/7.log.zst");
        assert_eq!(
            data.r#final,
            "clickstream/event_date=2024-10-04/event_hour=05/web-col-1-20261121T090000Z-0badcafe-7.log.zst"
        );
        assert_eq!((data.mode, data.group.as_str()), (0o640, "analysts"));

        let own = published(&spec(GroupKind::Data), Which::Dead);
        let from_edge = published(&spec(GroupKind::DeadLetters), Which::Dead);
        assert_eq!(
            own.r#final,
            "_catchment/dead-letter/clickstream/cut_date=2026-11-21/col-1-20261121T090000Z-0badcafe-7.jsonl.zst"
        );
        assert!(from_edge.r#final.contains("/cut_date=2024-10-04/"), "{}", from_edge.r#final);
        assert_eq!((own.mode, own.group.as_str()), (0o600, ""));

        let quarantine = published(&spec(GroupKind::Quarantine), Which::Main);
        assert_eq!(quarantine.r#final, "_catchment/quarantine/2026-11-21/col-1-20261121T090000Z-0badcafe-7.cq");
        assert_eq!(quarantine.dataset, "");
    }

    #[test]
    fn the_two_files_of_a_group_never_share_a_name() {
        for compression in [Compression::Zstd, Compression::Gzip, Compression::None] {
            let mut spec = spec(GroupKind::Data);
            Arc::make_mut(&mut spec.dataset).compression = compression;
            assert_ne!(published(&spec, Which::Main).staged, published(&spec, Which::Dead).staged);
        }
    }
}
