use hw_shared::{Engine, LAYOUTS, RING0_VARIANTS, Refused, by_hand};
use ioemul::{Gprs, IoInsn};

pub fn with_each(mut use_it: impl FnMut(usize, &'static str, &'static str, &mut dyn Engine)) {
    let mut index = 0;
    for layout in LAYOUTS {
        for &variant in RING0_VARIANTS {
            use_it(index, layout, variant, &mut ByHand([0; 64]));
            index += 1;
        }
    }
}

struct ByHand([u8; 64]);

impl Engine for ByHand {
    fn execute(&mut self, insn: IoInsn, gprs: &mut Gprs) -> Result<(), Refused> {
        self.0[..4].copy_from_slice(&by_hand::code(insn));
        unsafe { by_hand::run(gprs, self.0.as_ptr()) };
        Ok(())
    }
}
