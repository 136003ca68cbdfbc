//! The examples that can touch the hardware, as programs: what is mistyped is a usage error, and nothing is executed.
#![cfg(all(feature = "std", target_os = "linux"))]

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::process::{Command, Output};
use std::sync::OnceLock;

const EXAMPLES: [&str; 6] =
    ["in_out_byte", "in_out_word", "in_out_dword", "quirk_proliant", "vmware_backdoor", "smm_mailbox"];

/// The directory of the examples, built as they are now: a test that runs alone would find old ones, or none.
fn examples() -> &'static PathBuf {
    static DIRECTORY: OnceLock<PathBuf> = OnceLock::new();
    DIRECTORY.get_or_init(|| {
        let mut cargo = Command::new(env!("CARGO"));
        // What this test was built with is not what the examples are to be built with.
        for variable in ["RUSTFLAGS", "CARGO_ENCODED_RUSTFLAGS", "CARGO_BUILD_TARGET"] {
            cargo.env_remove(variable);
        }
        cargo.args(["build", "--quiet", "--all-features", "--message-format", "json"]);
        cargo.args(EXAMPLES.iter().flat_map(|name| ["--example", name]));
        if !cfg!(debug_assertions) {
            cargo.arg("--release");
        }
        let built = cargo.current_dir(env!("CARGO_MANIFEST_DIR")).output().expect("cargo runs");
        assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
        let messages = String::from_utf8(built.stdout).unwrap();
        let executable = |message: &str| {
            let message: serde_json::Value = serde_json::from_str(message).unwrap();
            Some(PathBuf::from(message["executable"].as_str()?))
        };
        messages.lines().find_map(executable).expect("cargo names the file").parent().unwrap().to_owned()
    })
}

fn run(name: &str, arguments: &[&OsStr]) -> Output {
    Command::new(examples().join(name)).args(arguments).output().unwrap()
}

/// Runs an example that has to refuse its arguments before it does anything: its standard output is empty.
#[track_caller]
fn refused(name: &str, arguments: &[&OsStr]) -> String {
    let output = run(name, arguments);
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2), "{name} {arguments:?}: {said}");
    assert!(output.stdout.is_empty(), "{name} {arguments:?} began: {}", String::from_utf8_lossy(&output.stdout));
    assert!(said.contains(&format!("usage: {name} ")), "{name} {arguments:?}: {said}");
    said
}

#[test]
fn an_unknown_argument_is_named_and_nothing_is_executed() {
    let wrong = ["--nativ", "--Native", "--native=1", "-n", "native", "--bus", "", " ", "0x5a0", "--", "0X42", "+0x42"];
    for name in EXAMPLES {
        for argument in wrong {
            for arguments in [&["--native", argument][..], &[argument, "--native"], &[argument]] {
                let said = refused(name, &arguments.iter().map(OsStr::new).collect::<Vec<_>>());
                assert!(said.contains(&format!("{argument:?}")), "{name} {arguments:?} does not name it: {said}");
            }
        }
        let no_text = OsStr::from_bytes(b"--native\xff");
        assert!(refused(name, &[no_text]).contains("--native\u{fffd}"));
        assert!(refused(name, &["--native", "--native"].map(OsStr::new)).contains("given twice"));
    }
}

#[test]
fn an_smi_is_raised_by_a_code_that_was_given_and_by_no_other() {
    let cases = [
        ("12", "say 0x12 or 0xc"),
        ("7", "say 0x7"),
        ("ff", "starts with 0x"),
        ("0x", "starts with 0x"),
        ("0x+5", "starts with 0x"),
        ("0xfg", "starts with 0x"),
        ("0x100", "one byte"),
        ("300", "starts with 0x"),
        ("-1", "no option"),
    ];
    for (code, why) in cases {
        for arguments in [&["--native", code][..], &[code, "--native"], &[code]] {
            let said = refused("smm_mailbox", &arguments.iter().map(OsStr::new).collect::<Vec<_>>());
            assert!(said.contains(&format!("{code:?}")) && said.contains(why), "{arguments:?}: {said}");
        }
    }
    assert!(refused("smm_mailbox", &["--native"].map(OsStr::new)).contains("which code"));
    assert!(refused("smm_mailbox", &["--native", "0x42", "0x43"].map(OsStr::new)).contains("\"0x43\""));
    assert!(refused("in_out_byte", &["0x42"].map(OsStr::new)).contains("\"0x42\""), "it takes no code");
}

#[test]
fn right_arguments_are_taken() {
    for name in EXAMPLES {
        let output = run(name, &[]);
        assert!(output.status.success() && !output.stdout.is_empty(), "{name}: {output:?}");
        let help = run(name, &[OsStr::new("--help")]);
        assert!(help.status.success() && help.stdout.starts_with(format!("usage: {name} ").as_bytes()), "{help:?}");
    }
    let output = String::from_utf8(run("smm_mailbox", &[OsStr::new("0x5A")]).stdout).unwrap();
    assert!(output.contains("rax=000000000000005a") && !output.contains("rax=00000000000000ff"), "{output}");
}
