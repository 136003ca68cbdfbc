//! What is where in an emitted table.

use std::collections::BTreeMap;
use std::iter;
use std::ops::Range;

use super::HostTable;
use crate::{CodeTable, IoInsn, Quirk, Symbol, SymbolName};

/// A stub or a helper.
pub(super) struct Part {
    pub name: SymbolName,
    /// Offset in the table.
    pub at: usize,
    pub len: usize,
    /// Which of the quirks it is for.
    pub quirk: Option<usize>,
}

pub(super) struct Parts<'t> {
    pub host: &'t HostTable<'t>,
    pub parts: Vec<Part>,
    /// Landing pads: offset and label.
    pub pads: BTreeMap<usize, String>,
    /// Where an access can fault, and its pad: offsets.
    pub faults: BTreeMap<usize, usize>,
    /// The stubs that are left out, and the bytes up to the next one.
    omitted: Range<usize>,
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
        // The stubs of quirks come in the order of the quirks, one for each form.
        let forms = |quirk: &Quirk| quirk.trigger().forms().into_iter().flatten().count();
        let quirks = host.options.quirks.iter().enumerate();
        let mut quirks = quirks.flat_map(|(number, quirk)| iter::repeat_n(number, forms(quirk)));
        let part = |Symbol { name, address, len }: Symbol| {
            let quirk = if let SymbolName::Quirk { .. } = name { quirks.next() } else { None };
            Part { name, at: address as usize, len, quirk }
        };
        let mut parts: Vec<_> = table.symbols().map(part).collect();
        let is_string = |part: &Part| matches!(part.name, SymbolName::Stub(insn) if insn.is_string());
        let first = parts.iter().position(is_string).unwrap_or(parts.len());
        let next = parts.iter().rposition(is_string).map_or(first, |last| last + 1);
        let at = |index: usize| parts.get(index).map_or(0, |part: &Part| part.at);
        let omitted = if host.strings { 0..0 } else { at(first)..at(next) };
        parts.retain(|part| !omitted.contains(&part.at));
        let faults = faults.into_iter().filter(|(at, _)| !omitted.contains(at)).collect();
        Self { host, parts, pads, faults, omitted }
    }

    /// Where something is once stubs are left out.
    pub fn placed(&self, at: usize) -> usize {
        if at >= self.omitted.end { at - self.omitted.len() } else { at }
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
