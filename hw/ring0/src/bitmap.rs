//! `TssBitmap` next to the CPU: IN in ring 3, at ports about the end of bitmaps that end in many places.

use hw_shared::Failure;
use ioemul::{IoInsn, TssBitmap, Width};

use crate::traps;

/// Lengths in bytes; of the ports about their ends, any may be read.
const LENGTHS: &[usize] = &[0, 1, 2, 3, 4, 17, 18, 33, 256, 413, 4096, 4097, 8190, 8191, 8192, 8193, 8194, 8199];

/// The last three bytes; what lies behind the limit is clear.
const TAILS: &[[u8; 3]] =
    &[[0, 0, 0xff], [0, 0, 0], [0xff, 0, 0], [0x7f, 0xfe, 0x01], [0, 0x55, 0xaa], [0xf0, 0x0f, 0xfe]];

/// Compares; returns how many accesses. In a control the library is told of a byte more than there is.
pub fn run(control: bool) -> Result<u64, Failure> {
    let mut accesses = 0;
    for &len in LENGTHS {
        for tail in TAILS {
            let mut map = [0; traps::MAX_MAP];
            map[..len].iter_mut().rev().zip(tail.iter().rev()).for_each(|(to, from)| *to = *from);
            traps::set_bitmap(&map, len);
            let told = TssBitmap::new(&map[..len + usize::from(control)]);
            let ports = 8 * len.saturating_sub(4)..8 * (len + 2);
            for port in ports.map_while(|port| u16::try_from(port).ok()) {
                for &width in Width::ALL {
                    accesses += 1;
                    check(accesses, told, port, width)?;
                }
            }
        }
    }
    Ok(accesses)
}

fn check(access: u64, told: TssBitmap<'_>, port: u16, width: Width) -> Result<(), Failure> {
    let insn = IoInsn::in_dx(width);
    let permits = told.permits(port, width);
    // Past the last port there is nothing to compare with: the library refuses whatever the CPU would read there.
    if port.checked_add(u16::from(width.bytes()) - 1).is_none() {
        return if permits { Err(Failure::Permitted { access, insn, port }) } else { Ok(()) };
    }
    match (traps::in_ring3(port, width), permits) {
        (true, false) => Err(Failure::Permitted { access, insn, port }),
        (false, true) => Err(Failure::Refused { access, insn, port }),
        _ => Ok(()),
    }
}
