//! SplitMix64: every random register in `hw/` comes from a printed seed through these few lines.

/// A stream of 64-bit words.
pub struct Rng(u64);

impl Rng {
    /// The stream of `seed`.
    pub const fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next word.
    #[allow(clippy::should_implement_trait)]
    pub const fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A register file of random words, RFLAGS included: the bits that are not the guest's to set have to come back, too.
    pub fn gprs(&mut self) -> ioemul::Gprs {
        ioemul::Gprs::from_words(core::array::from_fn(|_| self.next()))
    }
}
