//! The shell lines of the command's specification that need no privilege.

use serde_json::json;

use crate::common::Dir;

#[test]
fn a_port_is_read() {
    let run = Dir::new().bus("in 0x71").ok();
    assert!(run.says().strip_prefix("0x").is_some_and(|digits| u8::from_str_radix(digits, 16).is_ok()), "{run:#?}");
}

#[test]
fn the_clock_is_read() {
    let run = Dir::new().bus("cmos date").ok();
    assert!(run.says().parse::<jiff::civil::DateTime>().is_ok(), "{run:#?}");
}

#[test]
fn an_smi_says_which_register_changed() {
    let run = Dir::new().bus("smi send 0x42 rcx=0x10 --json").ok();
    assert_eq!(run.object()["changed"], json!(["rbx"]));
    assert_eq!(run.object()["after"], json!({ "rbx": "0x10" }));
}

#[test]
fn a_code_without_its_prefix_is_refused_with_both_readings() {
    Dir::new().bus("smi send 12").exits(2).complains("say 0x12 or 0xc");
}

#[test]
fn the_stack_pointer_is_refused_with_the_reason() {
    Dir::new().bus("smi send 0x42 rsp=1").exits(2).complains("signals");
}

#[test]
fn a_code_is_one_byte() {
    Dir::new().bus("smi send 0x100").exits(2).complains("0x00 to 0xff");
}

#[test]
fn the_backdoor_answers_with_its_magic_number() {
    let line = "exec 'in eax, dx' rax=0x564d5868 rcx=10 rdx=0x5658 --expect ebx=0x564d5868";
    Dir::new().bus(line).ok().prints("rbx 0x0000000000000000 -> 0x00000000564d5868");
}

#[test]
fn bytes_of_16_bit_code_are_executed() {
    let run = Dir::new().bus("exec --hex ef --mode 16 rdx=0xe0 --json").ok();
    assert_eq!(run.object()["insn"], "out dx, ax");
}

#[test]
fn a_guestinfo_variable_is_read() {
    assert_eq!(Dir::new().bus("vmware get greeting").ok().stdout, "hello\n");
}

#[test]
fn a_scan_is_recorded_and_replayed_and_an_edited_register_is_found() {
    let dir = Dir::new();
    dir.bus("--record t smi scan --log l").ok();
    dir.run("trace replay t -- smi scan --log l2").ok();
    assert_eq!(dir.read("l2").lines().filter(|line| line.contains("about_to")).count(), 1 + 2 * 254);
    let edited = dir.read("t").replacen("\"rbx\":\"0x1111111111111111\"", "\"rbx\":\"0x1111111111111112\"", 1);
    dir.write("t", edited);
    dir.run("trace replay t -- smi scan --log l3").exits(5).complains("rbx = 0x1111111111111112");
}
