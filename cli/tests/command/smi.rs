//! `smi` on the device models.

use serde_json::{Value, json};

use crate::common::{Dir, write_fadt};

#[test]
fn an_smi_is_told_with_what_it_did() {
    let run = Dir::new().bus("smi send 0x5a rbx=1").ok();
    let first = run.stdout.lines().next().unwrap();
    assert!(first.starts_with("SMI 0x5a, data 0x00, port 0xb2 (FADT), on bus:pc: "), "{run:#?}");
    assert!(first.ends_with("SMI count +1, CF set"), "{run:#?}");
    assert!(run.stdout.contains("  rax 0x000000000000005a -> 0xffffffffffffffa5\n"), "{run:#?}");
    assert!(run.stdout.contains("  rbx 0x0000000000000001 -> 0xfffffffffffffffe\n"), "{run:#?}");
}

#[test]
fn what_did_not_change_is_counted() {
    Dir::new().bus("smi send 0x42 rcx=1").ok().prints("(14 registers unchanged)");
    Dir::new().bus("smi send 0x43").ok().prints("(15 registers unchanged)");
}

#[test]
fn the_data_byte_goes_to_the_status_port_before() {
    let dir = Dir::new();
    let object = dir.bus("--record t smi send 0x42 --data 0xa7 rbx=3 --json").ok().object();
    assert_eq!((&object["data_byte"], &object["code"]), (&"0xa7".into(), &"0x42".into()));
    let records = dir.run("trace show t --json").ok().objects();
    let (command, status) = records[1..].split_last().unwrap();
    assert_eq!(command["insn"], "out 0xb2, al");
    assert_eq!(command["before"], json!({ "rax": "0x42", "rbx": "0x3" }));
    // Twice, since the time of the second write is one to go by.
    assert_eq!(status.len(), 2);
    for record in status {
        assert_eq!(record["insn"], "out 0xb3, al");
        assert_eq!(record["before"], json!({ "rax": "0xa7", "rbx": "0x3" }));
    }
}

#[test]
fn each_way_to_settle_is_a_quirk_of_the_access() {
    let dir = Dir::new();
    for (settle, quirk) in [("0x84", "settle port"), ("read-back", "read back"), ("carry", "settle carry")] {
        dir.bus(&format!("smi send 0x42 rcx=1 --settle {settle} --expect rbx=1")).ok();
        let object = dir.bus(&format!("-n smi send 0x42 --settle {settle} --json")).ok().object();
        let found = object["accesses"][2]["quirk"].as_str().unwrap_or_else(|| panic!("{object}"));
        assert!(found.to_lowercase().replace('-', " ").contains(&quirk.replace('-', " ")), "{found}");
        assert_eq!(object["accesses"][0]["quirk"], Value::Null);
    }
    let object = dir.bus("-n smi send 0x42 --settle 0x84 --json").ok().object();
    assert_eq!(object["opens"]["write"], "0x84,0xb2-0xb3");
    let object = dir.bus("-n smi send 0x42 --settle read-back --json").ok().object();
    assert_eq!(object["opens"]["read"], "0xb2");
}

#[test]
fn an_expectation_of_an_smi_holds_or_is_exit_status_5() {
    let dir = Dir::new();
    dir.bus("smi send 0x5a --expect cf=1 --expect al=0xa5").ok();
    dir.bus("smi send 0x5a --expect cf=0").exits(5).complains("cf is 0x1");
}

#[test]
fn acpi_codes_are_refused_unless_they_are_meant() {
    let dir = Dir::new();
    for (code, name) in [("0xf0", "ACPI_ENABLE"), ("0xf1", "ACPI_DISABLE")] {
        dir.bus(&format!("--record t smi send {code}")).exits(3).complains(name).complains("--also-acpi");
        let error = dir.bus(&format!("smi send {code} --json")).exits(3).error("refused");
        assert_eq!((&error["interlock"], &error["code"]), (&"acpi".into(), &code.into()));
        assert_eq!(dir.files(), [""; 0]);
        dir.bus(&format!("smi send {code} --also-acpi")).ok();
    }
}

#[test]
fn the_port_and_the_codes_are_those_of_the_fadt_that_is_given() {
    let dir = Dir::new();
    write_fadt(&dir, 0x1b2);
    let object = dir.bus("--fadt fadt -n smi send 0x5a --json").ok().object();
    assert_eq!(object["opens"]["write"], "0x1b2-0x1b3");
    assert_eq!(object["accesses"][2]["insn"], "out dx, al");
    dir.bus("--fadt fadt smi send 0xf0").exits(3);
    let info = dir.bus("--fadt fadt smi info --json").ok().object();
    assert_eq!((&info["smi_port"], &info["port_source"]), (&"0x1b2".into(), &"fadt".into()));
}

#[test]
fn info_names_port_codes_and_counter() {
    let dir = Dir::new();
    let run = dir.bus("smi info").ok();
    for part in ["0xb2 (FADT)", "0xb3", "0xf0 ACPI_ENABLE", "0xf1 ACPI_DISABLE"] {
        assert!(run.stdout.contains(part), "{run:#?}");
    }
    let info = dir.bus("smi info --json").ok().object();
    assert_eq!(
        info["reserved"],
        json!([{ "code": "0xf0", "name": "ACPI_ENABLE" }, { "code": "0xf1", "name": "ACPI_DISABLE" }])
    );
}

#[test]
fn the_count_of_a_new_machine_is_0() {
    assert_eq!(Dir::new().bus("smi count").ok().stdout, "0\n");
    assert_eq!(Dir::new().bus("smi count --json").ok().object()["smi_count"], 0);
}

/// The codes and data bytes that a scan sent, by its log.
fn sent(dir: &Dir, log: &str) -> Vec<(u8, u8)> {
    let trace = ioemul::trace::Trace::read(dir.read(log).as_bytes()).unwrap();
    let (mut sent, mut data) = (Vec::new(), None);
    for record in trace.records() {
        match (record.port(), record.before.rax as u8) {
            (0xb3, byte) => data = Some(byte),
            (port, code) => {
                assert_eq!(port, 0xb2);
                sent.push((code, data.take().expect("the data byte comes first")));
            }
        }
    }
    sent
}

#[test]
fn a_scan_sends_every_code_but_acpis() {
    let dir = Dir::new();
    let run = dir.bus("smi scan --log l").ok();
    assert_eq!(
        sent(&dir, "l"),
        (0..=0xff).filter(|code| ![0xf0, 0xf1].contains(code)).map(|code| (code, 0)).collect::<Vec<_>>()
    );
    let rows: Vec<_> =
        run.stdout.lines().filter_map(|line| line.split(' ').next().filter(|word| word.starts_with("0x"))).collect();
    assert_eq!(rows, ["0x42", "0x5a", "0xa3"]);
    run.prints("254 sent, 3 changed registers or flags: 0x42, 0x5a, 0xa3")
        .prints("skipped: 0xf0 ACPI_ENABLE, 0xf1 ACPI_DISABLE (--also-acpi sends them)");
}

#[test]
fn acpi_enable_is_the_last_code_of_a_scan_that_sends_it() {
    let dir = Dir::new();
    let run = dir.bus("smi scan --log l --also-acpi --codes 0xef-0xf3 --json").ok();
    let codes: Vec<_> = sent(&dir, "l").iter().map(|(code, _)| *code).collect();
    assert_eq!(codes, [0xef, 0xf2, 0xf3, 0xf1, 0xf0]);
    assert_eq!(run.objects().pop().unwrap()["scan"]["skipped"], json!([]));
}

/// ACPI is on before the scan, and one of the codes may have turned it off.
#[test]
fn acpi_enable_is_sent_last_even_if_it_is_not_among_the_codes() {
    let dir = Dir::new();
    dir.bus("smi scan --log l --also-acpi --codes 0xf1 --data 0x00-0x01").ok();
    assert_eq!(sent(&dir, "l").last().unwrap().0, 0xf0);
}

#[test]
fn each_code_is_sent_with_each_data_byte() {
    let dir = Dir::new();
    let run = dir.bus("smi scan --log l --codes 0x41-0x42,0x99 --data 0x00,0xff --json").ok();
    assert_eq!(sent(&dir, "l"), [(0x41, 0), (0x41, 0xff), (0x42, 0), (0x42, 0xff), (0x99, 0), (0x99, 0xff)]);
    let objects = run.objects();
    assert_eq!(objects.len(), 6 + 1);
    assert_eq!((&objects[3]["code"], &objects[3]["data_byte"]), (&"0x42".into(), &"0xff".into()));
    assert_eq!(objects[6]["scan"]["answered"], json!(["0x42"]));
    assert_eq!(objects[6]["scan"]["sent"], 6);
}

#[test]
fn registers_are_filled_as_is_said() {
    let dir = Dir::new();
    let before = |line: &str| -> Value {
        let _ = std::fs::remove_file(dir.path("l"));
        dir.bus(&format!("smi scan --log l --codes 0x41 {line} --json")).ok().objects()[0]["before"].clone()
    };
    assert_eq!(before("--fill zero"), json!({ "rax": "0x41" }));
    assert_eq!(before("--fill zero rbx=7"), json!({ "rax": "0x41", "rbx": "0x7" }));
    let recognizable = before("");
    let values: std::collections::BTreeSet<_> =
        recognizable.as_object().unwrap().values().map(Value::to_string).collect();
    assert_eq!(values.len(), 15, "each register is known by its value: {recognizable}");
    assert_eq!(before("--fill random:1"), before("--fill random:0x1"));
    assert_ne!(before("--fill random:1"), before("--fill random:2"));
}

#[test]
fn a_quiet_scan_prints_nothing() {
    let run = Dir::new().bus("-q smi scan --log l --codes 0x42").ok();
    assert_eq!(run.stderr, "");
}

#[test]
fn the_command_port_is_none_to_settle_at() {
    let dir = Dir::new();
    dir.bus("smi send 0x5a --settle 0xb2").exits(2).complains("another code");
    dir.bus("smi send 0x5a --settle 0xb3").ok();
}
