//! What the machine code of the shared library can get to, from the functions that it exports.
//!
//! An edge is a branch, a call, and every address that a function takes: of another function, or of a table of them that
//! the loader fills in (a vtable, the GOT). That is more than what is ever called.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Command;

/// What only a panic that has begun gets to: it is caught there, or the process ends.
const BORDER: [&str; 3] = ["catch_unwind7cleanup", "panic_cannot_unwind", "panic_in_cleanup"];

/// Longest vtable that matters: destructor, size, alignment, three methods.
const VTABLE: u64 = 48;

pub struct Graph {
    names: BTreeMap<u64, String>,
    edges: BTreeMap<u64, BTreeSet<u64>>,
}

fn hex(text: &str) -> Option<u64> {
    u64::from_str_radix(text, 16).ok()
}

impl Graph {
    pub fn of(library: &Path) -> Self {
        let relocations = super::run(Command::new("readelf").arg("-rW").arg(library));
        let relative = relocations.lines().filter_map(|line| match *line.split_whitespace().collect::<Vec<_>>() {
            [at, _, "R_X86_64_RELATIVE", to] => Some((hex(at)?, hex(to)?)),
            _ => None,
        });
        let relative: BTreeMap<u64, u64> = relative.collect();
        let listing = super::run(Command::new("objdump").args(["-d", "--no-show-raw-insn"]).arg(library));
        let heads = listing.lines().filter_map(|line| {
            let (address, name) = line.strip_suffix(">:")?.split_once(" <")?;
            Some((hex(address)?, name.to_owned()))
        });
        let (names, mut edges): (BTreeMap<u64, String>, BTreeMap<_, BTreeSet<u64>>) =
            (heads.collect(), BTreeMap::new());
        let mut function = 0;
        for line in listing.lines() {
            if let Some(head) = line.strip_suffix(">:").and_then(|line| hex(line.split_once(" <")?.0)) {
                function = head;
                continue;
            }
            let Some((_, instruction)) = line.split_once(":\t") else { continue };
            let to = edges.entry(function).or_default();
            let operand = instruction.split_whitespace().nth(1).and_then(hex);
            to.extend(operand.filter(|_| instruction.starts_with(['c', 'j']))); // call, jmp, jcc
            if let Some((_, comment)) = instruction.split_once("# ") {
                let at = comment.split(' ').next().and_then(hex).unwrap_or(0);
                to.insert(at);
                let len = if instruction.starts_with("lea") { VTABLE } else { 8 };
                to.extend(relative.range(at..at + len).map(|(_, function)| *function));
            }
        }
        Self { names, edges }
    }

    /// The way to each function that is reached from those that `starts` names.
    pub fn ways(&self, starts: impl Fn(&str) -> bool) -> BTreeMap<&str, String> {
        let mut to_do: Vec<(u64, String)> =
            self.names.iter().filter(|(_, name)| starts(name)).map(|(at, name)| (*at, name.clone())).collect();
        let mut ways: BTreeMap<&str, String> = BTreeMap::new();
        while let Some((at, way)) = to_do.pop() {
            let Some(name) = self.names.get(&at) else { continue };
            if ways.contains_key(name.as_str()) || BORDER.iter().any(|border| name.contains(border)) && !starts(name) {
                continue;
            }
            for next in self.edges.get(&at).into_iter().flatten() {
                to_do.push((*next, format!("{way} -> {}", self.names.get(next).map_or("", |name| name))));
            }
            ways.insert(name.as_str(), way);
        }
        ways
    }
}
