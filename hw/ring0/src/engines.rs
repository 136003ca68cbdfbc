//! The library in ring 0: four layouts, and in each of them a slot, a table and a hardened slot, one after the other in
//! the same memory.

use hw_shared::stubs::{Slot, Style, Table, Thunk};
use hw_shared::{Engine, RING0_VARIANTS};
use ioemul::{StubLayout, Quirk, Ring};

use crate::smbios;

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

fn thunk() -> Thunk {
    Thunk {
        address: (&raw const return_thunk) as u64,
        // SAFETY: the image has one thread, which is not in the thunk when it asks.
        count: || unsafe { (&raw const return_thunk_count).read_volatile() },
    }
}

/// The quirk of this machine.
fn quirk() -> Option<Quirk> {
    let (vendor, product) = smbios::vendor_and_product();
    Quirk::BUILTIN.into_iter().find(|quirk| quirk.is_on_platform(vendor, product))
}

/// Calls `visit` with the layout, the variant and the engine, for each in turn.
pub fn for_each(mut visit: impl FnMut(StubLayout, &'static str, &mut dyn Engine)) {
    let style = Style { quirk: quirk(), ring: Ring::Zero, ..Style::default() };
    let hardened = Style { hardened: Some(thunk()), ..style };
    for layout in StubLayout::ALL.iter().copied() {
        for &variant in RING0_VARIANTS {
            let memory = memory();
            // SAFETY: all memory is executable here, and the engines live one after the other.
            unsafe {
                match variant {
                    "slot" => visit(layout, variant, &mut Slot::new(memory, layout, style).expect("it fits")),
                    "table" => visit(layout, variant, &mut Table::new(memory, layout, style).expect("it fits")),
                    _ => visit(layout, variant, &mut Slot::new(memory, layout, hardened).expect("it fits")),
                }
            }
        }
    }
}

/// One of four slots that can be used side by side, of which one byte may be wrong.
pub fn slot(layout: StubLayout, place: usize, broken: bool) -> Slot {
    const SIZE: usize = size_of::<Memory>() / 4;
    assert!(place < 4);
    // SAFETY: all memory is executable here, this is a quarter of ours, and nobody asks for it twice at a time.
    unsafe {
        let quarter = core::ptr::slice_from_raw_parts_mut(memory().cast::<u8>().add(place * SIZE), SIZE);
        Slot::new(quarter, layout, Style { broken, quirk: quirk(), ..Style::default() }).expect("it fits")
    }
}

/// Engines live one after the other: each is gone before the next asks for the memory.
fn memory() -> *mut [u8] {
    core::ptr::slice_from_raw_parts_mut((&raw mut MEMORY).cast(), size_of::<Memory>())
}
