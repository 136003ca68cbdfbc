//! The library in ring 0: every layout, and in each of them the variants of [`RING0_VARIANTS`], one after the other in the
//! same memory.

use hw_shared::stubs::{Slot, Style, Table, Thunk};
use hw_shared::{Engine, RING0_VARIANTS};
use ioemul::{EmitOptions, Quirk, RegisterFile, Ring, StubLayout};

use crate::smbios;
use crate::task::Task;

/// Executable, as all memory is here. A table of the largest layout needs a quarter of it.
#[repr(align(4096))]
struct Memory(#[allow(dead_code)] [u8; 1 << 20]);

static mut MEMORY: Memory = Memory([0; 1 << 20]);

// A return thunk that counts its calls. It runs between the load of the guest's registers and the I/O as well: nothing may
// change, the flags included.
core::arch::global_asm!(
    ".pushsection .text.thunk, \"ax\"",
    "return_thunk:",
    "pushfq",
    "inc qword ptr [return_thunk_count]",
    "popfq",
    "ret",
    "int3",
    ".popsection",
    ".pushsection .bss.thunk, \"aw\", @nobits",
    ".balign 8",
    "return_thunk_count: .skip 8",
    ".popsection",
    ".global return_thunk, return_thunk_count",
);

unsafe extern "C" {
    static return_thunk: u8;
    static mut return_thunk_count: u64;
}

/// The return thunk.
pub fn thunk() -> Thunk {
    Thunk {
        address: (&raw const return_thunk) as u64,
        // SAFETY: the image has one thread, which is not in the thunk when it asks.
        count: || unsafe { (&raw const return_thunk_count).read_volatile() },
    }
}

/// The quirks of this machine: that of our SMM handler, and ProLiant's where it is one.
fn quirks() -> &'static [Quirk] {
    const QUIRKS: &[Quirk] = &[Quirk::GSMI_CARRY, Quirk::PROLIANT];
    match Quirk::PROLIANT.is_on_platform(&smbios::strings()) {
        true => QUIRKS,
        false => &QUIRKS[..1],
    }
}

/// What a kernel with all hardenings asks for.
pub fn hardened(layout: StubLayout) -> EmitOptions<'static> {
    hardened_options(layout, &[])
}

fn hardened_options(layout: StubLayout, quirks: &'static [Quirk]) -> EmitOptions<'static> {
    let options = EmitOptions::new().layout(layout).endbr64(true).int3(true).scrub(true);
    options.return_thunk(thunk().address).quirks(quirks)
}

/// Calls `visit` with the layout, the variant and the engine, for each in turn.
pub fn for_each(mut visit: impl FnMut(StubLayout, &'static str, &mut dyn Engine)) {
    let style = Style { quirks: quirks(), ring: Ring::Zero, ..Style::default() };
    let hardened = Style { hardened: Some(thunk()), ..style };
    let pt_regs = Style { registers: RegisterFile::PT_REGS, ..hardened };
    let kvm_regs = Style { registers: RegisterFile::KVM_REGS, ..style };
    for layout in StubLayout::ALL.iter().copied() {
        for &variant in RING0_VARIANTS {
            let memory = memory();
            // SAFETY: all memory is executable here, and the engines live one after the other.
            unsafe {
                match variant {
                    "slot" => visit(layout, variant, &mut Slot::new(memory, layout, style).expect("it fits")),
                    "table" => visit(layout, variant, &mut Table::new(memory, layout, style).expect("it fits")),
                    "hardened" => visit(layout, variant, &mut Slot::new(memory, layout, hardened).expect("it fits")),
                    "task, #GP" => visit(layout, variant, &mut Task::new(memory, &hardened_options(layout, quirks()))),
                    "pt_regs" => visit(layout, variant, &mut Table::new(memory, layout, pt_regs).expect("it fits")),
                    _ => visit(layout, variant, &mut Slot::new(memory, layout, kvm_regs).expect("it fits")),
                }
            }
        }
    }
}

/// How many layouts there are.
pub const LAYOUTS: usize = StubLayout::ALL.len();

/// One of as many slots as there are layouts, to be used side by side; one byte of it may be wrong.
pub fn slot(layout: StubLayout, place: usize, broken: bool) -> Slot {
    slot_on(RegisterFile::GPRS, layout, place, broken)
}

/// The same for another register file.
pub fn slot_on(registers: RegisterFile, layout: StubLayout, place: usize, broken: bool) -> Slot {
    const SIZE: usize = size_of::<Memory>() / LAYOUTS;
    assert!(place < LAYOUTS);
    // SAFETY: all memory is executable here, this part of ours is for this place, and nobody asks for it twice at a time.
    unsafe {
        let part = core::ptr::slice_from_raw_parts_mut(memory().cast::<u8>().add(place * SIZE), SIZE);
        Slot::new(part, layout, Style { broken, registers, quirks: quirks(), ..Style::default() }).expect("it fits")
    }
}

/// Engines live one after the other: each is gone before the next asks for the memory.
pub fn memory() -> *mut [u8] {
    core::ptr::slice_from_raw_parts_mut((&raw mut MEMORY).cast(), size_of::<Memory>())
}
