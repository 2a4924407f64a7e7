//! Reading what lies at a destination, local or on HDFS: a listing of all files and streams over them. It shares no code
//! with the collector's stores, so that it cannot share their mistakes.

use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, bail};

/// Bytes asked of HDFS at a time.
const READ_BYTES: usize = 4 << 20;

/// A file below the root.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct FileAt {
    /// Relative to the root, `/` between parts.
    pub path: String,
    /// Its length.
    pub bytes: u64,
}

/// A destination as its readers see it.
#[derive(Debug)]
pub struct Tree(Root);

#[derive(Debug)]
enum Root {
    Local(PathBuf),
    Hdfs(Hdfs),
}

impl Tree {
    /// Opens `file:///DIR`, a plain path, or `hdfs://HOST:PORT/DIR`.
    pub fn open(url: &str) -> Result<Self> {
        if let Some(path) = url.strip_prefix("file://") {
            if !path.starts_with('/') {
                bail!("{url} is no local destination: write file:///DIR with an absolute path");
            }
            return Ok(Self(Root::Local(PathBuf::from(path))));
        }
        if url.starts_with("hdfs://") {
            return Ok(Self(Root::Hdfs(Hdfs::open(url)?)));
        }
        if url.contains("://") {
            bail!("{url}: only file:// and hdfs:// destinations can be read");
        }
        Ok(Self(Root::Local(PathBuf::from(url))))
    }

    /// All files below the root, sorted by path. A root that is not there is empty.
    pub fn files(&self) -> Result<Vec<FileAt>> {
        let mut files = match &self.0 {
            Root::Local(root) => {
                let mut files = Vec::new();
                list_local(root, "", &mut files).with_context(|| format!("cannot list {}", root.display()))?;
                files
            }
            Root::Hdfs(hdfs) => hdfs.files()?,
        };
        files.sort();
        Ok(files)
    }

    /// A stream over one file.
    pub fn read(&self, file: &FileAt) -> Result<Box<dyn Read + Send>> {
        match &self.0 {
            Root::Local(root) => {
                let path = root.join(&file.path);
                Ok(Box::new(fs::File::open(&path).with_context(|| format!("cannot open {}", path.display()))?))
            }
            Root::Hdfs(hdfs) => hdfs.read(&file.path),
        }
    }

    /// The whole of one file.
    pub fn read_all(&self, file: &FileAt) -> Result<Vec<u8>> {
        let mut bytes = Vec::with_capacity(file.bytes as usize);
        self.read(file)?.read_to_end(&mut bytes).with_context(|| format!("cannot read {}", file.path))?;
        Ok(bytes)
    }
}

fn list_local(dir: &Path, prefix: &str, files: &mut Vec<FileAt>) -> io::Result<()> {
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    for entry in entries {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        let path = if prefix.is_empty() { name } else { format!("{prefix}/{name}") };
        // A staged file may be renamed away between the listing and this call: then it is listed elsewhere.
        let Ok(meta) = entry.metadata() else { continue };
        if meta.is_dir() {
            list_local(&entry.path(), &path, files)?;
        } else {
            files.push(FileAt { path, bytes: meta.len() });
        }
    }
    Ok(())
}

/// HDFS behind its own small runtime.
struct Hdfs {
    runtime: Arc<tokio::runtime::Runtime>,
    client: hdfs_native::Client,
    root: String,
}

impl std::fmt::Debug for Hdfs {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Hdfs").field("root", &self.root).finish_non_exhaustive()
    }
}

impl Hdfs {
    fn open(url: &str) -> Result<Self> {
        let rest = url.trim_start_matches("hdfs://");
        let (authority, dir) = rest.split_once('/').unwrap_or((rest, ""));
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let client = runtime
            .block_on(async { hdfs_native::ClientBuilder::new().with_url(format!("hdfs://{authority}")).build() })
            .with_context(|| format!("cannot reach {url}"))?;
        Ok(Self { runtime: Arc::new(runtime), client, root: format!("/{}", dir.trim_matches('/')) })
    }

    fn files(&self) -> Result<Vec<FileAt>> {
        let listed = self.runtime.block_on(self.client.list_status(&self.root, true));
        let listed = match listed {
            Ok(listed) => listed,
            Err(hdfs_native::HdfsError::FileNotFound(_)) => return Ok(Vec::new()),
            Err(error) => return Err(error).with_context(|| format!("cannot list {}", self.root)),
        };
        let prefix = format!("{}/", self.root.trim_end_matches('/'));
        let files = listed.into_iter().filter(|status| !status.isdir);
        Ok(files
            .map(|status| {
                let path = status.path.strip_prefix(&prefix).unwrap_or(&status.path).to_owned();
                FileAt { path, bytes: status.length as u64 }
            })
            .collect())
    }

    fn read(&self, path: &str) -> Result<Box<dyn Read + Send>> {
        let path = format!("{}/{path}", self.root.trim_end_matches('/'));
        let reader =
            self.runtime.block_on(self.client.read(&path)).with_context(|| format!("cannot open {path} on HDFS"))?;
        Ok(Box::new(HdfsRead { runtime: self.runtime.clone(), reader, held: bytes::Bytes::new() }))
    }
}

struct HdfsRead {
    runtime: Arc<tokio::runtime::Runtime>,
    reader: hdfs_native::file::FileReader,
    held: bytes::Bytes,
}

impl Read for HdfsRead {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        if self.held.is_empty() {
            let wanted = self.reader.remaining().min(READ_BYTES);
            if wanted == 0 {
                return Ok(0);
            }
            self.held = self.runtime.block_on(self.reader.read_bytes(wanted)).map_err(io::Error::other)?;
        }
        let taken = self.held.split_to(self.held.len().min(out.len()));
        out[..taken.len()].copy_from_slice(&taken);
        Ok(taken.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_local_tree_is_listed_whole() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("clicks/event_date=2026-11-20")).unwrap();
        fs::write(dir.path().join("clicks/event_date=2026-11-20/a.log"), b"one\n").unwrap();
        fs::write(dir.path().join("top"), b"").unwrap();
        let tree = Tree::open(&format!("file://{}", dir.path().display())).unwrap();
        let files = tree.files().unwrap();
        assert_eq!(files[0], FileAt { path: "clicks/event_date=2026-11-20/a.log".into(), bytes: 4 });
        assert_eq!(files[1].path, "top");
        assert_eq!(tree.read_all(&files[0]).unwrap(), b"one\n");
        assert!(Tree::open("file:///nowhere/at/all").unwrap().files().unwrap().is_empty());
        assert!(Tree::open("s3://bucket/x").is_err());
    }
}
