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
    (0..16).map(|bits| {
        let thunk = (bits & 2 != 0).then_some(VA - 0x4000);
        EmitOptions::new().endbr64(bits & 1 != 0).return_thunk(thunk).int3(bits & 4 != 0).scrub(bits & 8 != 0)
    })
}

/// What changes the bytes: every hardening with quirks, and most without; every register file, bare and with all hardenings,
/// and all quirks in both rings.
pub fn options(layout: StubLayout) -> Vec<EmitOptions<'static>> {
    let mut all = Vec::new();
    for quirks in [QUIRKS[0], QUIRKS[1]] {
        all.extend(hardenings().filter(|options| !options.scrub).map(|options| options.quirks(quirks)));
    }
    all.extend(hardenings().map(|options| options.quirks(QUIRKS[8])));
    for file in &files::ALL[1..] {
        let plain = EmitOptions::new().registers(file.library);
        all.extend([QUIRKS[0], QUIRKS[8]].map(|quirks| plain.quirks(quirks)));
        all.push(plain.endbr64(true).return_thunk(VA - 0x4000).int3(true).scrub(true).quirks(QUIRKS[8]));
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
