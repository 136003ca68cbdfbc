//! The objects that `--json` prints. Every test that prints some holds them against the schema; these see to it that the schema is one
//! that something can fail, and that nothing but objects is printed.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use crate::common::{Dir, schema};

/// Command lines of which each prints objects, on the device models.
const COMMANDS: &[&str] = &[
    "in 0x71",
    "out 0x80 1",
    "ix 0x70:0x71 0",
    "ix 0x70:0x71 0x40 1",
    "cmos date",
    "cmos dump",
    "cmos 1",
    "cmos 0x40 1",
    "exec 'in eax, dx'",
    "exec insb rdx=0x80 --data -",
    "smi send 0x5a",
    "smi scan --log l --codes 0x5a-0x5b",
    "smi info",
    "smi count",
    "dell info",
    "dell call 0x10a3",
    "vmware info",
    "vmware rpc x",
    "vmware get greeting",
    "vmware set x y",
    "vmware call 10",
    "trace show t",
    "trace stat t",
    "ports",
    "check",
    "decode ed",
    "listing",
    "-n smi send 0x5a",
];

#[test]
fn every_command_prints_objects_and_nothing_else() {
    let dir = Dir::new();
    dir.bus("--record t smi send 0x5a").ok();
    for command in COMMANDS {
        assert!(!dir.bus(&format!("{command} --json")).ok().objects().is_empty(), "{command}");
    }
}

/// A command that is asked for names, pages or scripts has no objects to print, and refuses to.
#[test]
fn what_has_no_objects_prints_none() {
    let dir = Dir::new();
    for command in ["listing --quirk list", "table --quirk list"] {
        let run = dir.run(&format!("{command} --json")).ok();
        assert!(!run.objects().is_empty(), "{run:#?}");
    }
}

#[test]
fn help_and_version_are_for_people() {
    let dir = Dir::new();
    let help = dir.finish(dir.command().args(["--help"]), b"").ok();
    assert!(help.stdout.contains("Usage: ioemul"));
    assert!(dir.run("--version").ok().says().starts_with("ioemul "));
}

#[test]
fn an_error_is_an_object_on_standard_output() {
    let dir = Dir::new();
    for (line, code, exit) in [
        ("in 71", "usage", 2),
        ("nonsense", "usage", 2),
        ("trace show nothing", "io", 1),
        ("trace show .", "trace", 1),
        ("decode 90", "decode", 1),
        ("--cpu 9999 in 0x81", "no_such_cpu", 2),
        ("--cpu 9999 out 0xcf9 0", "refused", 3),
        ("--on bus:pc dell call 0x9999", "device", 1),
        ("--on bus:pc smi send 0x5a --expect cf=0", "expectation", 5),
    ] {
        let run = dir.run(&format!("--json {line}")).exits(exit);
        let error = run.error(code);
        assert!(!error["message"].as_str().unwrap().starts_with("error"), "{error}");
        let run = dir.run(&format!("{line} --json"));
        assert_eq!(run.exits(exit).error(code), error);
    }
}

/// Where this machine opens its ports, there is no such error to see.
#[test]
fn a_lack_of_privilege_is_told_with_its_facts() {
    let dir = Dir::new();
    if dir.run("check").code == Some(0) {
        eprintln!("skipped: ports can be opened here");
        return;
    }
    let error = dir.run("in 0x81 --json").exits(4).error("no_privilege");
    assert_eq!(error["call"], "ioperm");
    dir.run("in 0x81").exits(4).complains("");
}

/// The words before `--` are this program's, those behind it are the replayed command's.
#[test]
fn the_option_is_seen_on_either_side_of_a_replay() {
    let dir = Dir::new();
    dir.bus("--record t in 0x81").ok();
    dir.run("--json trace replay t -- in 0x82").exits(5).error("replay");
    let run = dir.run("trace replay t -- in 0x81 --json").ok();
    assert_eq!(run.objects()[0]["value"], "0xff");
}

#[test]
fn the_schema_fits_its_own_language() {
    let text: Value = serde_json::from_str(include_str!("../../../docs/cli.schema.json")).unwrap();
    assert!(jsonschema::meta::is_valid(&text));
}

/// An object of each kind, with a key too many, a key too few, and another version.
#[test]
fn the_schema_refuses_what_is_not_described() {
    let dir = Dir::new();
    dir.bus("--record t smi send 0x5a").ok();
    dir.bus("--record t2 smi send 0x5b").ok();
    let diff = "trace diff t t2";
    let mut kinds = BTreeSet::new();
    for command in COMMANDS.iter().chain([&diff, &"in 71"]) {
        let _ = std::fs::remove_file(dir.path("l"));
        for object in dir.bus(&format!("{command} --json")).objects() {
            let keys = object.as_object().unwrap().keys().cloned().collect::<Vec<_>>();
            let with = |key: &str, value: Value| {
                let mut object = object.clone();
                object[key] = value;
                object
            };
            assert!(!schema().is_valid(&with("x", json!(1))), "{object}");
            assert!(!schema().is_valid(&with("v", json!(2))), "{object}");
            for key in ["v", "on", "insn", "before", "error", "message", "cf"] {
                let mut object = object.clone();
                if object.as_object_mut().unwrap().remove(key).is_some() {
                    assert!(!schema().is_valid(&object), "without {key}: {object}");
                }
            }
            kinds.insert(keys.join(" "));
        }
    }
    assert!(kinds.len() >= 20, "{kinds:#?}");
}

#[test]
fn each_object_that_comes_of_an_access_names_where() {
    let dir = Dir::new();
    for command in COMMANDS.iter().filter(|command| {
        !["trace", "ports", "check", "decode", "listing"].contains(&command.split(' ').next().unwrap())
    }) {
        for object in dir.bus(&format!("{command} --json")).objects() {
            assert_eq!(object["on"], "bus:pc", "{command}");
        }
    }
}
