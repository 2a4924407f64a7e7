//! Paths within a destination. Whatever reaches a store has passed [`check`], so no name from outside can lead out of
//! the root.

use super::StoreError;

/// Checks a relative path: parts of 1 to 255 bytes without control characters, `:`, `\` or `//`, none of them `.` or
/// `..`. The empty path is the root.
pub fn check(op: &'static str, path: &str) -> Result<(), StoreError> {
    let part_ok = |part: &str| {
        !part.is_empty()
            && part.len() <= 255
            && part != "."
            && part != ".."
            && part.chars().all(|c| !c.is_control() && !matches!(c, ':' | '\\'))
    };
    if path.is_empty() || (path.len() <= 4000 && path.split('/').all(part_ok)) {
        Ok(())
    } else {
        Err(StoreError::Other {
            op,
            path: path.chars().take(300).collect(),
            detail: "it is not a relative path of plain names".into(),
        })
    }
}

/// Like [`check`], but the root is refused too: it is never created, renamed or deleted.
pub fn check_inner(op: &'static str, path: &str) -> Result<(), StoreError> {
    if path.is_empty() {
        return Err(StoreError::Other {
            op,
            path: String::new(),
            detail: "the root itself cannot be the target".into(),
        });
    }
    check(op, path)
}

/// The directory part; empty for a name in the root.
pub fn parent(path: &str) -> &str {
    path.rsplit_once('/').map_or("", |(parent, _)| parent)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_path_leads_out() {
        for good in ["", "a", "a/b=c/.d", "_catchment/commits/00000000000000000001", "event_date=2026-11-20"] {
            assert!(check("test", good).is_ok(), "{good}");
        }
        for bad in
            ["/a", "a/", "a//b", "..", "a/../b", "./a", "a/.", "a\0b", "hdfs://x/y", "a\\b", "a\nb", &"x".repeat(256)]
        {
            assert!(check("test", bad).is_err(), "{bad:?}");
        }
        assert!(check_inner("test", "").is_err());
        assert_eq!(parent("a/b/c"), "a/b");
        assert_eq!(parent("a"), "");
    }
}
