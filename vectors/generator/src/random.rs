//! Numbers that are the same on every machine: SplitMix64, from one seed per class.

pub struct Random(u64);

impl Random {
    /// A sequence of its own for each class, so that a vector more in one class changes no other.
    pub fn for_class(name: &str) -> Self {
        Self(
            name.bytes()
                .fold(crate::SEED, |seed, byte| seed.rotate_left(8) ^ u64::from(byte).wrapping_mul(crate::SEED)),
        )
    }

    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }

    /// Less than `bound`.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    pub fn chance(&mut self, one_in: u64) -> bool {
        self.below(one_in) == 0
    }

    pub fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len() as u64) as usize]
    }

    /// What a device answers: often a value at an edge.
    pub fn answer(&mut self, width: u8) -> u32 {
        let value = match self.below(6) {
            0 => self.pick(&[0, u64::MAX, 0x8080_8080, 0x7f7f_7f7f, 0x8000_0000, 1]),
            _ => self.next(),
        };
        value as u32 & crate::rules::mask(width)
    }
}
