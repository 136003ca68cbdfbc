//! The eight things that can become of CF in an SMI: set or clear before; and set, cleared or left alone by the handler, or a
//! command that the handler ignores.

use ioemul::Gprs;

use crate::rng::Rng;
use crate::smm::{KEEP_CARRY, SET_CARRY, SMI_COMMAND, SMI_PORT};

/// What the handler is asked to do: a name, the command in AL, and the bits of RBX that say what becomes of CF.
pub const HANDLERS: [(&str, u8, u64); 4] = [
    ("sets it", SMI_COMMAND, SET_CARRY),
    ("clears it", SMI_COMMAND, 0),
    ("leaves it", SMI_COMMAND, KEEP_CARRY),
    ("ignores the command", !SMI_COMMAND, SET_CARRY),
];

/// The registers for OUT DX, AL in each case, in a fixed order: by the handler's part, CF clear first.
pub fn cases(seed: u64) -> impl Iterator<Item = (&'static str, Gprs)> {
    let mut rng = Rng::new(seed);
    HANDLERS.into_iter().flat_map(|handler| [(handler, 0), (handler, Gprs::CF)]).map(
        move |((name, command, bits), cf)| {
            let random = rng.gprs();
            let gprs = Gprs {
                rax: random.rax & !0xff | u64::from(command),
                rbx: random.rbx & !(SET_CARRY | KEEP_CARRY) | bits,
                rdx: random.rdx & !0xffff | u64::from(SMI_PORT),
                rflags: random.rflags & !Gprs::CF | cf,
                ..random
            };
            (name, gprs)
        },
    )
}
