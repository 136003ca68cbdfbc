//! What is refused on the hardware, and what permits it. Every command line here names a CPU that is not there, so that behind the
//! last interlock it ends in exit status 2 in place of an access; and if that did not hold, what is written would do no harm.

use crate::common::{Dir, NO_CPU, Run, words, write_fadt};
use crate::terminal::on_terminal;

/// Runs a command line that has no access to make.
#[track_caller]
fn hardware(dir: &Dir, line: &str) -> Run {
    dir.run(&format!("--on hardware {NO_CPU} {line}"))
}

/// It was refused by the interlock of this name.
#[track_caller]
fn refused(dir: &Dir, line: &str, interlock: &str) -> String {
    let error = hardware(dir, &format!("--json {line}")).exits(3).error("refused");
    assert_eq!(error["interlock"], interlock, "{error}");
    hardware(dir, line).exits(3);
    error["message"].as_str().unwrap().to_owned()
}

/// It got past every interlock.
#[track_caller]
fn passes(dir: &Dir, line: &str) {
    hardware(dir, &format!("--json {line}")).exits(2).error("no_such_cpu");
}

/// Whether the machine says which drivers have which ports; only then is its own owner of a port no obstacle.
fn free_of_drivers(dir: &Dir, ports: &str) -> String {
    let rows = dir.run(&format!("ports {ports} --json")).objects();
    let is_busy = rows.iter().any(|row| row["is_driver"] == true);
    if is_busy { format!("--allow-busy {ports}") } else { String::new() }
}

#[test]
fn a_write_to_a_hazardous_port_is_refused_with_its_reason() {
    let dir = Dir::new();
    write_fadt(&dir, 0xb2);
    let message = refused(&dir, "out 0xcf9 0 --yes", "hazard");
    assert!(message.contains("reset control: writing 0x06 resets the machine"), "{message}");
    assert!(message.contains("--allow-hazard 0xcf9"), "{message}");
    refused(&dir, "out 0xcf9 0", "hazard");
    refused(&dir, "out 0xcf8.w 0 --yes --allow-hazard 0xcf8", "hazard");
    refused(&dir, "exec 'out dx, al' dx=0xcf9 --yes", "hazard");
    refused(&dir, "ix 0x2e:0x2f 0 0 --yes", "hazard");
    refused(&dir, "ix 0x2e:0x2f 0 --yes", "hazard");
    refused(&dir, "smi send 0x5a --yes --fadt fadt --settle 0x61", "hazard");
    refused(&dir, "cmos 0x40 0 --yes", "hazard");
}

#[test]
fn a_hazard_is_permitted_by_its_port_and_by_no_other() {
    let dir = Dir::new();
    let busy = free_of_drivers(&dir, "0xcf9");
    refused(&dir, "out 0xcf9 0 --yes --allow-hazard 0xcf8", "hazard");
    passes(&dir, &format!("out 0xcf9 0 --yes --allow-hazard 0xcf9 {busy}"));
    passes(&dir, &format!("out 0xcf9 0 --yes --allow-hazard 0x2e --allow-hazard 0xcf9 {busy}"));
    // Permission is not confirmation.
    refused(&dir, &format!("out 0xcf9 0 --allow-hazard 0xcf9 {busy}"), "confirmation");
}

#[test]
fn reading_is_refused_where_it_acts() {
    let dir = Dir::new();
    refused(&dir, "in 0x60", "hazard");
    refused(&dir, "exec 'in al, dx' dx=0x60", "hazard");
    passes(&dir, "in 0x60 --allow-hazard 0x60");
    passes(&dir, "in 0xcf9");
    passes(&dir, "in 0x71");
}

#[test]
fn what_a_command_is_made_for_is_no_hazard_to_it() {
    let dir = Dir::new();
    let busy = free_of_drivers(&dir, "0x70-0x71");
    passes(&dir, &format!("cmos date {busy}"));
    passes(&dir, &format!("cmos dump {busy}"));
    passes(&dir, "vmware info");
}

#[test]
fn a_port_that_a_driver_has_is_not_written() {
    let dir = Dir::new();
    let rows = dir.run("ports --json").objects();
    let Some(row) = rows.iter().find(|row| row["is_driver"] == true && row["hazard"].is_null()) else {
        eprintln!("skipped: no driver of this machine has a port without hazard, or nobody says so");
        return;
    };
    let port = row["ports"].as_str().unwrap().split('-').next().unwrap();
    let message = refused(&dir, &format!("out {port} 0 --yes"), "busy");
    assert!(message.contains(row["owner"].as_str().unwrap()) && message.contains("/proc/ioports"), "{message}");
    refused(&dir, &format!("exec 'out dx, al' dx={port} --yes"), "busy");
    refused(&dir, &format!("out {port} 0 --yes --allow-busy 0x1"), "busy");
    passes(&dir, &format!("out {port} 0 --yes --allow-busy {port}"));
    passes(&dir, &format!("in {port}"));
}

/// Commands that write, and what they need besides `--yes`.
fn writes(dir: &Dir) -> Vec<String> {
    write_fadt(dir, 0xb2);
    let smi = free_of_drivers(dir, "0xb2-0xb3");
    let post = free_of_drivers(dir, "0x80");
    vec![
        format!("out 0x80 0 {post}"),
        format!("exec 'out 0x80, al' {post}"),
        format!("exec --hex ee rdx=0x80 {post}"),
        format!("ix 0x80:0x80 0 {post}"),
        format!("cmos 0x40 0 --allow-hazard 0x71 {}", free_of_drivers(dir, "0x70-0x71")),
        format!("smi send 0x5a --fadt fadt {smi}"),
        format!("dell info {smi}"),
        format!("dell call 0x10a3 {smi}"),
    ]
}

#[test]
fn without_a_terminal_a_write_is_confirmed_beforehand() {
    let dir = Dir::new();
    for line in writes(&dir) {
        let message = refused(&dir, &line, "confirmation");
        assert!(message.contains("--yes"), "{message}");
        passes(&dir, &format!("{line} --yes"));
        passes(&dir, &format!("{line} -y"));
    }
}

#[test]
fn nobody_is_asked_on_device_models_or_on_a_trace() {
    let dir = Dir::new();
    dir.bus("--record t smi send 0x5a").ok();
    dir.run("trace replay t -- smi send 0x5a").ok();
    dir.bus("out 0xcf9 6").ok();
}

#[test]
fn on_a_terminal_the_whole_access_is_shown_and_asked_for() {
    let dir = Dir::new();
    write_fadt(&dir, 0xb2);
    let busy = free_of_drivers(&dir, "0xb2-0xb3");
    let line = format!("--on hardware {NO_CPU} --fadt fadt {busy} smi send 0x5a rbx=0x1234 --data 0x77");
    for (answer, status) in
        [("n\n", 3), ("\n", 3), ("no\n", 3), ("yy\n", 3), ("\x04", 3), ("y\n", 2), ("Y\n", 2), ("yes\n", 2)]
    {
        let (code, shown) = on_terminal(dir.command().args(words(&line)), 120, answer);
        assert_eq!(code, Some(status), "{answer:?}: {shown}");
        for part in ["SMI 0x5a", "port 0xb2", "out 0xb2, al", "rbx=0x1234", "rax=0x77", "rax=0x5a", "Do it? [y/N]"] {
            assert!(shown.contains(part), "{part:?} is not in {shown}");
        }
        assert_eq!(shown.contains("not confirmed"), status == 3, "{shown}");
        let name =
            std::fs::read_to_string("/sys/class/dmi/id/product_name").unwrap_or("without DMI strings".to_owned());
        assert!(shown.contains(&format!("{}\n", name.trim())), "{name:?} is not in {shown}");
    }
}

#[test]
fn of_a_scan_the_question_names_codes_data_and_registers() {
    let dir = Dir::new();
    write_fadt(&dir, 0xb2);
    let busy = free_of_drivers(&dir, "0xb2-0xb3");
    let host = std::fs::read_to_string("/sys/class/dmi/id/product_name").unwrap_or_default();
    let line = format!(
        "--on hardware {NO_CPU} --fadt fadt {busy} --host '{}' smi scan --log l --codes 0x40-0x4f rbx=7 --fill random:5",
        host.trim()
    );
    let (code, shown) = on_terminal(dir.command().args(words(&line)), 120, "n\n");
    assert_eq!(code, Some(3), "{shown}");
    assert!(shown.contains("scan of 16 SMIs"), "{shown}");
    assert!(shown.contains("codes 0x40-0x4f; data 0x0; registers: rbx=7, the others random:0x5"), "{shown}");
    assert_eq!(dir.files(), ["fadt"]);
}

/// A question that nobody sees is none, and neither is one to which something else than a person answers.
#[test]
fn what_is_not_a_terminal_at_both_ends_is_not_asked() {
    let dir = Dir::new();
    let line = format!("--on hardware {NO_CPU} out 0x80 0 {}", free_of_drivers(&dir, "0x80"));
    let run = dir.fed(&line, b"y\n").exits(3).complains("--yes");
    assert!(!run.stderr.contains("Do it?"), "{run:#?}");
}

#[test]
fn yes_asks_nothing_on_a_terminal() {
    let dir = Dir::new();
    let line = format!("--on hardware {NO_CPU} out 0x80 0 --yes {}", free_of_drivers(&dir, "0x80"));
    let (code, shown) = on_terminal(dir.command().args(words(&line)), 80, "");
    assert_eq!(code, Some(2), "{shown}");
    assert!(!shown.contains("Do it?"), "{shown}");
}

#[test]
fn a_scan_of_a_real_machine_wants_its_name() {
    let dir = Dir::new();
    write_fadt(&dir, 0xb2);
    let line = format!("smi scan --fadt fadt --log l --codes 0x41 --yes {}", free_of_drivers(&dir, "0xb2-0xb3"));
    let flags = std::fs::read_to_string("/proc/cpuinfo").unwrap();
    if flags.split_ascii_whitespace().any(|flag| flag == "hypervisor") {
        passes(&dir, &line);
        refused(&dir, &line.replace("--yes", ""), "confirmation");
    } else {
        refused(&dir, &line, "host");
        refused(&dir, &format!("{line} --host nonsense"), "host");
        let name = std::fs::read_to_string("/sys/class/dmi/id/product_name").unwrap_or_default();
        passes(&dir, &format!("{line} --host '{}'", name.trim()));
    }
    assert_eq!(dir.files(), ["fadt"], "the log is begun when nothing stands in the way any more");
}

#[test]
fn acpis_codes_are_refused_before_anybody_is_asked() {
    let dir = Dir::new();
    write_fadt(&dir, 0xb2);
    let busy = free_of_drivers(&dir, "0xb2-0xb3");
    refused(&dir, "smi send 0xf1 --fadt fadt --yes", "acpi");
    passes(&dir, &format!("smi send 0xf1 --fadt fadt --yes --also-acpi {busy}"));
}

#[test]
fn without_an_smi_port_nothing_is_sent() {
    let dir = Dir::new();
    write_fadt(&dir, 0);
    for line in ["smi send 0x5a --yes", "smi scan --log l --yes", "smi info"] {
        refused(&dir, &format!("{line} --fadt fadt"), "fadt");
    }
    assert_eq!(dir.files(), ["fadt"]);
}

#[test]
fn a_table_that_is_no_fadt_is_an_error() {
    let dir = Dir::new();
    let mut table = ioemul::Fadt::new(0xb2, 0xf0, 0xf1).to_table();
    table[48] ^= 1;
    dir.write("sum", table);
    dir.write("short", &table[..60]);
    dir.write("empty", "");
    for name in ["sum", "short", "empty", "nothing", "."] {
        let run = hardware(&dir, &format!("smi send 0x5a --yes --fadt {name}"));
        assert!(matches!(run.code, Some(1..=3)), "{run:#?}");
        run.complains(name);
    }
}

#[test]
fn nothing_is_recorded_of_what_is_refused() {
    let dir = Dir::new();
    for line in writes(&dir) {
        refused(&dir, &format!("--record t {line}"), "confirmation");
        passes(&dir, &format!("--record t {line} --yes"));
    }
    assert_eq!(dir.files(), ["fadt"]);
}

#[test]
fn a_fadt_does_not_make_the_smi_port_its_status_port() {
    let dir = Dir::new();
    write_fadt(&dir, 0xb1);
    // The data, which nobody has held against ACPI's codes, would be written to 0xb2.
    dir.run(&format!("{NO_CPU}--yes --fadt fadt smi send 0x10 --data 0xf1")).exits(3).complains("--allow-hazard 0xb2");
}
