//! Which ports may be touched: sets of ports, and separate sets for reading and for writing.
//!
//! A [`PortSet`] is kept in the form that the processor itself checks, the I/O permission bitmap of a TSS (SDM vol. 1,
//! 19.5.2): one bit per port, a *set* bit denies, and a last byte of all ones. Every access is checked by one load of
//! two neighbouring bytes, and the last byte is why an access that would run past port 0xFFFF is denied without being
//! looked for.

use alloc::boxed::Box;
use alloc::string::String;
use core::borrow::Borrow;
use core::ops::{BitAnd, BitAndAssign, BitOr, BitOrAssign, Not, RangeInclusive, Sub, SubAssign};
use core::str::FromStr;
use core::{fmt, iter};

use crate::quote::quoted;
use crate::{Direction, Width};

mod hazard;

pub use hazard::Hazard;

/// Number of ports: the I/O address space is 64 KiB.
const PORTS: usize = 1 << 16;

/// A set of I/O ports. A new set is empty: nothing is permitted until something is allowed.
///
/// The written form is a list: single ports, ranges `first-last`, and `base/length`. Ports are hexadecimal and say so
/// (`0x70`, never `70`); a length may be decimal. `none` and `all` stand alone. It prints in one canonical form:
/// ascending, neighbours joined.
///
/// ```
/// use ioemul::{PortSet, Width};
/// let ports: PortSet = "0xcf8/4, 0x71, 0x70".parse()?;
/// assert_eq!(ports.to_string(), "0x70-0x71,0xcf8-0xcfb");
/// assert!(ports.permits(0x70, Width::Word));
/// assert!(!ports.permits(0x6e, Width::Dword)); // 0x6e and 0x6f are not in the set
///
/// let careful = PortSet::all() - PortSet::hazardous() | "0x70-0x71".parse::<PortSet>()?;
/// assert!(careful.permits(0x80, Width::Byte) && !careful.permits(0xcf9, Width::Byte));
/// # Ok::<(), ioemul::ParsePortSetError>(())
/// ```
#[derive(Clone, PartialEq, Eq, Hash)]
#[doc(alias("I/O permission bitmap", "ioperm"))]
pub struct PortSet {
    /// In TSS format: a set bit denies; the last byte is all ones.
    denied: Box<[u8; PortSet::TSS_BITMAP_BYTES]>,
}

impl PortSet {
    /// Size of a complete TSS I/O bitmap: a bit for each of the 65,536 ports, and the terminating byte.
    pub const TSS_BITMAP_BYTES: usize = PORTS / 8 + 1;

    /// The empty set.
    pub fn none() -> Self {
        Self { denied: Box::new([0xff; Self::TSS_BITMAP_BYTES]) }
    }

    /// Every port, 0 to 0xFFFF.
    pub fn all() -> Self {
        !Self::none()
    }

    /// The ports of [`Hazard::ALL`], which no tool should touch by accident; each entry gives the reason.
    ///
    /// Permission is per port, and 0xCF9 is the reset control: without it, PCI configuration by a dword at 0xCF8 is
    /// denied too. To have it, allow `0xcf8/8`.
    pub fn hazardous() -> Self {
        Hazard::ALL.iter().map(|hazard| hazard.ports.clone()).collect()
    }

    /// Adds the ports of `range`. An empty range (`5..=4`) adds nothing.
    pub fn allow(&mut self, range: RangeInclusive<u16>) {
        self.fill(range, 0);
    }

    /// Takes the ports of `range` out. An empty range takes nothing out.
    pub fn deny(&mut self, range: RangeInclusive<u16>) {
        self.fill(range, 0xff);
    }

    /// Gives the bits of `range` those of `denied`, whole bytes at once: lists of ranges come from outside, and the
    /// longest range has 65,536 bits.
    fn fill(&mut self, range: RangeInclusive<u16>, denied: u8) {
        let (first, last) = range.into_inner();
        if first > last {
            return;
        }
        let put = |byte: &mut u8, ports: u8| *byte = *byte & !ports | denied & ports;
        let (from, to) = (0xff << (first % 8), 0xff >> (7 - last % 8));
        match &mut self.denied[usize::from(first / 8)..=usize::from(last / 8)] {
            [only] => put(only, from & to),
            [head, whole @ .., tail] => {
                put(head, from);
                whole.fill(denied);
                put(tail, to);
            }
            [] => {}
        }
    }

    /// Whether the set holds every port that an access of `width` at `port` touches. An access that would run past
    /// port 0xFFFF is never permitted.
    #[inline]
    pub fn permits(&self, port: u16, width: Width) -> bool {
        let at = usize::from(port / 8);
        crate::tss::are_clear([self.denied[at], self.denied[at + 1]], port, width)
    }

    /// Whether no port is in the set.
    pub fn is_empty(&self) -> bool {
        self.find(0, true) == PORTS
    }

    /// The set as ranges, ascending, with neighbours joined.
    pub fn ranges(&self) -> impl Iterator<Item = RangeInclusive<u16>> + '_ {
        let mut next = 0;
        iter::from_fn(move || {
            let first = self.find(next, true);
            next = self.find(first, false);
            (first < PORTS).then(|| first as u16..=(next - 1) as u16)
        })
    }

    /// The first port from `from` on that is in the set (or, asked for `false`, that is not); [`PORTS`] if there is
    /// none.
    fn find(&self, from: usize, in_set: bool) -> usize {
        let mut port = from;
        while port < PORTS {
            let denied = self.denied[port / 8];
            let wanted = if in_set { !denied } else { denied } >> (port % 8);
            if wanted != 0 {
                return port + wanted.trailing_zeros() as usize;
            }
            port = (port | 7) + 1;
        }
        PORTS
    }

    /// The set as a TSS I/O permission bitmap (SDM vol. 1, 19.5.2): bit *p* mod 8 of byte *p* / 8 is set if port *p* is
    /// denied, and the last byte is all ones. Copy it to where the I/O map base address of the TSS points.
    pub fn as_tss_bitmap(&self) -> &[u8; Self::TSS_BITMAP_BYTES] {
        &self.denied
    }

    /// The ports that a TSS with this I/O permission bitmap gives access to; `map` runs from the I/O map base to the
    /// segment limit.
    ///
    /// The last byte of the map maps no ports, whatever it holds, and ports past the end of a short map are denied: 11
    /// bytes map 80 ports. Append `0xff` to a bitmap that comes without that byte. Bytes beyond
    /// [`Self::TSS_BITMAP_BYTES`] are not looked at.
    ///
    /// The SDM wants the last byte to be all ones (vol. 1, 19.5.2); then an access is permitted by this set exactly where a CPU
    /// permits it. If it is not, the set is stricter than a CPU in one case: a word or a dword that starts among the ports of
    /// the byte before and goes on into those of the last byte is permitted by a CPU where their bits are clear, and
    /// never by the set, which has none of these ports. ([`TssBitmap`](crate::TssBitmap) answers as a CPU does, for any map
    /// and without a copy.)
    pub fn from_tss_bitmap(map: &[u8]) -> Self {
        let mapped = map.len().saturating_sub(1).min(PORTS / 8);
        let mut set = Self::none();
        set.denied[..mapped].copy_from_slice(&map[..mapped]);
        set
    }

    /// Combines each byte of port bits with that of `other`; the terminating byte stays.
    fn combine(&mut self, other: &Self, op: impl Fn(u8, u8) -> u8) {
        for (a, b) in self.denied[..PORTS / 8].iter_mut().zip(other.denied.iter()) {
            *a = op(*a, *b);
        }
    }
}

impl Default for PortSet {
    /// The empty set.
    fn default() -> Self {
        Self::none()
    }
}

/// The set operations, on what is *denied*: a union of ports is an intersection of denials.
macro_rules! set_operator {
    ($op:ident::$f:ident, $op_assign:ident::$f_assign:ident, $doc:literal, $on_denied:expr) => {
        impl<S: Borrow<PortSet>> $op_assign<S> for PortSet {
            #[doc = $doc]
            fn $f_assign(&mut self, other: S) {
                self.combine(other.borrow(), $on_denied);
            }
        }

        impl<S: Borrow<PortSet>> $op<S> for PortSet {
            type Output = PortSet;

            #[doc = $doc]
            fn $f(mut self, other: S) -> PortSet {
                self.combine(other.borrow(), $on_denied);
                self
            }
        }

        impl<S: Borrow<PortSet>> $op<S> for &PortSet {
            type Output = PortSet;

            #[doc = $doc]
            fn $f(self, other: S) -> PortSet {
                self.clone().$f(other)
            }
        }
    };
}

set_operator!(BitOr::bitor, BitOrAssign::bitor_assign, "Union: the ports of either set.", |a, b| a & b);
set_operator!(BitAnd::bitand, BitAndAssign::bitand_assign, "Intersection: the ports of both sets.", |a, b| a | b);
set_operator!(Sub::sub, SubAssign::sub_assign, "Difference: the ports of the first set alone.", |a, b| a | !b);

impl Not for PortSet {
    type Output = PortSet;

    /// Complement: every port that is not in the set.
    fn not(mut self) -> PortSet {
        for byte in &mut self.denied[..PORTS / 8] {
            *byte = !*byte;
        }
        self
    }
}

impl Not for &PortSet {
    type Output = PortSet;

    /// Complement: every port that is not in the set.
    fn not(self) -> PortSet {
        !self.clone()
    }
}

impl Extend<RangeInclusive<u16>> for PortSet {
    fn extend<I: IntoIterator<Item = RangeInclusive<u16>>>(&mut self, ranges: I) {
        for range in ranges {
            self.allow(range);
        }
    }
}

impl FromIterator<RangeInclusive<u16>> for PortSet {
    fn from_iter<I: IntoIterator<Item = RangeInclusive<u16>>>(ranges: I) -> Self {
        let mut set = Self::none();
        set.extend(ranges);
        set
    }
}

impl From<RangeInclusive<u16>> for PortSet {
    fn from(range: RangeInclusive<u16>) -> Self {
        [range].into_iter().collect()
    }
}

impl From<&PortSet> for PortSet {
    fn from(set: &PortSet) -> Self {
        set.clone()
    }
}

impl fmt::Display for PortSet {
    /// The canonical form: `0x70-0x71,0xcf8-0xcfb`, or `none`, or `all`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut separator = "";
        for range in self.ranges() {
            let (first, last) = range.into_inner();
            match (first, last) {
                (0, u16::MAX) => return f.write_str("all"),
                _ if first == last => write!(f, "{separator}{first:#x}")?,
                _ => write!(f, "{separator}{first:#x}-{last:#x}")?,
            }
            separator = ",";
        }
        if separator.is_empty() { f.write_str("none") } else { Ok(()) }
    }
}

impl fmt::Debug for PortSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PortSet({self})")
    }
}

impl FromStr for PortSet {
    type Err = ParsePortSetError;

    /// Parses `0x70-0x71,0xcf8/4`, `none` or `all`; spaces around items are ignored.
    fn from_str(text: &str) -> Result<Self, ParsePortSetError> {
        match text.trim() {
            "none" => return Ok(Self::none()),
            "all" => return Ok(Self::all()),
            _ => {}
        }
        let mut set = Self::none();
        let mut start = 0;
        for field in text.split(',') {
            let item = field.trim();
            let range = parse_item(item).map_err(|problem| {
                let spaces = field.len() - field.trim_start().len();
                ParsePortSetError { item: quoted(item), column: text[..start + spaces].chars().count() + 1, problem }
            })?;
            set.allow(range);
            start += field.len() + 1;
        }
        Ok(set)
    }
}

/// `0x70`, `0x70-0x71` or `0xcf8/4`.
fn parse_item(item: &str) -> Result<RangeInclusive<u16>, PortSetProblem> {
    if item.is_empty() {
        return Err(PortSetProblem::Missing);
    }
    if let Some((base, length)) = item.split_once('/') {
        let base = parse_port(base)?;
        let last = match parse_number(length).ok_or(PortSetProblem::NotALength)? {
            0 => return Err(PortSetProblem::NotALength),
            length => u32::from(base).saturating_add(length - 1),
        };
        return Ok(base..=last.try_into().map_err(|_| PortSetProblem::PastTheEnd)?);
    }
    let (first, last) = item.split_once('-').unwrap_or((item, item));
    let (first, last) = (parse_port(first)?, parse_port(last)?);
    if first > last { Err(PortSetProblem::Backwards) } else { Ok(first..=last) }
}

fn parse_port(text: &str) -> Result<u16, PortSetProblem> {
    if !text.starts_with("0x") {
        return Err(PortSetProblem::NotAPort);
    }
    let port = parse_number(text).ok_or(PortSetProblem::NotAPort)?;
    port.try_into().map_err(|_| PortSetProblem::PastTheEnd)
}

/// A decimal number, or a hexadecimal one after `0x`; one too large for any use here is `u32::MAX`.
fn parse_number(text: &str) -> Option<u32> {
    let (digits, radix) = text.strip_prefix("0x").map_or((text, 10), |digits| (digits, 16));
    // `from_str_radix` would take a sign as well.
    let well_formed = !digits.is_empty() && digits.chars().all(|c| c.is_digit(radix));
    well_formed.then(|| u32::from_str_radix(digits, radix).unwrap_or(u32::MAX))
}

/// Why a text is not a [`PortSet`], and where.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("port set, column {column}: `{item}`: {problem}")]
#[non_exhaustive]
pub struct ParsePortSetError {
    /// The item between two commas; of a long one the beginning, and an ellipsis.
    pub item: String,
    /// Where the item starts: characters from the start of the text, counted from 1.
    pub column: usize,
    /// What is wrong with it.
    pub problem: PortSetProblem,
}

/// What can be wrong with an item of a written [`PortSet`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PortSetProblem {
    /// Nothing before, between or after the commas.
    #[error("an item is missing (for the empty set write `none`)")]
    Missing,
    /// Not a port where one is expected. `70` is refused since some mean 70 by it and some mean 0x70.
    #[error("a port is a hexadecimal number such as 0x70")]
    NotAPort,
    /// Not a length after `/`.
    #[error("a length is a number, 1 or more, decimal or after 0x")]
    NotALength,
    /// `0x71-0x70`.
    #[error("the range ends before it starts")]
    Backwards,
    /// A port above 0xFFFF, or a `base/length` that reaches beyond it.
    #[error("the last port is 0xffff")]
    PastTheEnd,
}

/// Ports that may be read and ports that may be written, separately.
///
/// ```
/// use ioemul::{Direction, PortPermissions, PortSet, Width};
/// let look_only = PortPermissions { read: PortSet::all(), write: PortSet::none() };
/// assert!(look_only.permits(0x71, Width::Byte, Direction::In));
/// assert!(!look_only.permits(0x71, Width::Byte, Direction::Out));
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct PortPermissions {
    /// Ports for IN.
    pub read: PortSet,
    /// Ports for OUT.
    pub write: PortSet,
}

impl PortPermissions {
    /// Whether every port that the access touches may be accessed in this direction: [`PortSet::permits`] of the set
    /// that applies.
    #[inline]
    pub fn permits(&self, port: u16, width: Width, direction: Direction) -> bool {
        match direction {
            Direction::In => self.read.permits(port, width),
            Direction::Out => self.write.permits(port, width),
        }
    }
}

impl From<PortSet> for PortPermissions {
    /// The same ports for both directions.
    fn from(ports: PortSet) -> Self {
        Self { read: ports.clone(), write: ports }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    /// The same set, the obvious way.
    type Model = BTreeSet<u16>;

    fn model(set: &PortSet) -> Model {
        set.ranges().flatten().collect()
    }

    fn range() -> impl Strategy<Value = RangeInclusive<u16>> {
        // Short ranges, often at either end of the port space, and now and then a long one.
        let first = prop_oneof![0..40u16, any::<u16>(), u16::MAX - 40..=u16::MAX];
        let length = prop_oneof![9 => 0..20u16, 1 => any::<u16>()];
        (first, length).prop_map(|(first, length)| first..=first.saturating_add(length))
    }

    fn set() -> impl Strategy<Value = PortSet> {
        let few = prop::collection::vec(range(), 0..6).prop_map(PortSet::from_iter);
        (few, any::<bool>()).prop_map(|(set, complement)| if complement { !set } else { set })
    }

    fn port() -> impl Strategy<Value = u16> {
        prop_oneof![0..60u16, any::<u16>(), u16::MAX - 60..=u16::MAX]
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn allow_and_deny_are_insert_and_remove(steps in prop::collection::vec((any::<bool>(), range()), 0..8)) {
            let (mut set, mut expected) = (PortSet::none(), Model::new());
            for (add, range) in steps {
                if add {
                    set.allow(range.clone());
                    expected.extend(range);
                } else {
                    set.deny(range.clone());
                    expected.retain(|port| !range.contains(port));
                }
            }
            prop_assert_eq!(set.is_empty(), expected.is_empty());
            prop_assert_eq!(model(&set), expected);
        }

        #[test]
        fn operators_are_those_of_sets(a in set(), b in set()) {
            let (ma, mb) = (model(&a), model(&b));
            prop_assert_eq!(model(&(&a | &b)), &ma | &mb);
            prop_assert_eq!(model(&(&a & &b)), &ma & &mb);
            prop_assert_eq!(model(&(&a - &b)), &ma - &mb);
            prop_assert_eq!(&(!&a), &(PortSet::all() - &a));
            let (mut or, mut and, mut sub) = (a.clone(), a.clone(), a.clone());
            or |= &b;
            and &= &b;
            sub -= &b;
            prop_assert_eq!((or, and, sub), (&a | &b, &a & &b, a - b));
        }

        #[test]
        fn permits_checks_every_port_of_the_access(set in set(), port in port()) {
            let expected = model(&set);
            for &width in Width::ALL {
                let whole = (0..width.bytes()).all(|i| port.checked_add(i.into()).is_some_and(|p| expected.contains(&p)));
                prop_assert_eq!(set.permits(port, width), whole, "{:#x} {:?}", port, width);
            }
        }

        #[test]
        fn ranges_are_ascending_and_joined(set in set()) {
            let ranges: Vec<_> = set.ranges().collect();
            prop_assert!(ranges.windows(2).all(|w| usize::from(*w[0].end()) + 1 < usize::from(*w[1].start())));
            prop_assert_eq!(ranges.into_iter().collect::<PortSet>(), set);
        }

        #[test]
        fn print_then_parse_is_the_same_set(set in set()) {
            prop_assert_eq!(set.to_string().parse(), Ok(set));
        }

        #[test]
        fn tss_bitmap_there_and_back(set in set()) {
            let map = set.as_tss_bitmap();
            prop_assert_eq!(map.len(), 8193);
            prop_assert_eq!(map[8192], 0xff);
            let expected = model(&set);
            prop_assert!((0..=u16::MAX).all(|p| expected.contains(&p) == (map[usize::from(p / 8)] >> (p % 8) & 1 == 0)));
            prop_assert_eq!(PortSet::from_tss_bitmap(map), set);
        }

        #[test]
        fn a_short_tss_bitmap_denies_what_it_does_not_map(map in prop::collection::vec(any::<u8>(), 0..40)) {
            let set = PortSet::from_tss_bitmap(&map);
            for port in 0..400u16 {
                let at = usize::from(port / 8);
                let granted = at + 1 < map.len() && map[at] >> (port % 8) & 1 == 0;
                prop_assert_eq!(set.permits(port, Width::Byte), granted);
            }
        }

        #[test]
        fn any_text_is_parsed_or_refused(text in "[-0-9a-fx/, é]{0,24}") {
            match text.parse::<PortSet>() {
                Ok(set) => prop_assert_eq!(set.to_string().parse(), Ok(set)),
                Err(error) => {
                    let rest: String = text.chars().skip(error.column - 1).collect();
                    prop_assert!(rest.starts_with(&error.item), "{}", error);
                }
            }
        }
    }

    #[test]
    fn nothing_is_permitted_until_allowed() {
        let set = PortSet::default();
        assert!((0..=u16::MAX).all(|port| Width::ALL.iter().all(|&width| !set.permits(port, width))));
        assert!(set.is_empty());
    }

    #[test]
    fn no_access_wraps_past_the_last_port() {
        let all = PortSet::all();
        assert!(all.permits(0xffff, Width::Byte) && !all.permits(0xffff, Width::Word));
        assert!(all.permits(0xfffe, Width::Word) && !all.permits(0xfffe, Width::Dword));
        assert!(all.permits(0xfffc, Width::Dword) && !all.permits(0xfffd, Width::Dword));
    }

    #[test]
    fn a_wide_access_does_not_reach_a_denied_neighbour() {
        let mut set = PortSet::all();
        set.deny(0x70..=0x71);
        assert!(!set.permits(0x6e, Width::Dword) && set.permits(0x6e, Width::Word) && set.permits(0x6c, Width::Dword));
        assert!(!set.permits(0x71, Width::Word) && set.permits(0x72, Width::Dword));
    }

    #[test]
    #[allow(clippy::reversed_empty_ranges)] // the point of the test
    fn an_empty_range_changes_nothing() {
        let mut set = PortSet::from(0x70..=0x71);
        set.allow(0x81..=0x80);
        set.deny(0x71..=0x70);
        assert_eq!(set.to_string(), "0x70-0x71");
    }

    #[test]
    fn canonical_form() {
        for (text, canonical) in [
            ("0x70", "0x70"),
            ("0x71,0x70", "0x70-0x71"),
            (" 0xCF8/4 ,0x70-0x70", "0x70,0xcf8-0xcfb"),
            ("0xcf8/0x10", "0xcf8-0xd07"),
            ("0x0/65536", "all"),
            ("0x0-0xffff", "all"),
            ("0x0-0xfffe", "0x0-0xfffe"),
            ("0xffff/1", "0xffff"),
            (" all ", "all"),
            ("none", "none"),
        ] {
            assert_eq!(text.parse::<PortSet>().unwrap().to_string(), canonical, "{text}");
        }
        assert_eq!(format!("{:?}", PortSet::from(0x70..=0x71)), "PortSet(0x70-0x71)");
    }

    #[test]
    fn parse_errors_name_the_item_the_column_and_the_reason() {
        let missing = "an item is missing (for the empty set write `none`)";
        let port = "a port is a hexadecimal number such as 0x70";
        let length = "a length is a number, 1 or more, decimal or after 0x";
        for (text, message) in [
            ("", format!("port set, column 1: ``: {missing}")),
            ("0x70,,0x71", format!("port set, column 6: ``: {missing}")),
            ("0x70, ", format!("port set, column 7: ``: {missing}")),
            ("70", format!("port set, column 1: `70`: {port}")),
            ("0x70, 0x7g", format!("port set, column 7: `0x7g`: {port}")),
            ("0x", format!("port set, column 1: `0x`: {port}")),
            ("0x+7", format!("port set, column 1: `0x+7`: {port}")),
            ("-0x70", format!("port set, column 1: `-0x70`: {port}")),
            ("0x70-", format!("port set, column 1: `0x70-`: {port}")),
            ("é,0x70", format!("port set, column 1: `é`: {port}")),
            ("0x70,all", format!("port set, column 6: `all`: {port}")),
            ("0x70/", format!("port set, column 1: `0x70/`: {length}")),
            ("0x70/0", format!("port set, column 1: `0x70/0`: {length}")),
            ("0x70/-1", format!("port set, column 1: `0x70/-1`: {length}")),
            ("0x71-0x70", "port set, column 1: `0x71-0x70`: the range ends before it starts".into()),
            ("0x10000", "port set, column 1: `0x10000`: the last port is 0xffff".into()),
            ("0x70,0xfffe/3", "port set, column 6: `0xfffe/3`: the last port is 0xffff".into()),
            ("0x1/99999999999999", "port set, column 1: `0x1/99999999999999`: the last port is 0xffff".into()),
        ] {
            assert_eq!(text.parse::<PortSet>().unwrap_err().to_string(), message);
        }
    }

    #[test]
    fn eleven_bytes_map_eighty_ports() {
        // The example of SDM vol. 1, 19.5.2; the last byte maps nothing even where it is not all ones.
        assert_eq!(PortSet::from_tss_bitmap(&[0; 11]).to_string(), "0x0-0x4f");
        assert_eq!(PortSet::from_tss_bitmap(&[0; 8192]).to_string(), "0x0-0xfff7");
        assert_eq!(PortSet::from_tss_bitmap(&[0; 8193]), PortSet::all());
        assert_eq!(PortSet::from_tss_bitmap(&[0; 9000]), PortSet::all());
        assert_eq!(PortSet::from_tss_bitmap(&[]), PortSet::none());
    }

    #[test]
    fn read_and_write_are_separate() {
        let permissions = PortPermissions { read: PortSet::from(0x70..=0x71), write: PortSet::from(0x70..=0x70) };
        assert!(permissions.permits(0x70, Width::Word, Direction::In));
        assert!(!permissions.permits(0x70, Width::Word, Direction::Out));
        assert!(permissions.permits(0x70, Width::Byte, Direction::Out));
        let both = PortPermissions::from(PortSet::from(0x80..=0x80));
        assert_eq!(both.read, both.write);
        assert!(!PortPermissions::default().permits(0x80, Width::Byte, Direction::In));
    }
}
