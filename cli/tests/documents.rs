//! Transcripts in the documents are what the command prints: each line behind `$ ` in a block of `console` is run by a shell, on
//! device models, and what it prints is compared with the lines below it. Times and dates are not.
//!
//! `UPDATE_DOCUMENTS=1 cargo test -p ioemul-cli --test documents` puts into the documents what is printed now.
#![cfg(feature = "vm-superio")] // of which `bus:pc` has two devices

use std::fs;
use std::path::Path;
use std::process::Command;

/// A shell where `ioemul` is the one that was built, in an empty directory of its own.
struct Shell {
    directory: tempfile::TempDir,
    path: String,
    /// The status of the last command, for `$?`.
    status: i32,
}

impl Shell {
    fn new() -> Self {
        let programs = Path::new(env!("CARGO_BIN_EXE_ioemul")).parent().unwrap().display();
        let path = format!("{programs}:{}", std::env::var("PATH").unwrap_or_default());
        Self { directory: tempfile::tempdir().unwrap(), path, status: 0 }
    }

    /// Runs a line, and gives what it has printed to either stream, in order.
    fn run(&mut self, line: &str) -> String {
        let script = format!("exec 2>&1\n(exit {})\n{line}\n", self.status);
        let mut shell = Command::new("sh");
        shell.args(["-c", &script]).current_dir(self.directory.path()).env("PATH", &self.path).env("COLUMNS", "100");
        for variable in ["IOEMUL_ON", "CLICOLOR_FORCE"] {
            shell.env_remove(variable);
        }
        let output = shell.output().unwrap();
        self.status = output.status.code().expect("no signal ends it");
        String::from_utf8(output.stdout).unwrap()
    }
}

/// A document with what its commands print now, and where that is something else than it says.
fn played(document: &str) -> (String, Vec<String>) {
    let (mut shell, mut played, mut differences) = (Shell::new(), String::new(), Vec::new());
    let mut lines = document.lines().peekable();
    while let Some(line) = lines.next() {
        played += &format!("{line}\n");
        if line != "```console" {
            continue;
        }
        while let Some(line) = lines.next_if(|line| *line != "```") {
            let mut command = line.strip_prefix("$ ").unwrap_or_else(|| panic!("no command: {line}")).to_owned();
            while command.ends_with('\\') {
                command += &format!("\n{}", lines.next().expect("the command goes on"));
            }
            let mut said = String::new();
            while let Some(line) = lines.next_if(|line| !line.starts_with("$ ") && *line != "```") {
                said += &format!("{line}\n");
            }
            let printed = shell.run(&command);
            let is_same = masked(&printed) == masked(&said);
            if !is_same {
                differences.push(format!("$ {command}\n--- the document says\n{said}--- it prints\n{printed}"));
            }
            played += &format!("$ {command}\n{}", if is_same { said } else { printed });
        }
    }
    (played, differences)
}

/// A text without what differs from run to run: durations and dates.
fn masked(text: &str) -> String {
    text.lines().map(|line| masked_line(line) + "\n").collect()
}

fn masked_line(line: &str) -> String {
    let mut masked = String::new();
    let mut rest = line.trim_end();
    while let Some(c) = rest.chars().next() {
        let is_within_a_word = masked.ends_with(|c: char| c.is_ascii_alphanumeric());
        match time(rest).or_else(|| date(rest)).filter(|_| !is_within_a_word) {
            Some((word, len)) => {
                masked.truncate(masked.trim_end_matches(' ').len()); // times stand in columns, to the right
                masked += word;
                rest = &rest[len..];
            }
            None => {
                masked.push(c);
                rest = &rest[c.len_utf8()..];
            }
        }
    }
    masked
}

fn digits(text: &str) -> usize {
    text.bytes().take_while(u8::is_ascii_digit).count()
}

/// `9.8 us` or `"ns":9812` at the beginning of a text, and its length.
fn time(text: &str) -> Option<(&'static str, usize)> {
    for key in ["\"ns\":", "\"median_ns\":"] {
        if let Some(number) = text.strip_prefix(key).map(digits).filter(|digits| *digits > 0) {
            return Some((" <ns>", key.len() + number));
        }
    }
    let whole = digits(text);
    let fraction = text[whole..].strip_prefix('.').map_or(0, |rest| 1 + digits(rest));
    let number = whole + fraction;
    let unit = [" ns", " us", " ms", " s"].into_iter().find(|unit| text[number..].starts_with(unit));
    unit.filter(|_| whole > 0).map(|unit| (" <time>", number + unit.len()))
}

/// `2026-11-28T14:41:20.5Z` or `2026-11-28 14:41:20` at the beginning of a text, and its length.
fn date(text: &str) -> Option<(&'static str, usize)> {
    const LIKE: &[u8] = b"0000-00-00 00:00:00";
    let is_like = |(byte, like): (&u8, &u8)| match like {
        b'0' => byte.is_ascii_digit(),
        b' ' => matches!(byte, b' ' | b'T'),
        like => byte == like,
    };
    let head = text.as_bytes().get(..LIKE.len())?;
    if !head.iter().zip(LIKE).all(is_like) {
        return None;
    }
    let rest = &text[LIKE.len()..];
    let fraction = rest.strip_prefix('.').map_or(0, |rest| 1 + digits(rest));
    let zone = usize::from(rest[fraction..].starts_with('Z'));
    Some((" <date>", LIKE.len() + fraction + zone))
}

#[track_caller]
fn check(name: &str, fewest: usize) {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join(name);
    let document = fs::read_to_string(&file).unwrap();
    let commands = document.split("```console\n").skip(1).filter_map(|block| block.split("\n```").next());
    let commands = commands.flat_map(str::lines).filter(|line| line.starts_with("$ ")).count();
    assert!(commands >= fewest, "{name} has {commands} commands in blocks of `console`");
    let (played, differences) = played(&document);
    if std::env::var_os("UPDATE_DOCUMENTS").is_some() {
        return fs::write(&file, played).unwrap();
    }
    assert!(differences.is_empty(), "{name}\n{}", differences.join("\n"));
}

#[test]
fn the_reference_prints_what_it_says() {
    check("../docs/cli.md", 20);
}

#[test]
fn the_readme_of_the_command_prints_what_it_says() {
    check("README.md", 5);
}

#[test]
fn the_readme_of_the_repository_prints_what_it_says() {
    check("../README.md", 1);
}

#[test]
fn a_document_that_is_wrong_is_noticed() {
    let right = "```console\n$ ioemul decode ec -q\nin al, dx\n$ false\n$ echo $?\n1\n```\n";
    assert_eq!(played(right), (right.to_owned(), Vec::new()));
    let (mended, differences) = played(&right.replace("al, dx", "ax, dx"));
    assert_eq!((mended.as_str(), differences.len()), (right, 1));
    assert_eq!(masked_line("port 0xb2 (FADT): 9.8 us, SMI"), masked_line("port 0xb2 (FADT): 11 ns, SMI"));
    assert_eq!(masked_line("0x42 0x00     1.0 us    +1"), masked_line("0x42 0x00    16.1 ms    +1"));
    assert_eq!(masked_line(r#"{"ns":9812,"smi":true}"#), masked_line(r#"{"ns":1,"smi":true}"#));
    assert_eq!(masked_line("date  2026-11-28T15:22:48.92Z"), masked_line("date  2027-01-01T00:00:00Z"));
    assert_ne!(masked_line("fan 0     state 2, 2400 rpm"), masked_line("fan 0     state 2, 2401 rpm"));
    assert_ne!(masked_line("0x42 0x00"), masked_line("0x43 0x00"));
}
