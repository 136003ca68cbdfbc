//! What people see: colours, widths, help.

use crate::about::SUBCOMMANDS;
use crate::common::{Dir, words};
use crate::terminal::on_terminal;

const ESCAPE: char = '\x1b';

/// Command lines whose output has something that stands out.
const COLOURED: &[&str] =
    &["smi send 0x5a", "smi scan --log l --codes 0x5a", "listing", "in 71", "smi send 0xf0", "in --help"];

#[test]
fn there_are_no_colours_but_on_a_terminal() {
    for line in COLOURED {
        let run = Dir::new().bus(line);
        assert!(!run.stdout.contains(ESCAPE) && !run.stderr.contains(ESCAPE), "{run:#?}");
    }
}

#[test]
fn there_are_colours_on_a_terminal() {
    for line in COLOURED {
        let dir = Dir::new();
        let (_, shown) = on_terminal(dir.command().args(["--on", "bus:pc"]).args(words(line)), 80, "");
        assert!(shown.contains(ESCAPE), "{line}: {shown}");
    }
}

#[test]
fn no_color_means_none_on_a_terminal_either() {
    for line in COLOURED {
        let dir = Dir::new();
        let (_, shown) =
            on_terminal(dir.command().env("NO_COLOR", "1").args(["--on", "bus:pc"]).args(words(line)), 80, "");
        assert!(!shown.contains(ESCAPE), "{line}: {shown:?}");
        let (_, shown) =
            on_terminal(dir.command().env("TERM", "dumb").args(["--on", "bus:pc"]).args(words(line)), 80, "");
        assert!(!shown.contains(ESCAPE), "{line}, TERM=dumb: {shown:?}");
    }
}

#[test]
fn objects_have_no_colours_on_a_terminal() {
    let dir = Dir::new();
    for line in ["smi send 0x5a --json", "in 71 --json", "-q in 0x71"] {
        let (_, shown) = on_terminal(dir.command().args(["--on", "bus:pc"]).args(words(line)), 80, "");
        assert!(!shown.contains(ESCAPE), "{line}: {shown:?}");
    }
}

/// The help of a subcommand in a terminal of so many columns.
fn help(subcommand: &str, columns: u16) -> String {
    let dir = Dir::new();
    let (code, shown) =
        on_terminal(dir.command().env("NO_COLOR", "1").args(words(subcommand)).arg("--help"), columns, "");
    assert_eq!(code, Some(0), "{shown}");
    shown
}

#[test]
fn help_fits_the_terminal() {
    for subcommand in SUBCOMMANDS {
        for columns in [80, 120] {
            let shown = help(subcommand, columns);
            assert!(shown.contains("Usage: ioemul"), "{shown}");
            let long: Vec<_> = shown.lines().filter(|line| line.chars().count() > columns.into()).collect();
            assert!(long.is_empty(), "{subcommand} at {columns}: {long:#?}");
        }
    }
}

#[test]
fn help_fits_the_columns_of_the_environment() {
    let dir = Dir::new();
    for subcommand in SUBCOMMANDS {
        let mut command = dir.command();
        let shown = dir.finish(command.env("COLUMNS", "80").args(words(subcommand)).arg("--help"), b"").ok().stdout;
        let long: Vec<_> = shown.lines().filter(|line| line.chars().count() > 80).collect();
        assert!(long.is_empty(), "{subcommand}: {long:#?}");
    }
}

#[test]
fn every_subcommand_says_what_it_does() {
    for subcommand in SUBCOMMANDS {
        let shown = help(subcommand, 80);
        let first = shown.lines().next().unwrap();
        assert!(first.starts_with(char::is_uppercase) && first.split(' ').count() >= 3, "{subcommand}: {first}");
    }
}

#[test]
fn a_group_without_a_subcommand_shows_its_help() {
    let dir = Dir::new();
    for group in ["smi", "dell", "vmware", "trace"] {
        let run = dir.run(group).exits(2);
        assert!(run.stderr.contains(&format!("Usage: ioemul {group}")), "{run:#?}");
    }
    assert!(dir.run("").exits(2).stderr.contains("Usage: ioemul"));
}

/// Results of the main subcommands, which a terminal of 80 columns does not break.
#[test]
fn results_fit_80_columns() {
    for line in [
        "in 0x71",
        "cmos date",
        "cmos dump",
        "smi send 0x5a rbx=1",
        "smi info",
        "smi scan --log l",
        "dell info",
        "dell call 0x10a3",
        "vmware info",
        "vmware call 10",
        "listing",
        "-n smi send 0x5a rbx=1",
    ] {
        let run = Dir::new().bus(line).ok();
        let long: Vec<_> = run.stdout.lines().filter(|line| line.chars().count() > 80).collect();
        assert!(long.is_empty(), "{line}: {long:#?}");
    }
}

#[test]
fn quiet_says_nothing_but_results_and_errors() {
    let dir = Dir::new();
    for line in ["in 0x71", "smi send 0x5a", "smi scan --log l --codes 0x42", "vmware get greeting", "dell info"] {
        let run = dir.bus(&format!("-q {line}")).ok();
        assert_eq!(run.stderr, "", "{run:#?}");
    }
    dir.bus("-q smi send 0xf0").exits(3).complains("ACPI");
    let run = dir.bus("-q smi send 0x42 rcx=3").ok();
    assert!(run.says().starts_with("rax=0x42 rbx=0x3 rcx=0x3 ") && run.says().ends_with(" rflags=0x0"), "{run:#?}");
}

#[test]
fn no_foreign_text_commands_the_terminal() {
    let dir = Dir::new();
    let evil = "\\u001b]0;x\\u0007";
    let header = |port: &str| {
        format!(
            "{{\"ioemul-trace\":2,\"on\":\"{evil}\",\"machine\":\"{evil}\",{port}\"reserved_codes\":[[\"0xf0\",\"{evil}\"]]}}\n"
        )
    };
    dir.write("t", header(&format!("\"smi_port\":\"0xb2\",\"port_source\":\"{evil}\",")) + "{\"records\":0}\n");
    let refused = format!("{{\"insn\":\"in al, 0x71\",\"before\":{{}},\"refused\":\"{evil}\"}}\n{{\"records\":1}}\n");
    dir.write("\x1bt", header("") + &refused);
    for line in [
        "--on trace:t smi info",
        "--on trace:t smi send 0xf0",
        "--on trace:t smi send 0x5a",
        "--on trace:t -n smi send 0x5a",
        "--on trace:t -n smi scan --log l",
        "--on trace:t smi scan --resume --log t",
        "trace show t",
        "trace show \x1bt",
        "trace diff t \x1bt",
        "trace replay \x1bt -- in 0x71",
        "trace show \x1bnothing",
        "--on bus:pc smi scan --codes 0x1 --log \x1bl",
        "--on trace:\x1bt -n in 0x71",
        "exec 'in al, \x1b'",
        "decode \x1b",
    ] {
        let (_, shown) = on_terminal(dir.command().args(words(line)), 80, "n\n");
        let unstyled = without_styles(&shown);
        assert!(!unstyled.contains([ESCAPE, '\x07']), "{line}: {shown:?}");
    }
}

/// A text without what sets colours and weights: `ESC [ digits m`.
fn without_styles(shown: &str) -> String {
    let mut parts = shown.split("\x1b[");
    let mut text = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let rest = part.trim_start_matches(|letter: char| letter.is_ascii_digit() || letter == ';');
        text += &rest.strip_prefix('m').map_or_else(|| format!("\x1b[{rest}"), str::to_owned);
    }
    text
}
