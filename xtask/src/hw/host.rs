//! What this machine must provide: programs, Debian packages, a directory to work in.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

/// Programs that the suite starts, and the Debian packages that hold them.
pub const PROGRAMS: &[(&str, &str)] = &[("qemu-system-x86_64", "qemu-system-x86"), ("xz", "xz-utils")];

/// The root of the workspace.
pub fn workspace() -> Result<PathBuf> {
    let package = env::var_os("CARGO_MANIFEST_DIR").context("start this through cargo: `cargo xtask`")?;
    Ok(Path::new(&package).parent().context("xtask lies in the workspace")?.to_owned())
}

/// Where everything that the suite makes or fetches is kept.
pub fn scratch() -> Result<PathBuf> {
    let target = env::var_os("CARGO_TARGET_DIR").map_or(workspace()?.join("target"), PathBuf::from);
    let scratch = std::path::absolute(target)?.join("hw");
    fs::create_dir_all(&scratch)?;
    Ok(scratch)
}

/// Installs those of the programs that are missing, where root and apt allow it.
pub fn ensure_programs(programs: &[(&str, &str)]) -> Result<()> {
    let missing: Vec<_> = programs.iter().filter(|(program, _)| !on_path(program)).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let programs: Vec<_> = missing.iter().map(|(program, _)| *program).collect();
    let packages: Vec<_> = missing.iter().map(|(_, package)| *package).collect();
    let (programs, packages) = (programs.join(", "), packages.join(" "));
    let advice = format!("missing: {programs}. On Debian or Ubuntu: apt-get install {packages}");
    // The owner of our own /proc entry is who we are.
    let root = std::os::unix::fs::MetadataExt::uid(&fs::metadata("/proc/self")?) == 0;
    ensure!(root && on_path("apt-get"), "{advice}");
    println!("installing {packages}");
    update_lists()?;
    let mut install = Command::new("apt-get");
    install.env("DEBIAN_FRONTEND", "noninteractive").args(["-qq", "--no-install-recommends", "install"]);
    run(install.args(packages.split(' '))).context(advice)?;
    Ok(())
}

pub fn on_path(program: &str) -> bool {
    env::var_os("PATH").is_some_and(|path| env::split_paths(&path).any(|directory| directory.join(program).is_file()))
}

/// Downloads and unpacks (does not install) the newest package that `name` leads to; returns its root directory.
///
/// Debian's kernel comes through a metapackage: with `real_prefix`, the dependency that starts with it is taken.
pub fn unpacked_package(name: &str, real_prefix: Option<&str>) -> Result<PathBuf> {
    let unpacked = scratch()?.join("packages").join(name);
    let done = unpacked.join("unpacked");
    if done.exists() {
        return Ok(unpacked);
    }
    let unpack = || match real_prefix {
        None => unpack(name, &unpacked),
        Some(prefix) => unpack(&dependency(name, prefix)?, &unpacked),
    };
    with_lists(unpack).with_context(|| format!("fetching {name}"))?;
    fs::write(done, "")?;
    Ok(unpacked)
}

/// Downloads a package and unpacks it (does not install it) into a directory.
pub fn unpack(package: &str, directory: &Path) -> Result<()> {
    println!("fetching {package}");
    fs::create_dir_all(directory)?;
    let mut download = Command::new("apt-get");
    download.args(["-qq", "-o", "APT::Sandbox::User=root", "download", package]);
    run(download.current_dir(directory))?;
    let mut files = fs::read_dir(directory)?.filter_map(|entry| Some(entry.ok()?.path()));
    let archive = files.find(|path| path.extension().is_some_and(|e| e == "deb")).context("apt-get left no .deb")?;
    run(Command::new("dpkg").arg("-x").arg(&archive).arg(directory))?;
    fs::remove_file(archive)?;
    Ok(())
}

/// Does something with Debian's lists of packages, and once more with new ones if that fails: a list can be missing, or
/// older than the archive.
pub fn with_lists<T>(attempt: impl Fn() -> Result<T>) -> Result<T> {
    ensure!(on_path("apt-get"), "Debian's packages are fetched by apt-get, which is not here");
    attempt().or_else(|_| update_lists().and_then(|()| attempt()))
}

/// The name of a package that `package` depends on, by how it starts.
pub fn dependency(package: &str, prefix: &str) -> Result<String> {
    let name = package.split('=').next().unwrap_or(package);
    let depends = run(Command::new("apt-cache").args(["depends", "--important", package]))?;
    let mut names = depends.split_ascii_whitespace().filter(|word| word.starts_with(prefix) && *word != name);
    Ok(names.next().with_context(|| format!("{package} depends on no {prefix}*"))?.to_owned())
}

/// The newest package of a version like `1.85`, or `1`, as apt wants it: `name=version`.
pub fn package_of_version(name: &str, version: &str) -> Result<String> {
    let lines = run(Command::new("apt-cache").args(["madison", name]))?;
    let mut versions = lines.lines().filter_map(|line| line.split('|').nth(1)).map(str::trim);
    let found = versions.find(|full| full.strip_prefix(version).is_some_and(|rest| rest.starts_with('.')));
    Ok(format!("{name}={}", found.with_context(|| format!("apt knows no {name} {version}"))?))
}

fn update_lists() -> Result<()> {
    run(Command::new("apt-get").args(["-qq", "update"])).context("apt-get update (needs root)").map(drop)
}

/// Runs a build, which may talk to the user.
pub fn build(command: &mut Command) -> Result<()> {
    let status = command.status().with_context(|| format!("starting {:?}", command.get_program()))?;
    ensure!(status.success(), "{:?} failed: {status}", command.get_program());
    Ok(())
}

/// Runs a command to its end; returns what it printed.
pub fn run(command: &mut Command) -> Result<String> {
    let output = command.output().with_context(|| format!("starting {:?}", command.get_program()))?;
    if !output.status.success() {
        bail!("{command:?}: {}\n{}", output.status, String::from_utf8_lossy(&output.stderr).trim_end());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
