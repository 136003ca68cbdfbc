//! The stub that all forms of IN and OUT have in common: emitted once, with the helpers, and copied for each access.

use arrayvec::ArrayVec;

use super::sink::{MAX_BRANCHES, SlotSink, Targets};
use super::{EmitError, room};
use crate::stub::{StubStyle, emit_stub};
use crate::{Helper, IoInsn, Ring, Width};

#[derive(Clone, Debug)]
pub(super) struct Template {
    style: StubStyle,
    return_thunk: Option<u64>,
    code: ArrayVec<u8, { Self::ROOM }>,
    /// Where the instruction's three bytes are.
    io: usize,
    /// Where displacements to helpers are, and the addresses they lead to.
    branches: ArrayVec<(usize, u64), MAX_BRANCHES>,
}

impl Template {
    /// The longest stub without a quirk, hardened, is shorter.
    const ROOM: usize = 192;

    /// Emits the stub next to the helpers. `None` if that cannot be: emitting a real one will say why.
    pub fn new(style: &StubStyle, va: u64, targets: Targets) -> Option<Self> {
        let mut code = [0; Self::ROOM];
        let mut sink = SlotSink::new(&mut code, va, targets);
        let shape = emit_stub(&mut sink, style, IoInsn::in_dx(Width::Byte), None);
        let branches = sink.branches.clone();
        let len = sink.finish().ok()?;
        let mut code = ArrayVec::from(code);
        code.truncate(len);
        let return_thunk = targets[Helper::ReturnThunk as usize];
        (len <= Self::ROOM).then_some(Self { style: *style, return_thunk, code, io: shape.io.0, branches })
    }

    /// Whether a stub of this style looks like this.
    pub fn is_for(&self, style: &StubStyle, return_thunk: Option<u64>) -> bool {
        let ring = Ring::default(); // decides between variants of a quirk, and there is none here
        StubStyle { ring, ..self.style } == StubStyle { ring, ..*style } && self.return_thunk == return_thunk
    }

    /// Writes the stub of `insn` to be executed at `va`, or nothing.
    pub fn write(&self, slot: &mut [u8], va: u64, insn: IoInsn) -> Result<usize, EmitError> {
        let mut displacements = ArrayVec::<_, MAX_BRANCHES>::new();
        for &(field, target) in &self.branches {
            let displacement = target.wrapping_sub(va.wrapping_add(field as u64 + 4)) as i64;
            let fits = i32::try_from(displacement).map_err(|_| EmitError::HelperOutOfRange { displacement })?;
            displacements.push((field, fits));
        }
        let slot = room(slot, va, self.code.len())?;
        slot.copy_from_slice(&self.code);
        slot[self.io..][..3].copy_from_slice(&insn.encode_padded());
        for (field, displacement) in displacements {
            slot[field..][..4].copy_from_slice(&displacement.to_le_bytes());
        }
        Ok(slot.len())
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Helpers, SlotOptions, checked_stub, emit_checked, emit_stub_with, with_thunk};
    use super::*;
    use crate::StubLayout;

    /// A stub copied from the template is the one that the emitter makes, and refused where that is, in the same words.
    #[test]
    fn the_template_is_the_emitters_stub() {
        let near = 1 << 40;
        for layout in StubLayout::ALL.iter().copied() {
            for bits in 0..8 {
                let options = SlotOptions {
                    endbr64: bits & 1 != 0,
                    int3: bits & 2 != 0,
                    return_thunk: (bits & 4 != 0).then_some(near - 0x1_0000),
                    ..SlotOptions::default()
                };
                let helpers = Helpers::emit_with(&mut [0; Helpers::MAX_LEN], near, layout, &options).unwrap();
                assert!(helpers.template.as_ref().unwrap().is_for(&options.style(layout), options.return_thunk));
                let addresses = [(near + 0x2340, 256), (near, 5), (1 << 41, 256), (u64::MAX - 4, 256), (0, 256)];
                for ((va, len), insn) in
                    addresses.into_iter().flat_map(|at| IoInsn::in_out().map(move |insn| (at, insn)))
                {
                    let (mut copied, mut emitted) = ([0; 256], [0; 256]);
                    let copy = emit_stub_with(&mut copied[..len], va, insn, &helpers, &options);
                    let emit = emit_checked(&mut emitted[..len], va, with_thunk(helpers.targets, &options), |sink| {
                        checked_stub(sink, insn, &helpers, &options)
                    });
                    assert_eq!(copy, emit.map(|(_, len)| len), "{layout:?} {insn} {options:?} at {va:#x}");
                    assert_eq!(copied, emitted, "{layout:?} {insn} {options:?} at {va:#x}");
                }
            }
        }
    }
}
