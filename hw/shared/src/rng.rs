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

    /// A register file of random words; RFLAGS, which is output only, starts as zero.
    pub fn gprs(&mut self) -> ioemul::Gprs {
        let mut words = [0; 16];
        words[..15].fill_with(|| self.next());
        ioemul::Gprs::from_words(words)
    }
}
