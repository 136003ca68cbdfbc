//! Debian's Xen, from source: fetched, configured and built, once as it is, and with our table.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;

use anyhow::{Context, Result, ensure};

use super::patch;
use super::table::{self, Table};
use crate::hw::host;

/// What builds Xen, and the Debian packages that hold it.
const PROGRAMS: &[(&str, &str)] = &[
    ("flex", "flex"),
    ("bison", "bison"),
    ("python3", "python3"),
    ("make", "make"),
    ("gcc", "gcc"),
    ("ld", "binutils"),
    ("tar", "tar"),
    ("xz", "xz-utils"),
];

/// Guests by paravirtualization only: a third of Xen, and all that dom0 needs. The options of hardening are Xen's defaults.
const CONFIGURATION: &str = "\
CONFIG_EXPERT=y
CONFIG_PV=y
# CONFIG_PV32 is not set
# CONFIG_HVM is not set
# CONFIG_SHADOW_PAGING is not set
# CONFIG_DEBUG is not set
# CONFIG_DEBUG_INFO is not set
# CONFIG_XENOPROF is not set
# CONFIG_LIVEPATCH is not set
# CONFIG_KEXEC is not set
# CONFIG_TBOOT is not set
# CONFIG_ARGO is not set
# CONFIG_XSM is not set
# CONFIG_PERF_COUNTERS is not set
";

/// The hypervisors, as QEMU boots them.
pub struct Hypervisors {
    /// Debian's version of the source.
    pub version: String,
    pub untouched: PathBuf,
    pub ours: PathBuf,
    pub broken: PathBuf,
    pub unknown: PathBuf,
    /// Lines of Xen's that went, and lines of ours that came, generated files apart.
    pub lines: (usize, usize),
}

/// Builds those that are not there yet.
pub fn hypervisors() -> Result<Hypervisors> {
    host::ensure_programs(PROGRAMS)?;
    let directory = host::scratch()?.join("xen-host");
    let version = fetch(&directory)?;
    let tree = Tree { xen: directory.join("source/xen"), directory };
    let untouched = tree.build("untouched", &tree.originals()?)?;
    let configuration = fs::read_to_string(tree.xen.join(".config"))?;
    let ours = tree.patched(&configuration, Table::Whole)?;
    let broken = tree.patched(&configuration, Table::Broken)?;
    let unknown = tree.patched(&configuration, Table::Unknown)?;
    let lines = lines(&tree.originals()?, &ours);
    // The helpers of Xen are built no more.
    let helpers = fs::read_to_string(tree.xen.join("arch/x86/pv/gpr_switch.S"))?.lines().count();
    Ok(Hypervisors {
        version,
        untouched,
        ours: tree.build("ours", &ours)?,
        broken: tree.build("broken", &broken)?,
        unknown: tree.build("unknown", &unknown)?,
        lines: (lines.0 + helpers, lines.1),
    })
}

/// Fetches the source by apt, from a list of sources of our own, and unpacks it; returns its version. Nothing of the system's
/// configuration is touched.
fn fetch(directory: &Path) -> Result<String> {
    let stamp = directory.join("version");
    if let Ok(version) = fs::read_to_string(&stamp) {
        return Ok(version);
    }
    ensure!(
        host::on_path("apt-get"),
        "Xen's source comes by apt-get: this takes Debian, or Ubuntu with debian-archive-keyring"
    );
    // What an attempt has left, or an older Xen.
    if directory.exists() {
        fs::remove_dir_all(directory)?;
    }
    let lists = directory.join("lists");
    fs::create_dir_all(lists.join("partial"))?;
    let sources = directory.join("sources.list");
    // Of the main archive: the security archive's list may name a version whose files are gone.
    let archive = "deb-src [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg]";
    fs::write(&sources, format!("{archive} http://deb.debian.org/debian bookworm main\n"))?;
    let apt = |arguments: &[&str]| {
        let mut apt = Command::new("apt-get");
        apt.arg("-o").arg(format!("Dir::Etc::sourcelist={}", sources.display()));
        apt.args(["-o", "Dir::Etc::sourceparts=/dev/null", "-o", "APT::Sandbox::User=root"]);
        apt.arg("-o").arg(format!("Dir::State::lists={}", lists.display()));
        host::run(apt.arg("-qq").args(arguments).current_dir(directory))
    };
    println!("fetching the source of Xen");
    apt(&["update"]).context("the list of Debian's source packages")?;
    apt(&["--download-only", "source", "xen"]).context("fetching the source of Xen")?;
    let names = fs::read_dir(directory)?.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    let names: Vec<String> = names.collect();
    let file = |suffix: &str| {
        let found = names.iter().find(|name| name.starts_with("xen_") && name.ends_with(suffix));
        found.with_context(|| format!("apt-get left no xen_*{suffix}"))
    };
    // Without Debian's own patches, none of which concerns port I/O: this is the upstream's tree as Debian distributes it.
    let source = directory.join("source");
    fs::create_dir_all(&source)?;
    let mut tar = Command::new("tar");
    tar.arg("-xf").arg(directory.join(file(".orig.tar.xz")?)).args(["--strip-components=1", "-C"]).arg(&source);
    host::run(&mut tar)?;
    let version = file(".dsc")?.trim_start_matches("xen_").trim_end_matches(".dsc").to_owned();
    fs::write(stamp, &version)?;
    Ok(version)
}

/// Files that a build has other than the source, by their paths or, if they are new, their names.
type Files = Vec<(&'static str, String)>;

/// One tree for all builds: from the second on only what differs is compiled.
struct Tree {
    directory: PathBuf,
    xen: PathBuf,
}

impl Tree {
    /// The files that we change, as they were; kept when they are read for the first time.
    fn originals(&self) -> Result<Files> {
        let original = |path: &'static str| {
            let kept = self.directory.join("originals").join(path);
            if !kept.exists() {
                fs::create_dir_all(kept.parent().context("it is in a directory")?)?;
                let copy = kept.with_extension("copy"); // a copy that was interrupted is none
                fs::copy(self.xen.join(path), &copy).with_context(|| format!("Xen has no {path}"))?;
                fs::rename(copy, &kept)?;
            }
            Ok((path, fs::read_to_string(kept)?))
        };
        [patch::EMULATION, patch::QUIRKS, patch::MAKEFILE].into_iter().map(original).collect()
    }

    /// The same with our table.
    fn patched(&self, configuration: &str, table: Table) -> Result<Files> {
        let mut files = self.originals()?;
        for (path, text) in &mut files {
            let patch = match *path {
                patch::EMULATION => patch::emulation,
                patch::QUIRKS => patch::quirks,
                _ => patch::makefile,
            };
            *text = patch(text).with_context(|| format!("xen/{path}"))?;
        }
        files.extend(table::sources(configuration, table)?);
        Ok(files)
    }

    /// Builds Xen with these files, unless that has been done; returns the hypervisor.
    fn build(&self, name: &str, files: &Files) -> Result<PathBuf> {
        let (image, stamp) = (self.directory.join(format!("xen-{name}")), self.directory.join(format!("{name}.stamp")));
        // Another compiler makes another Xen, and its instructions are counted.
        let base = host::run(Command::new("gcc").arg("--version"))? + CONFIGURATION;
        let wanted = files.iter().fold(base, |all, (path, text)| all + "\n" + path + "\n" + text);
        if image.exists() && fs::read_to_string(&stamp).is_ok_and(|built| built == wanted) {
            return Ok(image);
        }
        println!("building Xen: {name}");
        for (path, text) in files {
            let path = if path.contains('/') { self.xen.join(path) } else { self.xen.join("arch/x86/pv").join(path) };
            if fs::read_to_string(&path).ok().as_ref() != Some(text) {
                fs::write(&path, text)?;
            }
        }
        let make = |arguments: &[&str]| {
            let mut make = Command::new("make");
            // What cargo says of its own make is not for this one.
            make.env_remove("MAKEFLAGS").env_remove("CARGO_MAKEFLAGS");
            make.arg("-s").args(arguments).arg("XEN_TARGET_ARCH=x86_64").current_dir(&self.xen);
            host::run(&mut make).context("building Xen")
        };
        let configured = self.directory.join("configuration");
        if !fs::read_to_string(&configured).is_ok_and(|configured| configured == CONFIGURATION) {
            fs::write(self.xen.join(".config"), CONFIGURATION)?;
            make(&["olddefconfig"])?;
            fs::write(configured, CONFIGURATION)?;
        }
        make(&["-j", &thread::available_parallelism()?.to_string()])?;
        fs::copy(self.xen.join("xen"), &image)?;
        fs::write(stamp, wanted)?;
        Ok(image)
    }
}

/// How many lines are in the originals only, and in ours only, of files that are in both; empty ones do not count.
fn lines(originals: &Files, ours: &Files) -> (usize, usize) {
    let (mut out, mut inn) = (0, 0);
    for ((_, original), (_, our)) in originals.iter().zip(ours) {
        let mut counts = BTreeMap::<&str, i64>::new();
        original.lines().for_each(|line| *counts.entry(line.trim()).or_default() += 1);
        our.lines().for_each(|line| *counts.entry(line.trim()).or_default() -= 1);
        counts.remove("");
        out += counts.values().filter(|count| **count > 0).sum::<i64>();
        inn -= counts.values().filter(|count| **count < 0).sum::<i64>();
    }
    (out as usize, inn as usize)
}
