//! What a TSS says of ports: the check that a CPU makes, for hosts without `std`.

use crate::Width;

/// The I/O permission bitmap of a task-state segment, read as a CPU reads it (SDM vol. 1, 19.5.2; APM vol. 2, 12.2.5).
///
/// The slice runs from the I/O map base to the segment limit, the byte at the limit included; it is empty where the base
/// lies past the limit. Bit *p* mod 8 of byte *p* / 8 denies port *p*. For each access, whatever its width, the CPU reads
/// two neighbouring bytes, and refuses the access if the second one is past the limit, even where all of its ports are
/// in the first:
///
/// ```
/// use ioemul::{TssBitmap, Width};
/// let map = TssBitmap::new(&[0b0000_0000, 0b1111_1110, 0xff]);
/// assert!(map.permits(0x07, Width::Word)); // 7 and 8
/// assert!(!map.permits(0x07, Width::Dword)); // 9 and 10 are denied
/// assert!(!map.permits(0x10, Width::Byte)); // there is no byte behind that of port 0x10
/// assert!(!TssBitmap::new(&[0]).permits(0, Width::Byte));
/// ```
///
/// So the last byte of a map is only ever read as the second one. The manuals want it to be all ones, and then this says
/// the same as [`PortSet::from_tss_bitmap`](crate::PortSet::from_tss_bitmap). If it is not, an access that starts in the
/// byte before may be permitted to go on into the last, by a CPU and here, although no access may start there. No set of
/// ports is like that: `PortSet` leaves out all ports of that byte.
///
/// In one thing this is stricter than a CPU: an access that would run past port 0xFFFF is never permitted, whatever lies
/// behind the bit of that port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[doc(alias("I/O permission bitmap", "IOPM"))]
pub struct TssBitmap<'a>(&'a [u8]);

impl<'a> TssBitmap<'a> {
    /// The bitmap in these bytes, of which there may be any number.
    pub const fn new(map: &'a [u8]) -> Self {
        Self(map)
    }

    /// Whether the CPU lets a program make an access of `width` at `port` that has to ask the bitmap: one whose CPL is
    /// greater than IOPL, or that runs in virtual-8086 mode.
    #[inline]
    pub fn permits(&self, port: u16, width: Width) -> bool {
        let two_bytes = self.0.get(usize::from(port / 8)..).and_then(|bytes| bytes.first_chunk());
        let last = port.checked_add(u16::from(width.bytes()) - 1);
        last.is_some() && two_bytes.is_some_and(|two_bytes| are_clear(*two_bytes, port, width))
    }
}

/// Whether the bits of all ports of an access are clear in the two bytes that it starts in.
#[inline]
pub(crate) fn are_clear(two_bytes: [u8; 2], port: u16, width: Width) -> bool {
    let touched = (1 << width.bytes()) - 1;
    u16::from_le_bytes(two_bytes) >> (port % 8) & touched == 0
}

#[cfg(test)]
mod tests {
    extern crate std;

    use std::vec::Vec;

    use super::*;

    /// The words of the SDM, one bit at a time.
    fn as_written(map: &[u8], port: u16, width: Width) -> bool {
        let limit = map.len() as i64 - 1;
        if i64::from(port / 8) + 1 > limit {
            return false;
        }
        let ports = (0..u32::from(width.bytes())).map(|byte| u32::from(port) + byte);
        ports.into_iter().all(|port| port <= 0xffff && map[port as usize / 8] >> (port % 8) & 1 == 0)
    }

    /// Maps that end everywhere that matters, and what can be in their last three bytes.
    fn maps() -> impl Iterator<Item = Vec<u8>> {
        let lengths = (0..=9).chain([256, 4097]).chain(8190..=8196).chain([0x1_0000]);
        let tails = [[0, 0, 0], [0, 0, 0xff], [0xff; 3], [0x7f, 0xfe, 0x01], [0, 0x55, 0xaa], [0xf0, 0x0f, 0xfe]];
        lengths.flat_map(move |length: usize| {
            tails.into_iter().map(move |tail| {
                let mut map = std::vec![0; length];
                map.iter_mut().rev().zip(tail.iter().rev()).for_each(|(to, from)| *to = *from);
                map
            })
        })
    }

    fn accesses() -> impl Iterator<Item = (u16, Width)> {
        (0..=u16::MAX).flat_map(|port| Width::ALL.iter().map(move |width| (port, *width)))
    }

    #[test]
    fn as_the_manual_has_it_for_every_port_and_map() {
        for map in maps() {
            let bitmap = TssBitmap::new(&map);
            let wrong =
                accesses().find(|(port, width)| bitmap.permits(*port, *width) != as_written(&map, *port, *width));
            assert_eq!(wrong, None, "{} bytes, ending in {:x?}", map.len(), map.last_chunk::<3>());
        }
    }

    /// The bytes behind the slice are another's: they are not asked.
    #[test]
    fn what_lies_behind_the_limit_does_not_count() {
        let memory = [0; 8200];
        for length in (0..40).chain(8180..8200) {
            let bitmap = TssBitmap::new(&memory[..length]);
            let mapped = length.saturating_sub(1) * 8;
            let permitted = |port: u16| bitmap.permits(port, Width::Byte);
            assert_eq!((0..=u16::MAX).position(|port| !permitted(port)), (mapped <= 0xffff).then_some(mapped));
        }
    }

    #[cfg(feature = "std")]
    mod port_set {
        use proptest::prelude::*;

        use super::*;
        use crate::PortSet;

        /// Where the last byte is all ones, a set of ports says the same; where it is not, the set leaves out what only
        /// goes on into that byte, and nothing else.
        fn check(map: &[u8], (port, width): (u16, Width)) {
            let (set, bitmap) = (PortSet::from_tss_bitmap(map), TssBitmap::new(map));
            check_one(&set, bitmap, map, port, width);
        }

        fn check_one(set: &PortSet, bitmap: TssBitmap<'_>, map: &[u8], port: u16, width: Width) {
            let last_port = usize::from(port) + usize::from(width.bytes()) - 1;
            let goes_on_into_last = usize::from(port / 8) + 2 == map.len() && last_port / 8 + 1 == map.len();
            let undecided = goes_on_into_last && map.last() != Some(&0xff);
            let (by_set, by_map) = (set.permits(port, width), bitmap.permits(port, width));
            assert!(by_set == by_map || (undecided && !by_set), "{} bytes: {port:#x}, {width:?}", map.len());
        }

        #[test]
        fn agrees_for_every_port_and_map() {
            for map in maps() {
                let (set, bitmap) = (PortSet::from_tss_bitmap(&map), TssBitmap::new(&map));
                accesses().for_each(|(port, width)| check_one(&set, bitmap, &map, port, width));
            }
        }

        fn access() -> impl Strategy<Value = (u16, Width)> {
            (prop_oneof![0..80_u16, any::<u16>(), 0xffb0..=0xffff_u16], prop::sample::select(Width::ALL))
        }

        proptest! {
            #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

            #[test]
            fn agrees_for_any_map(map in prop::collection::vec(any::<u8>(), 0..12), access in access()) {
                check(&map, access);
            }

            /// Few ports are denied, so that most answers hang on where the map ends.
            #[test]
            fn agrees_for_long_maps(
                length in prop_oneof![0..20_usize, 8180..8200_usize],
                denied in prop::collection::vec(any::<prop::sample::Index>(), 0..4),
                last in any::<u8>(),
                access in access(),
            ) {
                let mut map = std::vec![0; length];
                if length > 0 {
                    denied.iter().for_each(|index| map[index.index(length)] = 0x81);
                    map[length - 1] = last;
                }
                check(&map, access);
            }

            #[test]
            fn agrees_with_the_bitmap_that_a_set_is(
                ranges in prop::collection::vec((any::<u16>(), 0..40_u16), 0..6),
                access in access(),
            ) {
                let set: PortSet = ranges.iter().map(|(first, more)| *first..=first.saturating_add(*more)).collect();
                let bitmap = TssBitmap::new(set.as_tss_bitmap());
                prop_assert_eq!(set.permits(access.0, access.1), bitmap.permits(access.0, access.1));
            }
        }
    }
}
