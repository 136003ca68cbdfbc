//! Memory that is writable, then executable, and never both.

use std::{fs, io};

use dynasmrt::mmap::{ExecutableBuffer, MutableBuffer};
use region::Protection;

use crate::error::BuildError;

/// Makes finished code executable, and looks in the process's memory map, where there is one to be had, whether what
/// became of it is that, and not writable. Whether there was one comes back as well.
pub(super) fn make_executable(memory: MutableBuffer) -> Result<(ExecutableBuffer, bool), BuildError> {
    let code = memory.make_exec().map_err(BuildError::Executable)?;
    let looked_up = match protections(code.as_ptr(), code.len()) {
        Some(protections) => {
            check(code.as_ptr() as usize, code.len(), protections)?;
            true
        }
        None => false,
    };
    Ok((code, looked_up))
}

/// A piece of memory, from one address to another, and what may be done to it.
type Piece = (usize, usize, Protection);

/// The pieces of the memory map in which the code is. `None` where the kernel tells no map: without /proc, or in a jail
/// that may not open it.
fn protections(code: *const u8, len: usize) -> Option<Vec<Piece>> {
    match region::query_range(code, len).and_then(Iterator::collect::<Result<Vec<_>, _>>) {
        Ok(regions) => {
            let piece = |region: &region::Region| (region.as_range().start, region.as_range().end, region.protection());
            Some(regions.iter().map(piece).collect())
        }
        // A file with a name that is not UTF-8 is mapped somewhere, and `region` reads no further.
        Err(region::Error::ProcfsInput(_)) => {
            let map = fs::read("/proc/self/maps").ok()?;
            let pieces = String::from_utf8_lossy(&map).lines().filter_map(piece).collect::<Vec<_>>();
            Some(pieces.into_iter().filter(|piece| code as usize + len > piece.0 && piece.1 > code as usize).collect())
        }
        Err(_) => None,
    }
}

/// A line of the map: `7f0000000000-7f0000001000 r-xp …` (proc_pid_maps(5)).
fn piece(line: &str) -> Option<Piece> {
    let (range, rest) = line.split_once(' ')?;
    let (start, end) = range.split_once('-')?;
    let address = |digits| usize::from_str_radix(digits, 16).ok();
    let flags = [('r', Protection::READ), ('w', Protection::WRITE), ('x', Protection::EXECUTE)];
    let set = flags.into_iter().zip(rest.chars()).filter(|((flag, _), found)| flag == found);
    let protection = set.fold(Protection::NONE, |all, ((_, one), _)| all | one);
    Some((address(start)?, address(end)?, protection))
}

/// Whether all of the code is covered, by memory of the protection that it should have.
fn check(start: usize, len: usize, pieces: Vec<Piece>) -> Result<(), BuildError> {
    let mut covered = start;
    for (from, to, protection) in pieces {
        if protection != Protection::READ_EXECUTE {
            return Err(BuildError::Protection { found: protection.to_string() });
        }
        if from <= covered {
            covered = covered.max(to);
        }
    }
    match covered >= start + len {
        true => Ok(()),
        false => Err(BuildError::Protection { found: "not in the process's memory map".into() }),
    }
}

/// Memory to assemble into.
pub(super) fn writable(len: usize) -> io::Result<MutableBuffer> {
    let mut memory = MutableBuffer::new(len)?;
    memory.set_len(len);
    Ok(memory)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_the_map() {
        let rx = Protection::READ_EXECUTE;
        for (line, expected) in [
            ("7f00-8f00 r-xp 00000000 00:00 0", Some((0x7f00, 0x8f00, rx))),
            ("7f00-8f00 r-xs 00000000 08:01 17 /tmp/\u{fffd} x", Some((0x7f00, 0x8f00, rx))),
            ("0-1000 rwxp 0 00:00 0", Some((0, 0x1000, Protection::READ_WRITE_EXECUTE))),
            ("0-1000 ---p 0 00:00 0", Some((0, 0x1000, Protection::NONE))),
            ("7f00 r-xp", None),
            ("x-y r-xp", None),
            ("", None),
        ] {
            assert_eq!(piece(line), expected, "{line}");
        }
    }

    #[test]
    fn what_is_not_covered_is_no_pass() {
        let rx = Protection::READ_EXECUTE;
        let passes = |pieces: &[Piece]| check(0x2000, 0x1800, pieces.to_vec()).is_ok();
        assert!(passes(&[(0x2000, 0x4000, rx)]));
        assert!(passes(&[(0x1000, 0x3000, rx), (0x3000, 0x5000, rx)]));
        assert!(!passes(&[]));
        assert!(!passes(&[(0x2000, 0x3000, rx)]), "the end is missing");
        assert!(!passes(&[(0x2800, 0x4000, rx)]), "the start is missing");
        assert!(!passes(&[(0x2000, 0x2800, rx), (0x3000, 0x4000, rx)]), "a hole");
        assert!(!passes(&[(0x2000, 0x4000, Protection::READ_WRITE_EXECUTE)]));
        assert!(!passes(&[(0x2000, 0x3000, rx), (0x3000, 0x4000, Protection::READ)]));
    }
}
