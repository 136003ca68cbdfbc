//! Stubs for a host's own structure: nothing but its registers is read or written, and the library's own register files
//! are what a C compiler makes of the kernel's headers.
#![cfg(feature = "std")]

mod common;

use common::{Rng, files, host, some_forms};
use ioemul::{CodeSink, Gprs, IoInsn, Quirk, QuirkTable, StubLayout, StubTable, Trigger, Width};

/// With a no-op in place of the access, everything comes back as it was given, and the words around it are untouched.
#[test]
fn loads_and_saves_are_inverse() {
    for file in files::ALL {
        for &layout in StubLayout::ALL {
            let table = StubTable::builder().layout(layout).registers(file.library).elide_io(true).build().unwrap();
            for (seed, form) in (0..16).flat_map(|seed| some_forms().map(move |form| (seed, form))) {
                let mut given = Rng(seed).gprs();
                if file.rflags.is_none() {
                    given.rflags = 0;
                }
                let mut memory = files::Memory::new(*file, &given);
                let entry = table.stub(form.insn).entry() as *const u8;
                // SAFETY: a stub without an access, and a register file as it was emitted for.
                assert_eq!(unsafe { host::call(entry, memory.pointer()) }, 0, "no fault");
                assert_eq!(memory.gprs(), given, "{} {layout:?} {}", file.name, form.insn);
            }
        }
    }
}

/// Every register in, and every register out: each is turned over in between, and CF.
#[test]
fn every_register_is_in_its_place() {
    // SAFETY: changes the fifteen registers and the status flags alone.
    let not = unsafe {
        Quirk::new("NOT", Trigger::out(Width::Byte, 0x80), |payload| {
            for register in [0, 1, 2, 3, 5, 6, 7] {
                payload.extend(&[0x48, 0xf7, 0xd0 | register]); // not, which changes no flag
            }
            for register in 0..8 {
                payload.extend(&[0x49, 0xf7, 0xd0 | register]);
            }
            payload.push(0xf5); // cmc
        })
    };
    let insn = IoInsn::out_imm8(Width::Byte, 0x80);
    for file in files::ALL {
        for &layout in StubLayout::ALL {
            let builder = StubTable::builder().layout(layout).registers(file.library);
            let table = builder.quirks(QuirkTable::from_iter([not])).build().unwrap();
            let entry = table.resolve(insn, &Gprs::default()).entry() as *const u8;
            for seed in 0..32 {
                let mut given = Rng(seed).gprs();
                if file.rflags.is_none() {
                    given.rflags = 0;
                }
                let mut memory = files::Memory::new(*file, &given);
                // SAFETY: the quirk's stub, which makes no access, and a register file as it was emitted for.
                assert_eq!(unsafe { host::call(entry, memory.pointer()) }, 0, "no fault");
                let rflags = given.rflags ^ if file.rflags.is_some() { Gprs::CF } else { 0 };
                let expected = Gprs { rflags, ..Gprs::from_words(given.to_words().map(|word| !word)) };
                assert_eq!(memory.gprs(), expected, "{} {layout:?}", file.name);
            }
        }
    }
}

/// `run` knows of one structure only.
#[test]
#[should_panic]
fn run_is_for_gprs() {
    let table = StubTable::builder().registers(ioemul::RegisterFile::PT_REGS).elide_io(true).build().unwrap();
    // SAFETY: the stub makes no access, and is not reached.
    let _ = unsafe { table.stub(IoInsn::out_dx(Width::Byte)).run(&mut Gprs::default()) };
}

/// Against the offsets that these tests have written down.
#[test]
fn the_offsets_of_the_librarys_register_files() {
    for file in files::ALL {
        assert_eq!((file.library.offsets(), file.library.rflags()), (&file.offsets[..], file.rflags), "{}", file.name);
    }
}

#[cfg(target_os = "linux")]
mod kernel_headers {
    use std::path::Path;
    use std::process::Command;

    use ioemul::RegisterFile;

    /// In the order of `Gprs::NAMES`; RFLAGS has another name in each.
    const FIELDS: [&str; 15] =
        ["rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rbp", "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15"];

    /// Compiles and runs a program that prints the offset of each field. The error says what is missing.
    fn offsets(header: &str, structure: &str, flags: &str) -> Result<Vec<i16>, String> {
        let prints: String = FIELDS
            .iter()
            .chain([&flags])
            .map(|field| format!("printf(\"%zu\\n\", offsetof(struct {structure}, {field}));\n"))
            .collect();
        let source = format!(
            "#include <stddef.h>\n#include <stdio.h>\n#include <{header}>\nint main(void) {{\n{prints}return 0;\n}}\n"
        );
        let directory = Path::new(env!("CARGO_TARGET_TMPDIR"));
        let (c, program) = (directory.join(format!("{structure}.c")), directory.join(structure));
        std::fs::write(&c, source).map_err(|error| error.to_string())?;
        let gcc = Command::new("gcc").arg("-o").args([&program, &c]).output();
        let gcc = gcc.map_err(|error| format!("gcc: {error}"))?;
        if !gcc.status.success() {
            return Err(String::from_utf8_lossy(&gcc.stderr).into_owned());
        }
        let output = Command::new(&program).output().map_err(|error| error.to_string())?;
        let numbers = String::from_utf8_lossy(&output.stdout).into_owned();
        numbers.lines().map(|line| line.parse().map_err(|error| format!("{line:?}: {error}"))).collect()
    }

    fn check(file: RegisterFile, header: &str, structure: &str, flags: &str) {
        match offsets(header, structure, flags) {
            Ok(found) => {
                let ours: Vec<i16> = file.offsets().iter().copied().chain(file.rflags()).collect();
                assert_eq!(ours, found, "struct {structure} of <{header}>");
            }
            Err(why) => {
                let ci = std::env::var_os("CI").is_some_and(|ci| ci == "true");
                assert!(!ci, "gcc and <{header}> have to be there: {why}");
                println!("skipped: there is no gcc, or no <{header}>: {why}");
            }
        }
    }

    #[test]
    fn pt_regs() {
        check(RegisterFile::PT_REGS, "asm/ptrace.h", "pt_regs", "eflags");
    }

    #[test]
    fn kvm_regs() {
        check(RegisterFile::KVM_REGS, "asm/kvm.h", "kvm_regs", "rflags");
    }
}
