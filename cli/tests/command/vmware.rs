//! `vmware`.

use crate::common::Dir;

#[test]
fn info_says_who_the_host_is() {
    let dir = Dir::new();
    let info = dir.bus("vmware info --json").ok().object();
    assert_eq!((&info["version"], &info["memory_mib"]), (&6.into(), &1024.into()));
    dir.bus("vmware info").ok().prints("version           6\n").prints("memory, MiB       1024\n");
}

#[test]
fn a_request_is_answered_with_its_status() {
    let dir = Dir::new();
    assert_eq!(dir.bus("vmware rpc 'info-get guestinfo.greeting'").ok().stdout, "1 hello\n");
    assert_eq!(dir.bus("vmware rpc nonsense").ok().stdout, "0 Unknown command\n");
    let object = dir.bus("vmware rpc nonsense --json").ok().object();
    assert_eq!(object["reply"], "0 Unknown command");
}

#[test]
fn a_variable_is_read_by_its_short_and_its_long_name() {
    let dir = Dir::new();
    assert_eq!(dir.bus("vmware get greeting").ok().stdout, "hello\n");
    assert_eq!(dir.bus("vmware get guestinfo.greeting").ok().stdout, "hello\n");
    assert_eq!(dir.bus("vmware get greeting --json").ok().object()["reply"], "hello");
}

#[test]
fn a_variable_that_is_not_there_is_the_hosts_refusal() {
    let dir = Dir::new();
    dir.bus("vmware get nothing").exits(1).complains("No value found");
    assert_eq!(dir.bus("vmware get nothing --json").exits(1).error("device")["reply"], "No value found");
}

#[test]
fn a_variable_is_set_with_any_value() {
    let dir = Dir::new();
    for value in ["x", "two words", "", "a=b", "ünï"] {
        let run = dir.bus(&format!("vmware set key '{value}'"));
        assert_eq!(run.ok().stdout, "", "{value}");
    }
    assert_eq!(dir.bus("vmware set key 'a b' --json").ok().object()["request"], "info-set guestinfo.key a b");
}

#[test]
fn a_call_has_its_magic_number_command_and_port() {
    let dir = Dir::new();
    let object = dir.bus("vmware call 10 --json").ok().object();
    assert_eq!((&object["after"]["rbx"], &object["port"]), (&"0x564d5868".into(), &"0x5658".into()));
    dir.bus("vmware call 20").ok().prints("rax 0x00000000564d5868 -> 0x0000000000000400");
    dir.bus("vmware call 10 eax=1").exits(2).complains("magic");
    dir.bus("vmware call 10 ecx=0x1000a").ok();
    dir.bus("vmware call 10 ecx=0xb").exits(2).complains("CX holds the command");
}

#[test]
fn nobody_behind_the_port_is_said_so() {
    let dir = Dir::new();
    dir.write(
        "t",
        "{\"ioemul-trace\":2}\n{\"insn\":\"in eax, dx\",\"before\":{\"rax\":\"0x564d5868\",\"rcx\":\"0xa\",\"rdx\":\"0x5658\"},\
         \"after\":{\"rax\":\"0xffffffff\"}}\n{\"records\":1}\n",
    );
    for line in ["info", "rpc x", "get x", "set x y", "call 1"] {
        dir.run(&format!("--on trace:t vmware {line} --json")).exits(1).error("no_answer");
    }
}
