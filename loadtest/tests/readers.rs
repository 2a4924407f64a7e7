//! The page for readers (`collector/docs/reading.md`), every example as it is printed: DuckDB, PySpark and Hadoop's own
//! shell over sealed partitions, Parquet of an older and a newer schema and gzip text, on a local directory and on a real
//! HDFS. Needs `java`, `mvn`, and `python3` with `venv`, into which `duckdb` and `pyspark` are installed once.

mod scene;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::AtomicU64;

use loadtest::cluster::spec::{Dataset, Tier};
use loadtest::generate::{self, Rotate};
use loadtest::hadoop::{Hdfs, Options};
use loadtest::run;
use loadtest::verify::input;
use loadtest::verify::masker::Masker;

use scene::python::{python, said};
use scene::{dataset, program};

const PAGE: &str = include_str!("../../collector/docs/reading.md");
/// The last day of the generated logs; lateness is over for long.
const DAY: &str = "2026-03-12";
/// A day of which every file has the newer schema.
const NEWER_DAY: &str = "2026-03-20";
const NEWER_FORMAT: &str = "$remote_addr - $remote_user [$time_local] \"$request\" $status $body_bytes_sent \
                            \"$http_referer\" \"$http_user_agent\" $request_time";

/// The blocks of the page with this word behind their fence.
fn blocks(of: &str) -> Vec<String> {
    let mut blocks = Vec::new();
    let mut block: Option<String> = None;
    for line in PAGE.lines() {
        match &mut block {
            None if line.strip_prefix("```").is_some_and(|info| info.split(' ').nth(1) == Some(of)) => {
                block = Some(String::new());
            }
            None => {}
            Some(_) if line == "```" => blocks.extend(block.take()),
            Some(text) => *text += &format!("{line}\n"),
        }
    }
    assert!(!blocks.is_empty(), "the page has no {of} example any more");
    blocks
}

/// Runs the logs through a cluster of its own into `dest`, then seals a day by hand if no rule has sealed it yet.
fn publish(logs: Vec<PathBuf>, dest: &str, into: Dataset, day: &str, work: &Path) {
    let name = into.name.clone();
    let options = run::Options {
        logs,
        dest: dest.into(),
        dataset: into,
        agents: 2,
        aggregators: 1,
        collectors: 1,
        masker: Masker::Replace,
        work: Some(work.to_owned()),
    };
    let finished = run::run(&options, program()).unwrap();
    assert!(finished.outcome.is_exact(), "{:?}", finished.outcome.samples);
    let config = work.join("collector-1/config.toml");
    let partition = format!("event_date={day}");
    let args = ["seal", "now", "--config", config.to_str().unwrap(), "--dataset", &name, "--partition", &partition];
    let mut seal = program().command(Tier::Collector, &args);
    let mut seal = seal.stdin(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    // A tier that the load tester started ends when its standard input does.
    let input = seal.stdin.take();
    let said = seal.wait_with_output().unwrap();
    drop(input);
    let text = String::from_utf8_lossy(&said.stderr);
    assert!(said.status.success() || text.contains("was sealed at"), "seal now failed: {text}");
}

/// A day and two before it as Parquet, a later day with one more column, and the same days as gzip text.
fn publish_all(dest: &str, dir: &Path) {
    let logs = dir.join("logs");
    let options = generate::Options {
        bytes: 3_000_000,
        hosts: 2,
        first_host: 0,
        out: logs.clone(),
        seed: 8,
        rate: None,
        rotate: Rotate::None,
        rotate_bytes: u64::MAX,
        odd_per_million: 0,
        end: DAY.parse().unwrap(),
    };
    generate::generate(&options, &AtomicU64::new(0)).unwrap();
    let files = input::matched_files(&[format!("{}/*/access.log", logs.display())]).unwrap();
    publish(files.clone(), dest, dataset("parquet", "zstd"), DAY, &dir.join("older"));
    let newer = dir.join("newer.log");
    let line = |n: u32| {
        format!(
            "192.0.2.7 - - [20/Mar/2026:10:00:{:02} +0000] \"GET /p/{n} HTTP/1.1\" 200 {n} \"-\" \"agent\" 0.{n:03}\n",
            n % 60
        )
    };
    fs::write(&newer, (0..500).map(line).collect::<String>()).unwrap();
    let wider = Dataset { log_format: NEWER_FORMAT.into(), ..dataset("parquet", "zstd") };
    publish(vec![newer], dest, wider, NEWER_DAY, &dir.join("wider"));
    let text = Dataset { name: "applog".into(), ..dataset("text", "gzip") };
    publish(files, dest, text, DAY, &dir.join("text"));
}

fn run_example(python: &Path, code: &str, logs: &str, day: &str) -> String {
    let dir = tempfile::tempdir().unwrap();
    let script = dir.path().join("example.py");
    fs::write(&script, code).unwrap();
    let output = Command::new(python)
        .arg(&script)
        .current_dir(dir.path())
        .envs([("LOGS", logs), ("DAY", day), ("SPARK_LOCAL_IP", "127.0.0.1")])
        .env("PYSPARK_PYTHON", python)
        .output()
        .unwrap();
    assert!(output.status.success(), "this example fails:\n{code}\n{}", said(&output));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
fn duckdb_and_spark_read_a_local_destination_as_printed() {
    let python = python();
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    publish_all(&format!("file://{}", data.display()), dir.path());
    let logs = data.to_str().unwrap();
    for example in blocks("duckdb").iter().chain(&blocks("spark")) {
        run_example(&python, example, logs, DAY);
    }
    // The day with the newer schema, and all days together, by both readers.
    run_example(&python, &blocks("duckdb")[0], logs, NEWER_DAY);
    run_example(&python, &blocks("spark")[0], logs, NEWER_DAY);
    let both = r#"
import os, duckdb
from pyspark.sql import SparkSession
logs = os.environ["LOGS"]
spark = SparkSession.builder.getOrCreate()
clicks = spark.read.option("mergeSchema", "true").parquet(f"{logs}/clickstream")
assert "request_time" in clicks.columns, clicks.columns
by_spark = {str(row[0]): (row[1], row[2]) for row in clicks.groupBy("event_date").agg({"*": "count", "request_time": "count"}).select("event_date", "count(1)", "count(request_time)").collect()}
files = f"{logs}/clickstream/*/*.parquet"
query = f"select event_date, count(*), count(request_time) from read_parquet('{files}', hive_partitioning = true, union_by_name = true) group by all"
by_duckdb = {str(row[0]): (row[1], row[2]) for row in duckdb.sql(query).fetchall()}
assert by_spark == by_duckdb and len(by_spark) >= 4, (by_spark, by_duckdb)
assert sum(wider for _, wider in by_spark.values()) == 500, by_spark
spark.stop()
"#;
    run_example(&python, both, logs, DAY);
}

#[test]
fn spark_and_hadoops_shell_read_hdfs_as_printed() {
    let python = python();
    let hdfs = Hdfs::start(&Options::default()).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let logs = format!("{}/logs", hdfs.url());
    publish_all(&logs, dir.path());
    for example in blocks("spark") {
        run_example(&python, &example, &logs, DAY);
    }
    // `hdfs` of a Hadoop installation calls the same class.
    let bin = dir.path().join("bin");
    fs::create_dir(&bin).unwrap();
    let shell = format!("#!/bin/sh\nshift\nexec java -cp '{}' org.apache.hadoop.fs.FsShell \"$@\"\n", hdfs.classpath());
    fs::write(bin.join("hdfs"), shell).unwrap();
    fs::set_permissions(bin.join("hdfs"), fs::Permissions::from_mode(0o755)).unwrap();
    let path = format!("{}:{}", bin.display(), std::env::var("PATH").unwrap());
    for example in blocks("hdfs") {
        let output = Command::new("bash")
            .args(["-euc", &example])
            .envs([("LOGS", logs.as_str()), ("DAY", DAY), ("PATH", path.as_str())])
            .output()
            .unwrap();
        assert!(output.status.success(), "this example fails:\n{example}\n{}", said(&output));
        let marker: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(marker["complete"], true, "{marker}");
    }
}
