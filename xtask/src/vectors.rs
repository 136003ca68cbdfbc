//! `cargo xtask vectors`: the test vectors of vectors/, for this library and others.

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context, ensure};
use clap::Subcommand;

#[derive(Subcommand)]
pub enum Task {
    /// Write vectors/data from the rules
    Generate,
    /// Compare vectors/data with the rules
    Check,
    /// Run the vectors on Unicorn, which is fetched from PyPI into target/: see vectors/README.md
    Unicorn {
        /// Only these classes
        classes: Vec<String>,
    },
}

pub fn run(task: &Task) -> anyhow::Result<ExitCode> {
    let vectors = Path::new(env!("CARGO_MANIFEST_DIR")).join("../vectors");
    let data = vectors.join("data");
    match task {
        Task::Generate => vectors_generator::generate(&data)?,
        Task::Check => {
            vectors_generator::check(&data)?;
            println!("vectors/data is what the rules give");
        }
        Task::Unicorn { classes } => {
            let python = python_with_unicorn(&vectors)?;
            let status = Command::new(python).arg(vectors.join("unicorn_witness.py")).args(classes).status()?;
            return Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE });
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// A virtual environment with the version of Unicorn that vectors/requirements.txt names.
fn python_with_unicorn(vectors: &Path) -> anyhow::Result<PathBuf> {
    let environment = vectors.join("../target/vectors-unicorn");
    let python = environment.join("bin/python");
    if !python.exists() {
        let made = Command::new("python3").args(["-m", "venv"]).arg(&environment).status();
        let made = made.context("there is no python3: install it (on Debian: apt install python3 python3-venv)")?;
        ensure!(made.success(), "python3 makes no virtual environment: install python3-venv");
    }
    let pip = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "-r"];
    let installed = Command::new(&python).args(pip).arg(vectors.join("requirements.txt")).status()?;
    ensure!(installed.success(), "pip cannot install vectors/requirements.txt: is PyPI, or a mirror of it, reachable?");
    Ok(python)
}
