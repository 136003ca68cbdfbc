//! What a call executes, followed on paper.

use iced_x86::{Code, Decoder, DecoderOptions, FlowControl, InstructionInfoFactory, OpAccess};

use super::hand::Entry;

/// One call of a stub.
pub struct Trace {
    /// Its instructions, less the branches' distances: what has to be the same for two ways to write it.
    pub instructions: Vec<String>,
    /// Words that it stores, the return address that the caller pushes included.
    pub stores: u32,
    /// CALLs, that of the caller included, each with its RET.
    pub pairs: u32,
}

impl Trace {
    /// Follows a stub in which no branch is conditional.
    pub fn of(entry: Entry) -> Self {
        let mut trace = Trace { instructions: Vec::new(), stores: 1, pairs: 1 };
        let (mut at, mut callers) = (entry as *const () as u64, Vec::new());
        let mut info = InstructionInfoFactory::new();
        loop {
            // SAFETY: the code of a stub or a helper, which ends with a RET, an instruction being 15 bytes at most.
            let code = unsafe { core::slice::from_raw_parts(at as *const u8, 15) };
            let insn = Decoder::with_ip(64, code, at, DecoderOptions::NONE).decode();
            let writes = |access| matches!(access, OpAccess::Write | OpAccess::ReadWrite);
            let stores = info.info(&insn).used_memory().iter().filter(|memory| writes(memory.access())).count();
            trace.stores += stores as u32;
            match insn.flow_control() {
                FlowControl::Call | FlowControl::UnconditionalBranch => {
                    trace.instructions.push(format!("{:?}", insn.mnemonic()));
                    if insn.flow_control() == FlowControl::Call {
                        trace.pairs += 1;
                        callers.push(insn.next_ip());
                    }
                    at = insn.near_branch_target();
                    continue;
                }
                FlowControl::Return => {
                    trace.instructions.push("ret".to_owned());
                    match callers.pop() {
                        Some(caller) => at = caller,
                        None => return trace,
                    }
                    continue;
                }
                _ => assert_ne!(insn.code(), Code::INVALID, "no instruction at {at:#x}"),
            }
            trace.instructions.push(insn.to_string());
            at = insn.next_ip();
        }
    }
}
