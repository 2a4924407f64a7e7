//! A Python with DuckDB and PySpark, for tests that read results back as users do.

#![allow(dead_code, reason = "not every test binary reads with Python")]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// Made once for a target directory.
pub fn python() -> PathBuf {
    if let Some(python) = std::env::var_os("CATCHMENT_TEST_PYTHON") {
        return python.into();
    }
    let venv = Path::new(env!("CARGO_TARGET_TMPDIR")).join("reader-venv");
    let python = venv.join("bin/python");
    let works =
        || Command::new(&python).args(["-c", "import duckdb, pyspark"]).output().is_ok_and(|o| o.status.success());
    if !works() {
        let made = Command::new("python3").args(["-m", "venv"]).arg(&venv).output().expect("python3 can be started");
        assert!(made.status.success(), "{}", said(&made));
        let pip = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "duckdb", "pyspark>=4.0,<5"];
        let installed = Command::new(&python).args(pip).output().expect("the venv has a python");
        assert!(installed.status.success() && works(), "{}", said(&installed));
    }
    python
}

/// Everything that a program printed.
pub fn said(output: &Output) -> String {
    format!("{}\n{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}
