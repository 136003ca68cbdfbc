//! Which table a faulting address is in: an index that a signal handler reads and threads that build tables write.
#![allow(unsafe_code)] // pointers to what lives as long as a table is registered

use core::ptr;
use core::sync::atomic::{AtomicPtr, AtomicUsize, Ordering, fence};
use std::sync::{Mutex, MutexGuard};

use super::FaultMap;

/// A copy of the index, in the order of the addresses: a fault costs the same with one table and with thousands.
///
/// There are two. Writers fill the one that is not [`CURRENT`] and then make it so; `generation` is odd meanwhile. So a
/// handler that interrupts a writer finds the other one whole. A copy is never freed, since a handler may be reading it
/// at any time, but used again until it is too small; the next one is twice as large.
struct Copy {
    generation: AtomicUsize,
    len: AtomicUsize,
    entries: Box<[Entry]>,
}

#[derive(Default)]
struct Entry {
    start: AtomicUsize,
    end: AtomicUsize,
    map: AtomicPtr<FaultMap>,
}

/// What handlers read.
static CURRENT: AtomicPtr<Copy> = AtomicPtr::new(ptr::null_mut());

/// What writers know: all tables, and the copies that are not [`CURRENT`].
struct Index {
    tables: Vec<Table>,
    spare: Option<&'static Copy>,
    /// Too small for use, and still in memory.
    outgrown: Vec<&'static Copy>,
}

struct Table {
    start: usize,
    end: usize,
    map: *mut FaultMap,
}

// SAFETY: the pointer is passed on, never followed.
unsafe impl Send for Table {}

static INDEX: Mutex<Index> = Mutex::new(Index { tables: Vec::new(), spare: None, outgrown: Vec::new() });

fn index() -> MutexGuard<'static, Index> {
    INDEX.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

/// Keeps a table known to the handler.
#[derive(Debug)]
pub(crate) struct Registration {
    start: usize,
}

impl Registration {
    /// Makes `code` known to [`find`].
    ///
    /// # Safety
    ///
    /// `map` stays valid and in place until the registration is dropped.
    pub unsafe fn new(code: &[u8], map: &FaultMap) -> Self {
        let range = code.as_ptr_range();
        let table = Table { start: range.start as usize, end: range.end as usize, map: ptr::from_ref(map).cast_mut() };
        let registration = Self { start: table.start };
        let mut index = index();
        let at = index.tables.partition_point(|other| other.start < table.start);
        index.tables.insert(at, table);
        index.publish();
        registration
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        let mut index = index();
        index.tables.retain(|table| table.start != self.start);
        index.publish();
    }
}

impl Index {
    fn publish(&mut self) {
        let count = self.tables.len();
        let copy = match self.spare.take() {
            Some(copy) if copy.entries.len() >= count => copy,
            too_small => {
                self.outgrown.extend(too_small);
                Box::leak(Box::new(Copy::new((2 * count).max(16))))
            }
        };
        copy.fill(&self.tables);
        let before = CURRENT.swap(ptr::from_ref(copy).cast_mut(), Ordering::AcqRel);
        // SAFETY: null, or a copy, which is never freed.
        self.spare = unsafe { before.as_ref() };
    }
}

impl Copy {
    fn new(capacity: usize) -> Self {
        let entries = core::iter::repeat_with(Entry::default).take(capacity).collect();
        Self { generation: AtomicUsize::new(0), len: AtomicUsize::new(0), entries }
    }

    fn fill(&self, tables: &[Table]) {
        self.generation.fetch_add(1, Ordering::Relaxed);
        fence(Ordering::Release);
        for (entry, table) in self.entries.iter().zip(tables) {
            entry.start.store(table.start, Ordering::Relaxed);
            entry.end.store(table.end, Ordering::Relaxed);
            entry.map.store(table.map, Ordering::Relaxed);
        }
        self.len.store(tables.len(), Ordering::Relaxed);
        self.generation.fetch_add(1, Ordering::Release);
    }

    fn find(&self, rip: usize) -> Option<(usize, *const FaultMap)> {
        let len = self.len.load(Ordering::Relaxed).min(self.entries.len());
        let behind = self.entries[..len].partition_point(|entry| entry.start.load(Ordering::Relaxed) <= rip);
        let entry = self.entries.get(behind.checked_sub(1)?)?;
        let found = (entry.start.load(Ordering::Relaxed), entry.map.load(Ordering::Relaxed).cast_const());
        (rip < entry.end.load(Ordering::Relaxed)).then_some(found)
    }
}

/// The start of the table that has `rip` in it, and its map. Async-signal-safe.
pub(super) fn find(rip: usize) -> Option<(usize, *const FaultMap)> {
    loop {
        // SAFETY: null, or a copy, which is never freed.
        let copy = unsafe { CURRENT.load(Ordering::Acquire).as_ref() }?;
        let before = copy.generation.load(Ordering::Acquire);
        let found = copy.find(rip);
        fence(Ordering::Acquire);
        // Written again meanwhile: two tables have come or gone, and there is another one to read.
        if before % 2 == 0 && before == copy.generation.load(Ordering::Relaxed) {
            return found;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tables(ranges: &[(usize, usize)]) -> Vec<Table> {
        let table = |&(start, end): &(usize, usize)| Table { start, end, map: ptr::without_provenance_mut(start) };
        ranges.iter().map(table).collect()
    }

    #[test]
    fn every_address_finds_its_table_or_none() {
        let copy = Copy::new(8);
        assert_eq!(copy.find(0x1000), None);
        copy.fill(&tables(&[(0x1000, 0x2000), (0x2000, 0x2800), (0x5000, 0x6000)]));
        for (rip, start) in [
            (0, None),
            (0xfff, None),
            (0x1000, Some(0x1000)),
            (0x1fff, Some(0x1000)),
            (0x2000, Some(0x2000)),
            (0x27ff, Some(0x2000)),
            (0x2800, None),
            (0x4fff, None),
            (0x5fff, Some(0x5000)),
            (0x6000, None),
            (usize::MAX, None),
        ] {
            let expected = start.map(|start| (start, ptr::without_provenance(start)));
            assert_eq!(copy.find(rip), expected, "{rip:#x}");
        }
        copy.fill(&tables(&[(0x5000, 0x6000)]));
        assert_eq!((copy.find(0x1000), copy.find(0x5000).is_some()), (None, true));
    }

    /// Readers never see a copy half written: each finds the address where it was in one generation or the next.
    #[test]
    fn readers_see_one_generation_or_the_next() {
        use std::sync::atomic::AtomicBool;
        let done = AtomicBool::new(false);
        // No other table of this process lies down here.
        let register = |at: usize| {
            let mut index = index();
            index.tables.insert(0, tables(&[(at, at + 0x10)]).remove(0));
            index.publish();
        };
        let forget = |at: usize| drop(Registration { start: at });
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    while !done.load(Ordering::Relaxed) {
                        for at in [0x100, 0x200] {
                            assert!(find(at + 8).is_none_or(|(start, map)| start == at && map.addr() == at));
                        }
                        assert_eq!(find(0x180), None);
                    }
                });
            }
            for _ in 0..20_000 {
                register(0x200);
                register(0x100);
                forget(0x200);
                forget(0x100);
            }
            done.store(true, Ordering::Relaxed);
        });
    }
}
