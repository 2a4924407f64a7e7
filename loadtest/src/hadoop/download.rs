//! Hadoop's jars, downloaded by Maven once into a cache below the cargo target directory.
//!
//! Several test processes may come here at once: a file lock lets one download while the others wait.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, ensure};

/// The release that is tested against.
pub const HADOOP_VERSION: &str = "3.5.0";

/// The jars' classpath; downloads them (about 90 MB, 15 s) if they are not there.
pub fn classpath() -> anyhow::Result<String> {
    let dir = cache_dir()?.join(format!("hadoop-{HADOOP_VERSION}"));
    fs::create_dir_all(&dir).with_context(|| format!("{} cannot be made", dir.display()))?;
    let lock = File::create(dir.join("lock"))?;
    lock.lock().context("the lock of the Hadoop download cannot be taken")?;
    let list = dir.join("classpath.txt");
    if let Some(classpath) = whole(&list) {
        return Ok(classpath);
    }
    fs::write(dir.join("pom.xml"), pom())?;
    let made = dir.join("classpath.new");
    let output = Command::new("mvn")
        .current_dir(&dir)
        .args(["-q", "-B", "dependency:build-classpath"])
        .arg(format!("-Dmaven.repo.local={}", dir.join("repository").display()))
        .arg(format!("-Dmdep.outputFile={}", made.display()))
        .output()
        .map_err(|e| missing_tool("mvn", &e))?;
    ensure!(
        output.status.success(),
        "Maven could not download Hadoop {HADOOP_VERSION} ({}); it needs its central repository or a mirror in \
         ~/.m2/settings.xml: {}",
        output.status,
        String::from_utf8_lossy(&output.stdout).lines().take(5).collect::<Vec<_>>().join(" | ")
    );
    fs::rename(&made, &list)?;
    whole(&list).context("Maven has left out jars that it lists")
}

/// The classpath, if every jar of it is there.
fn whole(list: &Path) -> Option<String> {
    let classpath = fs::read_to_string(list).ok()?.trim().to_owned();
    let all = !classpath.is_empty() && classpath.split(':').all(|jar| Path::new(jar).is_file());
    all.then_some(classpath)
}

/// The target directory this program was built in, recognised by cargo's tag; else the system's directory for
/// temporary files.
fn cache_dir() -> anyhow::Result<PathBuf> {
    let exe = std::env::current_exe().context("this program does not know where it lies")?;
    let target = exe.ancestors().find(|dir| dir.join("CACHEDIR.TAG").is_file());
    Ok(target.map_or_else(|| std::env::temp_dir().join("catchment"), Path::to_owned))
}

/// One sentence for a program that cannot be started.
pub(super) fn missing_tool(tool: &str, error: &io::Error) -> anyhow::Error {
    anyhow::anyhow!(
        "`{tool}` cannot be started ({error}): a real HDFS needs java 17 or newer and mvn on the PATH; \
         install them, e.g. with `apt-get install default-jre-headless maven`"
    )
}

/// `hadoop-hdfs-client` is only *provided* to `hadoop-hdfs`, so it must be named.
fn pom() -> String {
    let dependency = |artifact: &str| {
        format!(
            "<dependency><groupId>org.apache.hadoop</groupId><artifactId>{artifact}</artifactId>\
             <version>{HADOOP_VERSION}</version></dependency>\n"
        )
    };
    let all: String = ["hadoop-hdfs", "hadoop-common", "hadoop-hdfs-client"].into_iter().map(dependency).collect();
    format!(
        "<project xmlns=\"http://maven.apache.org/POM/4.0.0\"><modelVersion>4.0.0</modelVersion>\n\
         <groupId>catchment</groupId><artifactId>hadoop</artifactId><version>1</version><packaging>pom</packaging>\n\
         <dependencies>\n{all}</dependencies></project>\n"
    )
}
