//! Engines on memory that the guest owns: a slot that is rewritten for each access, and a table of every form.

use ioemul::{CodeTable, EmitError, Gprs, Helpers, IoInsn, Layout, Quirk, Ring, SlotOptions, emit_stub_with};

use crate::{Engine, Refused};

/// How the code is to be.
#[derive(Clone, Copy, Debug, Default)]
pub struct Style {
    /// The quirk of this machine, if it has one.
    pub quirk: Option<Quirk>,
    /// Where the code runs.
    pub ring: Ring,
    /// ENDBR64 at the entry, INT3 behind the last branch, and this thunk in place of RET.
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
    fn options(&self) -> SlotOptions {
        let hardened = self.hardened.is_some();
        SlotOptions {
            endbr64: hardened,
            return_thunk: self.hardened.map(|thunk| thunk.address),
            int3: hardened,
            quirk: self.quirk,
            ring: self.ring,
        }
    }
}

/// Memory kept for the helpers, in front of the slot.
const HELPERS: usize = 512;

/// One slot, as a hypervisor keeps for each CPU.
pub struct Slot<'m> {
    memory: &'m mut [u8],
    helpers: Helpers,
    style: Style,
}

impl<'m> Slot<'m> {
    /// Puts the helpers of `layout` into the memory; the rest of it is the slot.
    ///
    /// # Safety
    ///
    /// The memory can be executed where it lies.
    pub unsafe fn new(memory: &'m mut [u8], layout: Layout, style: Style) -> Result<Self, EmitError> {
        let va = memory.as_ptr() as u64;
        let helpers = Helpers::emit_with(&mut memory[..HELPERS], va, layout, &style.options())?;
        if style.broken {
            sabotage(&mut memory[..HELPERS]);
        }
        Ok(Self { memory, helpers, style })
    }
}

impl Engine for Slot<'_> {
    fn execute(&mut self, insn: IoInsn, gprs: &mut Gprs) -> Result<(), Refused> {
        let slot = &mut self.memory[HELPERS..];
        let quirk = self.style.quirk.filter(|quirk| quirk.applies(insn, gprs));
        let options = SlotOptions { quirk, ..self.style.options() };
        let len = emit_stub_with(slot, slot.as_ptr() as u64, insn, &self.helpers, &options).expect("the slot is large");
        if self.style.broken {
            sabotage(&mut slot[..len]);
        }
        if let Some(thunk) = self.style.hardened {
            assert!(slot.starts_with(&[0xf3, 0x0f, 0x1e, 0xfa]), "the stub does not start with ENDBR64");
            let before = (thunk.count)();
            // SAFETY: see `call`.
            unsafe { call(slot.as_ptr() as u64, gprs) };
            assert!((thunk.count)() > before, "the return thunk did not run");
        } else {
            // SAFETY: a stub has just been put there, into memory that can be executed (`new`).
            unsafe { call(slot.as_ptr() as u64, gprs) };
        }
        Ok(())
    }
}

/// Every form of a layout, written once.
pub struct Table<'m> {
    _memory: &'m mut [u8],
    table: CodeTable,
}

impl<'m> Table<'m> {
    /// Fills the memory with the table.
    ///
    /// # Safety
    ///
    /// The memory can be executed where it lies.
    pub unsafe fn new(memory: &'m mut [u8], layout: Layout, style: Style) -> Result<Self, EmitError> {
        let va = memory.as_ptr() as u64;
        let table = CodeTable::emit(memory, va, layout, &style.options())?;
        Ok(Self { _memory: memory, table })
    }
}

impl Engine for Table<'_> {
    fn execute(&mut self, insn: IoInsn, gprs: &mut Gprs) -> Result<(), Refused> {
        // SAFETY: the table is in place, in memory that can be executed (`new`) and that it borrows.
        unsafe { call(self.table.resolve(insn, gprs), gprs) };
        Ok(())
    }
}

/// Runs a stub.
///
/// # Safety
///
/// `entry` is the address of a stub; the machine is ours, so that no access can do harm.
unsafe fn call(entry: u64, gprs: &mut Gprs) {
    // SAFETY: the caller's promise; this is a stub's signature.
    let entry: extern "sysv64" fn(*mut Gprs) -> u64 = unsafe { core::mem::transmute(entry) };
    entry(gprs);
}

/// Makes `mov [rdi + r14], r14` store R13 in R14's place.
fn sabotage(code: &mut [u8]) {
    const STORE_R14: [u8; 4] = [0x4c, 0x89, 0x77, core::mem::offset_of!(Gprs, r14) as u8];
    if let Some(at) = code.windows(4).position(|window| window == STORE_R14) {
        code[at + 2] = 0x6f;
    }
}
