//! All stubs, in the caller's memory.
#![allow(unsafe_code)] // pointers from C, and names that the linker sees

use core::ffi::{c_char, c_int, c_void};

use ioemul_core::{CodeTable, IoInsn, Symbol};

use crate::insn::{Access, Insn, insn, write_text};
use crate::options::{Given, Options};
use crate::pointers::{Marked, Opaque, Place, elements_mut, write_all};
use crate::status::{Status, guard};

/// `struct ioemul_table`.
pub(crate) type Table = Opaque<CodeTable, 127>;

impl Marked for CodeTable {
    const MARK: u64 = u64::from_le_bytes(*b"ioetable");
}

/// `struct ioemul_fault`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub(crate) struct Fault {
    pub rip: u64,
    pub resume: u64,
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn ioemul_table_size(options: *const Options, bytes: *mut usize) -> c_int {
    // SAFETY: the caller's promises, as in ioemul.h.
    guard(|| unsafe {
        let (given, bytes) = (Given::new(options)?, Place::new(bytes)?);
        bytes.write(CodeTable::size(&given.options()));
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn ioemul_table_emit(
    table: *mut Table,
    code: *mut c_void,
    len: usize,
    va: u64,
    options: *const Options,
) -> c_int {
    // SAFETY: the caller's promises, as in ioemul.h.
    guard(|| unsafe {
        let (given, table) = (Given::new(options)?, Table::room(table)?);
        table.write(CodeTable::emit(elements_mut(code.cast::<u8>(), len)?, va, &given.options())?);
        Ok(())
    })
}

/// Writes the address that `find` gives for an instruction in a table.
unsafe fn find(
    table: *const Table,
    insn: *const Insn,
    entry: *mut u64,
    find: impl FnOnce(&CodeTable, IoInsn) -> Option<u64>,
) -> c_int {
    // SAFETY: the caller's promises, as in ioemul.h.
    guard(|| unsafe {
        let (table, insn, entry) = (Table::get(table)?, self::insn(insn)?, Place::new(entry)?);
        entry.write(find(table, insn).ok_or(Status::NoStub)?);
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn ioemul_table_entry(table: *const Table, insn: *const Insn, entry: *mut u64) -> c_int {
    // SAFETY: the caller's promises, as in ioemul.h.
    unsafe { find(table, insn, entry, CodeTable::entry) }
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn ioemul_table_string_entry(
    table: *const Table,
    insn: *const Insn,
    entry: *mut u64,
) -> c_int {
    // SAFETY: the caller's promises, as in ioemul.h.
    unsafe { find(table, insn, entry, CodeTable::string_entry) }
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn ioemul_table_resolve(
    table: *const Table,
    insn: *const Insn,
    rax: u64,
    rdx: u64,
    entry: *mut u64,
) -> c_int {
    // SAFETY: the caller's promises, as in ioemul.h.
    unsafe { find(table, insn, entry, |table, insn| table.resolve(insn, rax, rdx)) }
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn ioemul_table_accesses(
    table: *const Table,
    insn: *const Insn,
    rax: u64,
    rdx: u64,
    accesses: *mut Access,
    count: *mut usize,
) -> c_int {
    // SAFETY: the caller's promises, as in ioemul.h.
    guard(|| unsafe {
        let (table, insn) = (Table::get(table)?, self::insn(insn)?);
        let found = (0..).map_while(|nth| table.accesses(insn, rax, rdx).nth(nth)).map(Access::from);
        write_all(found, accesses, count)
    })
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn ioemul_table_fixup(table: *const Table, rip: u64, resume: *mut u64) -> c_int {
    // SAFETY: the caller's promises, as in ioemul.h.
    guard(|| unsafe {
        let (table, resume) = (Table::get(table)?, Place::new(resume)?);
        resume.write(table.fixup(rip).ok_or(Status::NotFound)?);
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn ioemul_table_fault_count(table: *const Table, count: *mut usize) -> c_int {
    // SAFETY: the caller's promises, as in ioemul.h.
    guard(|| unsafe {
        let (table, count) = (Table::get(table)?, Place::new(count)?);
        count.write(table.faults().count());
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn ioemul_table_faults(
    table: *const Table,
    faults: *mut Fault,
    count: *mut usize,
) -> c_int {
    // SAFETY: the caller's promises, as in ioemul.h.
    guard(|| unsafe {
        let (table, place) = (Table::get(table)?, Place::new(count)?);
        let needed = table.faults().count();
        if needed > place.read() {
            return Err(Status::TooSmall);
        }
        let room = elements_mut(faults, needed)?;
        room.iter_mut().zip(table.faults()).for_each(|(fault, (rip, resume))| *fault = Fault { rip, resume });
        place.write(needed);
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn ioemul_table_symbol(
    table: *const Table,
    address: u64,
    text: *mut c_char,
    len: usize,
    start: *mut u64,
    length: *mut usize,
) -> c_int {
    // SAFETY: the caller's promises, as in ioemul.h.
    guard(|| unsafe {
        let (table, start, length) = (Table::get(table)?, Place::new(start)?, Place::new(length)?);
        let is_behind = |symbol: &Symbol| {
            let starts_there = symbol.address >= address && symbol.len > 0; // an empty one would be found for ever
            starts_there || address.wrapping_sub(symbol.address) < symbol.len as u64
        };
        let symbol = table.symbols().find(is_behind).ok_or(Status::NotFound)?;
        write_text(symbol.name, text, len)?;
        start.write(symbol.address);
        length.write(symbol.len);
        Ok(())
    })
}
