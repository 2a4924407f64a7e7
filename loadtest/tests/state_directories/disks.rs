//! Disks that can be taken away, copied block by block and come back as other devices: ext4 images behind loop devices.
//! They need root and `/dev/loop*`; [`can_mount`] tells, loudly, where they cannot be had.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

/// Longest wait for a file system that was in use a moment ago.
const BUSY: Duration = Duration::from_secs(10);
/// The file takes only what is written to it.
const IMAGE_BYTES: u64 = 64 << 20;

/// A mounted image. It is unmounted and its loop device released with this, also when the test panics: the device is
/// told at once to go away with its last user.
#[derive(Debug)]
pub struct Disk {
    image: PathBuf,
    at: PathBuf,
    device: String,
    mounted: bool,
}

impl Disk {
    /// An empty file system in a new image, mounted at the directory `at`, which is made.
    pub fn make(image: &Path, at: &Path) -> Result<Self, String> {
        let file = fs::File::create_new(image).map_err(|error| format!("{}: {error}", image.display()))?;
        file.set_len(IMAGE_BYTES).map_err(|error| error.to_string())?;
        call("mkfs.ext4", &["-q", "-F", text(image)])?;
        Self::of(image, at)
    }

    /// An image as it is.
    pub fn of(image: &Path, at: &Path) -> Result<Self, String> {
        fs::create_dir_all(at).map_err(|error| error.to_string())?;
        let mut disk = Self { image: image.to_owned(), at: at.to_owned(), device: String::new(), mounted: false };
        disk.mount()?;
        Ok(disk)
    }

    /// Where it is mounted.
    pub fn at(&self) -> &Path {
        &self.at
    }

    /// Takes it away. Nobody may have a file of it open.
    pub fn unmount(&mut self) {
        let until = Instant::now() + BUSY;
        while let Err(error) = call("umount", &[text(&self.at)]) {
            assert!(Instant::now() < until, "{error}");
            std::thread::sleep(Duration::from_millis(50));
        }
        self.mounted = false;
    }

    /// Brings it back, as another device than it was.
    pub fn mount(&mut self) -> Result<(), String> {
        let mut held = Vec::new();
        let device = loop {
            let device = call("losetup", &["--find", "--show", text(&self.image)])?;
            if device != self.device {
                break device;
            }
            held.push(device);
        };
        let mounted = call("mount", &["-t", "ext4", &device, text(&self.at)]);
        self.mounted = mounted.is_ok();
        // Of a mounted device this means: once it is not mounted any more.
        held.push(device.clone());
        let released = held.iter().try_for_each(|device| call("losetup", &["--detach", device]).map(drop));
        self.device = device;
        mounted.and(released)
    }

    /// Copies the whole disk, block by block, as it is now; it stays mounted.
    pub fn copy_to(&self, image: &Path) {
        call("sync", &["--file-system", text(&self.at)]).unwrap();
        fs::copy(&self.image, image).unwrap();
    }

    /// Another image in its place, as after a disk was set back to what it was.
    pub fn set_back_to(&mut self, image: &Path) {
        self.unmount();
        self.image = image.to_owned();
        self.mount().unwrap();
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // A process that a failed test has not ended yet may hold files: then it goes away with that process.
        if self.mounted && call("umount", &[text(&self.at)]).is_err() {
            let _ = call("umount", &["--lazy", text(&self.at)]);
        }
    }
}

/// Can disks be mounted here? Where not, it says so on standard error, and which test did nothing.
pub fn can_mount(test: &str) -> bool {
    let dir = tempfile::tempdir().unwrap();
    match Disk::make(&dir.path().join("image"), &dir.path().join("at")) {
        Ok(_) => true,
        Err(error) => {
            // Not by a macro: what those print, a test that passes does not show.
            let told = format!(
                "\n*** {test} DID NOTHING: no file system can be mounted here (root, loop devices): {error}\n\n"
            );
            std::io::stderr().write_all(told.as_bytes()).unwrap();
            false
        }
    }
}

fn text(path: &Path) -> &str {
    path.to_str().expect("paths of a test are text")
}

/// What a command printed; an error with what it complained about.
fn call(program: &str, args: &[&str]) -> Result<String, String> {
    let output = Command::new(program).args(args).output().map_err(|error| format!("{program}: {error}"))?;
    match output.status.success() {
        true => Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned()),
        false => Err(format!("{program} {args:?}: {}", String::from_utf8_lossy(&output.stderr).trim())),
    }
}

/// What `/proc` says is mounted below `dir`, and loop devices that stand on a file there.
pub fn left_behind(dir: &Path) -> Vec<String> {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
    let mut left: Vec<String> = mounts.lines().filter(|line| line.contains(text(dir))).map(str::to_owned).collect();
    let devices = call("losetup", &["--list", "--noheadings", "--output", "NAME,BACK-FILE"]).unwrap_or_default();
    left.extend(devices.lines().filter(|line| line.contains(text(dir))).map(str::to_owned));
    left
}
