//! `dell`.

use serde_json::json;

use crate::common::{Dir, NO_CPU, write_fadt};

/// A recording in which both signature calls are answered by these registers, and no other call is there.
fn unsigned(after: &str) -> String {
    let mut text = "{\"ioemul-trace\":2}\n".to_owned();
    for ax in ["0xfea3", "0xffa3"] {
        text += &format!("{{\"insn\":\"out 0xb2, al\",\"before\":{{\"rax\":\"{ax}\"}},\"after\":{{{after}}}}}\n");
    }
    text + "{\"records\":2}\n"
}

/// A recording of a call with the signature before it.
fn answered(ax: &str, after: &str) -> String {
    format!(
        "{{\"ioemul-trace\":2}}\n\
         {{\"insn\":\"out 0xb2, al\",\"before\":{{\"rax\":\"0xfea3\"}},\"after\":{{\"rax\":\"0x44494147\",\"rdx\":\"0x44454c4c\"}}}}\n\
         {{\"insn\":\"out 0xb2, al\",\"before\":{{\"rax\":\"{ax}\"}},\"after\":{{{after}}}}}\n\
         {{\"records\":2}}\n"
    )
}

#[test]
fn info_shows_fans_and_temperatures() {
    let dir = Dir::new();
    dir.bus("dell info").ok().prints("fan 1     state 2, 2700 rpm").prints("sensor 1  52 °C");
    let info = dir.bus("dell info --json").ok().object();
    assert_eq!(info["signature"], "0xfea3");
    assert_eq!(info["fans"], json!([{ "fan": 0, "state": 2, "rpm": 2400 }, { "fan": 1, "state": 2, "rpm": 2700 }]));
    assert_eq!(info["temperatures"], json!([{ "sensor": 0, "celsius": 45 }, { "sensor": 1, "celsius": 52 }]));
}

#[test]
fn a_call_is_made_behind_the_signature() {
    let dir = Dir::new();
    let object = dir.bus("--record t dell call 0x10a3 ebx=1 --json").ok().object();
    assert_eq!(object["after"]["rax"], "0x34");
    let calls: Vec<_> = dir
        .run("trace show t --json")
        .ok()
        .objects()
        .drain(1..)
        .map(|record| record["before"]["rax"].clone())
        .collect();
    assert_eq!(calls, ["0xfea3", "0x10a3"]);
}

#[test]
fn carry_is_a_failure() {
    let dir = Dir::new();
    let error = dir.bus("dell call 0x12a3 --json").exits(1).error("device");
    assert_eq!(error["why"], "CF is set");
    dir.bus("dell call 0x10a3 ebx=9").exits(1).complains("0x10a3");
}

#[test]
fn each_rule_of_failure_is_applied() {
    let dir = Dir::new();
    for (after, why) in [
        ("\"rflags\":\"0x1\",\"rax\":\"0x5\"", "CF is set"),
        ("\"rax\":\"0xffff\"", "AX is 0xffff"),
        ("\"rax\":\"0x1234ffff\"", "AX is 0xffff"),
        ("", "EAX is as it was"),
    ] {
        dir.write("t", answered("0x10a3", after));
        assert_eq!(dir.run("--on trace:t dell call 0x10a3 --json").exits(1).error("device")["why"], why);
    }
    dir.write("t", answered("0x10a3", "\"rax\":\"0x33\""));
    dir.run("--on trace:t dell call 0x10a3").ok();
}

#[test]
fn without_the_signature_nothing_more_is_asked() {
    let dir = Dir::new();
    for after in
        ["", "\"rax\":\"0x44494147\"", "\"rdx\":\"0x44454c4c\"", "\"rax\":\"0xffffffff\",\"rdx\":\"0xffffffff\""]
    {
        dir.write("t", unsigned(after));
        dir.run("--on trace:t dell info").exits(1).complains("no Dell SMM firmware");
        dir.run("--on trace:t dell call 0x10a3 --json").exits(1).error("no_answer");
    }
}

#[test]
fn the_second_signature_is_enough() {
    let dir = Dir::new();
    let text = unsigned("").replacen(
        "0xffa3\"},\"after\":{}",
        "0xffa3\"},\"after\":{\"rax\":\"0x44494147\",\"rdx\":\"0x44454c4c\"}",
        1,
    );
    let call =
        "{\"insn\":\"out 0xb2, al\",\"before\":{\"rax\":\"0x10a3\"},\"after\":{\"rax\":\"0x21\"}}\n{\"records\":3}";
    dir.write("t", text.replace("{\"records\":2}", call));
    assert_eq!(dir.run("--on trace:t dell call 0x10a3 --json").ok().object()["after"]["rax"], "0x21");
}

#[test]
fn a_function_that_is_an_acpi_code_is_refused() {
    let dir = Dir::new();
    for function in ["0x00f0", "0x00f1", "0xa3f1"] {
        let error = dir.bus(&format!("dell call {function} --json")).exits(3).error("refused");
        assert_eq!(error["interlock"], "acpi");
    }
    write_fadt(&dir, 0xb2);
    dir.run(&format!("{NO_CPU}--yes --fadt fadt dell call 0x00f1")).exits(3).complains("ACPI_DISABLE");
    // Where nobody knows which codes are ACPI's, only the usual one goes on.
    dir.run(&format!("{NO_CPU}--yes --fadt none dell call 0x0025")).exits(1).complains("none");
}
