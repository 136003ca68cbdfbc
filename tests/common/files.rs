//! Register files, their offsets written down here and not taken from the library.

use ioemul::{Gprs, RegisterFile};

/// Where each register lies, in the order of [`Gprs::NAMES`].
#[derive(Clone, Copy, Debug)]
pub struct File {
    pub name: &'static str,
    pub offsets: [i16; 15],
    pub rflags: Option<i16>,
    pub library: RegisterFile,
}

/// [`Gprs`].
pub const GPRS: File = File {
    name: "Gprs",
    offsets: [0, 8, 16, 24, 32, 40, 48, 56, 64, 72, 80, 88, 96, 104, 112],
    rflags: Some(120),
    library: RegisterFile::GPRS,
};

const fn own(name: &'static str, offsets: [i16; 15], rflags: Option<i16>) -> File {
    File { name, offsets, rflags, library: RegisterFile::new(offsets, rflags) }
}

pub const ALL: &[File] = &[
    GPRS,
    File {
        name: "kvm_regs",
        offsets: [0, 8, 16, 24, 32, 40, 56, 64, 72, 80, 88, 96, 104, 112, 120],
        rflags: Some(136),
        library: RegisterFile::KVM_REGS,
    },
    File {
        name: "pt_regs",
        offsets: [80, 40, 88, 96, 104, 112, 32, 72, 64, 56, 48, 24, 16, 8, 0],
        rflags: Some(144),
        library: RegisterFile::PT_REGS,
    },
    // Negative, far beyond a byte, the flags in the middle.
    own("scattered", [-8, 2000, -2000, 128, -128, 1024, 120, -136, 136, -1024, 0, 512, -512, 3000, -3000], Some(64)),
    // The word of RDI before all others.
    own("RDI first", [8, 16, 24, 32, 40, 0, 48, 56, 64, 72, 80, 88, 96, 104, 112], Some(120)),
    own("RDI first and far", [8, 16, 24, 32, 40, -4096, 48, 56, 64, 72, 80, 88, 96, 104, 112], Some(-8)),
    own("no flags", [112, 104, 96, 88, 80, 72, 64, 56, 48, 40, 32, 24, 16, 8, 0], None),
];

/// Memory for a register file, with a pattern wherever there is no register.
pub struct Memory {
    words: Vec<u64>,
    file: File,
}

/// So far from the start of the memory is the address that stubs are called with.
const ORIGIN: i16 = 4096;
const PATTERN: u64 = 0x5a5a_a5a5_5a5a_a5a5;

impl Memory {
    pub fn new(file: File, gprs: &Gprs) -> Self {
        let mut memory = Self { words: vec![PATTERN; 1024], file };
        for (word, at) in gprs.to_words().into_iter().zip(memory.places()) {
            if let Some(at) = at {
                memory.words[at] = word;
            }
        }
        memory
    }

    fn places(&self) -> impl Iterator<Item = Option<usize>> + use<> {
        let File { offsets, rflags, .. } = self.file;
        let place = |offset: i16| (offset + ORIGIN) as usize / 8;
        offsets.into_iter().map(Some).chain([rflags]).map(move |offset| offset.map(place))
    }

    pub fn pointer(&mut self) -> *mut u8 {
        // SAFETY: within the memory.
        unsafe { self.words.as_mut_ptr().cast::<u8>().add(ORIGIN as usize) }
    }

    /// The registers; RFLAGS is 0 where the file has none. Panics if anything between them was written.
    pub fn gprs(&self) -> Gprs {
        let places: Vec<Option<usize>> = self.places().collect();
        for (at, word) in self.words.iter().enumerate() {
            assert!(places.contains(&Some(at)) || *word == PATTERN, "{}: word {at} was written", self.file.name);
        }
        Gprs::from_words(std::array::from_fn(|index| places[index].map_or(0, |at| self.words[at])))
    }
}
