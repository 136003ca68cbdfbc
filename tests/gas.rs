//! Tables assembled by the system's assembler, next to the bytes that `CodeTable` emits.
#![cfg(all(feature = "gas", target_os = "linux"))]

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::process::Command;

use ioemul::gas::{HostTable, HostTableError};
use ioemul::{
    CodeTable, DmiMatch, EmitOptions, IoInsn, Quirk, RegisterFile, Ring, Step, StubLayout, SymbolName, Trigger, Width,
};
use object::{Object, ObjectSection, ObjectSymbol, RelocationTarget};

/// A directory of this test's own.
fn scratch(name: &str) -> PathBuf {
    let directory = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("gas").join(name);
    fs::create_dir_all(&directory).unwrap();
    directory
}

fn assembled(name: &str, source: &str) -> Vec<u8> {
    let directory = scratch(name);
    let (text, object) = (directory.join("table.S"), directory.join("table.o"));
    fs::write(&text, source).unwrap();
    let cc = Command::new("cc").arg("-c").arg(&text).arg("-o").arg(&object).output().expect("cc: install gcc");
    assert!(cc.status.success(), "{}", String::from_utf8_lossy(&cc.stderr));
    fs::read(object).unwrap()
}

const QUIRKS: &[Quirk] = &[Quirk::PROLIANT, Quirk::GSMI_CARRY, Quirk::DELL_SMM, Quirk::GSMI_SPIN];

fn all_options() -> Vec<(String, EmitOptions<'static>)> {
    let scattered = RegisterFile::new([300, -8, 16, 1000, 0, 40, 128, 120, 136, 72, 80, 88, 96, -128, -136], Some(200));
    let files = [
        ("gprs", RegisterFile::GPRS),
        ("pt_regs", RegisterFile::PT_REGS),
        ("kvm_regs", RegisterFile::KVM_REGS),
        ("scattered", scattered),
        ("no_flags", RegisterFile::new([0, 8, 16, 24, 32, 40, 48, 56, 64, 72, 80, 88, 96, 104, 112], None)),
    ];
    let mut all = Vec::new();
    for &layout in StubLayout::ALL {
        for (name, file) in files {
            for bits in 0..8 {
                let options = EmitOptions::new().layout(layout).registers(file);
                let options = options.endbr64(bits & 1 != 0).int3(bits & 2 != 0).scrub(bits & 4 != 0);
                let ring = if bits % 3 == 0 { Ring::Three } else { Ring::Zero };
                let quirks = &QUIRKS[..bits % 5];
                all.push((format!("{layout:?}-{name}-{bits}"), options.ring(ring).quirks(quirks)));
            }
        }
    }
    all
}

#[test]
fn the_assembler_makes_the_bytes_of_the_table() {
    const THUNK: u64 = 0x1_0000_0000;
    for (number, (name, options)) in all_options().into_iter().enumerate() {
        let (va, thunk) = (THUNK - 0x100_0000, number % 2 == 1);
        let with_thunk = options.return_thunk(thunk.then_some(THUNK));
        let mut expected = vec![0; CodeTable::size(&with_thunk)];
        CodeTable::emit(&mut expected, va, &with_thunk).unwrap();
        let host = HostTable::new(&options).unwrap().section(".text.ioemul").unwrap();
        let host = if thunk { host.return_thunk("a_thunk").unwrap() } else { host };
        let object = assembled(&name, &host.source().to_string());
        let object = object::File::parse(&*object).unwrap();
        let section = object.section_by_name(".text.ioemul").unwrap();
        let mut code = section.data().unwrap().to_vec();
        for (at, relocation) in section.relocations() {
            let RelocationTarget::Symbol(symbol) = relocation.target() else { panic!("{name}: {relocation:?}") };
            assert_eq!(object.symbol_by_index(symbol).unwrap().name(), Ok("a_thunk"), "{name}");
            let value = (THUNK as i64 + relocation.addend() - (va + at) as i64) as i32;
            code[at as usize..][..4].copy_from_slice(&value.to_le_bytes());
        }
        if let Some(at) = code.iter().zip(&expected).position(|(is, should_be)| is != should_be) {
            panic!("{name}: at {at:#x} is {:x?}, should be {:x?}", &code[at..][..16], &expected[at..][..16]);
        }
        assert_eq!(code.len(), expected.len(), "{name}");
    }
}

/// Nothing in the object but code: no data, nothing writable, no symbol that is not its own but the thunk, no reference but
/// to that, and no ENDBR64 but at entries.
#[test]
fn an_audit_of_the_object() {
    for (number, (name, options)) in all_options().into_iter().enumerate().filter(|(number, _)| number % 5 == 0) {
        let thunk = number % 2 == 0;
        let host = HostTable::new(&options).unwrap();
        let host = if thunk { host.return_thunk("a_thunk").unwrap() } else { host };
        let bytes = assembled(&format!("audit-{name}"), &host.source().to_string());
        let object = object::File::parse(&*bytes).unwrap();
        let undefined: Vec<_> = object.symbols().filter(|symbol| symbol.is_undefined()).collect();
        let undefined: Vec<_> =
            undefined.iter().filter_map(|symbol| symbol.name().ok()).filter(|name| !name.is_empty()).collect();
        assert_eq!(undefined, if thunk { vec!["a_thunk"] } else { vec![] }, "{name}");
        let global: Vec<_> = object.symbols().filter(|symbol| symbol.is_global() && !symbol.is_undefined()).collect();
        let global: Vec<_> = global.iter().filter_map(|symbol| symbol.name().ok()).collect();
        assert_eq!(global, ["ioemul_table"], "{name}");
        for section in object.sections().filter(|section| section.size() > 0) {
            let object::SectionFlags::Elf { sh_flags } = section.flags() else { panic!("no ELF") };
            let (write, alloc) = (sh_flags & 1 != 0, sh_flags & 2 != 0);
            assert!(!write && alloc == (section.name() == Ok(".text")), "{name}: {:?}", section.name());
        }
        let text = object.section_by_name(".text").unwrap();
        let code = text.data().unwrap();
        // For stack traces: from the first stub on, every byte has a name.
        let named = object.symbols().filter(|symbol| symbol.kind() == object::SymbolKind::Text && !symbol.is_global());
        let mut named: Vec<_> = named.map(|symbol| (symbol.address(), symbol.size())).collect();
        named.sort_unstable();
        let ends = named.iter().skip(1).map(|symbol| symbol.0).chain([code.len() as u64]);
        assert!(
            named.len() >= 24 + 12 && named.iter().zip(ends).all(|((at, size), end)| (*size + 15 + at) & !15 == end),
            "{name}"
        );
        let endbr64: [u8; 4] = [0xf3, 0x0f, 0x1e, 0xfa];
        let entries = code.windows(4).enumerate().filter(|(_, bytes)| *bytes == endbr64).map(|(at, _)| at);
        let entries: Vec<_> = entries.collect();
        let mut memory = vec![0; CodeTable::size(&options)];
        let table = CodeTable::emit(&mut memory, 0, &options).unwrap();
        let stubs = table.symbols().filter(|symbol| !matches!(symbol.name, SymbolName::Helper(_))).count();
        assert_eq!(entries.len(), if options.endbr64 { stubs } else { 0 }, "{name}");
        assert!(entries.iter().all(|at| at % 16 == 0), "{name}");
    }
}

/// Each line of the source and what objdump makes of it; and each entry of the host's exception table.
#[test]
fn objdump_reads_what_the_lines_say() {
    for &layout in StubLayout::ALL {
        let options = EmitOptions::new().layout(layout).quirks(QUIRKS);
        let source = HostTable::new(&options).unwrap().source().to_string();
        let wrapper = format!(
            "#define IOEMUL_EXTABLE(fault, pad) .pushsection .ex_table, \"a\"; .long fault - ., pad - .; .popsection\n{source}"
        );
        let name = format!("objdump-{layout:?}");
        let bytes = assembled(&name, &wrapper);
        let mut objdump = Command::new("objdump");
        let text = run(objdump.args(["-d", "-M", "intel", "--no-show-raw-insn"]).arg(scratch(&name).join("table.o")));
        let lines = text.lines().filter_map(|line| line.split_once(":\t"));
        let lines = lines.filter_map(|(at, text)| Some((u64::from_str_radix(at.trim(), 16).ok()?, text.trim())));
        let disassembled: BTreeMap<_, _> = lines.collect();
        let mut memory = vec![0; CodeTable::size(&options)];
        let table = CodeTable::emit(&mut memory, 0, &options).unwrap();
        // Without blanks, and the port as a number.
        let bare = |text: &str| {
            let text = text.split(" #").next().unwrap().replace(' ', "");
            let (before, rest) = text.split_once("0x").unwrap_or((&text, ""));
            let digits = rest.find(|c: char| !c.is_ascii_hexdigit()).unwrap_or(rest.len());
            (before.to_owned(), u8::from_str_radix(&rest[..digits], 16).ok(), rest[digits..].to_owned())
        };
        let comments = source.lines().filter(|line| line.contains("\tioemul_stub "));
        let comments = comments.map(|line| line.split("/* ").nth(1).unwrap().trim_end_matches(" */"));
        let first = table.entry(IoInsn::in_dx(Width::Byte)).unwrap();
        let plain: Vec<_> = table.faults().filter(|(at, _)| *at >= first).collect();
        assert_eq!(plain.len(), comments.clone().count());
        for (comment, (at, _)) in comments.zip(plain) {
            let text = disassembled[&at].trim_start_matches("data16");
            assert_eq!(bare(text), bare(comment), "{layout:?}, {at:#x}");
        }
        // Sorted pairs, relative to themselves; relocated by hand, both sections being at 0 and all symbols at sections' starts.
        let object = object::File::parse(&*bytes).unwrap();
        let section = object.section_by_name(".ex_table").unwrap();
        let words: Vec<_> = section.relocations().map(|(at, relocation)| (at, relocation.addend())).collect();
        // What is relative to its own place has that place in its addend no more: the target is the addend.
        let pairs: Vec<_> = words.chunks(2).map(|pair| (pair[0].1 as u64, pair[1].1 as u64)).collect();
        assert_eq!(pairs, table.faults().collect::<Vec<_>>(), "{layout:?}");
    }
}

fn run(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|error| panic!("{:?}: {error}", command.get_program()));
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(
        output.status.success(),
        "{command:?}: {}\n{}{}",
        output.status,
        text(&output.stdout),
        text(&output.stderr)
    );
    text(&output.stdout)
}

const WARNINGS: [&str; 4] = ["-Wall", "-Wextra", "-Werror", "-pedantic"];

/// A program of a host in C; what it printed, line by line.
fn host(name: &str, options: &EmitOptions<'_>, structure: &str, elided: bool) -> Vec<String> {
    host_of(name, &HostTable::new(options).unwrap(), structure, elided)
}

fn host_of(name: &str, table: &HostTable<'_>, structure: &str, elided: bool) -> Vec<String> {
    let directory = scratch(name);
    let (source, io) = (table.source().to_string(), ".byte \\prefix, \\opcode, \\last");
    assert_eq!(source.matches(io).count(), 1);
    let source = if elided { source.replace(io, ".byte 0x90, 0x90, 0x90") } else { source };
    fs::write(directory.join("table.S"), source).unwrap();
    fs::write(directory.join("table.h"), table.header().to_string()).unwrap();
    let program = directory.join("host");
    let host = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/gas/host.c");
    let mut cc = Command::new("cc");
    cc.args(["-std=c90", "-O1", &format!("-DSTRUCTURE=struct {structure}")]).args(WARNINGS);
    cc.args(elided.then_some("-DELIDED")).arg("-I").arg(&directory);
    run(cc.arg(host).arg(directory.join("table.S")).arg("-o").arg(&program));
    run(&mut Command::new(program)).lines().map(str::to_owned).collect()
}

const STRUCTURES: [(&str, RegisterFile); 3] =
    [("gprs", RegisterFile::GPRS), ("kvm_regs", RegisterFile::KVM_REGS), ("pt_regs", RegisterFile::PT_REGS)];

#[test]
fn every_form_faults_and_comes_back_through_the_header() {
    for &layout in StubLayout::ALL {
        for (structure, file) in STRUCTURES {
            let options = EmitOptions::new().layout(layout).registers(file).quirks(QUIRKS).ring(Ring::Three);
            let lines = host(&format!("faults-{layout:?}-{structure}"), &options, structure, false);
            assert_eq!(lines[0], "forms 1542 faults 1542 misplaced 0", "{layout:?}, {structure}");
            let mut code = vec![0; CodeTable::size(&options)];
            let table = CodeTable::emit(&mut code, 0, &options).unwrap();
            let fixups = lines.iter().filter_map(|line| line.strip_prefix("fixup "));
            let mut fixups: Vec<_> = fixups.map(|line| line.split_once(' ').unwrap()).collect();
            let exact: Vec<_> = table.faults().map(|(at, pad)| (at.to_string(), pad.to_string())).collect();
            // A plain stub's access may be said to start at its prefix, a no-op.
            fixups.retain(|(at, _)| exact.iter().any(|(exact, _)| exact == at));
            assert!(
                fixups.iter().copied().eq(exact.iter().map(|(at, pad)| (&**at, &**pad))),
                "{layout:?}, {structure}"
            );
        }
    }
}

#[test]
fn without_io_all_sixteen_words_come_through() {
    for &layout in StubLayout::ALL {
        for (structure, file) in STRUCTURES {
            let options = EmitOptions::new().layout(layout).registers(file).ring(Ring::Three);
            let lines = host(&format!("elided-{layout:?}-{structure}"), &options, structure, true);
            assert_eq!(lines[0], "forms 1542 faults 0 misplaced 0", "{layout:?}, {structure}");
        }
    }
}

#[test]
fn quirks_are_told_by_machine_form_port_and_rax() {
    let options = EmitOptions::new().quirks(QUIRKS).ring(Ring::Three);
    let lines = host("quirks", &options, "gprs", false);
    // ProLiant is the only one with DMI strings.
    assert_eq!(lines[1], "quirks here 1 0 0");
    let quirks: Vec<_> = lines.iter().filter_map(|line| line.strip_prefix("quirk ")).collect();
    let right = "taken 1 other quirks 0 other port";
    assert_eq!(
        quirks,
        [
            format!("0 form 3: out1:cd4 in1:cd4 {right} 0 good 1"),
            format!("1 form 3: out1:b2 {right} 0 good 1"),
            format!("2 form 3: out1:b2 out1:84 {right} 0 good 1"),
            format!("2 form 952: out1:b2 out1:84 {right} 1 good 1"), // an immediate byte: DX is not looked at
            format!("3 form 3: out1:b2 {right} 0 good 1"),
        ]
    );
}

/// Options that have an assembler put something between instructions, and a macro of the host's that is empty: the bytes are the
/// same, or there is an error.
#[test]
fn options_of_the_assembler_change_nothing_without_a_word() {
    let assemble = |name: &str, source: &str, flags: &[&str]| {
        let directory = scratch(name);
        let (text, object) = (directory.join("table.S"), directory.join("table.o"));
        fs::write(&text, source).unwrap();
        let cc = Command::new("cc").args(flags).arg("-c").arg(&text).arg("-o").arg(&object).output().unwrap();
        let bytes = cc.status.success().then(|| fs::read(object).unwrap());
        bytes.map(|bytes| {
            object::File::parse(&*bytes).unwrap().section_by_name(".text").unwrap().data().unwrap().to_vec()
        })
    };
    for &layout in StubLayout::ALL {
        let options = EmitOptions::new().layout(layout).registers(RegisterFile::PT_REGS).quirks(QUIRKS).endbr64(true);
        let source = HostTable::new(&options).unwrap().return_thunk("a_thunk").unwrap().source().to_string();
        let name = format!("flags-{layout:?}");
        let plain = assemble(&name, &source, &[]).unwrap();
        for flags in [
            &["-Wa,-mbranches-within-32B-boundaries"][..],
            &[
                "-Wa,-malign-branch-boundary=32",
                "-Wa,-malign-branch=jcc+jmp+call+ret+indirect",
                "-Wa,-malign-branch-prefix-size=5",
            ],
            &["-Wa,-mlfence-before-ret=or"],
        ] {
            assert_eq!(assemble(&name, &source, flags).as_ref(), Some(&plain), "{layout:?}, {flags:?}");
        }
        assert_eq!(assemble(&name, &source, &["-Wa,-mlfence-after-load=yes"]), None, "{layout:?}");
        assert_eq!(assemble(&name, &format!("#define IOEMUL_ENDBR64\n{source}"), &[]), None, "{layout:?}");
        let four = format!("#define IOEMUL_ENDBR64 endbr64\n{source}");
        assert_eq!(assemble(&name, &four, &[]), Some(plain), "{layout:?}");
    }
}

#[test]
fn names_are_names() {
    let table = || HostTable::new(&EmitOptions::new()).unwrap();
    let error = table().prefix("my-table").unwrap_err();
    assert_eq!(
        error.to_string(),
        "\"my-table\" is no prefix: one or more letters, digits and underscores, and no digit first"
    );
    for result in [table().prefix("1"), table().prefix(""), table().return_thunk("a b"), table().section(".text,\"w\"")]
    {
        assert!(matches!(result, Err(HostTableError::Name { .. })));
    }
    assert!(table().section(".text.entry-1").is_ok());
    // Names and texts that look like the template's own.
    let trigger = Trigger::out(Width::Byte, 0xb2);
    const STEPS: &[Step] = &[Step::Access];
    static PLATFORM: DmiMatch = DmiMatch::new().product_name(&["prefix PREFIX */ \"x\""]);
    let quirk = [Quirk::from_steps("PREFIX */ prefix", trigger, STEPS).on_platform(&PLATFORM)];
    let table = HostTable::new(&EmitOptions::new().quirks(&quirk)).unwrap();
    let table = table.prefix("my_prefix").unwrap().return_thunk("my_prefix_thunk").unwrap();
    let header = table.header().to_string();
    assert!(
        header.contains("return thunk my_prefix_thunk\n") && header.contains("/* out dx, al: PREFIX * / prefix */")
    );
    assert!(header.contains("{ 0, MY_PREFIX_DMI_PRODUCT_NAME, \"prefix PREFIX */ \\\"x\\\"\" }"), "{header}");
    assert!(header.contains("#define MY_PREFIX_QUIRK_0 (1u << 0)") && !header.contains('@'));
    assembled("names", &table.source().to_string());
}

#[test]
fn without_ins_and_outs_the_table_is_shorter() {
    let options = EmitOptions::new().quirks(QUIRKS).ring(Ring::Three);
    let table = HostTable::new(&options).unwrap().strings(false);
    let (source, header) = (table.source().to_string(), table.header().to_string());
    assert!(!source.contains("ins") && !source.contains("outs") && !header.contains("STRING"));
    let lines = host_of("no-strings", &table, "gprs", false);
    assert_eq!(lines[0], "forms 1542 faults 1542 misplaced 0");
    assert!(lines.iter().filter(|line| line.starts_with("quirk ")).all(|line| line.ends_with("good 1")));
}

#[test]
fn the_header_is_for_old_c_and_for_cpp() {
    let directory = scratch("languages");
    let options = EmitOptions::new().quirks(QUIRKS).registers(RegisterFile::KVM_REGS);
    fs::write(
        directory.join("table.h"),
        HostTable::new(&options).unwrap().prefix("xen_io").unwrap().header().to_string(),
    )
    .unwrap();
    let program =
        "#include \"table.h\"\n#include \"table.h\"\nint main(void) { return xen_io_index(0xec, 1, 0) != 0; }\n";
    for (language, standard, file) in
        [("c", "c90", "a.c"), ("c", "gnu11", "b.c"), ("c++", "c++98", "a.cpp"), ("c++", "c++20", "b.cpp")]
    {
        fs::write(directory.join(file), program).unwrap();
        let mut cc = Command::new("cc");
        cc.args(["-x", language, &format!("-std={standard}"), "-fsyntax-only"]).args(WARNINGS);
        run(cc.arg(directory.join(file)));
    }
    // A structure with a member elsewhere does not compile.
    let members = "rax, rbx, rcx, rdx, rsi, rdi, rbp, r8, r9, r10, r11, r12, r13, r14, r15, rflags";
    let structure = "struct r { unsigned long rax, rbx, rcx, rdx, rsi, rdi, rsp, rbp, r8, r9, r10, r11, r12, r13, r14, r15, rip, rflags; };";
    let swapped = structure.replace("rbx, rcx", "rcx, rbx");
    for (structure, compiles) in [
        (structure, true),
        (&*swapped, false),
        (&*structure.replace("unsigned long rax", "unsigned int pad, rax"), false),
    ] {
        let program = format!("#include \"table.h\"\n{structure}\nXEN_IO_ASSERT_REGISTERS(struct r, {members});\n");
        fs::write(directory.join("c.c"), program).unwrap();
        let mut cc = Command::new("cc");
        cc.args(["-std=c90", "-fsyntax-only"]).args(WARNINGS).arg(directory.join("c.c"));
        assert_eq!(cc.output().unwrap().status.success(), compiles, "{structure}");
    }
}
