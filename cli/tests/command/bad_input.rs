//! Bad input of every argument: exit status 2 (or 1 where a file is at fault), a sentence, and nothing done.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;

use crate::common::{Dir, Run};

/// The command line is refused before anything is done.
#[track_caller]
fn refused(dir: &Dir, run: Run, part: &str) {
    let run = run.exits(2).complains(part);
    assert_eq!(run.stdout, "", "{run:#?}");
    assert!(!dir.files().contains(&"record".to_owned()), "{run:#?}");
}

/// Each line is refused with a message that has this part, in words and as an object.
#[track_caller]
fn all_refused(lines: &[(&str, &str)]) {
    let dir = Dir::new();
    for (line, part) in lines {
        refused(&dir, dir.bus(&format!("--record record {line}")), part);
        let error = dir.bus(&format!("--record record --json {line}")).exits(2).error("usage");
        assert!(error["message"].as_str().unwrap().contains(part), "{error}");
        assert_eq!(dir.files(), [""; 0], "{line}");
    }
}

#[test]
fn ports() {
    all_refused(&[
        ("in", "<PORT>"),
        ("in ''", "0x"),
        ("in 71", "say 0x71 or 0x47"),
        ("in 5", "say 0x5"),
        ("in cf8", "say 0xcf8"),
        ("in nonsense", "starts with 0x"),
        ("in 0x", "0x"),
        ("in 0X71", "0x"),
        ("in 0x-1", "number"),
        ("in 0x+1", "number"),
        ("in ' 0x71'", "0x"),
        ("in '0x71 '", "number"),
        ("in 0x7g", "number"),
        ("in 0x7_1", "number"),
        ("in 0x71.x", ".b, .w or .l"),
        ("in 0x71.", ".b, .w or .l"),
        ("in 0x71.W", ".b, .w or .l"),
        ("in 0x71.b.b", ".b, .w or .l"),
        ("in .w", "0x"),
        ("in 0x10000", "0xffff"),
        ("in 0xfffffffffffffffff", "64 bits"),
        ("in 0xffff.w", "past the last port"),
        ("in 0xfffd.l", "past the last port"),
        ("in 0x71 0x72", "0x72"),
        ("in 0x71 -n x", "x"),
        ("in 0x71 -n 0", "0"),
        ("in 0x71 -n 4294967296", "4294967296"),
        ("in 0x71 -n 1 -n 2", "-n"),
        ("out 0x10000 1", "0xffff"),
        ("out 80 1", "say 0x80"),
        ("ix 0x70 1", "0x70:0x71"),
        ("ix 0x70:71 1", "say 0x71"),
        ("ix 0x70:0x71:0x72 1", "number"),
        ("ix : 1", "0x"),
        ("ix 0x70.w:0x71 1", "number"),
        ("ports 12", "0x"),
        ("ports 0x10000", "0x10000"),
        ("ports 0x5-0x4", "0x5-0x4"),
    ]);
}

#[test]
fn values() {
    all_refused(&[
        ("out 0x80", "<VALUE>"),
        ("out 0x80 ''", "number"),
        ("out 0x80 x", "number"),
        ("out 0x80 -1", "-1"),
        ("out 0x80 0x", "number"),
        ("out 0x80 ff", "number"),
        ("out 0x80 1.5", "number"),
        ("out 0x80 256", "8 bits"),
        ("out 0x80.b 0x100", "8 bits"),
        ("out 0x80.w 65536", "16 bits"),
        ("out 0x80.l 0x100000000", "32 bits"),
        ("out 0x80.l 99999999999999999999", "64 bits"),
        ("out 0x80 1 2", "2"),
        ("ix 0x70:0x71 256", "8 bits"),
        ("ix 0x70:0x71 0 256", "8 bits"),
        ("ix 0x70:0x71 x", "number"),
        ("cmos 128", "0x7f"),
        ("cmos nonsense", "number"),
        ("cmos 1 256", "8 bits"),
        ("cmos date 1", "one byte only"),
        ("cmos dump 1", "one byte only"),
        ("cmos", "REG"),
        ("vmware call 65536", "16 bits"),
        ("vmware call x", "number"),
        ("dell call 10a3", "say 0x10a3"),
        ("dell call 0x10000", "two bytes"),
        ("dell call", "<AX>"),
        ("smi send", "<CODE>"),
        ("smi send ff", "say 0xff"),
        ("smi send 0x5a --data 256", "8 bits"),
        ("smi send 0x5a --data x", "number"),
    ]);
}

#[test]
fn registers() {
    let cases = [
        ("rsp=1", "stack pointer"),
        ("ESP=1", "stack pointer"),
        ("sp=1", "stack pointer"),
        ("spl=1", "stack pointer"),
        ("rip=1", "instruction pointer"),
        ("eip=1", "instruction pointer"),
        ("nonsense=1", "no such register"),
        ("r16=1", "no such register"),
        ("xmm0=1", "no such register"),
        ("cs=1", "no such register"),
        ("df=1", "no such register"),
        ("=1", "no such register"),
        ("rbx", "REG=VALUE"),
        ("rbx:1", "REG=VALUE"),
        ("rbx=", "number"),
        ("rbx=x", "number"),
        ("rbx=-1", "number"),
        ("rbx=0x", "number"),
        ("rbx==1", "number"),
        ("'rbx= 1'", "number"),
        ("rbx=0x10000000000000000", "64 bits"),
        ("ebx=0x100000000", "ebx"),
        ("bx=65536", "bx"),
        ("bl=256", "bl"),
        ("bh=0x100", "bh"),
        ("r8d=0x100000000", "r8d"),
        ("cf=2", "0 or 1"),
        ("rbx=1 rbx=1", "twice"),
        ("rbx=1 ebx=1", "twice"),
        ("bl=1 rbx=1", "twice"),
        ("bl=1 bl=1", "twice"),
        ("bh=1 bx=1", "twice"),
        ("cf=1 cf=1", "twice"),
        ("rflags=1 cf=1", "twice"),
    ];
    for command in ["exec 'out 0x80, al'", "smi send 0x42", "smi scan --log log", "dell call 0x10a3", "vmware call 10"]
    {
        let lines: Vec<_> = cases.iter().map(|(words, part)| (format!("{command} {words}"), *part)).collect();
        all_refused(&lines.iter().map(|(line, part)| (&**line, *part)).collect::<Vec<_>>());
    }
    all_refused(&[
        ("smi send 0x42 al=0x43", "AL holds the code"),
        ("smi send 0x42 rax=0x43", "AL holds the code"),
        ("smi send 0x42 dx=1 --settle read-back", "DX names the port"),
        ("smi send 0x42 cf=0 --settle carry", "sets CF"),
        ("dell call 0x10a3 ax=1", "AX holds the function"),
        ("vmware call 10 edx=1", "DX names the port"),
    ]);
}

#[test]
fn expectations() {
    for command in ["exec 'out 0x80, al'", "smi send 0x42"] {
        for (expectation, part) in [
            ("rbx", "REG=VALUE"),
            ("rbx=", "number"),
            ("rbx=x", "number"),
            ("rbx=1/", "number"),
            ("rbx=1/x", "number"),
            ("rbx=1/1/1", "number"),
            ("rbx=1/2", "never hold"),
            ("bl=256", "does not fit"),
            ("cf=2", "does not fit"),
            ("rsp=1", "stack pointer"),
            ("nonsense=1", "no such register"),
            ("''", "REG=VALUE"),
        ] {
            all_refused(&[(&format!("{command} --expect {expectation}"), part)]);
        }
    }
}

#[test]
fn instructions() {
    all_refused(&[
        ("exec", "INSN"),
        ("exec ''", ""),
        ("exec nop", "nop"),
        ("exec 'in eax'", "in eax"),
        ("exec 'in eax, cx'", "in eax, cx"),
        ("exec 'in rax, dx'", "in rax, dx"),
        ("exec 'in al, 0x100'", "0x100"),
        ("exec rbx=1", "rbx=1"),
        ("exec --hex", "--hex"),
        ("exec --hex ''", "hexadecimal"),
        ("exec --hex e", "hexadecimal"),
        ("exec --hex zz", "hexadecimal"),
        ("exec --hex 90", "90"),
        ("exec --hex e4", "e4"),
        ("exec --hex eded", "one instruction"),
        ("exec --hex 0xed", "hexadecimal"),
        ("exec --hex ed 'in al, dx'", "--hex has the instruction"),
        ("exec --hex ed --mode 8", "16"),
        ("exec 'in al, dx' --mode 16", "--hex"),
        ("exec 'in al, dx' --data file", "moves no data"),
        ("exec insb", "--data"),
        ("exec 'rep insb' rcx=0x1000001 --data x", "16 MiB"),
    ]);
}

#[test]
fn scans() {
    all_refused(&[
        ("smi scan", "--log"),
        ("smi scan --log", "--log"),
        ("smi scan --log log --codes 12", "0x"),
        ("smi scan --log log --codes ''", "empty"),
        ("smi scan --log log --codes none", "empty"),
        ("smi scan --log log --codes 0x100", "one byte"),
        ("smi scan --log log --codes 0x00-0x100", "one byte"),
        ("smi scan --log log --codes 0x05-0x04", "0x05-0x04"),
        ("smi scan --log log --codes 0x01,,0x02", "missing"),
        ("smi scan --log log --codes 0x01 --codes 0x02", "--codes"),
        ("smi scan --log log --data 256", "0x"),
        ("smi scan --log log --data 0x100", "one byte"),
        ("smi scan --log log --fill nonsense", "recognizable"),
        ("smi scan --log log --fill random", "random:SEED"),
        ("smi scan --log log --fill random:", "number"),
        ("smi scan --log log --fill random:x", "number"),
        ("smi scan --log log --fill random:-1", "number"),
        ("smi scan --log log --fill random:0x10000000000000000", "64 bits"),
        ("smi scan --log log --fill zero:1", "recognizable"),
        ("smi scan --log log al=1", "AL holds the code"),
    ]);
}

/// ACPI's codes alone leave nothing to send.
#[test]
fn a_scan_of_nothing_but_acpis_codes_sends_nothing() {
    all_refused(&[
        ("smi scan --log log --codes 0xf0-0xf1", "--also-acpi"),
        ("-n smi scan --log log --codes 0xf1", "--also-acpi"),
    ]);
}

#[test]
fn settling() {
    all_refused(&[
        ("smi send 0x42 --settle nonsense", "0x"),
        ("smi send 0x42 --settle 84", "say 0x84"),
        ("smi send 0x42 --settle 0x100", "0xff"),
        ("smi send 0x42 --settle ''", "0x"),
    ]);
}

#[test]
fn guestinfo_variables() {
    all_refused(&[
        ("vmware get ''", "name"),
        ("vmware get 'a b'", "spaces"),
        ("vmware set 'a b' c", "spaces"),
        ("vmware set a", "<VALUE>"),
        ("vmware get", "<KEY>"),
        ("vmware rpc", "<REQUEST>"),
    ]);
}

#[test]
fn options_and_subcommands() {
    all_refused(&[
        ("nonsense", "nonsense"),
        ("in 0x71 --nonsense", "--nonsense"),
        ("smi nonsense", "nonsense"),
        ("dell nonsense", "nonsense"),
        ("vmware nonsense", "nonsense"),
        ("trace nonsense", "nonsense"),
        ("--cpu x in 0x71", "x"),
        ("--cpu -1 in 0x71", "-1"),
        ("--cpu 99999999999999999999 in 0x71", "99999999999999999999"),
        ("--allow-hazard 12 in 0x71", "0x"),
        ("--allow-busy nonsense in 0x71", "nonsense"),
        ("--allow-hazard '' in 0x71", "--allow-hazard"),
        ("decode", "<BYTES>"),
        ("trace show", "<FILE>"),
        ("trace diff a", "<B>"),
        ("check x", "x"),
    ]);
}

#[test]
fn there_is_no_such_cpu() {
    let dir = Dir::new();
    let error = dir.run("--on hardware --cpu 9999 in 0x81 --json").exits(2).error("no_such_cpu");
    assert_eq!(error["cpu"], 9999);
}

#[test]
fn places_that_accesses_cannot_go_to() {
    let dir = Dir::new();
    for on in ["nonsense", "bus", "bus:", "bus:nonsense", "trace", "trace:", "hardware:", "Hardware", ""] {
        refused(&dir, dir.run(&format!("--record record --on '{on}' in 0x71")), "bus:pc");
        if !on.is_empty() {
            let run = dir.finish(dir.command().env("IOEMUL_ON", on).args(["in", "0x71"]), b"");
            refused(&dir, run, "IOEMUL_ON");
        }
    }
    // A variable that is empty says nothing.
    dir.finish(dir.command().env("IOEMUL_ON", "").args(["-n", "in", "0x71"]), b"").ok().prints("on hardware");
    refused(&dir, dir.run("--on bus:pc --on bus:pc in 0x71"), "--on");
}

/// The backend is never changed silently: of two that are named, neither is taken.
#[test]
fn two_places_are_one_too_many_wherever_they_stand() {
    let dir = Dir::new();
    refused(&dir, dir.run("--on bus:pc in 0x71 --on trace:t"), "--on");
    refused(&dir, dir.run("--on bus:pc smi --on trace:t send 0x42"), "--on");
}

#[test]
fn files_that_are_not_there_or_are_something_else() {
    let dir = Dir::new();
    dir.write("empty", "");
    dir.write("binary", [0u8, 0xff, 0x80, b'\n', 1]);
    for line in [
        "exec 'rep outsb' rcx=1 rdx=0x80 --data nothing",
        "exec 'rep outsb' rcx=1 rdx=0x80 --data .",
        "--on trace:nothing in 0x71",
        "--on trace:. in 0x71",
        "--on trace:empty in 0x71",
        "--on trace:binary in 0x71",
        "--fadt nothing smi send 0x42",
        "--fadt . smi send 0x42",
        "--fadt empty smi send 0x42",
        "--fadt binary smi send 0x42",
        "smi scan --log nothing --resume",
        "smi scan --log . --resume",
        "smi scan --log empty --resume",
        "smi scan --log binary --resume",
        "smi scan --log no/such/place",
        "--record no/such/place in 0x71",
        "--record . in 0x71",
    ] {
        let on = if line.contains("--on") { "" } else { "--on bus:pc " };
        let run = dir.run(&format!("{on}{line}")).exits(1);
        assert_eq!(run.stdout, "", "{run:#?}");
        assert!(run.stderr.contains("error: "), "{run:#?}");
        dir.run(&format!("{on}{line} --json")).exits(1);
        assert_eq!(dir.files(), ["binary", "empty"], "{line}");
    }
    dir.bus("exec 'rep outsb' rcx=1 rdx=0x80 --data empty").exits(2).complains("empty has 0");
}

#[test]
fn standard_input_that_is_too_short_or_too_long() {
    let dir = Dir::new();
    let line = "--on bus:pc --record record exec 'rep outsb' rcx=3 rdx=0x80 --data -";
    for input in [b"" as &[u8], b"ab", b"abcd", &[0; 100_000]] {
        refused(&dir, dir.fed(line, input), "moves 3 bytes");
    }
}

#[test]
fn arguments_that_are_no_text() {
    let dir = Dir::new();
    let no_text = || OsString::from_vec(b"\xff\xfe".to_vec());
    for line in [
        &["in"] as &[&str],
        &["out", "0x80"],
        &["exec"],
        &["exec", "in al, dx"],
        &["smi", "send", "0x42"],
        &["vmware", "rpc"],
        &["decode"],
        &["man"],
        &["--on"],
        &["smi", "scan", "--log", "log", "--codes"],
        &[],
    ] {
        let words = ["--record", "record"].iter().chain(line).map(OsString::from).chain([no_text()]);
        let run = dir.run_words(words).exits(2);
        assert!(run.stderr.contains("error: "), "{run:#?}");
        assert_eq!(dir.files(), [""; 0]);
    }
}

#[test]
fn names_of_files_need_not_be_text() {
    let dir = Dir::new();
    let name = || OsString::from_vec(b"log\xff".to_vec());
    let word = OsString::from;
    let scan = || ["--on", "bus:pc", "smi", "scan", "--codes", "0x42", "--log"].into_iter().map(word).chain([name()]);
    dir.run_words(scan()).ok();
    dir.run_words(scan().chain([word("--resume"), word("--json")])).ok();
    dir.run_words([word("trace"), word("show"), name()]).ok();
    dir.run_words([word("trace"), word("show"), OsString::from_vec(b"\xff".to_vec())]).exits(1);
}

#[test]
fn arguments_that_are_very_long() {
    let dir = Dir::new();
    let long = "x".repeat(100_000);
    for line in [
        &["in"] as &[&str],
        &["out", "0x80"],
        &["exec"],
        &["exec", "in al, dx"],
        &["exec", "--hex"],
        &["smi", "send", "0x42"],
        &["listing", "--layout"],
        &["listing", "--quirk"],
        &["decode"],
        &["man"],
        &["--on"],
    ] {
        let run = dir.run_words(line.iter().copied().chain([&*long])).exits(2);
        assert!(run.stderr.contains("error: "), "{line:?}");
    }
    let digits = format!("0x{}", "1".repeat(100_000));
    dir.run_words(["in", &*digits]).exits(2);
    dir.run_words(["--on", "bus:pc", "vmware", "set", "key", &long[..60_000]]).ok();
}

#[test]
fn letters_of_another_alphabet() {
    all_refused(&[
        ("in 0x７１", "number"),
        ("out 0x80 １", "number"),
        ("exec --hex éd", "hexadecimal"),
        ("exec 'ïn al, dx'", "ïn"),
        ("smi send 0x42 rбx=1", "no such register"),
        ("smi scan --log log --codes 0x０１", "0x"),
    ]);
}

/// A message ends up in front of a person: one sentence, and how to find help.
#[test]
fn a_message_is_short() {
    let dir = Dir::new();
    for line in ["in 71", "smi send 12", "out 0x80 256", "exec 'out 0x80, al' rsp=1", "smi scan --codes 12 --log log"] {
        let run = dir.bus(line).exits(2);
        let message =
            run.stderr.lines().filter(|line| !line.is_empty() && !line.starts_with("For more information")).count();
        assert_eq!(message, 1, "{run:#?}");
    }
}
