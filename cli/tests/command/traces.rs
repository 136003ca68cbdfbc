//! `trace show`, `trace stat`, `trace diff`.

use crate::common::Dir;

/// A directory with a recording of an SMI and a reading of CMOS memory.
fn recorded() -> Dir {
    let dir = Dir::new();
    dir.bus("--record smi smi send 0x42 rbx=1 rcx=2").ok();
    dir.bus("--record cmos cmos 0x0d").ok();
    dir
}

#[test]
fn show_prints_the_header_and_each_access() {
    let run = recorded().run("trace show smi").ok();
    for part in ["bus:pc", "0xb2 (FADT)", "    1  out 0xb3, al     0x00b3", "    3  out 0xb2, al     0x00b2"] {
        assert!(run.stdout.contains(part), "{part}: {run:#?}");
    }
    run.prints("wrote 0x42  rbx=0x3");
}

#[test]
fn show_prints_objects() {
    let objects = recorded().run("trace show smi --json").ok().objects();
    assert_eq!(objects.len(), 1 + 3);
    assert_eq!((&objects[0]["trace"]["on"], &objects[0]["trace"]["smi_port"]), (&"bus:pc".into(), &"0xb2".into()));
    assert_eq!((&objects[3]["record"], &objects[3]["after"]["rbx"]), (&3.into(), &"0x3".into()));
}

#[test]
fn a_trace_that_is_cut_off_is_shown_to_where_it_ends() {
    let dir = recorded();
    let text = dir.read("smi");
    let lines: Vec<_> = text.lines().collect();
    dir.write("cut", format!("{}\n{}\n", lines[0], lines[1]));
    dir.run("trace show cut").ok().prints("out 0xb3, al").prints("cut off");
    dir.run("trace stat cut").ok().prints("cut off");
    dir.write("torn", format!("{}\n{}\n{}", lines[0], lines[1], &lines[2][..20]));
    dir.run("trace show torn").ok().prints("cut off");
}

#[test]
fn the_access_that_did_not_return_is_named_with_its_code() {
    let dir = Dir::new();
    dir.bus("smi scan --log l --codes 0x41 --fill zero rbx=7").ok();
    let text = dir.read("l");
    let announced = text.lines().take(6).collect::<Vec<_>>().join("\n");
    dir.write("cut", announced + "\n");
    dir.run("trace show cut").ok().prints("did not return, SMI code 0x41: rax=0x41 rbx=0x7");
    let last = dir.run("trace show cut --json").ok().objects().pop().unwrap();
    assert_eq!(
        (&last["error"], &last["record"], &last["before"]["rbx"]),
        (&"did not return".into(), &3.into(), &"0x7".into())
    );
    dir.run("trace stat cut").ok().prints("`out 0xb2, al` did not return");
}

#[test]
fn stat_counts_by_port() {
    let dir = Dir::new();
    dir.bus("--record t smi scan --log l --codes 0x40-0x43").ok();
    let rows = dir.run("trace stat t --json").ok().objects();
    assert_eq!(rows.len(), 3);
    assert_eq!((&rows[2]["records"], &rows[2]["is_whole"]), (&9.into(), &true.into()));
    assert_eq!((&rows[0]["port"], &rows[0]["count"], &rows[0]["changed"]), (&"0xb2".into(), &4.into(), &1.into()));
    assert_eq!((&rows[1]["port"], &rows[1]["count"], &rows[1]["changed"]), (&"0xb3".into(), &5.into(), &0.into()));
    assert_eq!(dir.run("trace stat t").ok().stdout.lines().count(), 3);
}

#[test]
fn traces_that_differ_in_times_alone_are_alike() {
    let dir = recorded();
    dir.bus("--record again smi send 0x42 rbx=1 rcx=2").ok();
    assert_eq!(dir.run("trace diff smi again").ok().stdout, "");
}

#[test]
fn traces_that_differ_are_shown_side_by_side() {
    let dir = recorded();
    dir.bus("--record other smi send 0x42 rbx=1 rcx=3").ok();
    let run = dir.run("trace diff smi other").exits(5).complains("3 records differ");
    assert!(run.stdout.lines().any(|line| line.starts_with('-') && line.contains("rcx=0x2")), "{run:#?}");
    assert!(run.stdout.lines().any(|line| line.starts_with('+') && line.contains("rcx=0x3")), "{run:#?}");
    let objects = dir.run("trace diff smi other --json").exits(5).objects();
    assert_eq!(objects.len(), 3 + 1);
    assert_eq!(objects[1]["b"]["before"]["rcx"], "0x3");
}

#[test]
fn a_trace_that_is_longer_differs() {
    let dir = recorded();
    let objects = dir.run("trace diff smi cmos --json").exits(5).objects();
    assert_eq!(objects.len(), 3 + 1);
    assert!(objects[2]["a"].is_object() && objects[2]["b"].is_null(), "{objects:#?}");
    dir.write("short", "{\"ioemul-trace\":2}\n{\"records\":0}\n");
    let objects = dir.run("trace diff short smi --json").exits(5).objects();
    assert!(objects[0]["a"].is_null() && objects[0]["b"].is_object(), "{objects:#?}");
}

#[test]
fn what_is_no_trace_is_said_with_its_line() {
    let dir = recorded();
    let text = dir.read("smi");
    dir.write("empty", "");
    dir.write("binary", [0, 0xff, 0x0a, 0x80]);
    dir.write("other", text.replacen("\"ioemul-trace\":2", "\"ioemul-trace\":3", 1));
    dir.write("edited", text.replacen("\"insn\"", "\"insm\"", 1));
    for (name, line) in [("empty", 1), ("binary", 1), ("other", 1), ("edited", 2)] {
        for command in ["trace show FILE", "trace stat FILE", "trace diff FILE smi", "trace diff smi FILE"] {
            let command = command.replace("FILE", name);
            let error = dir.run(&format!("{command} --json")).exits(1).error("trace");
            assert_eq!(error["line"], line, "{command}");
            dir.run(&command).exits(1).complains(name);
        }
    }
    dir.run("trace show other").exits(1).complains("version 3");
    dir.run("trace show nothing").exits(1).complains("nothing: No such file");
    dir.run("trace show .").exits(1);
}

/// A recording replaces one that came to its end, and nothing else.
#[test]
fn a_recording_goes_over_no_other_file() {
    let dir = Dir::new();
    dir.bus("--record t in 0x71").ok();
    dir.bus("--record t in 0x80").ok(); // a recording that is whole
    let whole = dir.read("t");
    dir.write("cut", &whole[..whole.len() - 5]);
    dir.write("empty", b"");
    dir.write("mine", b"the only copy of something");
    dir.bus("--record empty in 0x80").ok();
    for name in ["cut", "mine"] {
        let before = dir.read(name);
        dir.bus(&format!("--record {name} in 0x80")).exits(2).complains("--record");
        assert_eq!(dir.read(name), before);
    }
    dir.bus("--record /dev/null in 0x80").ok();
}

/// Objects say as well as words that a trace is cut off.
#[test]
fn objects_of_a_trace_that_is_cut_off_say_so() {
    let dir = Dir::new();
    dir.bus("--record t in 0x71").ok();
    let whole = dir.read("t");
    let header = whole.find('\n').unwrap() + 1;
    dir.write("cut", &whole[..header]);
    for (name, is_whole) in [("t", true), ("cut", false)] {
        assert_eq!(dir.run(&format!("trace show {name} --json")).ok().objects()[0]["is_whole"], is_whole);
        let last = dir.run(&format!("trace stat {name} --json")).ok().objects().pop().unwrap();
        assert_eq!(last["is_whole"], is_whole);
    }
}
