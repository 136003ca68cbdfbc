//! What a quirk does, step by step: as machine code, and as the list of its accesses.

use dynasm::dynasm;

use crate::{CodeSink, IoInsn, Payload, Ring, Width};

/// One step of a quirk. All registers are the guest's, and stay in view of the firmware, throughout.
///
/// Steps that look at something keep the flags as they are: at each access the device sees those that the one before
/// has left. Of a handler that answers during a wait, all registers are seen, and CF of its flags, unless it comes in the
/// last few instructions of the wait. On a bus, where nothing happens but in an access, steps that only wait do nothing,
/// and a poll ends after [`Self::BUS_POLL_LIMIT`] reads at the latest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Step {
    /// The guest's own instruction; if it takes the port from DX, and an access before it has changed DX, it is passed over.
    Access,
    /// OUT of AL, as the access left it, to a port below 0x100.
    OutAl {
        /// The port.
        port: u8,
    },
    /// IN of AL from the trigger's port, if DX still names it.
    InAl,
    /// IN of AL from the trigger's port until the bits in `mask` are clear. It ends as well when AL reads as 0xFF,
    /// which is what a port without a device reads as, when DX no longer names the port, and after `limit` reads.
    Poll {
        /// The bits of AL.
        mask: u8,
        /// How many reads there are at most; 0 counts as 1.
        limit: u32,
    },
    /// The same without an end but the firmware's, in ring 0. In ring 3, where a wait must end, it is
    /// [`Self::Poll`] with [`PROLIANT_POLL_LIMIT`](crate::PROLIANT_POLL_LIMIT).
    PollUnbounded {
        /// The bits of AL.
        mask: u8,
    },
    /// Waits until CF is clear, or for `limit` looks at it.
    WaitCarryClear {
        /// How many looks there are at most.
        limit: u32,
    },
    /// Waits for `count` turns of a loop.
    Spin {
        /// How many.
        count: u32,
    },
}

impl Step {
    /// How often a poll reads its port on a [`SoftwareBus`](crate::SoftwareBus) at most, whatever limit it has of its own.
    /// A device model is asked again at once, so a poll there waits for no time to pass; and a model that answers "busy"
    /// for ever must not hold up whoever runs the guest. As a quirk has eight accesses at most, one instruction of a
    /// guest's makes at most eight times as many calls.
    pub const BUS_POLL_LIMIT: u32 = 1024;

    /// How often a poll with this limit reads the port on a bus.
    pub(crate) fn limit_on_bus(limit: u32) -> u32 {
        limit.clamp(1, Self::BUS_POLL_LIMIT)
    }
}

const IN: IoInsn = IoInsn::in_dx(Width::Byte);

/// Emits the steps in place of `insn`. (On the frame of its only caller: a kernel's stack is small.)
#[inline(always)]
pub(super) fn emit(payload: &mut Payload<'_>, steps: &[Step], insn: IoInsn, port: u16) {
    for step in steps {
        match *step {
            Step::Access => payload.step(insn),
            Step::OutAl { port } => payload.step(IoInsn::out_imm8(Width::Byte, port)),
            Step::InAl => payload.step(IN),
            Step::Poll { mask, limit } => poll(payload, mask, limit, port),
            Step::PollUnbounded { mask } => match payload.ring() {
                Ring::Zero => poll_unbounded(payload, mask),
                Ring::Three => poll(payload, mask, crate::PROLIANT_POLL_LIMIT, port),
            },
            Step::WaitCarryClear { limit } => wait_carry_clear(payload, limit),
            Step::Spin { count } => spin(payload, count),
        }
    }
}

/// Reads DX until the bits are clear. The count is on the stack, and the flags above it while something is looked at.
fn poll(payload: &mut Payload<'_>, mask: u8, limit: u32, port: u16) {
    let limit = if payload.is_for_bus() { Step::limit_on_bus(limit) } else { limit.max(1) };
    let (mask, limit, port) = (mask as i8, limit as i32, port as i16);
    dynasm!(payload ; .arch x64 ; push DWORD limit);
    payload.pushed(8);
    dynasm!(payload ; .arch x64 ; pushfq);
    payload.pushed(8);
    dynasm!(payload ; .arch x64
        ; ioemul_again:
        ; cmp dx, WORD port
        ; jne BYTE >ioemul_ready
        ; popfq
    );
    payload.popped(8);
    payload.access(IN);
    dynasm!(payload ; .arch x64 ; pushfq);
    payload.pushed(8);
    dynasm!(payload ; .arch x64
        ; cmp al, BYTE -1 // nobody there
        ; je BYTE >ioemul_ready
        ; test al, BYTE mask
        ; jz BYTE >ioemul_ready
        ; dec DWORD [BYTE rsp + 8]
        ; jnz BYTE <ioemul_again
        ; ioemul_ready:
        ; popfq
    );
    payload.popped(8);
    dynasm!(payload ; .arch x64 ; lea rsp, [BYTE rsp + 8]);
    payload.popped(8);
}

fn poll_unbounded(payload: &mut Payload<'_>, mask: u8) {
    let mask = mask as i8;
    dynasm!(payload ; .arch x64 ; ioemul_again:);
    payload.access(IN);
    dynasm!(payload ; .arch x64 ; test al, BYTE mask ; jnz BYTE <ioemul_again);
}

/// An SMI may come at any turn and clear CF: it is live throughout, the other flags are kept on the stack. (DEC leaves
/// CF alone.)
fn wait_carry_clear(payload: &mut Payload<'_>, limit: u32) {
    keep_flags(payload, limit);
    dynasm!(payload ; .arch x64
        ; ioemul_again:
        ; jnc BYTE >ioemul_clear
        ; dec DWORD [BYTE rsp + 8]
        ; jnz BYTE <ioemul_again
        ; ioemul_clear:
    );
    give_flags_back(payload);
}

fn spin(payload: &mut Payload<'_>, count: u32) {
    keep_flags(payload, count);
    dynasm!(payload ; .arch x64
        ; ioemul_again:
        ; dec DWORD [BYTE rsp + 8]
        ; jnz BYTE <ioemul_again
    );
    give_flags_back(payload);
}

/// A count, and the flags above it.
fn keep_flags(payload: &mut Payload<'_>, count: u32) {
    let count = if payload.is_for_bus() { 1 } else { count.max(1) as i32 };
    dynasm!(payload ; .arch x64 ; push DWORD count);
    payload.pushed(8);
    dynasm!(payload ; .arch x64 ; pushfq);
    payload.pushed(8);
}

/// CF as it is now, the other flags as they were kept.
fn give_flags_back(payload: &mut Payload<'_>) {
    dynasm!(payload ; .arch x64
        ; jc BYTE >ioemul_set
        ; and DWORD [rsp], BYTE -2
        ; jmp BYTE >ioemul_composed
        ; ioemul_set:
        ; or DWORD [rsp], BYTE 1
        ; ioemul_composed:
        ; popfq
    );
    payload.popped(8);
    dynasm!(payload ; .arch x64 ; lea rsp, [BYTE rsp + 8]);
    payload.popped(8);
}
