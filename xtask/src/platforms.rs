//! `cargo xtask platforms`: the library on the oldest compiler that it promises, and for other systems than this one.
//!
//! The compilers are Debian's. They are unpacked into target/, not installed, and so are the sources of their core and
//! standard libraries, of which those for other targets are built.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context, Result, ensure};
use clap::Args;

use crate::hw::host;

#[derive(Args)]
pub struct Options {
    /// The oldest compiler, and the targets without an operating system: half a minute instead of ten
    #[arg(long)]
    quick: bool,
}

/// What is checked on the oldest compiler, and for each target: the arguments that say which features.
const WITHOUT_STD: &[&[&str]] = &[&["--no-default-features"], &["--no-default-features", "--features=alloc"]];
const WITH_STD: &[&[&str]] = &[&[], &["--all-features"]];

/// Targets, with the libraries that are built for them.
const FREESTANDING: (&[&str], &str) = (&["x86_64-unknown-none", "x86_64-unknown-uefi"], "core,alloc");
const SYSTEMS: (&[&str], &str) = (
    &["x86_64-unknown-linux-musl", "x86_64-unknown-freebsd", "x86_64-pc-windows-gnu", "x86_64-apple-darwin"],
    "std,panic_abort",
);

/// The compiler with sources, whose libraries are those of this cargo.
const WITH_SOURCES: &str = "1.96";

pub fn run(options: &Options) -> Result<ExitCode> {
    let mut problems = 0;
    let mut note = |what: String, result: Result<()>| {
        match &result {
            Ok(()) => println!("{what:48} ok"),
            Err(problem) => println!("{what:48} FAILED: {problem:#}"),
        }
        problems += usize::from(result.is_err());
    };
    let oldest = oldest_version()?;
    let compiler = Compiler::of_debian(&oldest, false)?;
    for features in [WITHOUT_STD, WITH_STD].concat() {
        note(format!("Rust {oldest} {}", features.join(" ")), compiler.check(None, features));
    }
    let compiler = Compiler::of_debian(WITH_SOURCES, true)?;
    let (systems, with_std) = SYSTEMS;
    let systems = if options.quick { &[] } else { systems };
    for target in FREESTANDING.0 {
        for features in WITHOUT_STD {
            note(format!("{target} {}", features.join(" ")), compiler.check(Some((target, FREESTANDING.1)), features));
        }
    }
    for target in systems {
        for features in [WITHOUT_STD, WITH_STD].concat() {
            note(format!("{target} {}", features.join(" ")), compiler.check(Some((target, with_std)), features));
        }
    }
    if options.quick {
        println!("without --quick also: {}", SYSTEMS.0.join(", "));
    }
    Ok(if problems == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// `rust-version` of the library.
fn oldest_version() -> Result<String> {
    let manifest = fs::read_to_string(host::workspace()?.join("Cargo.toml"))?;
    let line = manifest.lines().find_map(|line| line.strip_prefix("rust-version = "));
    Ok(line.context("Cargo.toml has no rust-version")?.trim_matches('"').to_owned())
}

/// A compiler of Debian's, unpacked.
struct Compiler {
    root: PathBuf,
    version: String,
}

impl Compiler {
    /// The newest package of a version like `1.85`.
    fn of_debian(version: &str, sources: bool) -> Result<Self> {
        let root = host::scratch()?.with_file_name("platforms").join(version);
        let compiler = Self { root, version: version.to_owned() };
        let done = compiler.root.join("unpacked");
        if !done.exists() {
            host::with_lists(|| compiler.fetch(sources)).with_context(|| format!("fetching Rust {version}"))?;
            fs::write(done, "")?;
        }
        let is = host::run(compiler.set_up(&mut Command::new(compiler.binary())).arg("--version"))?;
        ensure!(is.starts_with(&format!("rustc {version}.")), "Debian's compiler says that it is {is}");
        Ok(compiler)
    }

    fn fetch(&self, sources: bool) -> Result<()> {
        let Self { root, version } = self;
        let compiler = host::package_of_version("rustc-web", version)?;
        let (_, full) = compiler.split_once('=').context("a package has a version")?;
        let standard = format!("libstd-rust-web-{version}={full}");
        let llvm = host::dependency(&standard, "libllvm")?;
        let mut packages = vec![format!("libstd-rust-web-dev={full}"), standard, llvm, compiler.clone()];
        packages.extend(sources.then(|| format!("rust-web-src={full}")));
        packages.iter().try_for_each(|package| host::unpack(package, root))
    }

    fn binary(&self) -> PathBuf {
        self.root.join("usr/bin/rustc")
    }

    fn set_up<'c>(&self, command: &'c mut Command) -> &'c mut Command {
        command.env("LD_LIBRARY_PATH", self.root.join("usr/lib/x86_64-linux-gnu")).env("RUSTC", self.binary())
    }

    /// `cargo check` of the library, on this compiler, for a target whose libraries are built first.
    fn check(&self, target: Option<(&str, &str)>, features: &[&str]) -> Result<()> {
        let mut cargo = Command::new("cargo");
        cargo.current_dir(host::workspace()?).args(["check", "--quiet", "--locked", "--lib", "--package", "ioemul"]);
        if let Some((target, libraries)) = target {
            // -Zbuild-std is unstable, and this compiler is a stable one.
            cargo.env("RUSTC_BOOTSTRAP", "1").args([&format!("-Zbuild-std={libraries}"), "--target", target]);
        }
        let directory: &Path = &self.root.with_file_name(format!("target-{}", self.version));
        host::run(self.set_up(&mut cargo).env("CARGO_TARGET_DIR", directory).args(features)).map(drop)
    }
}
