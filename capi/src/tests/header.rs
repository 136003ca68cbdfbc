//! `include/ioemul.h`, which is written by hand, and the Rust side say the same: sizes, offsets, numbers, and the types
//! of functions, as the C compiler sees them.

use std::collections::BTreeSet;
use std::ffi::{c_char, c_int, c_void};
use std::fmt::Write as _;
use std::process::Command;

use crate::insn::*;
use crate::options::*;
use crate::quirks::*;
use crate::slot::*;
use crate::status::{Status, ioemul_error_text};
use crate::table::*;
use crate::version::ioemul_abi_version;

const HEADER: &str = include_str!("../../include/ioemul.h");

/// A type's name in C.
trait CType {
    fn name() -> String;
}

macro_rules! c_types {
    ($($rust:ty = $c:literal),* $(,)?) => { $(impl CType for $rust { fn name() -> String { $c.into() } })* };
}

c_types!(
    c_int = "int",
    c_char = "char",
    c_void = "void",
    u32 = "uint32_t",
    u64 = "uint64_t",
    usize = "size_t",
    Insn = "struct ioemul_insn",
    Access = "struct ioemul_access",
    Registers = "struct ioemul_register_file",
    Options = "struct ioemul_options",
    QuirkChoice = "struct ioemul_quirk",
    Dmi = "struct ioemul_dmi",
    Table = "struct ioemul_table",
    Fault = "struct ioemul_fault",
    HelpersRoom = "struct ioemul_helpers",
);

impl<T: CType> CType for *const T {
    fn name() -> String {
        format!("const {} *", T::name())
    }
}

impl<T: CType> CType for *mut T {
    fn name() -> String {
        format!("{} *", T::name())
    }
}

/// A function's declaration in C.
trait Function {
    fn declaration(name: &str) -> String;
}

macro_rules! functions {
    ($($argument:ident)*) => {
        impl<R: CType, $($argument: CType),*> Function for unsafe extern "C" fn($($argument),*) -> R {
            fn declaration(name: &str) -> String {
                let arguments: Vec<String> = vec![$($argument::name()),*];
                let arguments = if arguments.is_empty() { "void".into() } else { arguments.join(", ") };
                format!("{} {name}({arguments});", R::name())
            }
        }
    };
}

functions!();
functions!(A);
functions!(A B);
functions!(A B C);
functions!(A B C D);
functions!(A B C D E);
functions!(A B C D E F);

fn declaration<F: Function>(name: &str, _: F) -> String {
    F::declaration(name)
}

macro_rules! declarations {
    ($($name:ident($($argument:tt)*);)*) => {
        [$((stringify!($name), declaration(stringify!($name), $name as unsafe extern "C" fn($($argument)*) -> _))),*]
    };
}

/// Every function, with its declaration as Rust has it.
fn declarations() -> impl IntoIterator<Item = (&'static str, String)> {
    declarations! {
        ioemul_abi_version();
        ioemul_error_text(_);
        ioemul_decode(_, _, _, _, _);
        ioemul_insn_at(_, _);
        ioemul_insn_index(_, _);
        ioemul_insn_encode(_, _, _, _);
        ioemul_insn_text(_, _, _);
        ioemul_register_file_of(_, _);
        ioemul_quirk_name(_);
        ioemul_quirk_by_name(_, _);
        ioemul_smbios_find(_, _, _, _);
        ioemul_dmi_from_smbios(_, _, _);
        ioemul_quirks_of_machine(_, _, _);
        ioemul_table_size(_, _);
        ioemul_table_emit(_, _, _, _, _);
        ioemul_table_entry(_, _, _);
        ioemul_table_string_entry(_, _, _);
        ioemul_table_resolve(_, _, _, _, _);
        ioemul_table_accesses(_, _, _, _, _, _);
        ioemul_table_fixup(_, _, _);
        ioemul_table_fault_count(_, _);
        ioemul_table_faults(_, _, _);
        ioemul_table_symbol(_, _, _, _, _, _);
        ioemul_helpers_emit(_, _, _, _, _, _);
        ioemul_stub_emit(_, _, _, _, _, _);
        ioemul_stub_accesses(_, _, _, _, _, _);
        ioemul_stub_fixup(_, _, _, _, _);
    }
}

fn field_size<T, F>(_: impl Fn(&T) -> &F) -> usize {
    size_of::<F>()
}

/// Writes what has to hold of a structure: its size, and each field's offset and size, which leave no room for another.
macro_rules! structure {
    ($out:ident, $c:literal, $rust:ty: $($field:ident)*) => {{
        let (size, align) = (size_of::<$rust>(), align_of::<$rust>());
        writeln!($out, "HOLDS(sizeof(struct {}) == {size} && _Alignof(struct {}) == {align});", $c, $c).unwrap();
        let mut end = 0;
        $(
            let (offset, len) = (std::mem::offset_of!($rust, $field), field_size(|of: &$rust| &of.$field));
            assert_eq!(offset, end, "between the fields of {} is room", $c);
            end = offset + len;
            let (c, field) = ($c, stringify!($field));
            let at = format!("offsetof(struct {c}, {field}) == {offset}");
            writeln!($out, "HOLDS({at} && sizeof(((struct {c} *)0)->{field}) == {len});").unwrap();
        )*
        assert_eq!(end, size, "{} has more fields", $c);
    }};
}

fn structures() -> String {
    use ioemul_core::Gprs;
    let mut out = String::new();
    structure!(out, "ioemul_insn", Insn: size direction width operand port rep address segment reserved);
    structure!(out, "ioemul_register_file", Registers: size gprs rflags has_rflags reserved);
    structure!(out, "ioemul_quirk", QuirkChoice: number port has_port);
    structure!(out, "ioemul_string", Text: at len);
    structure!(out, "ioemul_dmi", Dmi: size bios_vendor bios_version sys_vendor product_name board_name);
    structure!(out, "ioemul_options", Options:
        size layout ring flags return_thunk registers quirks quirk_count);
    structure!(out, "ioemul_access", Access: port width direction);
    structure!(out, "ioemul_fault", Fault: rip resume);
    for (name, size) in [("ioemul_table", size_of::<Table>()), ("ioemul_helpers", size_of::<HelpersRoom>())] {
        writeln!(out, "HOLDS(sizeof(struct {name}) == {size} && offsetof(struct {name}, opaque) == 8);").unwrap();
    }
    for (name, offset) in Gprs::NAMES.iter().zip((0..).step_by(8)) {
        writeln!(out, "HOLDS(offsetof(struct ioemul_gprs, {name}) == {offset});").unwrap();
    }
    writeln!(out, "HOLDS(sizeof(struct ioemul_gprs) == {});", size_of::<Gprs>()).unwrap();
    out
}

/// Every number that has a name, as Rust has it.
fn numbers() -> Vec<(String, u64)> {
    use ioemul_core::{EmitOptions, Helpers, IoInsn, Quirk, RegisterFile, Segment, StubLayout};
    let mut numbers = vec![("OK".into(), 0)];
    for status in Status::ALL {
        // NotPortIo → ERROR_NOT_PORT_IO
        let words = format!("{status:?}").chars().fold(String::from("ERROR"), |name, letter| match letter {
            'A'..='Z' => name + "_" + &letter.to_string(),
            _ => name + &letter.to_ascii_uppercase().to_string(),
        });
        numbers.push((words, *status as u64));
    }
    let segments = [("ES", Segment::Es), ("CS", Segment::Cs), ("SS", Segment::Ss), ("DS", Segment::Ds)];
    for (name, segment) in segments.into_iter().chain([("FS", Segment::Fs), ("GS", Segment::Gs)]) {
        numbers.push((name.into(), SEGMENTS.iter().position(|known| *known == segment).unwrap() as u64));
    }
    for (name, layout) in [
        ("CALL_RET", StubLayout::CallRet),
        ("ROP", StubLayout::Rop),
        ("COMPACT", StubLayout::Compact),
        ("INLINE", StubLayout::Inline),
    ] {
        numbers.push((name.into(), LAYOUTS.iter().position(|known| *known == layout).unwrap() as u64));
    }
    for (name, file) in
        [("GPRS", RegisterFile::GPRS), ("KVM_REGS", RegisterFile::KVM_REGS), ("PT_REGS", RegisterFile::PT_REGS)]
    {
        numbers.push((name.into(), FILES.iter().position(|known| *known == file).unwrap() as u64));
    }
    for (name, quirk) in [
        ("PROLIANT", Quirk::PROLIANT),
        ("PROLIANT_UNBOUNDED", Quirk::PROLIANT_UNBOUNDED),
        ("DELL_SMM", Quirk::DELL_SMM),
        ("THINKPAD_SMAPI", Quirk::THINKPAD_SMAPI),
        ("READ_BACK", Quirk::READ_BACK),
        ("GSMI_CARRY", Quirk::GSMI_CARRY),
        ("GSMI_SPIN", Quirk::GSMI_SPIN),
    ] {
        let position = NUMBERED.iter().position(|known| known.1.name() == quirk.name()).unwrap();
        numbers.push((name.into(), position as u64 + 1));
    }
    let others = [
        ("ABI_VERSION", crate::ABI_VERSION.into()),
        ("IN", IN.into()),
        ("OUT", OUT.into()),
        ("DX", DX.into()),
        ("IMM8", IMM8.into()),
        ("STRING", STRING.into()),
        ("FORMS", IoInsn::COUNT as u64),
        ("STRING_FORMS", IoInsn::STRING_COUNT as u64),
        ("MAX_ENCODED", IoInsn::MAX_ENCODED as u64),
        ("MAX_TEXT", crate::insn::MAX_TEXT as u64),
        ("MAX_QUIRKS", EmitOptions::MAX_QUIRKS as u64),
        ("MAX_ACCESSES", 8), // the core has no name for it
        ("HELPERS_MAX_LEN", Helpers::MAX_LEN as u64),
        ("ENDBR64", ENDBR64),
        ("INT3", INT3),
        ("SCRUB", SCRUB),
    ];
    numbers.extend(others.map(|(name, number)| (name.into(), number)));
    numbers
}

/// The header without its comments.
fn code() -> String {
    let mut parts = HEADER.split("/*");
    let first = parts.next().unwrap().to_owned();
    parts.fold(first, |code, part| code + part.split_once("*/").expect("a comment ends").1)
}

fn words(code: &str) -> impl Iterator<Item = &str> {
    code.split(|letter: char| !(letter.is_ascii_alphanumeric() || letter == '_'))
}

#[test]
fn sizes_offsets_numbers_and_types_are_those_of_rust() {
    let mut source = String::from("#include <ioemul.h>\n#define HOLDS(what) _Static_assert(what, #what)\n");
    source += &structures();
    for (name, number) in numbers() {
        writeln!(source, "HOLDS(IOEMUL_{name} == {number});").unwrap();
    }
    for (_, declaration) in declarations() {
        writeln!(source, "{declaration}").unwrap(); // again: the compiler refuses another type
    }
    let file = std::env::temp_dir().join(format!("ioemul-header-{}.c", std::process::id()));
    std::fs::write(&file, &source).unwrap();
    let include = concat!(env!("CARGO_MANIFEST_DIR"), "/include");
    let arguments = ["-std=c11", "-Wall", "-Wextra", "-Werror", "-pedantic", "-fsyntax-only", "-I", include];
    let compiled = Command::new("cc").args(arguments).arg(&file).output().expect("a C compiler is there");
    std::fs::remove_file(&file).unwrap();
    assert!(compiled.status.success(), "{source}\n{}", String::from_utf8_lossy(&compiled.stderr));
}

#[test]
fn the_header_names_nothing_that_is_not_looked_at() {
    let code = code();
    let looked_at: BTreeSet<String> = numbers().into_iter().map(|(name, _)| format!("IOEMUL_{name}")).collect();
    let initializers = ["INSN", "REGISTER_FILE", "DMI", "OPTIONS"].map(|name| format!("IOEMUL_{name}_INIT"));
    let known: BTreeSet<String> = looked_at.into_iter().chain(initializers).chain(["IOEMUL_H".into()]).collect();
    let named = words(&code).filter(|word| word.starts_with("IOEMUL_")).map(str::to_owned).collect();
    assert_eq!(known, named);

    let declared: BTreeSet<&str> = declarations().into_iter().map(|(name, _)| name).collect();
    let called = code.split('(').filter_map(|before| words(before).last());
    assert_eq!(declared, called.filter(|name| name.starts_with("ioemul_")).collect());
}
