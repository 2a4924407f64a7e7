//! What keeps a matched file or a directory from being read, in words that an operator can act on.
//!
//! Invariant: the text names the path, its mode, its owner and group, and the way out.

use std::fmt;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// One file or directory that the globs reach and that cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct TailProblem {
    /// The path that was refused.
    pub path: String,
    /// The operating system's reason.
    pub reason: String,
    /// Mode bits, when they could be seen.
    pub mode: Option<u32>,
    /// User id of the owner and its name.
    pub owner: Option<(u32, Option<String>)>,
    /// Group id and its name.
    pub group: Option<(u32, Option<String>)>,
    /// What to do about it.
    pub advice: String,
}

impl TailProblem {
    /// Describes `error` on `path`, with the mode and owner of what refused: the path itself, or the nearest directory
    /// above it that can be looked at.
    pub fn of(path: &Path, error: &io::Error) -> Self {
        let denied = error.kind() == io::ErrorKind::PermissionDenied;
        let Some((subject, metadata)) = path.ancestors().find_map(|at| Some((at, std::fs::metadata(at).ok()?))) else {
            return Self::bare(path, error);
        };
        let (uid, gid) = (metadata.uid(), metadata.gid());
        let (user, group) = (name_of("/etc/passwd", uid), name_of("/etc/group", gid));
        let is_dir = metadata.is_dir();
        let advice = advice(denied, metadata.mode(), is_dir, subject, group.as_deref().unwrap_or(&gid.to_string()));
        Self {
            mode: Some(metadata.mode() & 0o7777),
            owner: Some((uid, user)),
            group: Some((gid, group)),
            advice,
            ..Self::bare(path, error)
        }
    }

    fn bare(path: &Path, error: &io::Error) -> Self {
        Self {
            path: path.display().to_string(),
            reason: error.to_string(),
            mode: None,
            owner: None,
            group: None,
            advice: "check the path".to_owned(),
        }
    }
}

/// The way out: group membership if the group bits suffice, else the bits or an ACL first.
fn advice(denied: bool, mode: u32, is_dir: bool, subject: &Path, group: &str) -> String {
    if !denied {
        return "the agent tries again at each look; if it stays, check the file system".to_owned();
    }
    let (need, bits) = if is_dir { (0o050, "g+rx") } else { (0o040, "g+r") };
    if mode & need == need {
        format!("add the agent's user to the group {group} and start the agent again")
    } else {
        let at = subject.display();
        format!(
            "the group {group} may not read it either: `chmod {bits} {at}` and add the agent's user to {group}, or set an ACL"
        )
    }
}

/// Name of an id in a file of the form of /etc/passwd.
fn name_of(file: &str, id: u32) -> Option<String> {
    find_name(&std::fs::read_to_string(file).ok()?, id)
}

fn find_name(text: &str, id: u32) -> Option<String> {
    let wanted = id.to_string();
    text.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1)? == wanted).then(|| name.to_owned())
    })
}

impl fmt::Display for TailProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let named = |id: &(u32, Option<String>)| match &id.1 {
            Some(name) => format!("{name} ({})", id.0),
            None => id.0.to_string(),
        };
        write!(f, "{}: {}", self.path, self.reason)?;
        if let (Some(mode), Some(owner), Some(group)) = (self.mode, &self.owner, &self.group) {
            write!(f, "; mode {mode:04o}, owner {}, group {}", named(owner), named(group))?;
        }
        write!(f, ": {}", self.advice)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_names_mode_owner_and_the_group_to_join() {
        let problem = TailProblem {
            path: "/var/log/nginx/access.log".to_owned(),
            reason: "Permission denied (os error 13)".to_owned(),
            mode: Some(0o640),
            owner: Some((33, Some("www-data".to_owned()))),
            group: Some((4, Some("adm".to_owned()))),
            advice: advice(true, 0o100640, false, Path::new("/var/log/nginx/access.log"), "adm"),
        };
        assert_eq!(
            problem.to_string(),
            "/var/log/nginx/access.log: Permission denied (os error 13); mode 0640, owner www-data (33), group adm (4): \
             add the agent's user to the group adm and start the agent again"
        );
        assert!(advice(true, 0o100600, false, Path::new("/a"), "adm").contains("chmod g+r /a"));
        assert!(advice(true, 0o040710, true, Path::new("/d"), "adm").contains("chmod g+rx /d"));
    }

    #[test]
    fn names_are_found_by_id() {
        let text = "root:x:0:0:root:/root:/bin/sh\nweb:x:33:33::/:/bin/false\nbroken\n";
        assert_eq!(find_name(text, 33).as_deref(), Some("web"));
        assert_eq!(find_name(text, 4), None);
    }
}
