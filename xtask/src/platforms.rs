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
    /// The oldest compiler, and the targets without an operating system: one minute instead of three
    #[arg(long)]
    quick: bool,
}

/// Each is the arguments that say which features the library has.
type Features = &'static [&'static [&'static str]];
const WITHOUT_STD: Features = &[&["--no-default-features"], &["--no-default-features", "--features=alloc"]];
const ALL: Features = &[WITHOUT_STD[0], WITHOUT_STD[1], &[], &["--all-features"]];

/// A target, the libraries that are built for it first, and what of this library is checked on it.
struct Target {
    name: &'static str,
    libraries: &'static str,
    features: Features,
}

impl Target {
    const fn freestanding(name: &'static str) -> Self {
        Self { name, libraries: "core,alloc", features: WITHOUT_STD }
    }

    const fn system(name: &'static str) -> Self {
        Self { name, libraries: "std,panic_abort", features: ALL }
    }
}

const FREESTANDING: &[Target] =
    &[Target::freestanding("x86_64-unknown-none"), Target::freestanding("x86_64-unknown-uefi")];
const SYSTEMS: &[Target] = &[
    Target::system("x86_64-unknown-linux-musl"),
    Target::system("x86_64-unknown-freebsd"),
    Target::system("x86_64-pc-windows-gnu"),
    Target::system("x86_64-apple-darwin"),
];

/// Programs that building these libraries takes, and their Debian packages.
const PROGRAMS: &[(&str, &str)] = &[("x86_64-w64-mingw32-dlltool", "binutils-mingw-w64-x86-64")];

pub fn run(options: &Options) -> Result<ExitCode> {
    let oldest = Compiler::of_debian(&oldest_version()?, false)?;
    let newest = Compiler::of_debian("1", true)?;
    if !options.quick {
        host::ensure_programs(PROGRAMS)?;
    }
    let systems = if options.quick { &[] } else { SYSTEMS };
    let mut checks: Vec<_> = ALL.iter().map(|features| (&oldest, None, features)).collect();
    for target in FREESTANDING.iter().chain(systems) {
        checks.extend(target.features.iter().map(|features| (&newest, Some(target), features)));
    }
    let mut failed = 0;
    for (compiler, target, features) in checks {
        let name = target.map_or("this system", |target| target.name);
        let result = match compiler.check(target, features) {
            Ok(()) => "ok".to_owned(),
            Err(problem) => format!("FAILED: {problem:#}"),
        };
        failed += usize::from(result != "ok");
        println!("Rust {:5} {name:26} {:42} {result}", compiler.version, features.join(" "));
    }
    for target in SYSTEMS.iter().filter(|_| options.quick) {
        println!("{:37} not checked with --quick", target.name);
    }
    Ok(if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
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
    /// The newest one of a version like `1.85`, or `1`; with the sources of its libraries, if wanted.
    fn of_debian(version: &str, sources: bool) -> Result<Self> {
        let package = host::with_lists(|| host::package_of_version("rustc-web", version))?;
        let (_, full) = package.split_once('=').context("a package has a version")?;
        let minor = full.match_indices('.').nth(1).map_or(full, |(at, _)| &full[..at]).to_owned();
        let root = host::scratch()?.with_file_name("platforms").join(&minor);
        let compiler = Self { root, version: minor };
        let done = compiler.root.join("unpacked");
        if !done.exists() {
            host::with_lists(|| compiler.fetch(full, sources)).with_context(|| format!("fetching {package}"))?;
            fs::write(done, "")?;
        }
        let is = host::run(compiler.set_up(&mut Command::new(compiler.binary())).arg("--version"))?;
        ensure!(is.starts_with(&format!("rustc {}.", compiler.version)), "{package} says that it is {is}");
        Ok(compiler)
    }

    fn fetch(&self, full: &str, sources: bool) -> Result<()> {
        let standard = format!("libstd-rust-web-{}={full}", self.version);
        let llvm = host::dependency(&standard, "libllvm")?;
        let mut packages = vec![format!("rustc-web={full}"), format!("libstd-rust-web-dev={full}"), standard, llvm];
        packages.extend(sources.then(|| format!("rust-web-src={full}")));
        packages.iter().try_for_each(|package| host::unpack(package, &self.root))
    }

    fn binary(&self) -> PathBuf {
        self.root.join("usr/bin/rustc")
    }

    fn set_up<'c>(&self, command: &'c mut Command) -> &'c mut Command {
        command.env("LD_LIBRARY_PATH", self.root.join("usr/lib/x86_64-linux-gnu")).env("RUSTC", self.binary())
    }

    /// `cargo check` of the library, on this compiler, for a target whose libraries are built first.
    fn check(&self, target: Option<&Target>, features: &[&str]) -> Result<()> {
        let mut cargo = Command::new("cargo");
        cargo.current_dir(host::workspace()?).args(["check", "--quiet", "--locked", "--lib", "--package", "ioemul"]);
        if let Some(Target { name, libraries, .. }) = target {
            // -Zbuild-std is unstable, and this compiler is a stable one.
            cargo.env("RUSTC_BOOTSTRAP", "1").args([&format!("-Zbuild-std={libraries}"), "--target", name]);
        }
        let directory: &Path = &self.root.with_file_name(format!("target-{}", self.version));
        host::run(self.set_up(&mut cargo).env("CARGO_TARGET_DIR", directory).args(features)).map(drop)
    }
}
