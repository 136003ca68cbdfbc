//! Engines on memory that the guest owns: a slot that is rewritten for each access, and a table of every form.

use ioemul::{CodeTable, EmitError, Gprs, Helpers, IoInsn, Quirk, Ring, SlotOptions, StubLayout, emit_stub_with};

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
        let helpers = Helpers::emit_with(helpers_memory, va, layout, &style.options())?;
        if style.broken {
            sabotage(helpers_memory);
        }
        Ok(Self { memory, helpers, style })
    }
}

impl Slot {
    /// Puts the stub for an access into the slot; returns its address.
    fn emit(&mut self, insn: IoInsn, gprs: &Gprs) -> u64 {
        // SAFETY: the promise made to `new`.
        let (_, slot) = unsafe { &mut *self.memory }.split_at_mut(HELPERS);
        let va = slot.as_ptr().expose_provenance() as u64;
        let quirk = self.style.quirk.filter(|quirk| quirk.applies(insn, gprs));
        let options = SlotOptions { quirk, ..self.style.options() };
        let len = emit_stub_with(slot, va, insn, &self.helpers, &options).expect("the slot is large");
        if self.style.broken {
            sabotage(&mut slot[..len]);
        }
        assert!(
            self.style.hardened.is_none() || slot.starts_with(&[0xf3, 0x0f, 0x1e, 0xfa]),
            "the stub does not start with ENDBR64"
        );
        va
    }
}

impl Engine for Slot {
    fn execute(&mut self, insn: IoInsn, gprs: &mut Gprs) -> Result<(), Refused> {
        let va = self.emit(insn, gprs);
        if let Some(thunk) = self.style.hardened {
            let before = (thunk.count)();
            // SAFETY: see `call`.
            unsafe { call(va, gprs) };
            assert!((thunk.count)() > before, "the return thunk did not run");
        } else {
            // SAFETY: a stub has just been put there, into memory that can be executed (`new`).
            unsafe { call(va, gprs) };
        }
        Ok(())
    }

    fn entry(&mut self, insn: IoInsn, gprs: &Gprs) -> Option<u64> {
        Some(self.emit(insn, gprs))
    }
}

/// Every form of a layout, written once.
pub struct Table(CodeTable);

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
        CodeTable::emit(memory, va, layout, &style.options()).map(Self)
    }
}

impl Engine for Table {
    fn execute(&mut self, insn: IoInsn, gprs: &mut Gprs) -> Result<(), Refused> {
        // SAFETY: the table is in place, in memory that can be executed (`new`).
        unsafe { call(self.0.resolve(insn, gprs), gprs) };
        Ok(())
    }

    fn entry(&mut self, insn: IoInsn, gprs: &Gprs) -> Option<u64> {
        Some(self.0.resolve(insn, gprs))
    }
}

/// Runs a stub.
///
/// # Safety
///
/// `entry` is the address of a stub; the machine is ours, so that no access can do harm.
unsafe fn call(entry: u64, gprs: &mut Gprs) {
    // SAFETY: the caller's promise; this is a stub's signature.
    let entry: extern "sysv64" fn(*mut Gprs) -> u64 =
        unsafe { core::mem::transmute(core::ptr::with_exposed_provenance::<u8>(entry as usize)) };
    entry(gprs);
}

/// Runs a stub with the caller's DF set, against the psABI. Returns what the stub does in RAX (0: no fault), and RFLAGS as
/// they are afterwards.
///
/// # Safety
///
/// As for `call`.
pub unsafe fn call_with_df(entry: u64, gprs: &mut Gprs) -> (u64, u64) {
    let (result, flags);
    // SAFETY: the caller's promise: a function of this signature. DF is clear before Rust goes on.
    unsafe {
        core::arch::asm!(
            "std", "call {entry}", "pushfq", "pop rdi", "cld",
            entry = in(reg) entry, inout("rdi") &raw mut *gprs => flags, lateout("rax") result, clobber_abi("sysv64"),
        )
    };
    (result, flags)
}

/// Makes `mov [rdi + r14], r14` store R13 in R14's place.
fn sabotage(code: &mut [u8]) {
    const STORE_R14: [u8; 4] = [0x4c, 0x89, 0x77, core::mem::offset_of!(Gprs, r14) as u8];
    if let Some(at) = code.windows(4).position(|window| window == STORE_R14) {
        code[at + 2] = 0x6f;
    }
}
