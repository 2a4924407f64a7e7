//! Deserialises a table and goes on behind each mistake: serde stops at the first, so its value is taken out (or
//! replaced by a harmless one) and the rest is read again, until nothing new is found.

use serde::de::DeserializeOwned;
use serde_path_to_error::{Path, Segment, Track};
use toml::{Table, Value};

use crate::config::{Problems, Validate};

/// More mistakes than this in one file are not listed.
const MOST: usize = 64;

const MISSING: &str = "is missing; it has no default";

/// Where a value lies.
type Place = Vec<Step>;

#[derive(Debug, Clone, PartialEq, Eq)]
enum Step {
    Key(String),
    Index(usize),
}

/// One mistake that stopped serde.
struct Mistake {
    place: Place,
    message: String,
}

/// Reads `table`; adds every problem. Some only if the result can be looked at further.
pub(super) fn deserialize<T: DeserializeOwned + Validate>(mut table: Table, problems: &mut Problems) -> Option<T> {
    let mut repaired: Vec<Place> = Vec::new();
    for _ in 0..MOST {
        match attempt::<T>(&table, problems) {
            Ok(config) => {
                validate(&config, &repaired, problems);
                return Some(config);
            }
            Err(mistake) => {
                let removed_here = mistake.message == MISSING && repaired.contains(&mistake.place);
                if !removed_here {
                    problems.add(text(&mistake.place), &mistake.message);
                }
                match repair::<T>(&table, &mistake) {
                    Some((better, place)) => {
                        table = better;
                        repaired.push(place);
                    }
                    None => return None,
                }
            }
        }
    }
    None
}

/// Values that stand in for a wrong one are not ours to judge.
fn validate<T: Validate>(config: &T, repaired: &[Place], problems: &mut Problems) {
    let mut found = Problems::default();
    config.validate(&mut found);
    let repaired: Vec<String> = repaired.iter().map(|place| text(place)).collect();
    for (key, problem) in found.iter() {
        let touches = |place: &String| key.starts_with(place.as_str()) || place.starts_with(key);
        if !repaired.iter().any(touches) {
            problems.add(key, problem);
        }
    }
}

fn attempt<T: DeserializeOwned>(table: &Table, problems: &mut Problems) -> Result<T, Mistake> {
    let mut unknown = Vec::new();
    let mut track = Track::new();
    let tracked = serde_path_to_error::Deserializer::new(table.clone(), &mut track);
    let read = serde_ignored::deserialize(tracked, |path| unknown.push(ignored_text(&path)));
    for key in unknown {
        problems.add(key, "there is no such key here; remove it or correct its name");
    }
    read.map_err(|error: toml::de::Error| mistake(place(&track.path()), error.message()))
}

/// Gives mistakes about one key of a table the place of that key.
fn mistake(mut place: Place, message: &str) -> Mistake {
    let quoted = |start: &str| message.strip_prefix(start).and_then(|rest| rest.split('`').next());
    if let Some(key) = quoted("missing field `") {
        if place.last() != Some(&Step::Key(key.to_owned())) {
            place.push(Step::Key(key.to_owned()));
        }
        return Mistake { place, message: MISSING.to_owned() };
    }
    if let Some(key) = quoted("unknown field `") {
        if place.last() != Some(&Step::Key(key.to_owned())) {
            place.push(Step::Key(key.to_owned()));
        }
        return Mistake { place, message: message.replace("unknown field", "there is no such key here:") };
    }
    Mistake { place, message: message.trim().to_owned() }
}

/// A table in which the mistake is gone, and the place that was changed for it: the value itself, or one around it.
fn repair<T: DeserializeOwned>(table: &Table, mistake: &Mistake) -> Option<(Table, Place)> {
    let mut place = mistake.place.clone();
    while !place.is_empty() {
        for stand_in in stand_ins() {
            let mut changed = Value::Table(table.clone());
            if replace(&mut changed, &place, stand_in).is_none() {
                continue;
            }
            let Value::Table(changed) = changed else { continue };
            match attempt::<T>(&changed, &mut Problems::default()) {
                Ok(_) => return Some((changed, place)),
                Err(next) if !next.place.starts_with(&place) && !is_around(&next.place, &place) => {
                    return Some((changed, place));
                }
                Err(_) => {}
            }
        }
        place.pop();
    }
    None
}

/// A mistake at a table or list around `place` says nothing about what comes behind it.
fn is_around(outer: &Place, place: &Place) -> bool {
    outer.len() < place.len() && place.starts_with(outer)
}

/// Nothing, then one of each kind. A list is tried last: an empty one hides what its entries lack.
fn stand_ins() -> Vec<Option<Value>> {
    let strings = ["", "1", "1s", "127.0.0.1:1", "a"].map(|text| Some(Value::String(text.to_owned())));
    let others = [Value::Integer(1), Value::Boolean(false), Value::Table(Table::new()), Value::Array(Vec::new())];
    std::iter::once(None).chain(strings).chain(others.map(Some)).collect()
}

/// Puts `value` at `place`, or takes out what is there. None: there is no such place, or nothing to take out.
fn replace(root: &mut Value, place: &[Step], value: Option<Value>) -> Option<()> {
    let (last, around) = place.split_last()?;
    let around = around.iter().try_fold(root, |value, step| match step {
        Step::Key(key) => value.as_table_mut()?.get_mut(key),
        Step::Index(index) => value.as_array_mut()?.get_mut(*index),
    })?;
    match (last, value) {
        (Step::Key(key), Some(value)) => {
            around.as_table_mut()?.insert(key.clone(), value).map_or(Some(()), |_| Some(()))
        }
        (Step::Key(key), None) => around.as_table_mut()?.remove(key).map(drop),
        (Step::Index(index), Some(value)) => around.as_array_mut()?.get_mut(*index).map(|at| *at = value),
        // Taking an entry out would move the ones behind it, and with them the paths of their problems.
        (Step::Index(_), None) => None,
    }
}

fn place(path: &Path) -> Place {
    let step = |segment: &Segment| match segment {
        Segment::Seq { index } => Some(Step::Index(*index)),
        Segment::Map { key } => Some(Step::Key(key.clone())),
        Segment::Enum { .. } | Segment::Unknown => None,
    };
    path.iter().filter_map(step).collect()
}

fn text(place: &[Step]) -> String {
    let mut text = String::new();
    for step in place {
        match step {
            Step::Key(key) if text.is_empty() => text.push_str(key),
            Step::Key(key) => text.push_str(&format!(".{key}")),
            Step::Index(index) => text.push_str(&format!("[{index}]")),
        }
    }
    text
}

fn ignored_text(path: &serde_ignored::Path<'_>) -> String {
    use serde_ignored::Path::*;
    match path {
        Root => String::new(),
        Seq { parent, index } => format!("{}[{index}]", ignored_text(parent)),
        Map { parent, key } => match ignored_text(parent) {
            outer if outer.is_empty() => key.clone(),
            outer => format!("{outer}.{key}"),
        },
        Some { parent } | NewtypeStruct { parent } | NewtypeVariant { parent } => ignored_text(parent),
    }
}
