//! The memory of tables as the kernel sees it: executable, never writable, and not much of it.
#![cfg(all(feature = "std", target_os = "linux"))]

use std::fs;
use std::ops::Range;
use std::sync::Mutex;

use ioemul::{
    CodeTable, EmitOptions, IoEmulator, IoInsn, PortSet, QuirkTable, SoftwareBus, StubLayout, StubTable, Width,
};

/// One test at a time: memory that one gives back, another may get.
static MAPPINGS: Mutex<()> = Mutex::new(());

/// Address ranges and their protection, such as `r-xp`.
fn maps() -> Vec<(Range<usize>, String)> {
    let maps = fs::read_to_string("/proc/self/maps").unwrap();
    maps.lines()
        .map(|line| {
            let (range, rest) = line.split_once(' ').unwrap();
            let (start, end) = range.split_once('-').unwrap();
            let address = |hex| usize::from_str_radix(hex, 16).unwrap();
            (address(start)..address(end), rest[..4].to_owned())
        })
        .collect()
}

#[test]
fn executable_and_never_writable() {
    let _alone = MAPPINGS.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    let mut tables = Vec::new();
    for layout in StubLayout::ALL.iter().copied() {
        for endbr64 in [false, true] {
            for elide in [false, true] {
                let builder = StubTable::builder().layout(layout).endbr64(endbr64).elide_io(elide);
                tables.push(builder.quirks(QuirkTable::builtin()).build().unwrap());
            }
        }
    }
    // The stubs of a bus, too, and the table of this machine.
    let mut emulators: Vec<_> = StubLayout::ALL
        .iter()
        .map(|&layout| {
            IoEmulator::builder().layout(layout).ports(PortSet::all()).bus(SoftwareBus::new()).build().unwrap()
        })
        .collect();
    for emulator in &mut emulators {
        emulator.execute(IoInsn::in_dx(Width::Byte), &mut ioemul::Gprs::default()).unwrap();
    }
    let global = StubTable::global().unwrap();

    let maps = maps();
    for (range, protection) in &maps {
        assert!(!(protection.contains('w') && protection.contains('x')), "{range:x?} is {protection}");
    }
    for table in tables.iter().chain([global]) {
        let code = table.code().as_ptr_range();
        let (mut at, end) = (code.start as usize, code.end as usize);
        while at < end {
            let (range, protection) = maps.iter().find(|(range, _)| range.contains(&at)).unwrap();
            assert_eq!(protection, "r-xp", "{table:?}");
            at = range.end;
        }
    }
}

#[test]
fn a_table_is_gone_when_it_is_dropped() {
    let _alone = MAPPINGS.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    let table = StubTable::new(StubLayout::Inline).unwrap();
    let at = table.code().as_ptr() as usize;
    let executable = |at| maps().iter().any(|(range, protection)| range.contains(&at) && protection.contains('x'));
    assert!(executable(at));
    drop(table);
    assert!(!executable(at));
}

#[test]
fn how_much() {
    let _alone = MAPPINGS.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    for (layout, kib) in
        [(StubLayout::Compact, 32), (StubLayout::Rop, 32), (StubLayout::CallRet, 80), (StubLayout::Inline, 336)]
    {
        let table = StubTable::new(layout).unwrap();
        assert!(table.code().len() <= kib * 1024, "{layout:?}: {}", table.code().len());
        // The same arena, wherever it is.
        assert_eq!(CodeTable::size(&EmitOptions::new().layout(layout)), table.code().len());
    }
}

/// A stub is one cache line or less where the layout allows it, and starts on a fetch boundary.
#[test]
fn alignment() {
    let _alone = MAPPINGS.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    for layout in StubLayout::ALL.iter().copied() {
        let table = StubTable::new(layout).unwrap();
        assert!(IoInsn::in_out().all(|insn| (table.stub(insn).code().as_ptr() as usize).is_multiple_of(16)));
    }
}
