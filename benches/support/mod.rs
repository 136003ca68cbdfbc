//! What the benches share.
#![allow(dead_code)] // each bench is a crate of its own and uses a part

pub mod clock;
pub mod fault;
pub mod hand;
pub mod memory;

/// A device that does nothing: what is measured is the way to it.
pub struct Silence;

impl ioemul::PortDevice for Silence {
    fn port_in(&mut self, _: ioemul::PortAccess, _: &mut ioemul::Gprs) -> u32 {
        0
    }

    fn port_out(&mut self, _: ioemul::PortAccess, _: u32, _: &mut ioemul::Gprs) {}
}
