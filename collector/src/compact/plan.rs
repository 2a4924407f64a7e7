//! Which files of a partition are joined into which. Pure, and the same for everybody who asks about the same view.
//!
//! Files of half the target or more stay. Of the others as many as one record may replace are taken, the smallest first,
//! and cut in the order of their names into the fewest pieces of about the same size that the target allows.

use proto::wire;

use crate::config::compaction::CompactionConfig;
use crate::config::dataset::{Compression, DatasetConfig, Format};
use crate::log::view::PartitionKey;
use crate::log::view::partitions::OpenPartition;

/// What a file holds, by the end of its name. Only files of one kind are joined: a dataset's format may have changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// Lines as they are.
    Plain,
    /// Gzip members.
    Gzip,
    /// Zstd frames.
    Zstd,
    /// Parquet.
    Parquet,
}

impl Kind {
    /// None for names that this release does not give.
    pub fn of(name: &str) -> Option<Self> {
        let endings =
            [(".parquet", Self::Parquet), (".log.zst", Self::Zstd), (".log.gz", Self::Gzip), (".log", Self::Plain)];
        endings.into_iter().find(|(ending, _)| name.ends_with(ending)).map(|(_, kind)| kind)
    }

    /// The dataset, as if its files were all of this kind.
    pub(super) fn dataset(self, dataset: &DatasetConfig) -> DatasetConfig {
        let mut dataset = dataset.clone();
        (dataset.format, dataset.compression) = match self {
            Self::Parquet => (Format::Parquet, dataset.compression),
            Self::Zstd => (Format::Text, Compression::Zstd),
            Self::Gzip => (Format::Text, Compression::Gzip),
            Self::Plain => (Format::Text, Compression::None),
        };
        dataset
    }
}

/// One round of compaction: at most one commit record.
#[derive(Debug, Clone)]
pub struct Plan {
    /// The partition.
    pub key: PartitionKey,
    /// Names, modes and columns of the new files.
    pub dataset: DatasetConfig,
    /// The new files.
    pub outputs: Vec<PlannedFile>,
}

/// A new file and the two or more that it replaces.
#[derive(Debug, Clone, PartialEq)]
pub struct PlannedFile {
    /// Of all inputs and the output.
    pub kind: Kind,
    /// In the order of their names.
    pub inputs: Vec<wire::FileEntry>,
}

impl Plan {
    /// Number of files that it replaces.
    pub fn inputs(&self) -> usize {
        self.outputs.iter().map(|output| output.inputs.len()).sum()
    }

    /// Their bytes.
    pub fn bytes(&self) -> u64 {
        self.outputs.iter().flat_map(|output| &output.inputs).map(|input| input.bytes).sum()
    }
}

/// The next round for a partition; none if nothing in it is worth it. Ask only while no record of the partition is
/// unfinished: a file that is still staged would be taken for one that its users removed.
pub fn plan(
    dataset: &DatasetConfig,
    key: &PartitionKey,
    open: &OpenPartition,
    limits: &CompactionConfig,
) -> Option<Plan> {
    plan_except(dataset, key, open, limits, |_| false)
}

/// Like [`plan`], without the files for whose final path `skip` says so (those that were refused before).
pub fn plan_except(
    dataset: &DatasetConfig,
    key: &PartitionKey,
    open: &OpenPartition,
    limits: &CompactionConfig,
    skip: impl Fn(&str) -> bool,
) -> Option<Plan> {
    if !dataset.compaction.enabled.unwrap_or(limits.enabled) {
        return None;
    }
    let target = dataset.compaction.target_bytes.unwrap_or(limits.target_bytes).bytes();
    let dir = key.dir();
    let mut small: Vec<(Kind, &wire::FileEntry)> = open
        .files
        .values()
        .filter(|file| file.bytes < target.div_ceil(2) && !skip(&format!("{dir}/{}", file.name)))
        .filter_map(|file| Kind::of(&file.name).map(|kind| (kind, file)))
        .collect();
    drop_few(&mut small, limits.min_files);
    small.sort_by(|(_, a), (_, b)| (a.bytes, &a.name).cmp(&(b.bytes, &b.name)));
    let mut bytes = 0;
    let fits = small.iter().take(limits.round_files).take_while(|(_, file)| {
        bytes += file.bytes;
        bytes <= limits.round_bytes.bytes()
    });
    let fits = fits.count();
    small.truncate(fits);
    drop_few(&mut small, limits.min_files);
    small.sort_by(|(a_kind, a), (b_kind, b)| (a_kind, &a.name).cmp(&(b_kind, &b.name)));
    let outputs: Vec<PlannedFile> = small
        .chunk_by(|(a, _), (b, _)| a == b)
        .flat_map(|files| cut(files, target))
        .filter(|output| output.inputs.len() >= 2)
        .collect();
    (!outputs.is_empty()).then(|| Plan { key: key.clone(), dataset: dataset.clone(), outputs })
}

/// Leaves kinds alone of which there are fewer than `least` files.
fn drop_few(files: &mut Vec<(Kind, &wire::FileEntry)>, least: usize) {
    for kind in [Kind::Plain, Kind::Gzip, Kind::Zstd, Kind::Parquet] {
        if files.iter().filter(|(of, _)| *of == kind).count() < least.max(2) {
            files.retain(|(of, _)| *of != kind);
        }
    }
}

/// Cuts files of one kind, in order, into the fewest outputs of about the same size: each goes where its middle lies.
/// Since every file is smaller than half the target, none is empty, and none is larger than target and a half.
fn cut(files: &[(Kind, &wire::FileEntry)], target: u64) -> Vec<PlannedFile> {
    let total: u128 = files.iter().map(|(_, file)| u128::from(file.bytes)).sum();
    let pieces = total.div_ceil(u128::from(target.max(1))).max(1);
    let mut outputs: Vec<PlannedFile> = Vec::new();
    let (mut before, mut last) = (0_u128, None);
    for (kind, file) in files {
        let bytes = u128::from(file.bytes);
        let piece = ((2 * before + bytes) * pieces / (2 * total.max(1))).min(pieces - 1);
        before += bytes;
        if last != Some(piece) {
            outputs.push(PlannedFile { kind: *kind, inputs: Vec::new() });
            last = Some(piece);
        }
        if let Some(output) = outputs.last_mut() {
            output.inputs.push((*file).clone());
        }
    }
    outputs
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use common::units::Size;
    use proptest::prelude::*;
    use proto::ids::{DatasetName, Partition};

    use super::*;

    fn key() -> PartitionKey {
        PartitionKey {
            dataset: DatasetName::new("clickstream").unwrap(),
            partition: Partition::new(20_000, None).unwrap(),
        }
    }

    fn open(files: &[(String, u64)]) -> OpenPartition {
        let entry = |(name, bytes): &(String, u64)| {
            (name.clone(), wire::FileEntry { name: name.clone(), bytes: *bytes, events: 1, ..Default::default() })
        };
        OpenPartition { files: files.iter().map(entry).collect(), ..Default::default() }
    }

    fn limits(target: u64) -> CompactionConfig {
        CompactionConfig { target_bytes: Size::new(target), ..Default::default() }
    }

    fn planned(files: &[(&str, u64)], limits: &CompactionConfig) -> Option<Vec<Vec<String>>> {
        let files: Vec<(String, u64)> = files.iter().map(|(name, bytes)| ((*name).to_owned(), *bytes)).collect();
        let plan = plan(&DatasetConfig::named("clickstream"), &key(), &open(&files), limits)?;
        Some(plan.outputs.into_iter().map(|o| o.inputs.into_iter().map(|file| file.name).collect()).collect())
    }

    #[test]
    fn big_files_stay_and_kinds_are_not_mixed() {
        let files =
            [("a.log.gz", 10), ("b.log.gz", 50), ("c.log.gz", 49), ("d.parquet", 1), ("e.parquet", 2), ("f.log", 3)];
        let expected = vec![vec!["a.log.gz", "c.log.gz"], vec!["d.parquet", "e.parquet"]];
        assert_eq!(planned(&files, &limits(100)).unwrap(), expected);
        assert_eq!(planned(&[("a.log", 1), ("b.odd", 1), ("c.log.zst", 1)], &limits(100)), None);
        assert_eq!(planned(&[("a.log", 50), ("b.log", 50)], &limits(100)), None);
    }

    #[test]
    fn settings_of_the_dataset_come_first() {
        let files = open(&[("a.log".into(), 10), ("b.log".into(), 10)]);
        let mut dataset = DatasetConfig::named("clickstream");
        assert!(plan(&dataset, &key(), &files, &limits(1000)).is_some());
        dataset.compaction.target_bytes = Some(Size::new(20));
        assert!(plan(&dataset, &key(), &files, &limits(1000)).is_none());
        dataset.compaction = Default::default();
        dataset.compaction.enabled = Some(false);
        assert!(plan(&dataset, &key(), &files, &limits(1000)).is_none());
        let off = CompactionConfig { enabled: false, ..limits(1000) };
        dataset.compaction.enabled = Some(true);
        assert!(plan(&dataset, &key(), &files, &off).is_some());
        let few = CompactionConfig { min_files: 3, ..limits(1000) };
        assert!(plan(&dataset, &key(), &files, &few).is_none());
        let refused = |path: &str| path == "clickstream/event_date=2024-10-04/a.log";
        assert!(plan_except(&dataset, &key(), &files, &limits(1000), refused).is_none());
    }

    proptest! {
        #[test]
        fn plans_are_bounded_and_rounds_come_to_an_end(
            sizes in proptest::collection::vec(0_u64..700, 0..60), target in 1_u64..1200, round in 2_usize..30,
        ) {
            let limits = CompactionConfig {
                target_bytes: Size::new(target),
                round_bytes: Size::new(target * 5),
                round_files: round,
                ..Default::default()
            };
            let mut files: Vec<(String, u64)> =
                sizes.iter().enumerate().map(|(at, bytes)| (format!("{at:03}.log"), *bytes)).collect();
            let total: u64 = sizes.iter().sum();
            let mut rounds = 0;
            while let Some(plan) = plan(&DatasetConfig::named("clickstream"), &key(), &open(&files), &limits) {
                rounds += 1;
                prop_assert!(rounds <= 60, "every round leaves fewer files");
                prop_assert!(plan.inputs() <= round && plan.bytes() <= target * 5);
                prop_assert!(plan.outputs.len() as u64 <= plan.bytes().div_ceil(target).max(1));
                let replaced: BTreeSet<&str> =
                    plan.outputs.iter().flat_map(|o| &o.inputs).map(|file| file.name.as_str()).collect();
                prop_assert_eq!(replaced.len(), plan.inputs(), "no file twice");
                files.retain(|(name, _)| !replaced.contains(name.as_str()));
                for (at, output) in plan.outputs.iter().enumerate() {
                    let bytes = output.inputs.iter().map(|file| file.bytes).sum::<u64>();
                    prop_assert!(output.inputs.len() >= 2);
                    prop_assert!(output.inputs.iter().all(|file| file.bytes * 2 < target + 1));
                    prop_assert!(2 * bytes <= 3 * target);
                    files.push((format!("r{rounds:03}-{at:03}.log"), bytes));
                }
            }
            prop_assert_eq!(files.iter().map(|(_, bytes)| bytes).sum::<u64>(), total);
        }
    }
}
