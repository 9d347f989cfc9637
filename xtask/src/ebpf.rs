//! `cargo xtask build-ebpf`: the BPF object.
//!
//! The kernel programs need a compiler whose core library can be rebuilt for BPF, and bpf-linker. Two toolchains serve:
//! rustup's nightly with `rust-src`, and the distribution's `rustc-web` with `rust-web-src`. The first that is there is
//! taken; where neither is, the second is installed on Debian as root, after saying so, else the error says what to do.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::SystemTime;

use anyhow::{Context, Result, bail, ensure};

use crate::build::root;
use crate::stack;

const LINKER_VERSION: &str = "0.13.0";
const LLVM: &str = "22";
const TARGET: &str = "bpfel-unknown-none";
/// What the object is made of; anything newer than the object means a new build.
const SOURCES: [&str; 6] =
    ["mesh-ebpf/src", "mesh-ebpf/Cargo.toml", "mesh-common/src", "mesh-common/Cargo.toml", "Cargo.toml", "Cargo.lock"];

/// Builds the BPF object unless it is up to date, and returns its path.
pub fn build() -> Result<PathBuf> {
    let object = root().join("target/bpf/mesh-ebpf");
    if is_up_to_date(&object) {
        return Ok(object);
    }
    let toolchain = Toolchain::find_or_install()?;
    let linker = linker_directory()?;
    compile(&toolchain, &linker)?;
    let built = build_directory().join(TARGET).join("bpf/mesh-ebpf");
    stack::check(&built)?;
    install_object(&built, &object)?;
    Ok(object)
}

fn build_directory() -> PathBuf {
    root().join("target/bpf-build")
}

/// In one step, so that a reader never meets half an object.
fn install_object(built: &Path, object: &Path) -> Result<()> {
    let directory = object.parent().context("the object has a directory")?;
    fs::create_dir_all(directory).with_context(|| format!("making {}", directory.display()))?;
    let partial = object.with_extension(format!("partial-{}", std::process::id()));
    fs::copy(built, &partial).with_context(|| format!("copying {}", built.display()))?;
    fs::rename(&partial, object).with_context(|| format!("writing {}", object.display()))
}

fn is_up_to_date(object: &Path) -> bool {
    let Some(made) = modified(object) else { return false };
    SOURCES.iter().all(|source| newest(&root().join(source)).is_some_and(|changed| changed <= made))
}

fn modified(path: &Path) -> Option<SystemTime> {
    fs::metadata(path).ok()?.modified().ok()
}

fn newest(path: &Path) -> Option<SystemTime> {
    if !path.is_dir() {
        return modified(path);
    }
    let entries = fs::read_dir(path).ok()?;
    entries.map(|entry| newest(&entry.ok()?.path())).collect::<Option<Vec<_>>>()?.into_iter().max()
}

/// A compiler that can build core for BPF.
enum Toolchain {
    /// rustup's nightly, with rust-src.
    Nightly,
    /// The distribution's compiler and library source, of one version.
    Distribution,
}

impl Toolchain {
    fn find_or_install() -> Result<Self> {
        if let Some(toolchain) = Self::find() {
            return Ok(toolchain);
        }
        if can_install() {
            crate::packages::install(&["rustc-web", "cargo-web", "rust-web-src"])?;
            if let Some(toolchain) = Self::find() {
                return Ok(toolchain);
            }
        }
        bail!(
            "the BPF object needs a compiler that can rebuild core. Either\n  \
             rustup toolchain install nightly --component rust-src\n\
             or, as root on Debian 12,\n  \
             apt-get install --no-install-recommends rustc-web cargo-web rust-web-src\n\
             or on Ubuntu the packages rustc-1.xx and rust-1.xx-src of one version, 1.95 or later"
        )
    }

    fn find() -> Option<Self> {
        if nightly_has_source() {
            return Some(Self::Nightly);
        }
        (Path::new("/usr/bin/cargo").exists() && has_library_source("/usr/bin/rustc")).then_some(Self::Distribution)
    }
}

fn nightly_has_source() -> bool {
    let output = Command::new("rustup").args(["run", "nightly", "rustc", "--print", "sysroot"]).output();
    output.is_ok_and(|output| output.status.success() && source_below(&output.stdout))
}

fn has_library_source(rustc: &str) -> bool {
    let output = clean(Command::new(rustc)).args(["--print", "sysroot"]).output();
    output.is_ok_and(|output| output.status.success() && source_below(&output.stdout))
}

fn source_below(sysroot: &[u8]) -> bool {
    let sysroot = String::from_utf8_lossy(sysroot);
    Path::new(sysroot.trim()).join("lib/rustlib/src/rust/library/core/Cargo.toml").exists()
}

fn can_install() -> bool {
    rustix::process::geteuid().is_root() && Path::new("/usr/bin/apt-get").exists()
}

/// Without what the cargo that runs this task put into the environment, which would name the host's compiler.
fn clean(mut command: Command) -> Command {
    for variable in ["CARGO", "RUSTC", "RUSTUP_TOOLCHAIN", "RUSTC_WRAPPER", "RUSTC_WORKSPACE_WRAPPER", "RUSTFLAGS"] {
        command.env_remove(variable);
    }
    command.env_remove("CARGO_ENCODED_RUSTFLAGS");
    command
}

fn compile(toolchain: &Toolchain, linker: &Path) -> Result<()> {
    let path = std::env::var("PATH").unwrap_or_default();
    let mut command = match toolchain {
        Toolchain::Nightly => {
            let mut command = clean(Command::new("rustup"));
            command.args(["run", "nightly", "cargo"]).env("PATH", format!("{}:{path}", linker.display()));
            command
        }
        Toolchain::Distribution => {
            let mut command = clean(Command::new("/usr/bin/cargo"));
            // The compiler and its library source match only if rustup's proxies are not met first.
            command.env("RUSTC_BOOTSTRAP", "1").env("PATH", format!("{}:/usr/bin:{path}", linker.display()));
            command
        }
    };
    command
        .current_dir(root())
        .args(["build", "--profile", "bpf", "--package", "mesh-ebpf", "--target", TARGET, "-Z", "build-std=core"])
        .env("CARGO_TARGET_DIR", build_directory())
        .env("RUSTFLAGS", rust_flags())
        .stdout(std::io::stderr());
    let status = command.status().context("starting cargo for the BPF object")?;
    ensure!(status.success(), "building the BPF object: {status}");
    Ok(())
}

fn rust_flags() -> String {
    let arch = std::env::consts::ARCH;
    // v3: the instruction set of kernel 5.1 and later, with 32-bit jumps.
    format!("-C debuginfo=2 -C link-arg=--btf --cfg bpf_target_arch=\"{arch}\" -C linker=bpf-linker -C target-cpu=v3")
}

/// The directory that holds bpf-linker, which is kept outside the clone, by version.
fn linker_directory() -> Result<PathBuf> {
    let home = cache_directory()?.join(format!("bpf-linker-{LINKER_VERSION}"));
    let directory = home.join("bin");
    if !directory.join("bpf-linker").is_file() {
        install_linker(&home)?;
    }
    Ok(directory)
}

/// Where tools are kept that outlive a clone.
pub fn cache_directory() -> Result<PathBuf> {
    let cache = match std::env::var_os("XDG_CACHE_HOME") {
        Some(cache) => PathBuf::from(cache),
        None => Path::new(&std::env::var_os("HOME").context("neither XDG_CACHE_HOME nor HOME is set")?).join(".cache"),
    };
    Ok(cache.join("nodemesh/tools"))
}

fn install_linker(home: &Path) -> Result<()> {
    let llvm = PathBuf::from(format!("/usr/lib/llvm-{LLVM}"));
    if !llvm.join("lib/libclang.so").exists() || !llvm.join("bin/llvm-config").exists() {
        let packages = [format!("llvm-{LLVM}-dev"), format!("clang-{LLVM}"), format!("libclang-{LLVM}-dev")];
        let packages: Vec<&str> = packages.iter().map(String::as_str).collect();
        ensure!(can_install(), "bpf-linker needs LLVM {LLVM}; as root: apt-get install {}", packages.join(" "));
        crate::packages::install(&packages)?;
    }
    eprintln!("building bpf-linker {LINKER_VERSION} into {} (once, about two minutes)", home.display());
    let path = std::env::var("PATH").unwrap_or_default();
    let status = clean(Command::new("cargo"))
        .args(["install", "bpf-linker", "--version", LINKER_VERSION, "--locked", "--no-default-features"])
        .args(["--features", &format!("llvm-{LLVM}"), "--root"])
        .arg(home)
        // Outside the clone, whose toolchain file and configuration are not for it.
        .current_dir("/")
        .env("LLVM_PREFIX", &llvm)
        .env("PATH", format!("{}:{path}", llvm.join("bin").display()))
        .stdout(std::io::stderr())
        .status()
        .context("starting cargo install")?;
    ensure!(status.success(), "building bpf-linker: {status}");
    Ok(())
}
