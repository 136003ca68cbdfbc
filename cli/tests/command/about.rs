//! `ports`, `check`, `completions`, `man`.

use std::process::{Command, Stdio};

use crate::common::Dir;

#[test]
fn ports_are_shown_with_owner_and_hazard() {
    let dir = Dir::new();
    let rows = dir.run("ports 0xcf9,0x80 --json").ok().objects();
    assert_eq!(rows.iter().map(|row| row["ports"].clone()).collect::<Vec<_>>(), ["0x80", "0xcf9"]);
    assert!(rows[0]["hazard"].is_null(), "{rows:#?}");
    assert!(rows[1]["hazard"].as_str().unwrap().starts_with("reset control: "), "{rows:#?}");
    dir.run("ports 0xcf9").ok().prints("0xcf9").prints("reset control: ");
    dir.run("ports").ok().prints("0xcf9").prints("bit 7 of 0x70 masks NMIs");
}

#[test]
fn neighbours_of_which_the_same_is_known_are_one_row() {
    let rows = Dir::new().bus("ports 0x5000-0x5fff --json").ok().objects();
    assert_eq!(rows.iter().map(|row| row["ports"].clone()).collect::<Vec<_>>(), ["0x5000-0x5fff"]);
}

#[test]
fn check_ends_as_an_access_would() {
    let dir = Dir::new();
    let run = dir.run("check --json");
    let objects = run.objects();
    assert_eq!(objects[0]["check"], "ports");
    match objects[0]["ok"].as_bool().unwrap() {
        true => assert_eq!(run.code, Some(0)),
        false => assert_eq!(run.exits(4).error("no_privilege")["call"], "ioperm"),
    }
    let run = dir.run("check");
    assert!(matches!(run.code, Some(0 | 4)), "{run:#?}");
    assert!(run.stderr.starts_with("on the hardware"), "{run:#?}");
}

#[test]
fn nothing_is_missing_where_there_is_no_hardware() {
    let dir = Dir::new();
    dir.bus("check").ok().prints("bus:pc");
    assert_eq!(dir.bus("check --json").ok().objects()[0]["ok"], true);
}

#[test]
fn every_shell_has_its_completions() {
    let dir = Dir::new();
    for shell in ["bash", "elvish", "fish", "powershell", "zsh"] {
        dir.run(&format!("completions {shell}")).ok().prints("ioemul").prints("scan");
    }
    dir.run("completions nonsense").exits(2).complains("zsh");
    dir.run("completions").exits(2);
}

#[test]
fn bash_reads_its_completions() {
    let dir = Dir::new();
    dir.write("script", dir.run("completions bash").ok().stdout);
    let Ok(bash) = Command::new("bash").arg("-n").arg(dir.path("script")).output() else { return };
    assert!(bash.status.success() && bash.stderr.is_empty(), "{bash:?}");
}

pub const SUBCOMMANDS: &[&str] = &[
    "",
    "in",
    "out",
    "ix",
    "cmos",
    "exec",
    "smi",
    "smi send",
    "smi scan",
    "smi info",
    "smi count",
    "dell",
    "dell info",
    "dell call",
    "vmware",
    "vmware info",
    "vmware rpc",
    "vmware get",
    "vmware set",
    "vmware call",
    "trace",
    "trace show",
    "trace stat",
    "trace diff",
    "trace replay",
    "ports",
    "check",
    "decode",
    "listing",
    "table",
    "completions",
    "man",
];

#[test]
fn every_subcommand_has_its_page() {
    let dir = Dir::new();
    for subcommand in SUBCOMMANDS {
        let page = dir.run(&format!("man {subcommand}")).ok().prints(".SH NAME").prints(".SH OPTIONS").stdout;
        let title = format!("ioemul {subcommand}").trim().replace(' ', "-");
        assert!(page.lines().any(|line| line.starts_with(&format!(".TH {title} "))), "{title}: {page}");
        for (program, arguments) in
            [("mandoc", &["-T", "utf8", "-W", "error"] as &[&str]), ("groff", &["-man", "-ww", "-T", "utf8", "-z"])]
        {
            dir.write("page", &page);
            let stdin = std::fs::File::open(dir.path("page")).unwrap();
            let Ok(out) = Command::new(program).args(arguments).stdin(stdin).stdout(Stdio::piped()).output() else {
                continue;
            };
            let complaints = String::from_utf8_lossy(&out.stderr);
            // The date is left out, so that a page is the same whenever it is built.
            let complaints: Vec<_> =
                complaints.lines().filter(|line| !line.contains("date") && !line.contains("see above")).collect();
            assert!(complaints.is_empty(), "{title}, {program}: {complaints:#?}");
        }
    }
    dir.run("man nonsense").exits(2).complains("nonsense: no such subcommand");
    dir.run("man smi nonsense").exits(2).complains("send, scan, info, count");
}
