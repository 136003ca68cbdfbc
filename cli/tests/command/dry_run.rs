//! `-n`.

use crate::common::{Dir, write_fadt};

/// Commands that make accesses, with what each needs.
const COMMANDS: &[&str] = &[
    "in 0x71",
    "in 0x60.w -n 3",
    "out 0xcf9 6",
    "out 0x80.l 0x12345678",
    "ix 0x70:0x71 0x0d",
    "ix 0x70:0x71 0x40 1",
    "cmos date",
    "cmos dump",
    "cmos 0x0d",
    "cmos 0x40 7",
    "exec 'in eax, dx' rax=0x564d5868 rcx=10 rdx=0x5658",
    "exec 'rep insb' rcx=5 rdx=0x100 --data data",
    "exec --hex ef --mode 16 rdx=0xcf9",
    "smi send 0x42 rbx=1 --fadt fadt",
    "smi send 0x42 --settle 0x84 --fadt fadt",
    "smi scan --log log --fadt fadt",
    "smi scan --log log --codes 0x00-0x01 --fill random:7 --fadt fadt",
    "dell info",
    "dell call 0x10a3 ebx=1",
    "vmware info",
    "vmware rpc x",
    "vmware get x",
    "vmware set x y",
    "vmware call 10",
];

#[test]
fn every_command_says_what_it_would_do_without_privilege() {
    for on in ["hardware", "bus:pc"] {
        for command in COMMANDS {
            let dir = Dir::new();
            write_fadt(&dir, 0xb2);
            let run = dir.run(&format!("--on {on} --record record --dry-run {command}")).ok();
            assert!(run.stdout.lines().next().unwrap().ends_with(&format!("on {on}: nothing is done")), "{run:#?}");
            assert_eq!(run.stdout.contains("opens for writing: "), on == "hardware", "{run:#?}");
            let objects = dir.run(&format!("-n --on {on} --record record {command} --json")).ok().objects();
            assert_eq!((objects.len(), &objects[0]["dry_run"]), (1, &true.into()));
            assert_eq!(dir.files(), ["fadt"], "{command}");
        }
    }
}

/// Whether the machine has a FADT that names a port, and whether this user may read it.
#[test]
fn an_smi_is_shown_on_every_machine() {
    let dir = Dir::new();
    for line in ["smi send 0x5a", "smi scan --log l", "dell info"] {
        dir.run(&format!("-n {line}")).ok().prints("nothing is done");
        dir.run(&format!("-n {line} --json")).ok();
    }
    assert_eq!(dir.files(), [""; 0]);
}

#[test]
fn commands_that_make_no_access_take_the_letter_too() {
    let dir = Dir::new();
    for command in
        ["ports 0x80", "decode ed", "listing", "completions bash", "man", "smi count --on bus:pc", "check --on bus:pc"]
    {
        dir.run(&format!("{command} -n")).ok();
    }
}

#[test]
fn a_table_is_not_written() {
    let dir = Dir::new();
    dir.run("-n table -o table.S --header table.h").ok();
    assert_eq!(dir.files(), [""; 0]);
}

#[test]
fn all_accesses_are_there_with_bytes_and_registers() {
    let dir = Dir::new();
    let plan = dir.run("-n exec 'out dx, ax' rdx=0x1234 rbx=7 --json").ok().object();
    let access = &plan["accesses"][0];
    assert_eq!(
        (&access["bytes"], &access["port"], &access["before"]["rbx"]),
        (&"66ef".into(), &"0x1234".into(), &"0x7".into())
    );
    assert_eq!((&plan["opens"]["write"], &plan["opens"]["read"]), (&"0x1234-0x1235".into(), &"none".into()));
    dir.run("-n exec 'out dx, ax' rdx=0x1234 rbx=7").ok().prints("66ef   out dx, ax").prints("rbx=0x7 rdx=0x1234");
    let plan = dir.bus("-n smi scan --log l --json").ok().object();
    assert_eq!(plan["accesses"].as_array().unwrap().len(), 1 + 2 * 254);
}

#[test]
fn a_refusal_is_told_beforehand() {
    let dir = Dir::new();
    let plan = dir.run("-n out 0xcf9 6 --json").ok().object();
    assert!(plan["refused"].as_str().unwrap().contains("resets the machine"), "{plan}");
    dir.run("-n out 0xcf9 6").ok().prints("would be refused: ");
    assert!(dir.run("-n in 0x71 --json").ok().object()["refused"].is_null());
    assert!(dir.bus("-n out 0xcf9 6 --json").ok().object()["refused"].is_null());
}

#[test]
fn the_cpu_is_named() {
    let dir = Dir::new();
    assert_eq!(dir.run("-n --cpu 3 in 0x71 --json").ok().object()["cpu"], 3);
    assert!(dir.run("-n in 0x71 --json").ok().object()["cpu"].is_null());
    assert_eq!(dir.run("-n dell info --json").ok().object()["cpu"], 0);
    dir.run("-n --cpu 3 in 0x71").ok().prints("runs on CPU 3");
}

#[test]
fn bad_input_is_refused_all_the_same() {
    let dir = Dir::new();
    for line in ["in 12", "out 0x80 256", "smi send 0x42 rsp=1", "exec nop", "cmos 128"] {
        dir.run(&format!("-n {line}")).exits(2);
    }
}

#[test]
fn the_letter_of_in_is_its_count() {
    let dir = Dir::new();
    dir.bus("in 0x71 -n").exits(2);
    dir.bus("in 0x71 -n 0").exits(2);
    dir.bus("-n in 0x71 -n 2").ok().prints("nothing is done");
}

#[test]
fn a_resumed_scan_is_told_and_its_log_left_as_it_is() {
    let dir = Dir::new();
    dir.bus("smi scan --log l --codes 0x41-0x44").ok();
    let lines: Vec<_> = dir.read("l").lines().take(7).map(str::to_owned).collect();
    dir.write("l", lines.join("\n"));
    let plan = dir.bus("-n smi scan --log l --codes 0x41-0x44 --resume --json").ok().object();
    assert_eq!(plan["accesses"].as_array().unwrap().len(), 1 + 2 * 3);
    assert_eq!(dir.read("l"), lines.join("\n"));
}

/// What would be refused is planned all the same, and the reason stands beside it.
#[test]
fn a_refusal_is_part_of_the_plan() {
    let dir = Dir::new();
    let object = dir.bus("-n smi send 0xf1 --json").ok().object();
    assert!(object["refused"].as_str().unwrap().contains("ACPI_DISABLE"), "{object}");
    assert!(dir.bus("-n smi send 0xf1 --also-acpi --json").ok().object()["refused"].is_null());
    write_fadt(&dir, 0);
    let found = dir.run("-n --on hardware --fadt fadt smi send 0x42 --json");
    found.exits(3).error("refused"); // a file that was named is not passed over
}

/// All ports in the way are named at once.
#[test]
fn a_wide_access_names_each_port_that_has_to_be_permitted() {
    let dir = Dir::new();
    let refused = dir.run("--on hardware --yes out 0xcf8.l 0").exits(3);
    assert!(refused.stderr.contains("--allow-hazard 0xcf8-0xcfb"), "{refused:#?}");
}
