//! The compiler of the cluster's parts, Go.
//!
//! Distributions have what is too old: Debian 12 has 1.19, which does not know how to fetch a newer one either. Where the
//! machine has none that will do, it is taken from the Go module proxy, as Go itself does from 1.21 on
//! (`GOTOOLCHAIN=auto`): the same module, by a checksum that stands here, kept beside the other tools.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use crate::{ebpf, oci};

/// What `xtask/cluster/go.mod` asks for: 1.26.
const OLDEST: u32 = 26;
/// What is fetched.
const VERSION: &str = "1.26.8";
/// Its modules, and the SHA-256 of each. Go's checksum database has them as `golang.org/toolchain` `h1:ZOmGe1On…` and
/// `h1:sYL/O6Mq…`.
const MODULES: [(&str, &str, &str); 2] = [
    ("x86_64", "linux-amd64", "30c2b1bf7dcc88d3eb0a1364e47ddd9128edb3110a30e8a0ef61cd5856b31de7"),
    ("aarch64", "linux-arm64", "02b36b6787b3ac767668f630e2998df45a3b1f9ffee08d1bf3ef6487cd658d99"),
];
/// Go's own default.
const PROXY: &str = "https://proxy.golang.org,direct";

/// Why there can be no Go here; None if there is one, or one can be fetched.
pub fn obstacle() -> Option<String> {
    if installed().is_some() || module().is_some() {
        return None;
    }
    Some(format!("Go 1.{OLDEST} is missing, which builds the cluster's parts: https://go.dev/dl"))
}

/// Go: one that is installed, else one that is fetched at first.
pub fn program() -> Result<PathBuf> {
    match installed() {
        Some(go) => Ok(go),
        None => fetched(),
    }
}

/// One that will do, from PATH or where its own installer puts it.
fn installed() -> Option<PathBuf> {
    candidates().find(|go| minor_of(&said(go, &["version"])) >= Some(OLDEST))
}

fn candidates() -> impl Iterator<Item = PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let directories: Vec<PathBuf> = std::env::split_paths(&path).collect();
    let usual = ["/usr/local/go/bin", "/usr/lib/go/bin"].map(PathBuf::from);
    directories.into_iter().chain(usual).map(|directory| directory.join("go")).filter(|go| go.is_file())
}

/// What Go answers, outside any module; nothing where it cannot be asked.
fn said(go: &Path, arguments: &[&str]) -> String {
    let output = Command::new(go).args(arguments).current_dir("/").output();
    output.map(|output| String::from_utf8_lossy(&output.stdout).trim().to_string()).unwrap_or_default()
}

/// `go version go1.26.8 linux/amd64` is 26.
fn minor_of(version: &str) -> Option<u32> {
    let (_, rest) = version.split_once("go1.")?;
    rest.split(|byte: char| !byte.is_ascii_digit()).next()?.parse().ok()
}

/// The module for this machine, and its checksum.
fn module() -> Option<(&'static str, &'static str)> {
    MODULES.iter().find(|(machine, ..)| *machine == std::env::consts::ARCH).map(|(_, module, sum)| (*module, *sum))
}

fn fetched() -> Result<PathBuf> {
    let home = ebpf::cache_directory()?.join(format!("go-{VERSION}"));
    let go = home.join("bin/go");
    if go.is_file() {
        return Ok(go);
    }
    let Some((module, sum)) = module() else { bail!("{}", obstacle().unwrap_or_default()) };
    // Whoever is stopped within leaves nothing that looks whole.
    let parent = home.parent().context("a cache without a parent")?;
    fs::create_dir_all(parent).with_context(|| format!("making {}", parent.display()))?;
    let place = tempfile::tempdir_in(parent)?;
    let archive = place.path().join("go.zip");
    download(module, &archive)?;
    let found = oci::digest(&fs::read(&archive)?);
    ensure!(found == format!("sha256:{sum}"), "Go {VERSION} for {module} is not what it should be: {found}");
    let unpacked = place.path().join("unpacked");
    let status = Command::new("/usr/bin/busybox")
        .args(["unzip", "-q"])
        .arg(&archive)
        .arg("-d")
        .arg(&unpacked)
        .status()
        .context("starting busybox")?;
    ensure!(status.success(), "unpacking Go: {status}");
    let root = unpacked.join(format!("golang.org/toolchain@v0.0.1-go{VERSION}.{module}"));
    finish(&root)?;
    match fs::rename(&root, &home) {
        // Another run was faster.
        Err(_) if go.is_file() => {}
        renamed => renamed.with_context(|| format!("making {}", home.display()))?,
    }
    Ok(go)
}

/// How often Go is started for what it has to fetch, and how long after the last time: what it has got it keeps.
const TRIES: u32 = 3;
const PAUSE: Duration = Duration::from_secs(15);

/// Does what fetches modules until it succeeds: a proxy may be out of reach for a moment, and Go itself asks once.
pub fn insist<T>(mut attempt: impl FnMut() -> Result<T>) -> Result<T> {
    for _ in 1..TRIES {
        match attempt() {
            Ok(done) => return Ok(done),
            Err(error) => eprintln!("{error:#}; once more in {} s", PAUSE.as_secs()),
        }
        std::thread::sleep(PAUSE);
    }
    attempt()
}

/// From the proxies that GOPROXY names, one after the other.
fn download(module: &str, archive: &Path) -> Result<()> {
    let proxies = proxies(&setting());
    ensure!(!proxies.is_empty(), "Go 1.{OLDEST} is missing, and GOPROXY names nowhere to fetch it from");
    let mut last = String::new();
    for proxy in &proxies {
        let url = format!("{proxy}/golang.org/toolchain/@v/v0.0.1-go{VERSION}.{module}.zip");
        eprintln!("fetching Go {VERSION}, which builds the cluster's parts: {url}");
        let output = Command::new("curl")
            .args(["--fail", "--silent", "--show-error", "--location", "--retry", "3", "--retry-all-errors"])
            // What stalls is begun anew: less than so many bytes a second, for so many seconds.
            .args(["--connect-timeout", "30", "--speed-limit", "1000", "--speed-time", "60", "--output"])
            .args([archive.as_os_str(), url.as_ref()])
            .output()
            .context("starting curl")?;
        if output.status.success() {
            return Ok(());
        }
        last = format!("{url}: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    bail!("Go cannot be fetched: {last}")
}

/// GOPROXY, as it is set for whatever Go there is.
fn setting() -> String {
    let set = std::env::var("GOPROXY").ok().filter(|set| !set.is_empty());
    let written = || candidates().map(|go| said(&go, &["env", "GOPROXY"])).find(|set| !set.is_empty());
    set.or_else(written).unwrap_or_else(|| PROXY.to_string())
}

/// The proxies of a list, up to the word that forbids what follows. `direct` is the modules' own servers, and this module
/// has none.
fn proxies(setting: &str) -> Vec<String> {
    let entries = setting.split([',', '|']).map(str::trim).take_while(|entry| *entry != "off");
    entries.filter(|entry| entry.contains("://")).map(|entry| entry.trim_end_matches('/').to_string()).collect()
}

/// A module can hold neither programs nor other modules: that is made good, as Go does when it has fetched itself.
fn finish(root: &Path) -> Result<()> {
    for directory in ["bin", "pkg/tool"] {
        for file in files_below(&root.join(directory))? {
            fs::set_permissions(&file, Permissions::from_mode(0o755))?;
        }
    }
    for file in files_below(root)?.into_iter().filter(|file| file.ends_with("_go.mod")) {
        fs::rename(&file, file.with_file_name("go.mod"))?;
    }
    Ok(())
}

fn files_below(directory: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(directory).with_context(|| format!("reading {}", directory.display()))? {
        let path = entry?.path();
        if path.is_dir() { files.extend(files_below(&path)?) } else { files.push(path) }
    }
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn which_go_will_do() {
        for (said, expected) in [
            ("go version go1.26.8 linux/amd64", Some(26)),
            ("go version go1.19.8 linux/amd64", Some(19)),
            ("go version go1.27rc1 linux/amd64", Some(27)),
            ("go version devel +b5f5f5f", None),
            ("", None),
        ] {
            assert_eq!(minor_of(said), expected, "{said}");
        }
    }

    /// From the proxy, into the cache: by hand, with XDG_CACHE_HOME somewhere else.
    #[test]
    #[ignore = "fetches 72 MB"]
    fn what_is_fetched_builds() {
        let go = fetched().unwrap();
        let version = said(&go, &["version"]);
        assert!(version.starts_with(&format!("go version go{VERSION} ")), "{version}");
        let place = tempfile::tempdir().unwrap();
        let source =
            "package main\n\nimport (\n\t\"fmt\"\n\t\"net/http\"\n)\n\nfunc main() { fmt.Print(http.StatusOK) }\n";
        fs::write(place.path().join("main.go"), source).unwrap();
        fs::write(place.path().join("go.mod"), format!("module m\n\ngo 1.{OLDEST}\n")).unwrap();
        let output = Command::new(&go).args(["run", "."]).current_dir(place.path()).output().unwrap();
        assert_eq!(String::from_utf8_lossy(&output.stdout), "200", "{}", String::from_utf8_lossy(&output.stderr));
    }

    #[test]
    fn where_go_is_fetched_from() {
        for (setting, expected) in [
            (PROXY, vec!["https://proxy.golang.org"]),
            ("https://a.example/go/|file:///srv/modules, direct", vec!["https://a.example/go", "file:///srv/modules"]),
            ("direct", vec![]),
            ("off", vec![]),
            ("https://a.example,off,https://b.example", vec!["https://a.example"]),
        ] {
            assert_eq!(proxies(setting), expected, "{setting}");
        }
    }
}
