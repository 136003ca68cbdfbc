//! `in`, `out`, `ix`, `cmos`.

use crate::common::Dir;

#[test]
fn each_width_has_as_many_digits_as_it_reads() {
    let dir = Dir::new();
    assert_eq!(dir.bus("in 0x81").ok().stdout, "0xff\n");
    assert_eq!(dir.bus("in 0x81.b").ok().stdout, "0xff\n");
    assert_eq!(dir.bus("in 0x100.w").ok().stdout, "0xffff\n");
    assert_eq!(dir.bus("in 0x100.l").ok().stdout, "0xffffffff\n");
    assert_eq!(dir.bus("in 0xfffc.l").ok().stdout, "0xffffffff\n");
}

#[test]
fn quiet_prints_the_bare_value_in_decimal() {
    let run = Dir::new().bus("-q in 0x100.w").ok();
    assert_eq!((&*run.stdout, &*run.stderr), ("65535\n", ""));
}

#[test]
fn a_count_reads_as_often() {
    let dir = Dir::new();
    assert_eq!(dir.bus("in 0x81 -n 3").ok().stdout, "0xff\n0xff\n0xff\n");
    assert_eq!(dir.bus("in 0x81 -n 3 --json").ok().objects().len(), 3);
    dir.bus("--record t in 0x81 -n 3").ok();
    assert_eq!(dir.run("trace show t --json").ok().objects().len(), 1 + 3);
}

#[test]
fn the_backend_is_named_in_each_output() {
    let dir = Dir::new();
    assert!(dir.bus("in 0x81").ok().stderr.starts_with("on bus:pc"));
    assert_eq!(dir.bus("in 0x81 --json").ok().object()["on"], "bus:pc");
    let run = dir.finish(dir.command().env("IOEMUL_ON", "bus:pc").args(["in", "0x81"]), b"").ok();
    assert!(run.stderr.starts_with("on bus:pc") && run.stderr.contains("IOEMUL_ON"), "{run:#?}");
}

#[test]
fn the_option_is_stronger_than_the_variable() {
    let dir = Dir::new();
    dir.bus("--record t in 0x81").ok();
    let run =
        dir.finish(dir.command().env("IOEMUL_ON", "bus:pc").args(["--on", "trace:t", "in", "0x81", "--json"]), b"");
    assert_eq!(run.ok().object()["on"], "trace:t");
}

#[test]
fn a_write_says_nothing_but_where_it_went() {
    let run = Dir::new().bus("out 0x80 0x55").ok();
    assert_eq!(run.stdout, "");
    assert!(run.stderr.starts_with("on bus:pc"));
}

#[test]
fn writes_of_each_width_are_made_with_the_form_that_fits() {
    let dir = Dir::new();
    for (line, insn, port, rax) in [
        ("out 0x80 85 --json", "out 0x80, al", "0x80", "0x55"),
        ("out 0x80.w 0xffff --json", "out 0x80, ax", "0x80", "0xffff"),
        ("out 0x80.l 0xffffffff --json", "out 0x80, eax", "0x80", "0xffffffff"),
        ("out 0x100 0xff --json", "out dx, al", "0x100", "0xff"),
        ("out 0xfffc.l 4294967295 --json", "out dx, eax", "0xfffc", "0xffffffff"),
    ] {
        let object = dir.bus(line).ok().object();
        assert_eq!((&object["insn"], &object["port"]), (&insn.into(), &port.into()), "{line}");
        assert_eq!(object["before"]["rax"], rax, "{line}");
    }
}

#[test]
fn an_index_and_a_data_byte_read_and_write_a_register() {
    let dir = Dir::new();
    assert_eq!(dir.bus("ix 0x70:0x71 0x0d").ok().stdout, "0x80\n");
    let written = dir.bus("ix 0x70:0x71 0x40 0xa5 --json").ok().objects();
    assert_eq!(
        written.iter().map(|object| object["insn"].clone()).collect::<Vec<_>>(),
        ["out 0x70, al", "out 0x71, al"]
    );
    let read = dir.bus("ix 0x70:0x71 0x40 --json").ok().objects();
    assert_eq!(read.last().unwrap()["insn"], "in al, 0x71");
}

#[test]
fn the_clock_shows_the_time_of_now() {
    let now = || jiff::Timestamp::now().to_zoned(jiff::tz::TimeZone::UTC).datetime();
    let (before, run, after) = (now(), Dir::new().bus("cmos date --json").ok(), now());
    let date: jiff::civil::DateTime = run.object()["date"].as_str().unwrap().parse().unwrap();
    let second = jiff::ToSpan::second(1);
    assert!(before - second <= date && date <= after + second, "{before} {date} {after}");
}

#[test]
fn a_dump_has_all_128_bytes() {
    let dir = Dir::new();
    let run = dir.bus("cmos dump").ok();
    assert_eq!(run.stdout.lines().count(), 8);
    assert!(run.stdout.lines().nth(7).unwrap().starts_with("70  00 00"), "{run:#?}");
    let cmos = dir.bus("cmos dump --json").ok().object()["cmos"].as_str().unwrap().to_owned();
    assert_eq!(&cmos[2 * 0x0d..2 * 0x0e], "80");
}

#[test]
fn a_byte_of_cmos_memory_is_read_and_written() {
    let dir = Dir::new();
    assert_eq!(dir.bus("cmos 0x0d").ok().stdout, "0x80\n");
    assert_eq!(dir.bus("cmos 13").ok().stdout, "0x80\n");
    let object = dir.bus("cmos 0x40 0xa5 --json").ok().objects().remove(1);
    assert_eq!((&object["port"], &object["before"]["rax"]), (&"0x71".into(), &"0xa5".into()));
}
