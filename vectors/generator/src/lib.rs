//! The generator of vectors/data: inputs by class (`classes`), the rules of the manuals (`rules`), and the format of the
//! files (`format`). It knows nothing of the library that is tested by what it writes.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::{Context, bail, ensure};
use serde::Serialize;

mod case;
mod classes;
mod format;
mod random;
mod rules;

/// The version of the format. It changes when a reader of the old one would misread the new one.
const FORMAT: u32 = 1;

/// All randomness comes from this.
const SEED: u64 = 0x696f_656d_756c_0001;

#[derive(Serialize)]
struct Manifest {
    format: u32,
    seed: String,
    total: usize,
    classes: Vec<ClassLine>,
}

#[derive(Serialize)]
struct ClassLine {
    name: &'static str,
    file: String,
    vectors: usize,
    about: &'static str,
}

/// Every file of vectors/data: its name and its text.
pub fn files() -> anyhow::Result<BTreeMap<String, String>> {
    let mut files = BTreeMap::new();
    let mut manifest = Manifest { format: FORMAT, seed: format!("{SEED:016x}"), total: 0, classes: Vec::new() };
    for class in classes::all() {
        let (name, about) = (class.name, class.about);
        let file = format!("{name}.jsonl");
        let lines = class.lines().with_context(|| format!("class {name}"))?;
        manifest.total += lines.len();
        manifest.classes.push(ClassLine { name, file: file.clone(), vectors: lines.len(), about });
        files.insert(file, lines.concat());
    }
    files.insert("manifest.json".into(), serde_json::to_string_pretty(&manifest)? + "\n");
    Ok(files)
}

/// Writes all files to `directory`, and removes what else is there.
pub fn generate(directory: &Path) -> anyhow::Result<()> {
    let files = files()?;
    for name in names_in(directory)? {
        if !files.contains_key(&name) {
            fs::remove_file(directory.join(name))?;
        }
    }
    for (name, text) in files {
        fs::write(directory.join(name), text)?;
    }
    Ok(())
}

/// Fails unless `directory` has exactly what [`generate`] would write.
pub fn check(directory: &Path) -> anyhow::Result<()> {
    let files = files()?;
    for name in names_in(directory)? {
        ensure!(files.contains_key(&name), "{name} is not one of the generator's files: remove it");
    }
    for (name, text) in files {
        let found = fs::read_to_string(directory.join(&name)).with_context(|| format!("{name} cannot be read"))?;
        if let Some((line, _)) =
            found.lines().zip(text.lines()).enumerate().find(|(_, (found, wanted))| found != wanted)
        {
            bail!("{name} differs from what the rules give, in line {}: `cargo xtask vectors generate`", line + 1);
        }
        ensure!(found == text, "{name} is longer or shorter than what the rules give: `cargo xtask vectors generate`");
    }
    Ok(())
}

fn names_in(directory: &Path) -> anyhow::Result<Vec<String>> {
    let entries = fs::read_dir(directory).with_context(|| format!("{} cannot be read", directory.display()))?;
    entries.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned())).collect()
}
