//! `trace replay`, and `--on trace:`.

use crate::common::{Dir, words};

/// Commands of every kind that makes accesses.
const COMMANDS: &[&str] = &[
    "in 0x71",
    "in 0x100.w -n 3",
    "in 0x3fd",
    "out 0x80 0x55",
    "ix 0x70:0x71 0x0d",
    "ix 0x70:0x71 0x40 1",
    "cmos date",
    "cmos dump",
    "cmos 0x0d",
    "cmos 0x40 7",
    "exec 'in eax, dx' rax=0x564d5868 rcx=10 rdx=0x5658 --expect ebx=0x564d5868",
    "exec 'rep insb' rcx=5 rdx=0x100 --data bytes",
    "exec 'rep outsb' rcx=5 rdx=0x80 --data bytes",
    "smi send 0x42 rbx=1 rcx=2",
    "smi send 0x5a --data 7 --expect cf=1",
    "smi send 0x42 rcx=2 --settle 0x84",
    "smi send 0x42 rcx=2 --settle read-back",
    "smi send 0x42 rcx=2 --settle carry",
    "smi scan --log LOG --codes 0x40-0x5f",
    "dell info",
    "dell call 0x10a3 ebx=1",
    "vmware info",
    "vmware rpc 'info-get guestinfo.greeting'",
    "vmware get greeting",
    "vmware set x y",
    "vmware call 10",
];

/// A directory with a recording of a command in `t`.
fn recorded(command: &str) -> Dir {
    let dir = Dir::new();
    dir.write("bytes", "12345");
    dir.bus(&format!("--record t {}", command.replace("LOG", "l0"))).ok();
    dir
}

#[test]
fn every_command_is_replayed_with_the_same_answers() {
    for command in COMMANDS {
        let dir = recorded(command);
        let first = dir.run(&format!("--on trace:t {}", command.replace("LOG", "l1"))).ok();
        let run = dir.run(&format!("trace replay t -- {}", command.replace("LOG", "l2"))).ok();
        assert!(run.stderr.contains("records replayed"), "{run:#?}");
        assert_eq!(first.stdout.replace("l1", "l2"), run.stdout, "{command}");
        dir.run(&format!("trace replay t --lenient -- {}", command.replace("LOG", "l3"))).ok();
    }
}

/// The lines of `t` between the first and the last, which are its records.
fn with_records(dir: &Dir, change: impl FnOnce(&mut Vec<String>)) {
    let text = dir.read("t");
    let mut lines: Vec<_> = text.lines().map(str::to_owned).collect();
    let header = lines.remove(0);
    lines.pop();
    change(&mut lines);
    dir.write("t", format!("{header}\n{}\n{{\"records\":{}}}\n", lines.join("\n"), lines.len()));
}

#[test]
fn an_edited_register_is_found_in_every_command() {
    for command in COMMANDS {
        let dir = recorded(command);
        with_records(&dir, |records| {
            let last = records.last_mut().unwrap();
            let mut record: serde_json::Value = serde_json::from_str(last).unwrap();
            let r9 = record["before"]["r9"].as_str().unwrap_or("0x0");
            let r9 = u64::from_str_radix(&r9[2..], 16).unwrap();
            record["before"]["r9"] = format!("{:#x}", r9 ^ 0x100).into();
            *last = record.to_string();
        });
        let run = dir.run(&format!("trace replay t -- {}", command.replace("LOG", "l2"))).exits(5);
        assert!(run.stderr.contains("r9 = 0x"), "{run:#?}");
    }
}

#[test]
fn a_record_that_is_missing_is_found_in_every_command() {
    for command in COMMANDS {
        let dir = recorded(command);
        with_records(&dir, |records| drop(records.pop()));
        dir.run(&format!("trace replay t -- {}", command.replace("LOG", "l2"))).exits(5);
    }
}

#[test]
fn a_record_too_many_is_found_in_every_command() {
    for command in COMMANDS {
        let dir = recorded(command);
        with_records(&dir, |records| records.push("{\"insn\":\"in al, 0x99\",\"before\":{}}".to_owned()));
        dir.run(&format!("trace replay t -- {}", command.replace("LOG", "l2"))).exits(5).complains("never came");
        let error =
            dir.run(&format!("trace replay --json t -- {}", command.replace("LOG", "l3"))).exits(5).error("replay");
        assert!(error["message"].as_str().unwrap().contains("0x0099"), "{error}");
    }
}

#[test]
fn an_announcement_that_its_record_does_not_fit_is_found() {
    let dir = Dir::new();
    let scan = "smi scan --codes 0x41 --fill zero rbx=1 --log";
    dir.bus(&format!("{scan} t")).ok();
    dir.run(&format!("trace replay t -- {scan} l")).ok();
    let text = dir.read("t");
    assert!(text.lines().nth(3).unwrap().contains("about_to"));
    let edited = text.replacen("\"rax\":\"0x41\",\"rbx\":\"0x1\"", "\"rax\":\"0x41\",\"rbx\":\"0x2\"", 1);
    assert_ne!(text, edited);
    dir.write("t", edited);
    dir.run(&format!("trace replay t -- {scan} l2")).exits(5).complains("not its record");
}

#[test]
fn a_trace_of_another_version_is_not_replayed() {
    let dir = recorded("in 0x71");
    dir.write("t", dir.read("t").replacen("\"ioemul-trace\":2", "\"ioemul-trace\":99", 1));
    dir.run("trace replay t -- in 0x71").exits(5).complains("version 99");
    dir.run("--on trace:t in 0x71").exits(1).complains("version 99");
}

#[test]
fn the_order_matters_unless_the_replay_is_lenient() {
    let dir = recorded("in 0x71");
    with_records(&dir, |records| {
        records.insert(0, "{\"insn\":\"in al, 0x99\",\"before\":{},\"after\":{\"rax\":\"0x12\"}}".to_owned())
    });
    dir.run("trace replay t -- in 0x71").exits(5).complains("access 1 of the trace was expected");
    dir.run("trace replay --lenient t -- in 0x71").exits(5).complains("never came");
    let run = dir.run("trace replay --lenient t -- in 0x99");
    assert_eq!(run.stdout, "0x12\n");
}

/// A trace is also a test of a command that failed.
#[test]
fn a_command_that_failed_is_replayed_to_the_same_failure() {
    let dir = Dir::new();
    dir.bus("--record t dell call 0x9999").exits(1);
    dir.run("trace replay t -- dell call 0x9999").exits(1).complains("0x9999");
    dir.bus("--record t smi send 0x5a --expect cf=0").exits(5);
    dir.run("trace replay t -- smi send 0x5a --expect cf=0").exits(5).complains("cf is 0x1");
    dir.bus("--record t vmware get nothing").exits(1);
    dir.run("trace replay t -- vmware get nothing").exits(1).complains("No value found");
}

/// Where the command stops at an answer, the recording ends there, and is whole.
#[test]
fn the_recording_of_a_command_that_gives_up_is_whole() {
    let dir = Dir::new();
    dir.write(
        "nobody",
        "{\"ioemul-trace\":2}\n{\"insn\":\"in eax, dx\",\"before\":{\"rax\":\"0x564d5868\",\"rcx\":\"0xa\",\"rdx\":\"0x5658\"},\
         \"after\":{\"rax\":\"0xffffffff\"}}\n{\"records\":1}\n",
    );
    dir.run("--on trace:nobody --record t vmware get x").exits(1).complains("nobody answers");
    dir.run("trace replay t -- vmware get x").exits(1).complains("nobody answers");
}

#[test]
fn a_command_that_makes_no_access_is_no_replay() {
    let dir = recorded("in 0x71");
    for command in [
        "trace show t",
        "trace replay t -- in 0x71",
        "ports 0x71",
        "check",
        "decode ed",
        "listing",
        "man",
        "completions bash",
    ] {
        dir.run(&format!("trace replay t -- {command}")).exits(2).complains("makes no access");
    }
    dir.run("trace replay t -- nonsense").exits(2).complains("the command to replay");
    dir.run("trace replay t").exits(2);
    dir.run("trace replay t -- ").exits(2);
}

#[test]
fn a_replay_may_be_shown_and_replays_nothing_then() {
    let dir = recorded("in 0x71");
    dir.run("trace replay t -- -n in 0x71").ok().prints("nothing is done");
    dir.run("-n trace replay t -- in 0x71").ok().prints("nothing is done");
}

#[test]
fn the_trace_that_is_replayed_is_not_overwritten() {
    let dir = recorded("in 0x71");
    let text = dir.read("t");
    for line in
        ["--on trace:t --record t in 0x71", "trace replay t -- --record t in 0x71", "--on trace:./t --record t in 0x71"]
    {
        dir.run(line).exits(2).complains("--record");
        assert_eq!(dir.read("t"), text, "{line}");
    }
}

#[test]
fn another_recording_may_be_made_of_a_replay() {
    let dir = recorded("smi send 0x42 rcx=1");
    dir.run("--on trace:t --record t2 smi send 0x42 rcx=1").ok();
    dir.run("trace diff t t2").ok();
}

#[test]
fn a_trace_without_an_smi_port_is_refused_for_smis() {
    let dir = recorded("in 0x71");
    dir.run("trace replay t -- smi send 0x42").exits(5).complains("names no SMI command port");
    dir.run("--on trace:t smi info").exits(1).complains("names no SMI command port");
}

#[test]
fn files_that_cannot_be_replayed_are_errors() {
    let dir = recorded("in 0x71");
    for line in
        ["trace replay no -- in 0x71", "--on trace:no in 0x71", "--on trace:. in 0x71", "trace replay . -- in 0x71"]
    {
        let run = dir.run(line);
        assert!(matches!(run.code, Some(1 | 5)), "{run:#?}");
        assert!(run.stderr.contains("error: "), "{run:#?}");
    }
    assert_eq!(words("a 'b c' d''"), ["a", "b c", "d"]);
}

#[test]
fn a_trace_is_not_recorded_over_by_another_of_its_names() {
    let dir = Dir::new();
    dir.bus("--record t in 0x80").ok();
    let before = dir.read("t");
    std::fs::hard_link(dir.path("t"), dir.path("u")).unwrap();
    std::os::unix::fs::symlink("t", dir.path("v")).unwrap();
    for name in ["u", "v", "./t"] {
        dir.run(&format!("--on trace:t --record {name} in 0x80")).exits(2).complains("trace to be replayed");
    }
    assert_eq!(dir.read("t"), before);
}
