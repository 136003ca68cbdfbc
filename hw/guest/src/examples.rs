//! The library's examples as processes of their own, with `--native`; each access that they show has to be what the model
//! makes of it.

use std::error::Error;
use std::process::Command;

use hw_shared::model::Model;
use hw_shared::{Engine, Example, compare};
use ioemul::{Gprs, IoInsn};

/// Runs an example; returns what it printed.
pub fn run(example: &Example) -> Result<String, Box<dyn Error>> {
    let output = Command::new(format!("/bin/{}", example.name)).arg("--native").args(example.arguments).output()?;
    let printed = String::from_utf8(output.stdout)?;
    if !output.status.success() {
        return Err(format!("{}: {}", output.status, String::from_utf8_lossy(&output.stderr).trim()).into());
    }
    let accesses = accesses(&printed);
    let mut model = Model::new(true);
    for (insn, before, after) in &accesses {
        let mut expected = *before;
        model.execute(*insn, &mut expected).expect("the model refuses nothing");
        compare(after, &expected).map_err(|first| format!("{insn} (port {:#x}): {first}", insn.port(before)))?;
    }
    if accesses.len() != example.accesses {
        return Err(format!("{} accesses, should be {}", accesses.len(), example.accesses).into());
    }
    Ok(printed)
}

/// The accesses in an example's output: a line with the instruction, then `register=value` thirty-two times.
fn accesses(printed: &str) -> Vec<(IoInsn, Gprs, Gprs)> {
    let mut found = Vec::new();
    for block in printed.split("\n\n") {
        let Some((insn, rest)) = block.split_once("   (port ") else { continue };
        let Ok(insn) = insn.parse() else { continue };
        let values = rest.split_ascii_whitespace().filter_map(|word| word.split_once('=')?.1.get(..16));
        let words: Vec<u64> = values.filter_map(|value| u64::from_str_radix(value, 16).ok()).collect();
        if let Some((before, rest)) = words.split_first_chunk::<16>() {
            let Some(after) = rest.first_chunk::<16>() else { continue };
            found.push((insn, Gprs::from_words(*before), Gprs::from_words(*after)));
        }
    }
    found
}
