//! What an answer of HDFS means for the caller, by the Java class name in it and, where one class says several
//! things, by its text. Pure.
//!
//! Invariant: a change is called undone only when the NameNode said so or the request was never sent; everything
//! unknown about a change is [`StoreError::Unanswered`].

use std::io::ErrorKind;

use hdfs_native::HdfsError;

use crate::store::{Renamed, StoreError};

/// Does the call change anything?
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effect {
    /// It only reads: an answer that did not come can simply be asked for again.
    None,
    /// It changes something, perhaps later.
    Change,
    /// It writes to an open file: after any failure nobody knows what is in it.
    Write,
}

#[derive(Debug, PartialEq, Eq)]
enum Class {
    Unanswered,
    Unavailable,
    Full,
    NotFound,
    AlreadyExists,
    Permission,
    Other,
}

/// Puts an error of the crate into one of our classes.
pub fn classify(op: &'static str, path: &str, effect: Effect, error: &HdfsError) -> StoreError {
    let (path, detail) = (path.to_owned(), first_line(&error.to_string()));
    match class(error) {
        Class::Unanswered if effect != Effect::None => StoreError::Unanswered { op, path, detail },
        Class::Unavailable | Class::Full if effect == Effect::Write => StoreError::Unanswered { op, path, detail },
        Class::Unanswered | Class::Unavailable => StoreError::Unavailable { op, path, detail },
        Class::Full => StoreError::Full { op, path, detail },
        Class::NotFound => StoreError::NotFound { op, path, detail },
        Class::AlreadyExists => StoreError::AlreadyExists { op, path, detail },
        Class::Permission => StoreError::Permission { op, path, detail },
        Class::Other => StoreError::Other { op, path, detail },
    }
}

/// Errors of a rename that say how it ended. One class stands for a missing source and a missing parent: the text decides.
pub fn rename_answer(error: &HdfsError) -> Option<Renamed> {
    match error {
        HdfsError::AlreadyExists(_) => Some(Renamed::TargetExists),
        HdfsError::RPCError(class, text) => match short(class) {
            "FileNotFoundException" if text.contains("rename source") => Some(Renamed::SourceMissing),
            "FileNotFoundException" if text.contains("rename destination") => Some(Renamed::ParentMissing),
            "IOException" if text.contains("must both be directories") => Some(Renamed::TargetExists),
            "FileAlreadyExistsException" => Some(Renamed::TargetExists),
            _ => None,
        },
        _ => None,
    }
}

fn class(error: &HdfsError) -> Class {
    match error {
        HdfsError::RPCError(class, text) | HdfsError::FatalRPCError(class, text) => class_by_name(class, text),
        HdfsError::IOError(error) => class_by_io(error),
        HdfsError::FileNotFound(_) => Class::NotFound,
        HdfsError::AlreadyExists(_) => Class::AlreadyExists,
        // The ticket is missing or has expired: somebody renews it. The request was not sent.
        HdfsError::SASLError(_) | HdfsError::GSSAPIError(..) | HdfsError::NoSASLMechanism => Class::Unavailable,
        // The answer to a request came and could not be read.
        HdfsError::InvalidRPCResponse(_) => Class::Unanswered,
        HdfsError::DataTransferError(_) | HdfsError::ChecksumError | HdfsError::BlocksNotFound(_) => Class::Unanswered,
        HdfsError::OperationFailed(_) | HdfsError::InternalError(_) => Class::Unanswered,
        _ => Class::Other,
    }
}

fn class_by_name(class: &str, text: &str) -> Class {
    match short(class) {
        "SafeModeException"
        | "StandbyException"
        | "ObserverRetryOnActiveException"
        | "RetriableException"
        | "CallQueueTooBigException"
        | "InvalidToken"
        | "SaslException" => Class::Unavailable,
        "NSQuotaExceededException" | "DSQuotaExceededException" | "QuotaByStorageTypeExceededException" => Class::Full,
        "FileNotFoundException" => Class::NotFound,
        "FileAlreadyExistsException" | "AlreadyBeingCreatedException" => Class::AlreadyExists,
        "AccessControlException" | "AuthorizationException" => Class::Permission,
        // Before enough DataNodes have registered.
        "IOException" if text.contains("could only be written to") => Class::Unavailable,
        // Safe mode, wrapped by a call that is not a plain one.
        _ if text.contains("SafeModeException") || text.contains("is in safe mode") => Class::Unavailable,
        _ => Class::Other,
    }
}

fn class_by_io(error: &std::io::Error) -> Class {
    match error.kind() {
        // Kinds that only a connect can end with: nothing was sent.
        ErrorKind::ConnectionRefused
        | ErrorKind::AddrNotAvailable
        | ErrorKind::HostUnreachable
        | ErrorKind::NetworkUnreachable
        | ErrorKind::NotConnected => Class::Unavailable,
        _ if error.to_string().contains("failed to lookup address") => Class::Unavailable,
        _ => Class::Unanswered,
    }
}

/// `SafeModeException` of `org.apache.hadoop.hdfs.server.namenode.SafeModeException`, also of nested classes.
fn short(class: &str) -> &str {
    class.rsplit(['.', '$']).next().unwrap_or(class)
}

/// Java puts a stack trace behind the first line.
fn first_line(text: &str) -> String {
    text.lines().next().unwrap_or_default().chars().take(500).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rpc(class: &str, text: &str) -> HdfsError {
        HdfsError::RPCError(class.into(), text.into())
    }

    fn io(kind: ErrorKind) -> HdfsError {
        HdfsError::IOError(kind.into())
    }

    #[test]
    fn a_change_is_undone_only_when_that_is_known() {
        let change = |error: &HdfsError| classify("rename", "x", Effect::Change, error);
        let safe_mode = rpc("org.apache.hadoop.hdfs.server.namenode.SafeModeException", "Cannot rename\n\tat x");
        assert!(matches!(change(&safe_mode), StoreError::Unavailable { detail, .. } if !detail.contains("at x")));
        let standby = rpc("org.apache.hadoop.ipc.StandbyException", "");
        assert!(matches!(change(&standby), StoreError::Unavailable { .. }));
        assert!(matches!(change(&io(ErrorKind::ConnectionRefused)), StoreError::Unavailable { .. }));
        for kind in [ErrorKind::ConnectionAborted, ErrorKind::ConnectionReset, ErrorKind::TimedOut, ErrorKind::Other] {
            assert!(matches!(change(&io(kind)), StoreError::Unanswered { .. }), "{kind}");
            let read = classify("stat", "x", Effect::None, &io(kind));
            assert!(matches!(read, StoreError::Unavailable { .. }), "{kind}");
        }
    }

    #[test]
    fn a_write_that_failed_is_never_known_to_be_undone() {
        let error = classify("write", "x", Effect::Write, &io(ErrorKind::ConnectionRefused));
        assert!(matches!(error, StoreError::Unanswered { .. }));
    }

    #[test]
    fn a_quota_concerns_its_path_and_an_absence_the_store() {
        use crate::store::Reach;
        for name in ["NSQuotaExceededException", "DSQuotaExceededException", "QuotaByStorageTypeExceededException"] {
            let error = rpc(&format!("org.apache.hadoop.hdfs.protocol.{name}"), "The quota of /d is exceeded");
            let classified = classify("rename", "d/x", Effect::Change, &error);
            assert!(matches!(classified, StoreError::Full { .. }) && classified.reach() == Reach::Path, "{classified}");
            let write = classify("write", "d/x", Effect::Write, &error);
            assert!(matches!(write, StoreError::Unanswered { .. }), "nobody knows what is in it: {write}");
        }
        let standby = rpc("org.apache.hadoop.ipc.StandbyException", "");
        assert_eq!(classify("rename", "x", Effect::Change, &standby).reach(), Reach::Store);
        assert_eq!(classify("rename", "x", Effect::Change, &io(ErrorKind::TimedOut)).reach(), Reach::Store);
    }

    #[test]
    fn the_text_tells_a_missing_source_from_a_missing_parent() {
        let missing = |text: &str| rename_answer(&rpc("java.io.FileNotFoundException", text));
        assert_eq!(missing("rename source /a is not found."), Some(Renamed::SourceMissing));
        assert_eq!(missing("rename destination parent /b/c not found."), Some(Renamed::ParentMissing));
        assert_eq!(missing("something else"), None);
        let onto = rpc("java.io.IOException", "Source /a and destination /b must both be directories");
        assert_eq!(rename_answer(&onto), Some(Renamed::TargetExists));
        assert_eq!(rename_answer(&io(ErrorKind::ConnectionAborted)), None);
    }

    #[test]
    fn names_of_classes_decide() {
        assert_eq!(class(&rpc("org.apache.hadoop.security.AccessControlException", "")), Class::Permission);
        assert_eq!(class(&rpc("org.apache.hadoop.security.token.SecretManager$InvalidToken", "")), Class::Unavailable);
        assert_eq!(class(&rpc("java.lang.NullPointerException", "")), Class::Other);
        assert_eq!(
            class(&rpc("java.io.IOException", "File /x could only be written to 0 of the 1")),
            Class::Unavailable
        );
    }
}
