//! From a stub to a device model: the code that stands in place of an I/O instruction on a bus, and what it calls.
//!
//! The stub pushes a *description* of the access, 32 bits: the instruction, and how far up the stack the register
//! file's address is. The trampoline finds everything else from there.

use dynasm::dynasm;

use super::{CodeSink, Helper};
use crate::helpers::{emit_loads, emit_stores};
use crate::{AddressSize, Direction, IoInsn, PortOperand, RegisterFile, Segment, Width};

/// Emits the first half of what stands for an I/O instruction in a stub of a bus table: a push. The register file's
/// address is `depth` bytes up the stack.
pub(crate) fn emit_description<S: CodeSink + ?Sized>(ops: &mut S, insn: IoInsn, depth: u8) {
    let description = encode(insn, depth);
    dynasm!(ops ; .arch x64 ; push DWORD description);
}

/// Emits the second half, which pops what the first one pushed. Both leave the flags alone.
pub(crate) fn emit_call<S: CodeSink + ?Sized>(ops: &mut S) {
    dynasm!(ops ; .arch x64
        ; call =>Helper::Trampoline
        ; lea rsp, [BYTE rsp + 8]
    );
}

/// What [`emit_call`] puts behind the call, in bytes.
pub(crate) const BEHIND_CALL: usize = 5;

/// Emits the trampoline (see `bus/call.rs` for the frame; it starts with the address of the function to call).
///
/// The stub pushed a description of the access and called; guest registers are live, the flags included. They go to the
/// register file, the device model runs as an ordinary function on an aligned stack and works on that file, and what
/// it left there is live when the stub goes on.
///
/// ```text
///   BusFrame pointer      where the prologue pushed R12
///   R13, R14, R15
///   Gprs pointer          ← RSP at the I/O, in the layouts that keep no other word there
///   …                     the payload's own pushes and the layout's: `depth` bytes, from the description
///   description           pushed by the stub
///   return address        at the instruction behind the call
/// ```
pub(crate) fn emit_trampoline<S: CodeSink + ?Sized>(ops: &mut S) {
    let file = &RegisterFile::GPRS;
    dynasm!(ops ; .arch x64
        ; =>Helper::Trampoline
        ; push rdi
        ; movzx edi, BYTE [BYTE rsp + 16 + DEPTH_BYTE]
        ; mov rdi, [BYTE rsp + rdi + 24]
    );
    emit_stores(ops, file);
    dynasm!(ops ; .arch x64
        ; mov edx, [BYTE rsp + 8] // the description
        ; movzx ecx, BYTE [BYTE rsp + 8 + DEPTH_BYTE]
        ; mov rsi, rdi
        ; mov rdi, [BYTE rsp + rcx + 16 + 32] // the frame
        ; mov rbx, rsi
        ; mov rbp, rsp
        ; and rsp, BYTE -16
        ; call QWORD [rdi]
        ; mov rsp, rbp
        ; mov rdi, rbx
    );
    emit_loads(ops, file);
    dynasm!(ops ; .arch x64 ; ret);
}

/// Which byte of the description holds the depth.
const DEPTH_BYTE: i8 = 2;
const DX: u32 = 1 << 8;
const OUT: u32 = 1 << 9;
const WORD: u32 = 1 << 10;
const DWORD: u32 = 1 << 11;
const STRING: u32 = 1 << 12;
const REP: u32 = 1 << 13;
const ADDR32: u32 = 1 << 14;

pub(crate) const fn encode(insn: IoInsn, depth: u8) -> i32 {
    let port = match insn.operand {
        PortOperand::Imm8(port) => port as u32,
        PortOperand::Dx => DX,
        PortOperand::String { rep, address, .. } => {
            STRING | if rep { REP } else { 0 } | if matches!(address, AddressSize::Bits32) { ADDR32 } else { 0 }
        }
    };
    let direction = match insn.direction {
        Direction::In => 0,
        Direction::Out => OUT,
    };
    let width = match insn.width {
        Width::Byte => 0,
        Width::Word => WORD,
        Width::Dword => DWORD,
    };
    (port | direction | width | (depth as u32) << 16) as i32
}

#[inline]
pub(crate) const fn decode(description: u32) -> IoInsn {
    let direction = if description & OUT != 0 { Direction::Out } else { Direction::In };
    let width = match description & (WORD | DWORD) {
        0 => Width::Byte,
        WORD => Width::Word,
        _ => Width::Dword,
    };
    let operand = match description & (DX | STRING) {
        0 => PortOperand::Imm8(description as u8),
        DX => PortOperand::Dx,
        _ => PortOperand::String {
            rep: description & REP != 0,
            address: if description & ADDR32 != 0 { AddressSize::Bits32 } else { AddressSize::Bits64 },
            segment: if matches!(direction, Direction::In) { Segment::Es } else { Segment::Ds },
        },
    };
    IoInsn { direction, width, operand }
}
