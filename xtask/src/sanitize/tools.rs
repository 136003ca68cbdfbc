//! How each tool is started, and what it says.

use std::process::{Command, Output, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, ensure};

use super::plan::Scope;
use crate::hw::host;

/// The only target of the library that the tests run on.
const TARGET: &str = "x86_64-unknown-linux-gnu";

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Tool {
    /// AddressSanitizer and LeakSanitizer, of a nightly toolchain
    Asan,
    /// valgrind's memcheck, of Debian
    Valgrind,
    /// Miri, a component of a nightly toolchain, for what runs no machine code
    Miri,
}

/// What came of one test binary.
pub struct Outcome {
    pub binary: String,
    /// How many tests passed.
    pub passed: usize,
    pub seconds: f64,
    pub problem: Option<String>,
}

impl Tool {
    pub const ALL: &[Tool] = &[Tool::Asan, Tool::Valgrind, Tool::Miri];

    pub fn name(self) -> &'static str {
        match self {
            Tool::Asan => "asan",
            Tool::Valgrind => "valgrind",
            Tool::Miri => "miri",
        }
    }

    /// Looks whether the tool is there, and installs it where that can be done; the error says why not.
    pub fn prepare(self) -> Result<()> {
        let nightly = |arguments: &[&str], advice: &'static str| {
            host::run(Command::new("cargo").arg("+nightly").args(arguments).arg("--version")).map(drop).context(advice)
        };
        match self {
            Tool::Asan => nightly(&[], "a nightly toolchain is missing: rustup toolchain install nightly"),
            Tool::Valgrind => host::ensure_programs(&[("valgrind", "valgrind")]),
            Tool::Miri => nightly(
                &["miri"],
                "the component is missing from the nightly toolchain: rustup +nightly component add miri",
            ),
        }
    }

    /// Builds test binaries, which may talk to the user.
    pub fn build(self, names: &[&str]) -> Result<()> {
        println!("\n== {}: building", self.name());
        if self == Tool::Miri || names.is_empty() {
            return Ok(()); // Miri has nothing to build that its first run would not
        }
        let mut cargo = self.cargo()?;
        names.iter().for_each(|name| select(&mut cargo, name));
        host::build(cargo.args(["--quiet", "--no-run"]))
    }

    /// Runs what is wanted of a test binary.
    pub fn run(self, name: &str, scope: &Scope) -> Result<Outcome> {
        let mut cargo = self.cargo()?;
        select(&mut cargo, name);
        cargo.args(["--quiet", "--"]).args(scope.arguments());
        if self == Tool::Valgrind {
            cargo.arg("--test-threads=1"); // valgrind runs one thread at a time
        }
        let start = Instant::now();
        let output = cargo.stdin(Stdio::null()).output().with_context(|| format!("starting {cargo:?}"))?;
        let (seconds, counts) = (start.elapsed().as_secs_f64(), Counts::of(&output));
        let problem = problem(&output, &counts, scope);
        if problem.is_some() {
            println!("{}", String::from_utf8_lossy(&output.stdout));
            eprintln!("{}", String::from_utf8_lossy(&output.stderr));
        }
        Ok(Outcome { binary: name.to_owned(), passed: counts.passed, seconds, problem })
    }

    /// `cargo test`, up to the selection of a binary. Each tool has a directory of its own, but that valgrind runs what
    /// every `cargo test` builds.
    fn cargo(self) -> Result<Command> {
        let workspace = host::workspace()?;
        let target = host::scratch()?.with_file_name(self.name());
        let mut cargo = Command::new("cargo");
        cargo.current_dir(&workspace).env("RUST_BACKTRACE", "0");
        match self {
            Tool::Asan => {
                cargo.args(["+nightly", "test", "--target", TARGET]).env("CARGO_TARGET_DIR", target);
                cargo.env("RUSTFLAGS", "-Zsanitizer=address");
                // Names and lines are enough for a report; without any optimization the tests take five times as long.
                cargo.env("CARGO_PROFILE_DEV_DEBUG", "line-tables-only").env("CARGO_PROFILE_DEV_OPT_LEVEL", "1");
                // SIGSEGV and SIGBUS are the library's. What it leaks on purpose stays reachable.
                cargo.env("ASAN_OPTIONS", "handle_segv=0:handle_sigbus=0:detect_leaks=1");
            }
            Tool::Valgrind => {
                cargo.arg("test");
                // The emulated registers have to be right where a signal handler looks at them.
                let runner = "valgrind --quiet --error-exitcode=99 --vex-iropt-register-updates=allregs-at-mem-access";
                cargo.env("CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_RUNNER", runner);
            }
            Tool::Miri => {
                cargo.args(["+nightly", "miri", "test"]).env("CARGO_TARGET_DIR", target);
                cargo.env("MIRIFLAGS", "-Zmiri-disable-isolation");
            }
        }
        cargo.args(["--package", "ioemul", "--all-features"]);
        Ok(cargo)
    }
}

fn select(cargo: &mut Command, name: &str) {
    match name {
        "lib" => cargo.arg("--lib"),
        _ => cargo.args(["--test", name]),
    };
}

/// What the test harness says.
#[derive(Default)]
struct Counts {
    passed: usize,
    filtered_out: usize,
}

impl Counts {
    /// From `test result: ok. 5 passed; 0 failed; 0 ignored; 0 measured; 2 filtered out; finished in 0.01s`.
    fn of(output: &Output) -> Self {
        let text = String::from_utf8_lossy(&output.stdout);
        let line = text.lines().rfind(|line| line.starts_with("test result: ")).unwrap_or_default();
        let words: Vec<&str> = line.split([' ', ';']).filter(|word| !word.is_empty()).collect();
        let before = |what: &str| {
            let at = words.iter().position(|word| *word == what)?;
            words.get(at.checked_sub(1)?)?.parse().ok()
        };
        Self { passed: before("passed").unwrap_or(0), filtered_out: before("filtered").unwrap_or(0) }
    }
}

/// What is wrong with a run; also that it did not run what the plan says.
fn problem(output: &Output, counts: &Counts, scope: &Scope) -> Option<String> {
    let ran = || {
        ensure!(output.status.success(), "FAILED, {}: see above", output.status);
        ensure!(counts.passed > 0, "FAILED: no test was run");
        scope.check(counts.passed, counts.filtered_out)
    };
    ran().err().map(|error| format!("{error:#}"))
}
