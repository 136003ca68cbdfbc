//! Engines on memory that the guest owns: a slot that is rewritten for each access, and a table of every form; and how a
//! stub is called that is for a register file of the host's.

use ioemul::{
    CodeTable, EmitError, EmitOptions, Gprs, Helpers, IoInsn, Quirk, RegisterFile, Ring, StubLayout, emit_stub,
};

use crate::engine::{Engine, Refused, Returned};
use crate::rng::Rng;

/// How the code is to be.
#[derive(Clone, Copy, Debug, Default)]
pub struct Style {
    /// The quirks of this machine.
    pub quirks: &'static [Quirk],
    /// The structure that stubs are called with: filled from [`Gprs`] for each call, and read back into them.
    pub registers: RegisterFile,
    /// Where the code runs.
    pub ring: Ring,
    /// ENDBR64 at the entry, INT3 behind the last branch, this thunk in place of RET, and registers scrubbed.
    pub hardened: Option<Thunk>,
    /// Patch one byte of the code that saves the registers: whoever runs this has to notice.
    pub broken: bool,
}

/// A return thunk that counts.
#[derive(Clone, Copy, Debug)]
pub struct Thunk {
    /// Its executable address.
    pub address: u64,
    /// How often it ran.
    pub count: fn() -> u64,
}

impl Style {
    fn options(&self, layout: StubLayout) -> EmitOptions<'static> {
        let hardened = self.hardened.is_some();
        EmitOptions::new()
            .layout(layout)
            .registers(self.registers)
            .endbr64(hardened)
            .int3(hardened)
            .scrub(hardened)
            .return_thunk(self.hardened.map(|thunk| thunk.address))
            .ring(self.ring)
            .quirks(self.quirks)
    }

    /// Calls a stub of this style with `gprs`.
    ///
    /// # Safety
    ///
    /// As for [`call`].
    unsafe fn call(&self, entry: u64, gprs: &mut Gprs, df: bool) -> Returned {
        if let Some(thunk) = self.hardened {
            let before = (thunk.count)();
            // SAFETY: the caller's promise.
            let returned = unsafe { call(entry, &self.registers, gprs, df) };
            assert!((thunk.count)() > before, "the return thunk did not run");
            return returned;
        }
        // SAFETY: the caller's promise.
        unsafe { call(entry, &self.registers, gprs, df) }
    }
}

/// Memory kept for the helpers, in front of the slot.
const HELPERS: usize = Helpers::MAX_LEN;

/// One slot, as a hypervisor keeps for each CPU.
pub struct Slot {
    /// Not a reference: the processor reads what is written here, and the compiler must not think otherwise.
    memory: *mut [u8],
    helpers: Helpers,
    style: Style,
}

impl Slot {
    /// Puts the helpers of `layout` into the memory; the rest of it is the slot.
    ///
    /// # Safety
    ///
    /// The memory can be read, written and executed where it lies, and is the slot's alone as long as that lives.
    pub unsafe fn new(memory: *mut [u8], layout: StubLayout, style: Style) -> Result<Self, EmitError> {
        // SAFETY: the caller's promise.
        let (helpers_memory, _) = unsafe { &mut *memory }.split_at_mut(HELPERS);
        let va = helpers_memory.as_ptr().expose_provenance() as u64;
        let helpers = Helpers::emit(helpers_memory, va, &style.options(layout))?;
        if style.broken {
            sabotage(helpers_memory, &style.registers);
        }
        Ok(Self { memory, helpers, style })
    }
}

impl Slot {
    /// Puts the stub of a form into the slot; returns its address.
    fn emit(&mut self, insn: IoInsn) -> u64 {
        // SAFETY: the promise made to `new`.
        let (_, slot) = unsafe { &mut *self.memory }.split_at_mut(HELPERS);
        let va = slot.as_ptr().expose_provenance() as u64;
        let len = emit_stub(slot, va, insn, &self.helpers).expect("the slot is large");
        if self.style.broken {
            sabotage(&mut slot[..len], &self.style.registers);
        }
        assert!(self.style.hardened.is_none() || starts_with_endbr64(slot), "the stub does not start with ENDBR64");
        va
    }
}

impl Engine for Slot {
    fn execute(&mut self, insn: IoInsn, gprs: &mut Gprs) -> Result<(), Refused> {
        let entry = self.emit(insn);
        // SAFETY: a stub has just been put there, into memory that can be executed (`new`).
        unsafe { self.style.call(entry, gprs, false) };
        Ok(())
    }

    fn call_with_df(&mut self, insn: IoInsn, gprs: &mut Gprs) -> Option<Returned> {
        let entry = self.emit(insn);
        // SAFETY: as above.
        Some(unsafe { self.style.call(entry, gprs, true) })
    }
}

/// Every form of a layout, written once.
pub struct Table {
    table: CodeTable,
    style: Style,
}

impl Table {
    /// Fills the memory with the table.
    ///
    /// # Safety
    ///
    /// As for [`Slot::new`].
    pub unsafe fn new(memory: *mut [u8], layout: StubLayout, style: Style) -> Result<Self, EmitError> {
        // SAFETY: the caller's promise.
        let memory = unsafe { &mut *memory };
        let va = memory.as_ptr().expose_provenance() as u64;
        Ok(Self { table: CodeTable::emit(memory, va, &style.options(layout))?, style })
    }

    fn entry(&self, insn: IoInsn, gprs: &Gprs) -> Option<u64> {
        match insn.is_string() {
            true => self.table.string_entry(insn),
            false => self.table.resolve(insn, gprs.rax, gprs.rdx),
        }
    }
}

impl Engine for Table {
    fn execute(&mut self, insn: IoInsn, gprs: &mut Gprs) -> Result<(), Refused> {
        let entry = self.entry(insn, gprs).ok_or(Refused)?;
        // SAFETY: the table is in place, in memory that can be executed (`new`).
        unsafe { self.style.call(entry, gprs, false) };
        Ok(())
    }

    fn call_with_df(&mut self, insn: IoInsn, gprs: &mut Gprs) -> Option<Returned> {
        let entry = self.entry(insn, gprs)?;
        // SAFETY: as above.
        Some(unsafe { self.style.call(entry, gprs, true) })
    }
}

/// Runs a stub that is for `registers`, which get what `gprs` hold and from which `gprs` get what came of it; with the
/// caller's DF set, against the psABI, or clear.
///
/// # Panics
///
/// If another word of the structure has changed than a register that stubs store.
///
/// # Safety
///
/// `entry` is the address of a stub for `registers`; the machine is ours, so that no access can do harm.
pub unsafe fn call(entry: u64, registers: &RegisterFile, gprs: &mut Gprs, df: bool) -> Returned {
    if *registers == RegisterFile::GPRS {
        // SAFETY: the caller's promise.
        return unsafe { enter(entry, (&raw mut *gprs).cast(), df) };
    }
    let before = Structure::new(registers, gprs);
    let mut after = before;
    // SAFETY: the caller's promise.
    let returned = unsafe { enter(entry, after.registers().cast(), df) };
    *gprs = after.gprs(registers);
    let others_are_as_before = after == before.with(registers, gprs);
    assert!(others_are_as_before, "a stub has changed a word of the structure that is no register of its own");
    returned
}

/// A structure of a host's, with room around it: what is not a register is random, and has to stay.
#[repr(align(64))]
#[derive(Clone, Copy, PartialEq, Eq)]
struct Structure {
    words: [u64; Self::WORDS],
}

impl Structure {
    /// The largest is `pt_regs`, with 21.
    const WORDS: usize = 32;
    /// Where it starts: at a multiple of 8 that is no multiple of 16.
    const START: usize = 3;

    fn new(registers: &RegisterFile, gprs: &Gprs) -> Self {
        let mut rng = Rng::new(gprs.rax ^ gprs.r15);
        Self { words: core::array::from_fn(|_| rng.next()) }.with(registers, gprs)
    }

    /// What a stub gets.
    fn registers(&mut self) -> *mut u64 {
        self.words.as_mut_ptr().wrapping_add(Self::START)
    }

    /// Index of each register, in the order of [`Gprs::NAMES`].
    fn places(registers: &RegisterFile) -> impl Iterator<Item = usize> {
        let offsets = registers.offsets().iter().copied().chain(registers.rflags());
        offsets.map(|offset| Self::START.checked_add_signed(isize::from(offset) / 8).expect("there is room"))
    }

    /// The same with other registers.
    fn with(mut self, registers: &RegisterFile, gprs: &Gprs) -> Self {
        Self::places(registers).zip(gprs.to_words()).for_each(|(place, word)| self.words[place] = word);
        self
    }

    fn gprs(&self, registers: &RegisterFile) -> Gprs {
        let mut words = [0; 16];
        words.iter_mut().zip(Self::places(registers)).for_each(|(word, place)| *word = self.words[place]);
        Gprs::from_words(words)
    }
}

/// Calls a stub.
///
/// # Safety
///
/// As for [`call`], and `file` is the register file that the stub is for.
unsafe fn enter(entry: u64, file: *mut u8, df: bool) -> Returned {
    let (result, rflags);
    // SAFETY: the caller's promise: a function of this signature. DF is clear before Rust goes on.
    unsafe {
        core::arch::asm!(
            "test {df:e}, {df:e}", "jz 2f", "std", "2:", "call {entry}", "pushfq", "pop rdi", "cld",
            df = in(reg) u32::from(df), entry = in(reg) entry,
            inout("rdi") file => rflags, lateout("rax") result, clobber_abi("sysv64"),
        )
    };
    Returned { result, rflags }
}

/// ENDBR64, put together here: as a constant it would be a landing pad.
fn starts_with_endbr64(code: &[u8]) -> bool {
    let complement = [0x0c, 0xf0, 0xe1, 0x05];
    code.iter().zip(complement).all(|(byte, complement): (_, u8)| *byte == !complement)
}

/// Makes `mov [rdi + r14], r14` store R13 in R14's place.
fn sabotage(code: &mut [u8], registers: &RegisterFile) {
    let offset = registers.offsets()[13] as u8;
    if let Some(at) = code.windows(4).position(|window| window == [0x4c, 0x89, 0x77, offset]) {
        code[at + 2] = 0x6f;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // Like stubs for `pt_regs`: R15 is at 0, and at 120 is `orig_rax`, which is none of theirs.
    core::arch::global_asm!(
        ".global ioemul_hw_test_keeps, ioemul_hw_test_changes",
        "ioemul_hw_test_keeps:",
        "inc qword ptr [rdi]",
        "xor eax, eax",
        "ret",
        "ioemul_hw_test_changes:",
        "inc qword ptr [rdi + 120]",
        "xor eax, eax",
        "ret",
    );

    unsafe extern "C" {
        static ioemul_hw_test_keeps: u8;
        static ioemul_hw_test_changes: u8;
    }

    fn run(stub: *const u8) -> Gprs {
        let mut gprs = Rng::new(7).gprs();
        // SAFETY: a function of a stub's signature, which touches the structure alone.
        let returned = unsafe { call(stub as u64, &RegisterFile::PT_REGS, &mut gprs, true) };
        assert_eq!((returned.result, returned.rflags & crate::DF), (0, crate::DF));
        gprs
    }

    #[test]
    fn a_structure_of_the_host_is_filled_and_read_back() {
        let before = Rng::new(7).gprs();
        assert_eq!(run(&raw const ioemul_hw_test_keeps), Gprs { r15: before.r15 + 1, ..before });
    }

    #[test]
    #[should_panic(expected = "no register of its own")]
    fn a_change_elsewhere_is_noticed() {
        run(&raw const ioemul_hw_test_changes);
    }
}
