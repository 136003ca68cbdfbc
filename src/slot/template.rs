//! The stub that all forms of IN and OUT have in common: emitted once, with the helpers, and copied for each access.

use arrayvec::ArrayVec;

use super::place::room;
use super::sink::{SlotSink, Targets};
use crate::stub::{StubStyle, as_many_as_fit, emit_stub, form_at, write_form};
use crate::{EmitError, IoInsn, Width};

#[derive(Clone, Debug)]
pub(super) struct Template {
    style: StubStyle,
    /// Where it would execute.
    va: u64,
    code: [u8; Self::ROOM],
    /// How many bytes of them there are; 0: it could not be emitted, and emitting a real one will say why.
    len: u16,
    /// Where the bytes are that the form decides.
    form_at: u16,
    /// Where displacements to helpers end.
    branches: ArrayVec<u16, 4>,
}

impl Template {
    /// The longest stub without a quirk, hardened, is shorter, unless registers lie more than 127 bytes from the
    /// pointer.
    const ROOM: usize = 256;

    /// No stub yet, next to helpers at `va`.
    pub const fn new(style: StubStyle, va: u64) -> Self {
        Self { style, va, code: [0; Self::ROOM], len: 0, form_at: 0, branches: ArrayVec::new_const() }
    }

    /// Emits the stub.
    #[inline(never)]
    pub fn fill(&mut self, targets: &Targets) {
        let mut sink = SlotSink::new(&mut self.code, self.va, *targets);
        let shape = emit_stub(&mut sink, &self.style, IoInsn::in_dx(Width::Byte), None);
        self.len = match sink.finish() {
            Ok(len @ ..=Self::ROOM) => len as u16,
            _ => 0,
        };
        self.form_at = form_at(&self.style, shape.io.0) as u16;
        self.branches = as_many_as_fit(shape.branches().map(|end| end as u16));
    }

    pub const fn is_there(&self) -> bool {
        self.len > 0
    }

    /// Writes the stub of `insn` to be executed at `va`, or nothing.
    pub fn write(&self, slot: &mut [u8], va: u64, insn: IoInsn) -> Result<usize, EmitError> {
        let mut fields = ArrayVec::<(usize, i32), 4>::new();
        let code = self.code.get(..self.len.into()).unwrap_or_default();
        for end in &self.branches {
            let at = usize::from(end.saturating_sub(4));
            let field = code.get(at..).and_then(|field| field.first_chunk()).copied().unwrap_or_default();
            let target = self.va.wrapping_add_signed(i32::from_le_bytes(field).into());
            let displacement = target.wrapping_sub(va) as i64;
            let fits = i32::try_from(displacement).map_err(|_| EmitError::HelperOutOfRange { displacement })?;
            let _ = fields.try_push((at, fits)); // as many fit as there are branches
        }
        let slot = room(slot, va, code.len())?;
        slot.iter_mut().zip(code).for_each(|(to, from)| *to = *from);
        write_form(&self.style, insn, slot.get_mut(self.form_at.into()..).unwrap_or_default());
        for (at, displacement) in fields {
            if let Some(field) = slot.get_mut(at..).and_then(|field| field.first_chunk_mut()) {
                *field = displacement.to_le_bytes();
            }
        }
        Ok(slot.len())
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Helpers, emit_checked, emit_stub as emit_into, emit_stubs};
    use crate::{EmitOptions, IoInsn, RegisterFile, StubLayout};

    /// A stub copied from the template is the one that the emitter makes, and refused where that is, in the same words.
    #[test]
    fn the_template_is_the_emitters_stub() {
        let near = 1 << 40;
        for &layout in StubLayout::ALL {
            for bits in 0..16 {
                let options = EmitOptions::new()
                    .layout(layout)
                    .endbr64(bits & 1 != 0)
                    .int3(bits & 2 != 0)
                    .scrub(bits & 1 != 0)
                    .return_thunk((bits & 4 != 0).then_some(near - 0x1_0000))
                    .registers(if bits & 8 != 0 { RegisterFile::PT_REGS } else { RegisterFile::GPRS });
                let helpers = Helpers::emit(&mut [0; Helpers::MAX_LEN], near, &options).unwrap();
                assert!(helpers.template.is_there());
                let addresses = [(near + 0x2340, 256), (near, 5), (1 << 41, 256), (u64::MAX - 4, 256), (0, 256)];
                for ((va, len), insn) in
                    addresses.into_iter().flat_map(|at| IoInsn::in_out().map(move |insn| (at, insn)))
                {
                    let (mut copied, mut emitted) = ([0; 256], [0; 256]);
                    let copy = emit_into(&mut copied[..len], va, insn, &helpers);
                    let emit = emit_checked(&mut emitted[..len], va, helpers.targets, |sink| {
                        emit_stubs(sink, insn, &helpers, |_, _| ())
                    });
                    assert_eq!(copy, emit, "{layout:?} {insn} {options:?} at {va:#x}");
                    assert_eq!(copied, emitted, "{layout:?} {insn} {options:?} at {va:#x}");
                }
            }
        }
    }
}
