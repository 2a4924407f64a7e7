//! The `[destination]` table: where the root is and, for HDFS, how it is reached.

use std::path::PathBuf;

use common::config::{Problems, Validate};
use common::units::{Size, Span};
use serde::{Deserialize, Serialize};

use super::StoreOpenError;

/// `[destination]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DestinationConfig {
    /// `file:///DIR`, `hdfs://HOST:PORT/DIR`, or `hdfs://NAMESERVICE/DIR` with `hdfs.config_dir`.
    pub url: String,
    /// Only for an `hdfs:` url.
    #[serde(default)]
    pub hdfs: HdfsConfig,
}

/// `[destination.hdfs]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct HdfsConfig {
    /// Directory with `core-site.xml` and `hdfs-site.xml`; without it `HADOOP_CONF_DIR` is used if set.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub config_dir: Option<PathBuf>,
    /// User name for simple authentication; default: that of the process.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// Kerberos principal; needs `keytab`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub principal: Option<String>,
    /// Kerberos keytab. Without both the credential cache of the environment is used, which somebody else must renew.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub keytab: Option<PathBuf>,
    /// Longest wait for the NameNode, per call.
    pub call_timeout: Span,
    /// Longest wait for one write of at most 1 MiB to be taken by the DataNodes.
    pub write_timeout: Span,
    /// Longest wait for a file to be closed.
    pub close_timeout: Span,
    /// How long a call is repeated that was answered with safe mode or standby, or whose NameNode refused the connection.
    pub retry_for: Span,
    /// Replication of new files; default: the server's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub replication: Option<u32>,
    /// Block size of new files, at least 1 MiB; default: the server's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub block_bytes: Option<Size>,
}

impl Default for HdfsConfig {
    fn default() -> Self {
        Self {
            config_dir: None,
            user: None,
            principal: None,
            keytab: None,
            call_timeout: Span::secs(30),
            write_timeout: Span::secs(60),
            close_timeout: Span::secs(90),
            retry_for: Span::secs(5),
            replication: None,
            block_bytes: None,
        }
    }
}

/// A url that was understood.
pub(super) enum Target {
    Local(PathBuf),
    /// `root` begins with `/` and does not end with one, except for the root of the file system.
    Hdfs {
        authority: String,
        root: String,
    },
}

impl DestinationConfig {
    /// A destination by its url, everything else by default.
    pub fn new(url: impl Into<String>) -> Self {
        Self { url: url.into(), hdfs: HdfsConfig::default() }
    }

    pub(super) fn target(&self) -> Result<Target, StoreOpenError> {
        let wrong = |detail: &str| StoreOpenError::Url { url: self.url.clone(), detail: detail.into() };
        if let Some(path) = self.url.strip_prefix("file://") {
            if !path.starts_with('/') || path.split('/').any(|part| part == "..") {
                return Err(wrong("after file:// an absolute directory without `..` must follow"));
            }
            return Ok(Target::Local(PathBuf::from(path)));
        }
        let Some(rest) = self.url.strip_prefix("hdfs://") else { return Err(wrong("the scheme is unknown")) };
        let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
        if authority.is_empty() || authority.contains(['@', '?', '#', ' ']) {
            return Err(wrong("a host with port or a name service must follow hdfs://"));
        }
        let path = path.trim_end_matches('/');
        super::path::check("open", path).map_err(|e| wrong(&e.to_string()))?;
        Ok(Target::Hdfs { authority: authority.to_owned(), root: format!("/{path}") })
    }
}

/// Keys are those below `destination`.
impl Validate for DestinationConfig {
    fn validate(&self, problems: &mut Problems) {
        if let Err(error) = self.target() {
            problems.add("url", error.to_string());
        }
        let hdfs = &self.hdfs;
        if hdfs.principal.is_some() != hdfs.keytab.is_some() {
            problems.add("hdfs.principal", "principal and keytab go together: give both or none");
        }
        if hdfs.block_bytes.is_some_and(|size| size.bytes() < 1 << 20 || size.bytes() % 512 != 0) {
            problems.add("hdfs.block_bytes", "must be at least 1 MiB and a multiple of 512");
        }
        if hdfs.replication == Some(0) {
            problems.add("hdfs.replication", "must be at least 1");
        }
        for (key, span) in [
            ("hdfs.call_timeout", hdfs.call_timeout),
            ("hdfs.write_timeout", hdfs.write_timeout),
            ("hdfs.close_timeout", hdfs.close_timeout),
        ] {
            if span.get().is_zero() {
                problems
                    .add(key, "must be more than zero: without a time-out a frozen node stops the collector for ever");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_understood_or_refused() {
        let target = |url: &str| DestinationConfig::new(url).target();
        assert!(matches!(target("file:///srv/logs"), Ok(Target::Local(p)) if p == *"/srv/logs"));
        assert!(matches!(target("hdfs://nn:8020/logs/web/"),
            Ok(Target::Hdfs { authority, root }) if authority == "nn:8020" && root == "/logs/web"));
        assert!(matches!(target("hdfs://cluster"), Ok(Target::Hdfs { root, .. }) if root == "/"));
        for bad in ["/srv", "file://srv", "file:///a/../b", "s3://x", "hdfs:///x", "hdfs://nn/../x", "hdfs://nn/a//b"] {
            assert!(target(bad).is_err(), "{bad}");
        }
    }
}
