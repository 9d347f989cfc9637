//! A kernel as Debian packages it: fetched by apt, unpacked into the cache of tools, never installed.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::ebpf::cache_directory;
use crate::packages;

/// What a machine needs before it has its files. The rest is loaded from the package when it is asked for.
const FIRST_MODULES: [&str; 4] = ["virtio_pci", "9pnet_virtio", "9p", "overlay"];

/// An unpacked kernel.
pub(super) struct Kernel {
    /// As `uname -r` says it.
    pub version: String,
    root: PathBuf,
}

impl Kernel {
    /// The kernel that a package without content points at. What is in the cache is not fetched again.
    pub fn fetch(metapackage: &str) -> Result<Self> {
        let package = packages::dependency(metapackage, "linux-image-")?;
        let version = package.trim_start_matches("linux-image-").to_string();
        let root = cache_directory()?.join("kernels").join(&package);
        let kernel = Self { version, root };
        if !kernel.root.is_dir() {
            kernel.unpack(&package).with_context(|| format!("getting {package}"))?;
        }
        Ok(kernel)
    }

    fn unpack(&self, package: &str) -> Result<()> {
        let parent = self.root.parent().context("the cache has a directory")?;
        fs::create_dir_all(parent).with_context(|| format!("making {}", parent.display()))?;
        let place = tempfile::tempdir_in(parent)?;
        eprintln!("fetching {package} into {} (once)", parent.display());
        let archive = packages::download(package, place.path())?;
        let unpacked = place.path().join("unpacked");
        run(Command::new("dpkg-deb").arg("-x").arg(&archive).arg(&unpacked))?;
        // Which module needs which. Debian has it made at installation.
        run(Command::new("depmod").arg("-b").arg(&unpacked).arg(&self.version))?;
        fs::rename(&unpacked, &self.root).with_context(|| format!("writing {}", self.root.display()))
    }

    pub fn image(&self) -> PathBuf {
        self.root.join("boot").join(format!("vmlinuz-{}", self.version))
    }

    pub fn modules(&self) -> PathBuf {
        self.root.join("lib/modules")
    }

    /// The first files of a machine: a shell, the modules that lead to the others, and `init`.
    pub fn first_files(&self, init: &str, into: &Path) -> Result<()> {
        use std::os::unix::fs::PermissionsExt;
        let root = tempfile::tempdir()?;
        let at = |path: &str| root.path().join(path);
        for directory in ["bin", "lib", "dev", "proc", "sys"] {
            fs::create_dir(at(directory))?;
        }
        fs::copy("/usr/bin/busybox", at("bin/busybox")).context("copying busybox")?;
        fs::write(at("init"), init)?;
        fs::set_permissions(at("init"), fs::Permissions::from_mode(0o755))?;
        let mut names = Vec::new();
        for module in self.first_modules()? {
            let name = module.file_name().context("a module has a name")?.to_string_lossy().into_owned();
            let plain = name.trim_end_matches(".xz").to_string();
            fs::write(at("lib").join(&plain), content(&module)?)?;
            names.push(plain);
        }
        fs::write(at("first-modules"), names.join("\n"))?;
        let archive = fs::File::create(into).with_context(|| format!("writing {}", into.display()))?;
        let all = "find . -print0 | cpio --null --create --quiet --format=newc";
        run(Command::new("sh").args(["-c", all]).current_dir(root.path()).stdout(archive))
    }

    /// In the order in which they can be loaded.
    fn first_modules(&self) -> Result<Vec<PathBuf>> {
        let mut command = Command::new("modprobe");
        command.args(["--show-depends", "--all", "--set-version", &self.version, "--dirname"]).arg(&self.root);
        let output = command.args(FIRST_MODULES).output().context("starting modprobe")?;
        ensure!(output.status.success(), "modprobe: {}", String::from_utf8_lossy(&output.stderr).trim());
        let mut modules: Vec<PathBuf> = Vec::new();
        for line in String::from_utf8_lossy(&output.stdout).lines() {
            // Others are part of the kernel itself.
            let Some(path) = line.strip_prefix("insmod ") else { continue };
            let path = PathBuf::from(path.trim());
            if !modules.contains(&path) {
                modules.push(path);
            }
        }
        Ok(modules)
    }
}

/// Later kernels have their modules packed.
fn content(module: &Path) -> Result<Vec<u8>> {
    if module.extension().is_none_or(|ending| ending != "xz") {
        return fs::read(module).with_context(|| format!("reading {}", module.display()));
    }
    let output = Command::new("xz").arg("-dc").arg(module).output().context("starting xz")?;
    ensure!(output.status.success(), "xz: {}", String::from_utf8_lossy(&output.stderr).trim());
    Ok(output.stdout)
}

fn run(command: &mut Command) -> Result<()> {
    let program = command.get_program().to_string_lossy().into_owned();
    let status = command.status().with_context(|| format!("starting {program}"))?;
    ensure!(status.success(), "{program}: {status}");
    Ok(())
}
