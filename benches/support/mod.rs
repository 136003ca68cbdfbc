//! What the benches share.
#![allow(dead_code)] // each bench is a crate of its own and uses a part

pub mod clock;
pub mod fault;
pub mod frames;
pub mod hand;
pub mod machine;
pub mod memory;
pub mod trace;

/// A device that does nothing: what is measured is the way to it.
pub struct Silence;

impl ioemul::PortDevice for Silence {
    fn port_in(&mut self, _: ioemul::PortAccess, _: &mut ioemul::Gprs) -> u32 {
        0
    }

    fn port_out(&mut self, _: ioemul::PortAccess, _: u32, _: &mut ioemul::Gprs) {}
}

/// So many different forms of IN and OUT, in an order without a pattern that is the same each time.
pub fn random_forms(count: usize) -> Vec<ioemul::IoInsn> {
    let mut forms: Vec<_> = ioemul::IoInsn::in_out().collect();
    let mut state = 1_u64;
    for i in (1..forms.len()).rev() {
        // Knuth's MMIX generator.
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        forms.swap(i, (state >> 33) as usize % (i + 1));
    }
    forms.truncate(count);
    forms
}

/// Short runs: what is measured takes nanoseconds, and the medians settle soon.
pub fn criterion() -> criterion::Criterion {
    let time = std::time::Duration::from_millis;
    criterion::Criterion::default()
        .warm_up_time(time(300))
        .measurement_time(time(1000))
        .sample_size(50)
        .configure_from_args()
}

/// One core for the whole bench, if the system allows it.
pub fn pin_or_say() {
    if let Err(error) = clock::pin() {
        eprintln!("not pinned to a core: {error}");
    }
}
