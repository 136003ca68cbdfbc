//! `exec`.

use serde_json::json;

use crate::common::{Dir, words};

#[test]
fn all_registers_and_flags_are_in_view() {
    let names = ["rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rbp", "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15"];
    let registers: String =
        names.iter().enumerate().map(|(at, name)| format!(" {name}={:#x}", (at + 1) * 0x1111)).collect();
    let object = Dir::new().bus(&format!("exec 'out 0x80, al' cf=1 zf=1 {registers} --json")).ok().object();
    for (at, name) in names.iter().enumerate() {
        assert_eq!(object["before"][name], format!("{:#x}", (at + 1) * 0x1111));
    }
    assert_eq!((&object["before"]["rflags"], &object["cf"]), (&"0x41".into(), &true.into()));
    assert_eq!(object["changed"], json!([]));
}

#[test]
fn parts_of_a_register_that_do_not_overlap_go_together() {
    let object = Dir::new().bus("exec 'out 0x80, al' al=1 ah=2 bx=0x1234 r8d=5 SIL=6 --json").ok().object();
    assert_eq!(object["before"], json!({ "rax": "0x201", "rbx": "0x1234", "rsi": "0x6", "r8": "0x5" }));
}

#[test]
fn the_instruction_is_read_in_any_case() {
    assert_eq!(Dir::new().bus("exec 'IN AL, 0x71' --json").ok().object()["insn"], "in al, 0x71");
}

#[test]
fn bytes_are_decoded_in_each_mode() {
    let dir = Dir::new();
    for (hex, mode, insn) in [
        ("ef", "16", "out dx, ax"),
        ("66ef", "16", "out dx, eax"),
        ("ef", "32", "out dx, eax"),
        ("66ef", "64", "out dx, ax"),
        ("'66 ef'", "64", "out dx, ax"),
        ("e680", "64", "out 0x80, al"),
    ] {
        let object = dir.bus(&format!("exec --hex {hex} --mode {mode} rdx=0x100 --json")).ok().object();
        assert_eq!(object["insn"], insn, "{hex} in {mode} bits");
    }
}

#[test]
fn ins_fills_a_file_or_standard_output() {
    let dir = Dir::new();
    let line = "exec 'rep insb' rcx=5 rdx=0x100";
    dir.bus(&format!("{line} --data bytes")).ok();
    assert_eq!(std::fs::read(dir.path("bytes")).unwrap(), [0xff; 5]);
    let object = dir.bus(&format!("{line} --data bytes --json")).ok().object();
    assert_eq!(object["data"], "ffffffffff");
    let object = dir.bus(&format!("{line} --data - --json")).ok().object();
    assert_eq!((&object["data"], object.get("value")), (&"ffffffffff".into(), None));
}

#[test]
fn data_on_standard_output_is_alone_there() {
    let dir = Dir::new();
    // The last POST code: none yet.
    let output = dir.command().args(words("--on bus:pc exec 'rep insb' rcx=5 rdx=0x80 --data -")).output().unwrap();
    assert_eq!((output.status.code(), &*output.stdout), (Some(0), &[0_u8; 5][..]));
}

#[test]
fn outs_takes_a_file_or_standard_input() {
    let dir = Dir::new();
    dir.write("bytes", [1, 2, 3, 4]);
    let object = dir.bus("exec 'rep outsw' rcx=2 rdx=0x80 --data bytes --json").ok().object();
    assert_eq!(object["data"], "01020304");
    let run = dir.fed("--on bus:pc exec 'rep outsb' rcx=3 rdx=0x80 --data - --json", b"abc").ok();
    assert_eq!(run.object()["data"], "616263");
    let run = dir.fed("--on bus:pc exec outsb rdx=0x80 --data - --json", b"z").ok();
    assert_eq!(run.object()["data"], "7a");
}

#[test]
fn the_count_has_to_fit_the_data() {
    let dir = Dir::new();
    dir.write("bytes", [1, 2, 3, 4]);
    dir.bus("--record t exec 'rep outsw' rcx=3 rdx=0x80 --data bytes").exits(2).complains("moves 6 bytes");
    dir.bus("--record t exec 'rep outsb' rcx=3 rdx=0x80 --data bytes").exits(2).complains("bytes has 4");
    dir.bus("--record t exec 'rep insb' rcx=0xffffffffffffffff rdx=0x80 --data x").exits(2).complains("16 MiB");
    assert_eq!(dir.files(), ["bytes"]);
}

/// What cannot be stored is not read in the first place: to read it may have been what mattered.
#[test]
fn ins_is_not_executed_if_there_is_no_place_for_its_data() {
    let dir = Dir::new();
    dir.bus("--record t exec 'rep insb' rcx=5 rdx=0x71 --data no/such/place").exits(1).complains("no/such/place");
    assert_eq!(dir.run("trace show t --json").ok().objects().len(), 1, "nothing but the header");
}

#[test]
fn an_expectation_holds_or_is_exit_status_5() {
    let dir = Dir::new();
    let call = "exec 'in eax, dx' rax=0x564d5868 rcx=10 rdx=0x5658";
    dir.bus(&format!("{call} --expect eax=6 --expect rbx=0x564d5868 --expect bl=0x68 --expect cf=0")).ok();
    dir.bus(&format!("{call} --expect rbx=0x5800/0xff00")).ok();
    dir.bus(&format!("{call} --expect eax=7")).exits(5).complains("eax is 0x6, and 0x7 was expected").prints("rbx");
    let run = dir.bus(&format!("{call} --expect eax=7 --expect bl=0x60/0xf0 --expect bh=1/1 --json")).exits(5);
    let unmet = &run.error("expectation")["unmet"];
    assert_eq!(unmet.as_array().unwrap().len(), 2, "{unmet}");
    assert_eq!(run.objects()[0]["insn"], "in eax, dx");
}

#[test]
fn an_access_past_the_last_port_is_refused_on_every_backend() {
    let dir = Dir::new();
    dir.write("data", [0; 4]);
    for access in [
        "exec 'in eax, dx' rdx=0xffff",
        "exec 'out dx, eax' rdx=0xfffd",
        "exec 'in ax, dx' rdx=0xffff",
        "exec outsd rdx=0xffff --data data",
    ] {
        for place in ["--on bus:pc", "-n", "--yes"] {
            dir.run(&format!("{place} {access}")).exits(2).complains("past the last port");
        }
    }
    dir.bus("exec 'in eax, dx' rdx=0xfffc").ok();
}

#[test]
fn data_goes_over_no_trace_and_over_no_file_if_nothing_was_read() {
    let dir = Dir::new();
    dir.bus("--record t in 0x81").ok();
    let trace = dir.read("t");
    dir.run("--on trace:t exec insb rdx=0x80 --data t").exits(2).complains("that is the trace");
    dir.bus("--record t exec insb rdx=0x80 --data ./t").exits(2).complains("that is the trace");
    dir.bus("--record new exec insb rdx=0x80 --data ./new").exits(2).complains("that is the trace");
    assert_eq!(dir.read("t"), trace);
    dir.write("data", "precious");
    dir.run("--on trace:t exec insb rdx=0x80 --data data").exits(5);
    assert_eq!(dir.read("data"), "precious");
}

/// An instruction that was not quoted is as good as one that was.
#[test]
fn a_shell_may_have_taken_the_instruction_apart() {
    let dir = Dir::new();
    let object = dir.bus("exec in eax, dx rax=0x564d5868 rcx=10 rdx=0x5658 --json").ok().object();
    assert_eq!((&object["insn"], &object["value"]), (&"in eax, dx".into(), &"0x6".into()));
}

/// Bits of RFLAGS that never reach the CPU are not taken for given.
#[test]
fn of_rflags_only_the_status_flags_are_given() {
    let dir = Dir::new();
    dir.bus("exec 'in al, 0x71' rflags=0x2d5").exits(2).complains("0xd5");
    dir.bus("exec 'in al, 0x71' rflags=0x8d5").ok();
}
