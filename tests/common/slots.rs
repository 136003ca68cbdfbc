//! The options of a slot, all of them.

use ioemul::{Helpers, Quirk, Ring, SlotOptions, StubLayout};

/// Where the code is said to be, and its return thunk is not far.
pub const VA: u64 = 0xffff_8000_1234_0000;

/// Every combination of what changes the bytes.
pub fn options() -> Vec<SlotOptions> {
    let mut all = Vec::new();
    for bits in 0..16 {
        let quirk = (bits & 8 != 0).then_some(Quirk::PROLIANT);
        all.push(SlotOptions {
            endbr64: bits & 1 != 0,
            return_thunk: (bits & 2 != 0).then_some(VA - 0x4000),
            int3: bits & 4 != 0,
            quirk,
            ring: Ring::Zero,
        });
    }
    all.push(SlotOptions { quirk: Some(Quirk::PROLIANT), ring: Ring::Three, ..SlotOptions::default() });
    all
}

/// The helpers alone: where they are, not what they are.
pub fn helpers_at(va: u64, layout: StubLayout, options: &SlotOptions) -> Helpers {
    Helpers::emit_with(&mut [0; 256], va, layout, options).unwrap()
}
