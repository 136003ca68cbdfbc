//! Runs the command in a directory of its own, and looks at what it says.

use std::ffi::OsStr;
use std::fs;
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use serde_json::Value;
use tempfile::TempDir;

/// A CPU that no kernel has. To be pinned to it fails behind all interlocks, and before ports are opened.
pub const NO_CPU: &str = "--cpu 9999 ";

/// A directory that commands run in.
pub struct Dir(TempDir);

/// How a command ended.
#[derive(Debug)]
pub struct Run {
    pub line: String,
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

/// Splits a command line at spaces; what stands in single quotes is one word, or a part of one.
pub fn words(line: &str) -> Vec<String> {
    let mut words = Vec::new();
    let (mut word, mut is_quoted) = (None::<String>, false);
    for letter in line.chars() {
        match letter {
            '\'' => {
                is_quoted = !is_quoted;
                word.get_or_insert_default();
            }
            ' ' if !is_quoted => words.extend(word.take()),
            _ => word.get_or_insert_default().push(letter),
        }
    }
    words.extend(word);
    words
}

/// The command, with nothing of this process's environment that it looks at.
pub fn ioemul() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ioemul"));
    for name in ["IOEMUL_ON", "NO_COLOR", "CLICOLOR", "CLICOLOR_FORCE", "COLUMNS", "LINES", "CI"] {
        command.env_remove(name);
    }
    command.env("TERM", "xterm-256color").stdin(Stdio::null());
    command
}

impl Dir {
    pub fn new() -> Self {
        Self(TempDir::new().unwrap())
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    pub fn command(&self) -> Command {
        let mut command = ioemul();
        command.current_dir(self.0.path());
        command
    }

    /// Runs a command line.
    #[track_caller]
    pub fn run(&self, line: &str) -> Run {
        self.run_words(words(line))
    }

    /// Runs a command line on the device models.
    #[track_caller]
    pub fn bus(&self, line: &str) -> Run {
        self.run(&format!("--on bus:pc {line}"))
    }

    #[track_caller]
    pub fn run_words<W: AsRef<OsStr>>(&self, words: impl IntoIterator<Item = W>) -> Run {
        self.finish(self.command().args(words), b"")
    }

    /// Runs a command line with something on its standard input.
    #[track_caller]
    pub fn fed(&self, line: &str, input: &[u8]) -> Run {
        self.finish(self.command().args(words(line)).stdin(Stdio::piped()), input)
    }

    /// Runs a command to its end. Whatever JSON it prints is held against the schema.
    #[track_caller]
    pub fn finish(&self, command: &mut Command, input: &[u8]) -> Run {
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        if let Some(mut stdin) = child.stdin.take() {
            let _ = stdin.write_all(input); // who does not read it has closed the pipe
        }
        let output = child.wait_with_output().unwrap();
        let line = command.get_args().map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ");
        let text = |bytes| String::from_utf8(bytes).unwrap();
        let run = Run { line, code: output.status.code(), stdout: text(output.stdout), stderr: text(output.stderr) };
        assert!(!run.stderr.contains("panicked"), "{run:#?}");
        let is_json = command.get_args().take_while(|word| *word != "--").any(|word| word == "--json");
        if is_json {
            assert_eq!(run.stderr, "", "{run:#?}");
            run.objects();
        }
        run
    }

    #[track_caller]
    pub fn write(&self, name: &str, bytes: impl AsRef<[u8]>) {
        fs::write(self.path(name), bytes).unwrap();
    }

    #[track_caller]
    pub fn read(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).unwrap()
    }

    /// The names of the files that are there.
    pub fn files(&self) -> Vec<String> {
        let names = fs::read_dir(self.0.path()).unwrap().map(|entry| entry.unwrap().file_name());
        let mut names: Vec<_> = names.map(|name| String::from_utf8_lossy(name.as_bytes()).into_owned()).collect();
        names.sort();
        names
    }
}

impl Run {
    #[track_caller]
    pub fn exits(self, code: i32) -> Self {
        assert_eq!(self.code, Some(code), "{self:#?}");
        self
    }

    /// Exit status 0.
    #[track_caller]
    pub fn ok(self) -> Self {
        self.exits(0)
    }

    /// What it prints, without the last end of line.
    #[track_caller]
    pub fn says(&self) -> &str {
        self.stdout.strip_suffix('\n').unwrap_or_else(|| panic!("no line: {self:#?}"))
    }

    #[track_caller]
    pub fn prints(self, part: &str) -> Self {
        assert!(self.stdout.contains(part), "{part:?} is not in {self:#?}");
        self
    }

    /// Ends in an error whose message has this part.
    #[track_caller]
    pub fn complains(self, part: &str) -> Self {
        let message = self.stderr.split_once("error: ").map(|(_, message)| message);
        assert!(message.is_some_and(|message| message.contains(part)), "{part:?} is no part of the error of {self:#?}");
        self
    }

    /// The objects on standard output, each of which fits the schema.
    #[track_caller]
    pub fn objects(&self) -> Vec<Value> {
        let object = |line: &str| {
            let object: Value = serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {self:#?}"));
            let unfit: Vec<_> = schema().iter_errors(&object).map(|error| error.to_string()).collect();
            assert!(unfit.is_empty(), "{line}\n{unfit:#?}\n{}", self.line);
            object
        };
        self.stdout.lines().map(object).collect()
    }

    /// The one object on standard output.
    #[track_caller]
    pub fn object(&self) -> Value {
        let mut objects = self.objects();
        assert_eq!(objects.len(), 1, "{self:#?}");
        objects.remove(0)
    }

    /// The error that ends the output.
    #[track_caller]
    pub fn error(&self, code: &str) -> Value {
        let last = self.objects().pop().unwrap_or_else(|| panic!("nothing: {self:#?}"));
        assert_eq!(last["error"], code, "{self:#?}");
        last
    }
}

pub fn schema() -> &'static jsonschema::Validator {
    static SCHEMA: OnceLock<jsonschema::Validator> = OnceLock::new();
    SCHEMA.get_or_init(|| {
        let text = include_str!("../../../docs/cli.schema.json");
        jsonschema::draft202012::new(&serde_json::from_str(text).unwrap()).unwrap()
    })
}

/// A FADT with this port, and ACPI's codes 0xF0 and 0xF1, in the file `fadt`.
pub fn write_fadt(dir: &Dir, port: u16) {
    dir.write("fadt", ioemul::Fadt::new(port, 0xf0, 0xf1).to_table());
}
