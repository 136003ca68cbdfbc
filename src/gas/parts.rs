//! What is where in an emitted table.

use std::collections::BTreeMap;

use super::HostTable;
use crate::{CodeTable, IoInsn, Symbol, SymbolName};

/// A stub or a helper.
pub(super) struct Part {
    pub name: SymbolName,
    /// Offset in the table.
    pub at: usize,
    pub len: usize,
}

pub(super) struct Parts<'t> {
    pub host: &'t HostTable<'t>,
    pub parts: Vec<Part>,
    /// Landing pads: offset and label.
    pub pads: BTreeMap<usize, String>,
    /// Where an access can fault, and its pad: offsets.
    pub faults: BTreeMap<usize, usize>,
}

impl<'t> Parts<'t> {
    /// Those of a table at address 0.
    pub fn new(host: &'t HostTable<'t>, table: &CodeTable) -> Self {
        let faults: BTreeMap<_, _> = table.faults().map(|(at, pad)| (at as usize, pad as usize)).collect();
        let mut pads = BTreeMap::new();
        for &pad in faults.values() {
            let number = pads.len();
            pads.entry(pad).or_insert_with(|| format!(".L{}_pad{number}", host.prefix));
        }
        let part = |symbol: Symbol| Part { name: symbol.name, at: symbol.address as usize, len: symbol.len };
        Self { host, parts: table.symbols().map(part).collect(), pads, faults }
    }

    /// Where the plain stub of this index is.
    pub fn plain(&self, index: usize) -> usize {
        IoInsn::in_out().nth(index).map_or(0, |insn| self.stub(insn))
    }

    /// Where the stub of a form is.
    pub fn stub(&self, insn: IoInsn) -> usize {
        self.parts.iter().find(|part| part.name == SymbolName::Stub(insn)).map_or(0, |part| part.at)
    }
}
