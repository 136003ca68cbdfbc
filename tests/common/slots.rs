//! The options that code is emitted with, all of them.

use ioemul::{EmitOptions, Helpers, Quirk, Ring, StubLayout};

use super::files;

/// Where the code is said to be, and its return thunk is not far.
pub const VA: u64 = 0xffff_8000_1234_0000;

/// Quirks that are emitted together.
pub const QUIRKS: &[&[Quirk]] = &[
    &[],
    &[Quirk::PROLIANT],
    &[Quirk::PROLIANT_UNBOUNDED],
    &[Quirk::DELL_SMM],
    &[Quirk::THINKPAD_SMAPI],
    &[Quirk::READ_BACK],
    &[Quirk::GSMI_CARRY],
    &[Quirk::GSMI_SPIN],
    &[Quirk::PROLIANT, Quirk::DELL_SMM, Quirk::GSMI_CARRY, Quirk::READ_BACK],
];

/// Every combination of what hardens a stub.
pub fn hardenings() -> impl Iterator<Item = EmitOptions<'static>> {
    (0..8).map(|bits| {
        let thunk = (bits & 2 != 0).then_some(VA - 0x4000);
        EmitOptions::new().endbr64(bits & 1 != 0).return_thunk(thunk).int3(bits & 4 != 0)
    })
}

/// What changes the bytes: every hardening with and without a quirk, every register file, and all quirks in both rings.
pub fn options(layout: StubLayout) -> Vec<EmitOptions<'static>> {
    let mut all = Vec::new();
    for quirks in [QUIRKS[0], QUIRKS[1], QUIRKS[8]] {
        all.extend(hardenings().map(|options| options.quirks(quirks)));
    }
    for file in &files::ALL[1..] {
        all.extend([QUIRKS[0], QUIRKS[8]].map(|quirks| EmitOptions::new().registers(file.library).quirks(quirks)));
    }
    for quirks in &QUIRKS[1..] {
        all.extend([Ring::Zero, Ring::Three].map(|ring| EmitOptions::new().ring(ring).quirks(quirks)));
    }
    all.into_iter().map(|options| options.layout(layout)).collect()
}

/// The test's own description of the register file of these options.
pub fn file(options: &EmitOptions<'_>) -> files::File {
    *files::ALL.iter().find(|file| file.library == options.registers).unwrap()
}

/// The helpers alone: where they are, not what they are.
pub fn helpers_at(va: u64, options: &EmitOptions<'_>) -> Helpers {
    Helpers::emit(&mut [0; Helpers::MAX_LEN], va, options).unwrap()
}
