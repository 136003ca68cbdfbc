//! Memory for code: one page behind two mappings, a whole table, and the least that a table can cost.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::ptr;

use ioemul::{CodeTable, EmitOptions, Helpers, IoInsn, Stub, emit_stub};

use super::hand::Entry;

/// The entry point of a stub.
pub fn entry(stub: Stub<'_>) -> Entry {
    // SAFETY: a stub is a function of this signature. (It returns something, too, which nobody has to look at.)
    unsafe { core::mem::transmute::<*const u8, Entry>(stub.code().as_ptr()) }
}

const PAGE: usize = 4096;

/// Where the I/O is in a stub of `StubLayout::CallRet`, and what stands there in a table whose I/O is elided.
const IO_AT: usize = 16;
const NO_OP: [u8; 3] = [0x0f, 0x1f, 0x00];

/// A slot as a hypervisor has one for each CPU: executable at one address, written to at another.
/// (For `StubLayout::CallRet`, whose stubs are 36 bytes long.)
pub struct AliasedSlot {
    writable: *mut u8,
    executable: *mut u8,
    helpers: Helpers,
    _memory: OwnedFd,
}

impl AliasedSlot {
    /// Offset of the slot in the page: the helpers are before it.
    const SLOT: usize = 1024;

    /// A page with the helpers.
    pub fn new() -> io::Result<Self> {
        let check = |result: i64| if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result as i32) };
        // SAFETY: the name is a C string.
        let fd = check(unsafe { libc::memfd_create(c"ioemul-slot".as_ptr(), libc::MFD_CLOEXEC) }.into())?;
        // SAFETY: the descriptor is new and nobody else's.
        let memory = unsafe { OwnedFd::from_raw_fd(fd) };
        // SAFETY: changes the length of a file of our own.
        check(unsafe { libc::ftruncate(memory.as_raw_fd(), PAGE as i64) }.into())?;
        let map = |protection| {
            // SAFETY: a new mapping, wherever the system likes.
            let at = unsafe { libc::mmap(ptr::null_mut(), PAGE, protection, libc::MAP_SHARED, memory.as_raw_fd(), 0) };
            if at == libc::MAP_FAILED { Err(io::Error::last_os_error()) } else { Ok(at.cast::<u8>()) }
        };
        let writable = map(libc::PROT_READ | libc::PROT_WRITE)?;
        let executable = map(libc::PROT_READ | libc::PROT_EXEC)?;
        // SAFETY: the mapping is as long as that, and nobody else knows it.
        let room = unsafe { core::slice::from_raw_parts_mut(writable, Self::SLOT) };
        let helpers = Helpers::emit(room, executable as u64, &EmitOptions::new()).map_err(io::Error::other)?;
        Ok(Self { writable, executable, helpers, _memory: memory })
    }

    /// The bytes of a stub for this slot, to be given to [`Self::rewrite`].
    pub fn prepare(&self, insn: IoInsn) -> [u8; 36] {
        let mut bytes = [0xcc; 36];
        let va = self.executable as u64 + Self::SLOT as u64;
        let written = emit_stub(&mut bytes, va, insn, &self.helpers);
        assert!(written.is_ok(), "{written:?}");
        bytes
    }

    /// As [`Self::prepare`], with a no-op in place of the I/O instruction, as in a table whose I/O is elided.
    pub fn prepare_elided(&self, insn: IoInsn) -> [u8; 36] {
        let mut bytes = self.prepare(insn);
        bytes[IO_AT..IO_AT + NO_OP.len()].copy_from_slice(&NO_OP);
        bytes
    }

    /// Writes finished bytes into the slot, which is the least that anyone can do to change it, and returns its entry.
    #[inline(always)]
    pub fn rewrite(&mut self, bytes: &[u8; 36]) -> Entry {
        // SAFETY: the slot is in the mapping, and nothing executes it while `self` is borrowed.
        unsafe { ptr::copy_nonoverlapping(bytes.as_ptr(), self.writable.add(Self::SLOT), bytes.len()) };
        // SAFETY: the slot holds a stub, made by `prepare`.
        unsafe { core::mem::transmute::<*mut u8, Entry>(self.executable.add(Self::SLOT)) }
    }
}

impl Drop for AliasedSlot {
    fn drop(&mut self) {
        for mapping in [self.writable, self.executable] {
            // SAFETY: mapped by `new`, and used no more.
            unsafe { libc::munmap(mapping.cast(), PAGE) };
        }
    }
}

/// Private memory, mapped and, when this is dropped, unmapped.
struct Mapping {
    at: *mut u8,
    len: usize,
}

impl Mapping {
    /// Memory that can be written to.
    fn new(len: usize) -> io::Result<Self> {
        let (protection, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
        // SAFETY: a new mapping, wherever the system likes.
        let at = unsafe { libc::mmap(ptr::null_mut(), len, protection, flags, -1, 0) };
        if at == libc::MAP_FAILED { Err(io::Error::last_os_error()) } else { Ok(Self { at: at.cast(), len }) }
    }

    /// Its bytes. It must not be executable yet.
    fn bytes(&mut self) -> &mut [u8] {
        // SAFETY: mapped, as long as that, and borrowed from here.
        unsafe { core::slice::from_raw_parts_mut(self.at, self.len) }
    }

    /// Makes it executable, and no longer writable.
    fn make_executable(&mut self) -> io::Result<()> {
        // SAFETY: the mapping is our own.
        match unsafe { libc::mprotect(self.at.cast(), self.len, libc::PROT_READ | libc::PROT_EXEC) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: mapped by `new`, and used no more.
        unsafe { libc::munmap(self.at.cast(), self.len) };
    }
}

/// The least that a table of this size can cost: its finished bytes are copied to new memory, which is made executable and
/// given back.
pub fn copy_executable(code: &[u8]) -> io::Result<()> {
    let mut memory = Mapping::new(code.len())?;
    memory.bytes().copy_from_slice(code);
    memory.make_executable()
}

/// A hypervisor's table, of `StubLayout::CallRet`, with no-ops in place of its plain I/O instructions.
pub struct ElidedTable {
    pub table: CodeTable,
    _memory: Mapping,
}

impl ElidedTable {
    /// In new memory.
    pub fn new(options: &EmitOptions<'_>) -> io::Result<Self> {
        let mut memory = Mapping::new(CodeTable::size(options))?;
        let va = memory.at as u64;
        let table = CodeTable::emit(memory.bytes(), va, options).map_err(io::Error::other)?;
        for insn in IoInsn::in_out() {
            let at = table.entry(insn).map_or(0, |entry| (entry - va) as usize) + IO_AT;
            let io = &mut memory.bytes()[at..at + NO_OP.len()];
            assert_eq!(io, insn.encode_padded(), "the I/O of a stub is elsewhere");
            io.copy_from_slice(&NO_OP);
        }
        memory.make_executable()?;
        Ok(Self { table, _memory: memory })
    }
}
