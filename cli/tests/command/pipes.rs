//! Pipes that nobody reads, and disks that are full.

use std::fs::File;
use std::process::Stdio;

use ioemul::trace::Trace;

use crate::common::{Dir, words};

/// Runs a command whose standard output is a pipe that nobody reads any more. Returns the exit status and what it said to that.
fn unread(dir: &Dir, line: &str) -> (Option<i32>, String) {
    let (reader, writer) = rustix::pipe::pipe().unwrap();
    drop(reader);
    let mut command = dir.command();
    command.args(words(line)).stdout(Stdio::from(writer)).stderr(Stdio::piped());
    let output = command.spawn().unwrap().wait_with_output().unwrap();
    (output.status.code(), String::from_utf8(output.stderr).unwrap())
}

#[test]
fn a_closed_pipe_is_no_error() {
    let dir = Dir::new();
    dir.write("data", "abc");
    dir.bus("--record t smi send 0x42 rcx=1").ok();
    for line in [
        "in 0x71",
        "in 0x71 -n 100",
        "in 0x71 --json",
        "-q in 0x71",
        "ix 0x70:0x71 0",
        "cmos date",
        "cmos dump",
        "cmos dump --json",
        "exec 'in al, dx' rdx=0x71",
        "exec 'rep insb' rcx=100 rdx=0x80 --data -",
        "smi send 0x5a",
        "smi info",
        "smi count",
        "dell info",
        "dell call 0x10a3",
        "vmware info",
        "vmware get greeting",
        "vmware call 10",
        "trace show t",
        "trace stat t",
        "trace replay t -- smi send 0x42 rcx=1",
        "ports",
        "ports --json",
        "decode ed",
        "listing",
        "listing --quirk list",
        "completions bash",
        "man",
        "-n smi send 0x5a",
    ] {
        let (code, complaint) = unread(&dir, &format!("--on bus:pc {line}"));
        assert_eq!(code, Some(0), "{line}: {complaint}");
        let complaint: Vec<_> = complaint.lines().filter(|line| !line.starts_with("on ")).collect();
        let complaint: Vec<_> = complaint.into_iter().filter(|line| !line.contains("owners are not known")).collect();
        assert!(complaint.is_empty(), "{line}: {complaint:#?}");
    }
}

#[test]
fn help_into_a_closed_pipe_is_no_error() {
    let dir = Dir::new();
    for line in ["--help", "smi --help", "--version", "smi scan --help"] {
        assert_eq!(unread(&dir, line), (Some(0), String::new()), "{line}");
    }
}

/// What a failure is to say is lost, but not that it failed.
#[test]
fn a_failure_is_one_though_nobody_reads_of_it() {
    let dir = Dir::new();
    assert_eq!(unread(&dir, "--on bus:pc in 71 --json"), (Some(2), String::new()));
    assert_eq!(unread(&dir, "--on bus:pc smi send 0xf0 --json"), (Some(3), String::new()));
}

#[test]
fn a_scan_into_a_closed_pipe_can_be_resumed() {
    let dir = Dir::new();
    for json in ["", "--json"] {
        let _ = std::fs::remove_file(dir.path("l"));
        let (code, complaint) = unread(&dir, &format!("--on bus:pc smi scan --log l --codes 0x40-0x7f {json}"));
        assert_eq!(code, Some(0), "{complaint}");
        assert!(!complaint.contains("error"), "{complaint}");
        if dir.files().contains(&"l".to_owned()) {
            dir.bus("smi scan --log l --codes 0x40-0x7f --resume").ok().prints("64 sent");
        }
    }
}

#[test]
fn a_full_disk_stops_accesses_before_they_are_made() {
    let dir = Dir::new();
    for line in [
        "--record /dev/full in 0x71",
        "--record /dev/full smi send 0x42",
        "--record /dev/full smi scan --log l --codes 0x42",
        "--record /dev/full vmware get greeting",
    ] {
        let run = dir.bus(line).exits(1).complains("/dev/full");
        assert_eq!(run.stdout, "", "{run:#?}");
        let _ = std::fs::remove_file(dir.path("l"));
        dir.bus(&format!("{line} --json")).exits(1).error("io");
        let _ = std::fs::remove_file(dir.path("l"));
    }
    dir.bus("smi scan --log /dev/full").exits(2).complains("there already");
}

/// A disk that fills up while the scan is on its way.
#[test]
fn a_scan_stops_before_the_access_that_cannot_be_logged() {
    let dir = Dir::new();
    // 16 blocks of 512 bytes each, behind which a write is an error, not a signal.
    let script = "trap '' XFSZ; ulimit -f 16; exec \"$0\" --on bus:pc --json smi scan --log l --codes 0x40-0x7f";
    let mut command = std::process::Command::new("sh");
    command.current_dir(dir.path("")).args(["-c", script, env!("CARGO_BIN_EXE_ioemul")]);
    let run = dir.finish(&mut command, b"").exits(1);
    run.error("io");
    let sent = run.objects().len() - 1;
    assert!((1..63).contains(&sent), "{run:#?}");
    let shown = dir.run("trace show l --json").ok().objects();
    let logged = shown.iter().filter(|record| record["port"] == "0xb2").count();
    assert!(logged == sent || logged == sent + 1, "{logged} SMIs are in the log, and {sent} were sent");
    dir.bus("smi scan --log l --codes 0x40-0x7f --resume").ok().prints("64 sent");
}

#[test]
fn results_that_cannot_be_written_are_an_error() {
    let dir = Dir::new();
    for line in ["in 0x71", "cmos dump --json", "vmware get greeting"] {
        let full = File::options().write(true).open("/dev/full").unwrap();
        let mut command = dir.command();
        command.args(words(&format!("--on bus:pc {line}"))).stdout(full).stderr(Stdio::piped());
        let output = command.spawn().unwrap().wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(1), "{line}: {output:?}");
    }
}

#[test]
fn standard_streams_that_are_closed_are_no_trouble() {
    let dir = Dir::new();
    // What is opened next would be standard output, if nobody saw to it.
    let script = "exec \"$0\" --on bus:pc --record t in 0x71 <&- >&- 2>&-";
    let mut command = std::process::Command::new("sh");
    command.current_dir(dir.path("")).args(["-c", script, env!("CARGO_BIN_EXE_ioemul")]);
    assert_eq!(command.status().unwrap().code(), Some(0));
    dir.run("trace replay t -- in 0x71").ok();
}

#[test]
fn a_closed_pipe_hides_no_failure() {
    let dir = Dir::new();
    dir.bus("--record a in 0x80 -n 2").ok();
    dir.bus("--record b smi send 0x42").ok();
    for (line, code) in [
        ("exec 'in al, dx' rdx=0x80 --expect al=9", 5),
        ("smi send 0x42 --expect rbx=9", 5),
        ("smi send 0x42 --expect rbx=9 --json", 5),
        ("trace diff a b", 5),
        ("trace diff a b --json", 5),
        ("trace replay a -- in 0x80 -n 2", 5), // the second access was not made
        ("trace replay a -- in 0x80", 5),
        ("dell call 0x12a3", 1),
    ] {
        let (found, complaint) = unread(&dir, &format!("--on bus:pc {line}"));
        assert_eq!(found, Some(code), "{line}: {complaint}");
    }
}

/// How many accesses a recording has.
fn accesses(dir: &Dir, name: &str) -> usize {
    Trace::read(dir.read(name).as_bytes()).unwrap().records().len()
}

#[test]
fn a_closed_pipe_leaves_nothing_half_done() {
    let dir = Dir::new();
    for (line, all) in
        [("ix 0x70:0x71 0x10 5 --json", 2), ("cmos 0x10 5 --json", 2), ("smi scan --also-acpi --log l", 513)]
    {
        let (code, complaint) = unread(&dir, &format!("--on bus:pc --record t {line}"));
        assert_eq!(code, Some(0), "{line}: {complaint}");
        assert_eq!(accesses(&dir, "t"), all, "{line}");
    }
    let log = dir.read("l");
    let last = log.lines().rfind(|line| line.contains("\"out 0xb2, al\"")).unwrap();
    assert!(last.contains("\"rax\":\"0x10101010101010f0\""), "ACPI_ENABLE is not the last one: {last}");
}

#[test]
fn a_full_disk_is_said_also_where_objects_were_to_be_printed() {
    let dir = Dir::new();
    for (line, code) in [("--on bus:pc in 0x71 --json", 1), ("--on bus:pc in 71 --json", 2), ("--help", 1)] {
        let full = File::options().write(true).open("/dev/full").unwrap();
        let mut command = dir.command();
        command.args(words(line)).stdout(full).stderr(Stdio::piped());
        let output = command.spawn().unwrap().wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(code), "{line}");
        assert_eq!(output.stderr.starts_with(b"error: "), line != "--help", "{line}: {output:?}");
    }
}
