//! `decode`, `listing`, `table`.

use std::process::Command;

use crate::common::Dir;

#[test]
fn decode_names_the_instruction() {
    let dir = Dir::new();
    for (bytes, mode, insn) in [
        ("ed", "64", "in eax, dx"),
        ("66ed", "64", "in ax, dx"),
        ("66ed", "16", "in eax, dx"),
        ("ed", "16", "in ax, dx"),
        ("e4 71", "32", "in al, 0x71"),
        ("f36e", "64", "rep outsb"),
    ] {
        let run = dir.run_words(["decode", bytes, "--mode", mode]).ok();
        assert!(run.says().starts_with(insn) && run.stdout.lines().count() == 1, "{run:#?}");
        let object = dir.run_words(["decode", bytes, "--mode", mode, "--json"]).ok().object();
        assert!(object["insn"].as_str().unwrap().starts_with(insn), "{object}");
    }
    let object = dir.run("decode 66ed --json").ok().object();
    assert_eq!((&object["length"], &object["bytes"], &object["port"]), (&2.into(), &2.into(), &"dx".into()));
}

#[test]
fn what_is_no_io_instruction_is_said() {
    let dir = Dir::new();
    dir.run("decode 90").exits(1).complains("90: ");
    dir.run("decode f4 --json").exits(1).error("decode");
    dir.run("decode e4").exits(1);
    dir.run("decode 6").exits(2).complains("pairs of hexadecimal digits");
    dir.run("decode zz").exits(2).complains("pairs of hexadecimal digits");
    dir.run("decode ''").exits(2);
    dir.run("decode ed --mode 8").exits(2).complains("16");
}

#[test]
fn a_listing_shows_the_stub_in_every_layout() {
    let dir = Dir::new();
    for layout in ["CallRet", "Compact", "Inline", "Rop", "callret", "ROP"] {
        for registers in ["gprs", "kvm", "pt_regs"] {
            let run = dir.run(&format!("listing --layout {layout} --registers {registers}")).ok();
            assert!(run.stdout.starts_with("in eax, dx   (ed in the guest"), "{run:#?}");
            assert!(run.stdout.lines().any(|line| line.trim_end().ends_with("in    eax, dx")), "{run:#?}");
        }
        let objects = dir.run(&format!("listing 'out 0x80, al' --layout {layout} --json")).ok().objects();
        let texts = objects
            .iter()
            .flat_map(|object| object["code"].as_array().unwrap())
            .map(|line| line["text"].as_str().unwrap());
        assert!(texts.filter(|text| text.contains("out") && text.contains("80")).count() == 1, "{objects:#?}");
    }
}

#[test]
fn a_listing_shows_quirks_by_name() {
    let dir = Dir::new();
    let names = dir.run("listing --quirk list").ok().stdout;
    assert!(names.lines().count() >= 2, "{names}");
    for name in names.lines() {
        let insn = ["out dx, al", "out 0xb2, al", "out dx, ax", "in al, dx", "in eax, dx", "out dx, eax"];
        let shown = insn.iter().any(|insn| dir.run_words(["listing", insn, "--quirk", name]).code == Some(0));
        assert!(shown, "{name}");
        dir.run_words(["listing", "in al, 0x99", "--quirk", name]).exits(2).complains("it does not stand for");
    }
    dir.run("listing --quirk nonsense").exits(2).complains("--quirk list");
}

#[test]
fn what_cannot_be_listed_is_said() {
    let dir = Dir::new();
    dir.run("listing nop").exits(2).complains("nop");
    dir.run("listing --layout Nonsense").exits(2).complains("CallRet, ");
    dir.run("listing --registers nonsense").exits(2).complains("gprs, kvm and pt_regs");
    dir.run("listing --registers .").exits(2);
    dir.write("empty", "");
    dir.run("listing --registers empty").exits(2).complains("empty");
    dir.write("binary", [0xff, 0xfe, 0]);
    dir.run("listing --registers binary").exits(2).complains("binary");
}

#[test]
fn a_table_is_assembled_with_every_option() {
    let dir = Dir::new();
    for options in [
        "",
        "--layout Compact --registers kvm",
        "--layout Rop",
        "--layout Inline --registers pt_regs --endbr64 --int3",
        "--return-thunk __x86_return_thunk --scrub --ring3",
        "--no-strings --prefix mine --section .text.io",
    ] {
        dir.run(&format!("table {options} -o table.S --header table.h")).ok();
        dir.write("use.c", "#include \"table.h\"\n");
        let Ok(cc) = Command::new("cc").arg("--version").output() else { continue };
        assert!(cc.status.success());
        for source in ["table.S", "use.c"] {
            let built = Command::new("cc")
                .current_dir(dir.path(""))
                .args(["-c", source, "-o", "o.o", "-Wall", "-Werror"])
                .output()
                .unwrap();
            assert!(built.status.success(), "{options} {source}: {}", String::from_utf8_lossy(&built.stderr));
        }
    }
}

#[test]
fn a_table_is_two_files() {
    let dir = Dir::new();
    dir.run("table -o table.S").exits(2).complains("--header");
    dir.run("table --header table.h").exits(2).complains("-o");
    dir.run("table").exits(2);
    dir.run("table --prefix 'a b' -o table.S --header table.h").exits(2);
    dir.run("table --section '' -o table.S --header table.h").exits(2);
    dir.run("table --return-thunk '1x' -o table.S --header table.h").exits(2);
    assert_eq!(dir.files(), [""; 0]);
    dir.run("table -o no/table.S --header table.h").exits(1).complains("no/table.S");
    dir.run("table -o . --header table.h").exits(1);
    dir.run("table --quirk list").ok();
}
