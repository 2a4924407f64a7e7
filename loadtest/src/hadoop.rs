//! A real HDFS on this machine, for tests and for trying things out: NameNode and DataNodes of Hadoop 3 as plain Java
//! processes on free loopback ports, from jars that Maven downloads once ([`download`]).
//!
//! Needs `java` (17 or newer) and `mvn`; without them every call says so, and nothing is skipped. Everything here
//! blocks; from async code call it on a blocking thread. The processes end with [`Hdfs`], also when its process dies.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};

pub mod download;
mod jmx;
mod process;

use process::Daemon;

const NAMENODE: &str = "org.apache.hadoop.hdfs.server.namenode.NameNode";
const DATANODE: &str = "org.apache.hadoop.hdfs.server.datanode.DataNode";
const FS_SHELL: &str = "org.apache.hadoop.fs.FsShell";
const ADMIN: &str = "org.apache.hadoop.hdfs.tools.DFSAdmin";
/// A loaded machine takes long to start a JVM.
const START_LIMIT: Duration = Duration::from_secs(120);
const POLL: Duration = Duration::from_millis(100);

/// What to start.
#[derive(Debug, Clone)]
pub struct Options {
    /// Number of DataNodes, at least 1.
    pub datanodes: usize,
    /// Replicas of each block; not more than there are DataNodes.
    pub replication: usize,
    /// Where data and logs go; default: a temporary directory that is deleted at the end.
    pub dir: Option<PathBuf>,
}

impl Default for Options {
    fn default() -> Self {
        Self { datanodes: 1, replication: 1, dir: None }
    }
}

/// A running HDFS.
#[derive(Debug)]
pub struct Hdfs {
    java: Java,
    rpc_port: u16,
    http_port: u16,
    namenode: Option<Daemon>,
    datanodes: Vec<Option<Daemon>>,
    // Last, so that the processes are gone before their directory.
    _dir: Option<tempfile::TempDir>,
}

/// How to start any of Hadoop's classes.
#[derive(Debug)]
struct Java {
    dir: PathBuf,
    classpath: String,
}

impl Hdfs {
    /// Downloads what is missing, formats, starts, and waits until files can be written. 6 to 15 s.
    pub fn start(options: &Options) -> anyhow::Result<Self> {
        ensure!(
            options.datanodes >= 1 && (1..=options.datanodes).contains(&options.replication),
            "an HDFS needs at least one DataNode, and no more replicas than DataNodes"
        );
        let jars = download::classpath()?;
        let mut last = None;
        // Ports that were free a moment ago may be taken by another process that starts at the same time.
        for _ in 0..3 {
            match Self::try_start(options, &jars) {
                Ok(hdfs) => return Ok(hdfs),
                Err(error) => last = Some(error),
            }
        }
        Err(last.expect("three attempts were made"))
    }

    fn try_start(options: &Options, jars: &str) -> anyhow::Result<Self> {
        let (dir, temporary) = match &options.dir {
            Some(dir) => (dir.clone(), None),
            None => {
                let temporary = tempfile::Builder::new().prefix("hdfs-").tempdir()?;
                (temporary.path().to_owned(), Some(temporary))
            }
        };
        let ports = free_ports()?;
        let conf = dir.join("conf");
        write_conf(&conf, &dir, ports, options.replication).context("the Hadoop configuration cannot be written")?;
        let java = Java { classpath: format!("{}:{jars}", conf.display()), dir };
        java.run(NAMENODE, &["-format", "-force", "-nonInteractive"])?;
        let mut hdfs = Self {
            java,
            rpc_port: ports[0],
            http_port: ports[1],
            namenode: None,
            datanodes: (0..options.datanodes).map(|_| None).collect(),
            _dir: temporary,
        };
        hdfs.spawn_namenode()?;
        for index in 0..options.datanodes {
            hdfs.start_datanode(index)?;
        }
        hdfs.wait_live(options.datanodes)?;
        Ok(hdfs)
    }

    /// `hdfs://127.0.0.1:PORT`, without a directory behind it.
    pub fn url(&self) -> String {
        format!("hdfs://127.0.0.1:{}", self.rpc_port)
    }

    /// Its configuration and all jars, as `java -cp` takes them.
    pub fn classpath(&self) -> &str {
        &self.java.classpath
    }

    /// Where its logs are.
    pub fn dir(&self) -> &Path {
        &self.java.dir
    }

    /// Kills the NameNode (SIGKILL).
    pub fn stop_namenode(&mut self) {
        self.namenode = None;
    }

    /// Starts the NameNode again, on the same ports, and waits until `datanodes` have come back and it has left safe mode.
    pub fn start_namenode(&mut self) -> anyhow::Result<()> {
        self.spawn_namenode()?;
        self.wait_live(self.datanodes.iter().flatten().count())
    }

    /// Stops the NameNode without ending it (SIGSTOP): connections stay, nothing is answered.
    pub fn freeze_namenode(&self) -> anyhow::Result<()> {
        self.namenode.as_ref().context("the NameNode is not running")?.freeze()
    }

    /// Lets a frozen NameNode go on (SIGCONT).
    pub fn thaw_namenode(&self) -> anyhow::Result<()> {
        self.namenode.as_ref().context("the NameNode is not running")?.thaw()
    }

    /// Kills DataNode `index` (SIGKILL).
    pub fn stop_datanode(&mut self, index: usize) {
        self.datanodes[index] = None;
    }

    /// Starts DataNode `index` again with what it held; does not wait for it.
    pub fn start_datanode(&mut self, index: usize) -> anyhow::Result<()> {
        let data = format!("-Ddfs.datanode.data.dir=file://{}/data{index}", self.java.dir.display());
        self.datanodes[index] = Some(self.java.daemon(DATANODE, &format!("datanode{index}"), &[&data])?);
        Ok(())
    }

    /// Stops DataNode `index` without ending it (SIGSTOP).
    pub fn freeze_datanode(&self, index: usize) -> anyhow::Result<()> {
        self.datanodes[index].as_ref().context("the DataNode is not running")?.freeze()
    }

    /// Lets a frozen DataNode go on (SIGCONT).
    pub fn thaw_datanode(&self, index: usize) -> anyhow::Result<()> {
        self.datanodes[index].as_ref().context("the DataNode is not running")?.thaw()
    }

    /// Puts the NameNode into safe mode, or lets it leave it.
    pub fn safe_mode(&self, on: bool) -> anyhow::Result<()> {
        self.java.run(ADMIN, &["-safemode", if on { "enter" } else { "leave" }]).map(drop)
    }

    /// Waits until `datanodes` are live with space to write to, and the NameNode is out of safe mode.
    pub fn wait_live(&self, datanodes: usize) -> anyhow::Result<()> {
        let give_up = Instant::now() + START_LIMIT;
        loop {
            let state = jmx::state(self.http_port);
            if state.as_ref().is_ok_and(|s| s.operational && s.live_datanodes >= datanodes && s.remaining_bytes > 0) {
                return Ok(());
            }
            let daemons = self.namenode.iter().chain(self.datanodes.iter().flatten());
            if let Some(dead) = daemons.into_iter().find(|daemon| !daemon.is_running()) {
                bail!("{} has ended: {}", dead.name(), dead.last_words());
            }
            if Instant::now() > give_up {
                bail!("HDFS is not up after {START_LIMIT:?}: {state:?}; logs are in {}", self.java.dir.display());
            }
            std::thread::sleep(POLL);
        }
    }

    /// Runs Hadoop's own file system shell, e.g. `["-ls", "-R", "/"]`; an error if it fails. About a second.
    pub fn shell(&self, args: &[&str]) -> anyhow::Result<Vec<u8>> {
        self.java.run(FS_SHELL, args)
    }

    /// `-text`: the content, decoded by Hadoop's codecs (gzip; zstd is not in the stock jars).
    pub fn text(&self, path: &str) -> anyhow::Result<Vec<u8>> {
        self.shell(&["-text", path])
    }

    /// `-cat`: the bytes as they are.
    pub fn cat(&self, path: &str) -> anyhow::Result<Vec<u8>> {
        self.shell(&["-cat", path])
    }

    /// `-ls -R`: one line per file and directory.
    pub fn ls(&self, path: &str) -> anyhow::Result<String> {
        Ok(String::from_utf8_lossy(&self.shell(&["-ls", "-R", path])?).into_owned())
    }

    fn spawn_namenode(&mut self) -> anyhow::Result<()> {
        self.namenode = Some(self.java.daemon(NAMENODE, "namenode", &[])?);
        Ok(())
    }
}

impl Java {
    fn args(&self, log: &str) -> Vec<String> {
        let flags = ["-Xmx256m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-Djava.net.preferIPv4Stack=true"];
        let mut args: Vec<String> = flags.map(str::to_owned).into();
        args.push(format!("-Dhadoop.log.dir={}", self.dir.display()));
        args.push(format!("-Dcatchment.log={}/{log}.log", self.dir.display()));
        // What a killed process leaves there goes with the rest.
        args.push(format!("-Djava.io.tmpdir={}", self.dir.display()));
        args.extend(["-cp".to_owned(), self.classpath.clone()]);
        args
    }

    /// Runs a class to its end; what it printed.
    fn run(&self, class: &str, args: &[&str]) -> anyhow::Result<Vec<u8>> {
        let Output { status, stdout, stderr } = Command::new("java")
            .args(self.args("tools"))
            .arg(class)
            .args(args)
            .output()
            .map_err(|e| download::missing_tool("java", &e))?;
        ensure!(
            status.success(),
            "{class} {args:?} ended with {status}: {}",
            String::from_utf8_lossy(&stderr).lines().take(5).collect::<Vec<_>>().join(" | ")
        );
        Ok(stdout)
    }

    fn daemon(&self, class: &str, name: &str, args: &[&str]) -> anyhow::Result<Daemon> {
        let mut all = self.args(name);
        all.push(class.to_owned());
        all.extend(args.iter().map(|&arg| arg.to_owned()));
        Daemon::spawn(name, &all, &self.dir.join(format!("{name}.out")))
    }
}

/// Ports for RPC and HTTP of the NameNode; DataNodes choose their own.
fn free_ports() -> anyhow::Result<[u16; 2]> {
    let listeners = [TcpListener::bind("127.0.0.1:0")?, TcpListener::bind("127.0.0.1:0")?];
    Ok([listeners[0].local_addr()?.port(), listeners[1].local_addr()?.port()])
}

fn write_conf(conf: &Path, dir: &Path, [rpc, http]: [u16; 2], replication: usize) -> anyhow::Result<()> {
    // The jars hold no web pages, but the servers do not start without their directories.
    for webapp in ["hdfs", "datanode", "journal", "static"] {
        std::fs::create_dir_all(conf.join("webapps").join(webapp))?;
    }
    let dir = dir.display();
    let core = [
        ("fs.defaultFS", format!("hdfs://127.0.0.1:{rpc}")),
        ("hadoop.tmp.dir", format!("{dir}/tmp")),
        ("dfs.permissions.superusergroup", "supergroup".into()),
    ];
    let hdfs = [
        ("dfs.namenode.name.dir", format!("file://{dir}/name")),
        ("dfs.namenode.http-address", format!("127.0.0.1:{http}")),
        ("dfs.namenode.rpc-bind-host", "127.0.0.1".into()),
        ("dfs.namenode.datanode.registration.ip-hostname-check", "false".into()),
        ("dfs.namenode.fs-limits.min-block-size", "1048576".into()),
        ("dfs.namenode.safemode.extension", "0".into()),
        // A dead DataNode is noticed in seconds, not in ten minutes.
        ("dfs.heartbeat.interval", "1".into()),
        ("dfs.namenode.heartbeat.recheck-interval", "2000".into()),
        ("dfs.namenode.stale.datanode.interval", "3000".into()),
        ("dfs.namenode.avoid.write.stale.datanode", "true".into()),
        // Without it a close with two or more replicas may wait half a second for a block report.
        ("dfs.namenode.file.close.num-committed-allowed", "1".into()),
        ("dfs.replication", replication.to_string()),
        ("dfs.datanode.address", "127.0.0.1:0".into()),
        ("dfs.datanode.http.address", "127.0.0.1:0".into()),
        ("dfs.datanode.ipc.address", "127.0.0.1:0".into()),
    ];
    std::fs::write(conf.join("core-site.xml"), xml(&core))?;
    std::fs::write(conf.join("hdfs-site.xml"), xml(&hdfs))?;
    let log4j = "log4j.rootLogger=INFO,file\nlog4j.appender.file=org.apache.log4j.FileAppender\n\
        log4j.appender.file.File=${catchment.log}\nlog4j.appender.file.layout=org.apache.log4j.PatternLayout\n\
        log4j.appender.file.layout.ConversionPattern=%d{ISO8601} %p %c{1}: %m%n\n";
    std::fs::write(conf.join("log4j.properties"), log4j)?;
    Ok(())
}

fn xml(properties: &[(&str, String)]) -> String {
    let mut out = String::from("<?xml version=\"1.0\"?>\n<configuration>\n");
    for (name, value) in properties {
        out.push_str(&format!("<property><name>{name}</name><value>{value}</value></property>\n"));
    }
    out.push_str("</configuration>\n");
    out
}
