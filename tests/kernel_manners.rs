//! What a kernel asks of the part without std: no panic, little stack, and no landing pad for an attacker's indirect
//! branch in the library's own code.
#![cfg(all(feature = "std", target_os = "linux"))]

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use object::{Object, ObjectSection, ObjectSymbol};

/// The program in `tests/freestanding`, linked for a kernel: everything reachable from its roots, and nothing else.
fn freestanding() -> &'static [u8] {
    static PROGRAM: OnceLock<Vec<u8>> = OnceLock::new();
    PROGRAM.get_or_init(|| {
        let package = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/freestanding");
        let target = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("freestanding");
        let mut cargo = Command::new(env!("CARGO"));
        // What this test was built with is not what the program is to be built with.
        for variable in ["RUSTFLAGS", "CARGO_ENCODED_RUSTFLAGS", "CARGO_BUILD_TARGET"] {
            cargo.env_remove(variable);
        }
        cargo.args(["build", "--release", "--quiet", "--target-dir"]).arg(&target).current_dir(package);
        let built = cargo.output().expect("cargo runs");
        assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
        std::fs::read(target.join("release/freestanding")).unwrap()
    })
}

#[test]
fn no_panic_can_be_reached() {
    let file = object::File::parse(freestanding()).unwrap();
    let names: Vec<&str> = file.symbols().filter_map(|symbol| symbol.name().ok()).collect();
    assert!(names.contains(&"roots") && names.len() > 20, "the symbols are there: {names:?}");
    let panics: Vec<&&str> = names.iter().filter(|name| name.contains("panic")).collect();
    assert!(panics.is_empty(), "reachable: {panics:?}");
}

#[test]
fn endbr64_does_not_stand_in_the_librarys_own_code() {
    const ENDBR64: [u8; 4] = [0xf3, 0x0f, 0x1e, 0xfa];
    let file = object::File::parse(freestanding()).unwrap();
    let mut scanned = 0;
    for section in file.sections() {
        let data = section.uncompressed_data().unwrap();
        assert!(
            !data.windows(ENDBR64.len()).any(|bytes| bytes == ENDBR64),
            "in {}",
            section.name().unwrap_or("a section without a name")
        );
        scanned += data.len();
    }
    assert!(scanned > 10_000, "{scanned} bytes are no library");
}

/// In a release build, which is what a kernel has: `cargo test --release --test kernel_manners`.
#[cfg(not(debug_assertions))]
mod stack {
    use std::arch::naked_asm;
    use std::collections::BTreeMap;
    use std::hint::black_box;

    use ioemul::{
        CodeSize, CodeTable, DmiStrings, EmitError, EmitOptions, Gprs, Helpers, IoInsn, PortAccess, Quirk,
        RegisterFile, SmbiosEntryPoint, StubLayout, TssBitmap, Width, emit_stub, stub_fixup,
    };

    const SIZE: usize = 1 << 16;
    const PAINT: u8 = 0xa5;

    /// Calls `run(argument)` on another stack.
    #[unsafe(naked)]
    unsafe extern "sysv64" fn on_stack(_top: *mut u8, _run: extern "sysv64" fn(*mut u8), _argument: *mut u8) {
        naked_asm!(
            "push rbp",
            "mov rbp, rsp",
            "mov rsp, rdi",
            "mov rdi, rdx",
            "call rsi",
            "mov rsp, rbp",
            "pop rbp",
            "ret",
        )
    }

    /// How many bytes of stack a call takes.
    fn used<F: FnMut()>(mut f: F) -> usize {
        extern "sysv64" fn run<F: FnMut()>(f: *mut u8) {
            // SAFETY: the pointer is that of the closure below.
            unsafe { (*f.cast::<F>())() }
        }
        let mut stack = vec![PAINT; SIZE];
        let top = stack.as_mut_ptr_range().end;
        // SAFETY: the stack is large, and aligned after the last bits are cleared.
        unsafe { on_stack(top.wrapping_byte_sub(top as usize % 16), run::<F>, (&raw mut f).cast()) };
        SIZE - stack.iter().position(|byte| *byte != PAINT).unwrap()
    }

    #[test]
    fn stack_of_a_bitmap_is_next_to_none() {
        let map = black_box([0; 0x2001]);
        let mut permitted = false;
        let bytes = used(|| permitted = black_box(TssBitmap::new(&map)).permits(black_box(0xcd4), Width::Dword));
        assert!(permitted && bytes <= 128, "{bytes} bytes of stack");
    }

    /// Denied at its last access: a handler that is asked for a quirk's goes the longest way. (The stub's own frame is less
    /// than its caller's.)
    #[test]
    fn stack_of_a_handlers_call() {
        let quirks = [Quirk::DELL_SMM];
        let options = EmitOptions::new().quirks(&quirks);
        let mut memory = vec![0; CodeTable::size(&options)];
        let table = CodeTable::emit(&mut memory, 0x2000, &options).unwrap();
        let (code, mut gprs) = (black_box([0xe6, 0xb2]), Gprs { rax: 0xa3, ..Gprs::default() });
        let permits = |access: &PortAccess| black_box(access.port) != 0x84;
        let mut result = None;
        // SAFETY: makes no access.
        let emulate = used(|| unsafe { result = Some(table.emulate(CodeSize::Bits64, &code, &mut gprs, permits)) });
        assert!(result.unwrap().is_err());
        let mut strings = None;
        let outs = black_box(IoInsn::rep_outs(Width::Byte));
        // SAFETY: as above.
        let string = used(|| unsafe { strings = Some(table.write_string(outs, &mut gprs, &[0; 9], |_| false)) });
        assert!(strings.unwrap().is_err());
        println!("emulate {emulate}, write_string {string} bytes");
        assert!(emulate <= 2048 && string <= 1024, "{emulate} and {string} bytes of stack");
    }

    #[test]
    fn stack_of_an_smbios_table() {
        let table = black_box([[0, 6, 0, 0, 1, 2, b'H', b'P', 0, b'x', 0, 0]; 100]);
        let mut matches = false;
        let bytes = used(|| {
            let dmi = DmiStrings::from_smbios(table.as_flattened());
            matches = dmi.bios_vendor == "HP" && SmbiosEntryPoint::find(table.as_flattened()).is_none();
        });
        assert!(matches && bytes <= 1024, "{bytes} bytes of stack");
    }

    #[test]
    fn stack_of_the_emitters() {
        let array_on_the_stack = used(|| _ = black_box([0_u8; 4000]));
        assert!((4000..5000).contains(&array_on_the_stack), "what is used is seen: {array_on_the_stack}");
        let mut worst = BTreeMap::new();
        let mut note = |what: &'static str, bytes: usize| {
            let most: &mut usize = worst.entry(what).or_default();
            *most = bytes.max(*most);
        };
        for &layout in StubLayout::ALL {
            for registers in [RegisterFile::GPRS, RegisterFile::PT_REGS] {
                let quirks = &Quirk::ALL[..EmitOptions::MAX_QUIRKS];
                let options = EmitOptions::new().layout(layout).registers(registers).endbr64(true).int3(true);
                let options = options.scrub(true).return_thunk(0x1000).quirks(quirks);
                let mut memory = vec![0; CodeTable::size(&options)];
                // The result is the caller's own.
                let bytes = used(|| _ = black_box(&Helpers::emit(&mut memory, 0x2000, &options)));
                note("Helpers::emit", bytes - size_of::<Result<Helpers, EmitError>>());
                let helpers = Helpers::emit(&mut memory, 0x2000, &options).unwrap();
                let mut slot = [0; 4096];
                let mut emit = |insn| used(|| assert!(emit_stub(&mut slot, 0x4000, insn, &helpers).is_ok()));
                note("emit_stub, plain", emit(IoInsn::in_imm8(Width::Word, 1)));
                note("emit_stub, quirks", emit(IoInsn::out_dx(Width::Byte)));
                note("emit_stub, string", emit(IoInsn::rep_ins(Width::Word)));
                let mut pad = None;
                let out = IoInsn::out_dx(Width::Byte);
                note("stub_fixup", used(|| pad = black_box(stub_fixup(0x4000, out, &helpers, 0x4030))));
                let mut size = 0;
                note("CodeTable::size", used(|| size = black_box(CodeTable::size(&options))));
                let bytes = used(|| _ = black_box(&CodeTable::emit(&mut memory, 0x2000, &options)));
                note("CodeTable::emit", bytes - size_of::<Result<CodeTable, EmitError>>());
                let table = CodeTable::emit(&mut memory, 0x2000, &options).unwrap();
                note("fixup", used(|| pad = black_box(table.fixup(0x2800))));
                note("faults", used(|| size = black_box(table.faults().count())));
                note("symbols", used(|| size = black_box(table.symbols().count())));
            }
        }
        println!("{worst:#?}");
        for (what, bytes) in worst {
            let limit = if what == "emit_stub, plain" { 1024 } else { 2048 };
            assert!(bytes <= limit, "{what} takes {bytes} bytes of stack");
        }
    }
}
