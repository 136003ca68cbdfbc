//! `cargo xtask hw --python`: the tests of the Python module (python/tests/run), then the module and chipsec in a
//! Linux guest, where SMIs are answered by our handler. The guest's Python is Debian's; module and chipsec are those
//! that the tests installed.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use hw_shared::{Mode, Params, handler};

use super::guests::Image;
use super::qemu::{self, Guest, Output, Setup};
use super::{host, initramfs, kernel};

/// The checks of python/tests/guest.py in their order, and whether a device has to answer for them to pass.
const CHECKS: [(&str, bool); 8] = [
    ("smi", true),
    ("send-sw-smi", true),
    ("chipsec-without-the-plug", false),
    ("chipsec", true),
    ("chipsec-util", true),
    ("vmware", true),
    ("nobody", false),
    ("tests", false),
];

/// What the interpreter, its `_ctypes` and a module written in Rust are linked with, and Debian's packages of them.
const LIBRARIES: [(&str, &str); 7] = [
    ("libc6", "libc.so.6"),
    ("libc6", "libm.so.6"),
    ("libc6", "ld-linux-x86-64.so.2"),
    ("libexpat1", "libexpat.so.1"),
    ("zlib1g", "libz.so.1"),
    ("libffi8", "libffi.so.8"),
    ("libgcc-s1", "libgcc_s.so.1"),
];

/// Parts of the standard library that nobody imports here; unpacking them takes the guest time.
const LEFT_OUT: [&str; 8] =
    ["ensurepip", "idlelib", "lib2to3", "pydoc_data", "sqlite3", "test", "tkinter", "__pycache__"];

/// Runs the tests here, and then the guest with the devices and, as a negative control, one without.
pub fn run(seed: u64) -> Result<bool> {
    let workspace = host::workspace()?;
    let venv = host::scratch()?.parent().context("the scratch directory is in target")?.join("python");
    host::build(Command::new(workspace.join("python/tests/run")).env("VENV", &venv))?;
    let images = [image(&workspace, &venv, false)?, image(&workspace, &venv, true)?];
    let guests: Vec<_> = [(false, Setup::OtherMake), (true, Setup::Bare)]
        .into_iter()
        .zip(&images)
        .map(|((control, setup), image)| {
            let params = Params { mode: Mode::Record, seed, count: 0, seconds: 60, control, proliant: false };
            Guest { machine: "q35", setup, image, params }
        })
        .collect();
    let outputs = qemu::run_all(&guests)?;
    let reports = guests.iter().zip(&outputs).map(|(guest, output)| report(guest.params.control, output));
    Ok(reports.fold(true, |good, report| good & report))
}

/// Whether those checks passed that should.
fn report(control: bool, output: &Output) -> bool {
    let devices = if control { "without devices" } else { "with devices" };
    println!("q35: Python in Linux, {devices}, {:.1} s", output.wall.as_secs_f64());
    if let Some(trouble) = output.trouble() {
        println!("  {trouble}");
        return false;
    }
    let lines = output.lines();
    let mut good = true;
    for (name, needs_device) in CHECKS {
        let outcome =
            lines.iter().find(|line| line[0] == name).map_or("never ran".to_owned(), |line| line[1..].join("|"));
        let expected = !(control && needs_device);
        let as_expected = (outcome == "ok") == expected && outcome != "never ran";
        good &= as_expected;
        match (as_expected, expected) {
            (true, true) => println!("  {name}: ok"),
            (true, false) => println!("  {name}: fails, as it should"),
            (false, _) => println!("  {name}: FAILED: {outcome}"),
        }
    }
    good
}

/// Debian's kernel, with Debian's Python as the first process.
fn image(workspace: &Path, venv: &Path, deaf: bool) -> Result<Image> {
    let scratch = host::scratch()?;
    let interpreter = host::unpacked_package("python3-minimal", Some("python3."))?;
    let bin = interpreter.join("usr/bin");
    let name = entries(&bin)?.into_iter().find_map(|path| {
        let name = path.file_name()?.to_str()?;
        name.starts_with("python3.").then(|| name.to_owned())
    });
    let python = name.with_context(|| format!("{} holds no python3.*", bin.display()))?;
    let mut files = vec![(format!("usr/bin/{python}"), fs::read(bin.join(&python))?)];

    for part in ["minimal", "stdlib"] {
        let package = host::unpacked_package(&format!("lib{python}-{part}"), None)?;
        add(&mut files, &package.join("usr/lib").join(&python), &format!("usr/lib/{python}"))?;
    }
    for (package, library) in LIBRARIES {
        let found = find(&host::unpacked_package(package, None)?, library)?;
        let directory = if library.starts_with("ld-") { "lib64" } else { "lib/x86_64-linux-gnu" };
        files.push((format!("{directory}/{library}"), found));
    }

    let site = entries(&venv.join("lib"))?.into_iter().next().context("the virtual environment has a library")?;
    let site = site.join("site-packages");
    for package in ["chipsec", "ioemul"] {
        add(&mut files, &site.join(package), &format!("site/{package}"))?;
    }
    files.push(("site/chipsec_util.py".to_owned(), fs::read(site.join("chipsec_util.py"))?));
    let tests = workspace.join("python/tests");
    for test in ["test_access.py", "test_hardware.py", "test_smi.py"] {
        files.push((format!("tests/{test}"), fs::read(tests.join(test))?));
    }
    let mut init = format!("#!/usr/bin/{python} -B\nimport sys; sys.path.append('/site')\n").into_bytes();
    init.extend(fs::read(tests.join("guest.py"))?);
    files.push(("init".to_owned(), init));
    files.push(("handler".to_owned(), handler(deaf).collect()));

    let initramfs = scratch.join(if deaf { "python-control.cpio" } else { "python.cpio" });
    fs::write(&initramfs, initramfs::pack(&files))?;
    Ok(Image::Linux { kernel: kernel::vmlinux()?, initramfs })
}

/// Adds the files of a directory and of those in it.
fn add(files: &mut Vec<(String, Vec<u8>)>, directory: &Path, at: &str) -> Result<()> {
    for path in entries(directory)? {
        let name = path.file_name().and_then(OsStr::to_str).context("the names of Python's files are text")?;
        if LEFT_OUT.contains(&name) {
            continue;
        }
        let at = format!("{at}/{name}");
        if path.is_dir() {
            add(files, &path, &at)?;
        } else if path.exists() {
            files.push((at, fs::read(&path)?)); // else it is a link to what another package has
        }
    }
    Ok(())
}

/// A library somewhere in a package. Where its name is a link, the link is a relative one.
fn find(package: &Path, library: &str) -> Result<Vec<u8>> {
    let mut waiting = vec![package.to_owned()];
    while let Some(directory) = waiting.pop() {
        for path in entries(&directory)? {
            if path.is_symlink() && path.is_dir() {
                continue;
            }
            if path.is_dir() {
                waiting.push(path);
            } else if path.file_name() == Some(OsStr::new(library)) && path.exists() {
                return Ok(fs::read(path)?);
            }
        }
    }
    anyhow::bail!("{} holds no {library}", package.display())
}

fn entries(directory: &Path) -> Result<Vec<PathBuf>> {
    let read = fs::read_dir(directory).with_context(|| format!("reading {}", directory.display()))?;
    let mut paths = read.map(|entry| Ok(entry?.path())).collect::<Result<Vec<_>>>()?;
    paths.sort();

    Ok(paths)
}
