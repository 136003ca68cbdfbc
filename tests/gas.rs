//! Tables assembled by the system's assembler, next to the bytes that `CodeTable` emits.
#![cfg(all(feature = "gas", target_os = "linux"))]

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use ioemul::gas::HostTable;
use ioemul::{CodeTable, EmitOptions, Quirk, RegisterFile, Ring, StubLayout};
use object::{Object, ObjectSection, RelocationTarget};

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
        let host = HostTable::new(&options).unwrap().section(".text.ioemul");
        let host = if thunk { host.return_thunk("a_thunk") } else { host };
        let object = assembled(&name, &host.source().to_string());
        let object = object::File::parse(&*object).unwrap();
        let section = object.section_by_name(".text.ioemul").unwrap();
        let mut code = section.data().unwrap().to_vec();
        for (at, relocation) in section.relocations() {
            let RelocationTarget::Symbol(symbol) = relocation.target() else { panic!("{name}: {relocation:?}") };
            let symbol = object::ObjectSymbol::name(&object::Object::symbol_by_index(&object, symbol).unwrap())
                .unwrap()
                .to_owned();
            assert_eq!(symbol, "a_thunk", "{name}");
            let value = (THUNK as i64 + relocation.addend() - (va + at) as i64) as i32;
            code[at as usize..][..4].copy_from_slice(&value.to_le_bytes());
        }
        if let Some(at) = code.iter().zip(&expected).position(|(is, should_be)| is != should_be) {
            panic!("{name}: at {at:#x} is {:x?}, should be {:x?}", &code[at..][..16], &expected[at..][..16]);
        }
        assert_eq!(code.len(), expected.len(), "{name}");
    }
}
