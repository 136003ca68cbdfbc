//! Platform quirks: where the firmware needs more around a port access than the access itself.
//!
//! A quirk is chosen in two steps. Its [`DmiMatch`] says on which machines it exists at all; there, its predicate sees
//! each access with the registers (it cannot change them), and declines (the default `<io>` stays) or takes it: then its
//! [`Payload`](crate::Payload) stands where `<io>` would.
#![allow(unsafe_code)] // `Quirk::new` takes machine code that nobody can check

use dynasm::dynasm;

use crate::{CodeSink, Gprs, IoInsn, Payload, Ring, Width};

/// The machines that have a quirk, by their DMI (SMBIOS) strings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[doc(alias("SMBIOS", "dmi_system_id"))]
pub struct DmiMatch {
    /// The BIOS vendor (type 0) contains this.
    pub bios_vendor: &'static str,
    /// The product name (type 1) contains one of these.
    pub product_names: &'static [&'static str],
}

impl DmiMatch {
    /// Whether a machine with these strings is meant.
    pub fn matches(&self, bios_vendor: &str, product_name: &str) -> bool {
        bios_vendor.contains(self.bios_vendor) && self.product_names.iter().any(|name| product_name.contains(name))
    }
}

/// One platform quirk.
#[derive(Clone, Copy, Debug)]
pub struct Quirk {
    name: &'static str,
    platform: Option<&'static DmiMatch>,
    applies: fn(IoInsn, &Gprs) -> bool,
    payload: fn(&mut Payload<'_>, Ring),
}

impl Quirk {
    /// HP ProLiant's SMM port: a byte OUT to port 0xCD4 through DX, with bit 7 of AL set, starts an SMM service. It has
    /// to be followed by reading the port until bit 7 clears, with interrupts off (`pushf; cli; out %al,%dx;
    /// 1: in %dx,%al; test $0x80,%al; jnz 1b; popf`).
    ///
    /// In ring 3 interrupts cannot be turned off, and the poll is bounded: it ends after
    /// [`PROLIANT_POLL_LIMIT`] reads at the latest, AL then showing bit 7 still set.
    pub const PROLIANT: Quirk = Quirk {
        name: "HP ProLiant SMM port",
        platform: Some(&PROLIANT_DMI),
        applies: is_proliant_call,
        payload: proliant,
    };

    /// Every quirk that this crate knows.
    pub const BUILTIN: &[Quirk] = &[Self::PROLIANT];

    /// A quirk of the caller's own: where `applies` says so, the code that `payload` emits runs in place of the I/O
    /// instruction.
    ///
    /// ```
    /// use ioemul::{CodeSink, IoInsn, Quirk, Width};
    /// // CPUID in place of OUT to port 0x80 (through DX): it changes four registers, and needs no privilege.
    /// // SAFETY: CPUID touches EAX, EBX, ECX and EDX alone.
    /// let cpuid = unsafe {
    ///     Quirk::new(
    ///         "CPUID",
    ///         |insn, gprs| insn == IoInsn::out_dx(Width::Byte) && gprs.rdx as u16 == 0x80,
    ///         |payload, _ring| payload.extend(&[0x0f, 0xa2]),
    ///     )
    /// };
    /// assert_eq!(cpuid.name(), "CPUID");
    /// ```
    ///
    /// # Safety
    ///
    /// The emitted code runs with the guest's registers loaded, whatever they hold, in the process (or the ring) that
    /// runs the stub. It must come to its end, with RSP as it was, without writing below RSP; it must say what it pushes
    /// ([`Payload::pushed`]), write I/O instructions with [`Payload::io`] only, and touch no memory that is not its own.
    /// It must not change segment registers, MXCSR, the x87 control word or RFLAGS other than the status flags.
    pub const unsafe fn new(
        name: &'static str,
        applies: fn(IoInsn, &Gprs) -> bool,
        payload: fn(&mut Payload<'_>, Ring),
    ) -> Self {
        Self { name, platform: None, applies, payload }
    }

    /// Restricts the quirk to the machines that `platform` matches. Without it, a quirk is for every machine.
    pub const fn on_platform(mut self, platform: &'static DmiMatch) -> Self {
        self.platform = Some(platform);
        self
    }

    /// What the quirk is called, for messages.
    pub const fn name(&self) -> &'static str {
        self.name
    }

    /// Whether a machine with these DMI strings has the quirk.
    pub fn is_on_platform(&self, bios_vendor: &str, product_name: &str) -> bool {
        self.platform.is_none_or(|platform| platform.matches(bios_vendor, product_name))
    }

    /// Whether the quirk takes this access; if not, the default `<io>` stays in place.
    pub fn applies(&self, insn: IoInsn, gprs: &Gprs) -> bool {
        (self.applies)(insn, gprs)
    }

    pub(crate) fn emit(&self, payload: &mut Payload<'_>, ring: Ring) {
        (self.payload)(payload, ring);
    }
}

/// The machines with [`Quirk::PROLIANT`].
static PROLIANT_DMI: DmiMatch = DmiMatch {
    bios_vendor: "HP",
    product_names: &[
        "ProLiant DL3",
        "ProLiant DL5",
        "ProLiant DL7",
        "ProLiant ML3",
        "ProLiant ML5",
        "ProLiant BL2",
        "ProLiant BL4",
        "ProLiant BL6",
    ],
};

/// How often the ProLiant port is read, in ring 3, before the wait is given up. A port read takes about a microsecond:
/// this is about a second.
pub const PROLIANT_POLL_LIMIT: i32 = 1_000_000;

/// The byte OUT through DX to port 0xCD4 with AL bit 7 set.
fn is_proliant_call(insn: IoInsn, gprs: &Gprs) -> bool {
    insn == IoInsn::out_dx(Width::Byte) && gprs.rdx as u16 == 0xcd4 && gprs.rax & 0x80 != 0
}

fn proliant(ops: &mut Payload<'_>, ring: Ring) {
    const BUSY: i8 = 0x80u8 as i8;
    match ring {
        Ring::Zero => {
            dynasm!(ops ; .arch x64 ; pushfq);
            ops.pushed(8);
            dynasm!(ops ; .arch x64 ; cli);
            ops.io(IoInsn::out_dx(Width::Byte));
            dynasm!(ops ; .arch x64 ; retry:);
            ops.io(IoInsn::in_dx(Width::Byte));
            dynasm!(ops ; .arch x64
                ; test al, BYTE BUSY
                ; jnz BYTE <retry
                ; popfq
            );
            ops.popped(8);
        }
        Ring::Three => {
            // All registers are the guest's: the count of the polls left is on the stack.
            dynasm!(ops ; .arch x64 ; push DWORD PROLIANT_POLL_LIMIT);
            ops.pushed(8);
            ops.io(IoInsn::out_dx(Width::Byte));
            dynasm!(ops ; .arch x64 ; retry:);
            ops.io(IoInsn::in_dx(Width::Byte));
            dynasm!(ops ; .arch x64
                ; test al, BYTE BUSY
                ; jz BYTE >ready
                ; dec DWORD [rsp]
                ; jnz BYTE <retry
                ; ready:
                ; lea rsp, [BYTE rsp + 8]
            );
            ops.popped(8);
        }
    }
}

/// The quirks of one platform, in the order in which they are asked.
#[cfg(feature = "std")]
#[derive(Clone, Debug, Default)]
pub struct QuirkTable {
    quirks: Vec<Quirk>,
}

#[cfg(feature = "std")]
impl QuirkTable {
    /// No quirk.
    pub fn none() -> Self {
        Self::default()
    }

    /// Every quirk that this crate knows, whatever the machine.
    pub fn builtin() -> Self {
        Self { quirks: Quirk::BUILTIN.to_vec() }
    }

    /// Those of the [built-in](Self::builtin) quirks that the machine `id` has.
    pub fn for_platform(id: &crate::DmiIdentity) -> Self {
        let mut table = Self::builtin();
        table.quirks.retain(|quirk| quirk.is_on_platform(&id.bios_vendor, &id.product_name));
        table
    }

    /// Adds a quirk, to be asked after those that are there already.
    pub fn push(&mut self, quirk: Quirk) {
        self.quirks.push(quirk);
    }

    /// The quirks, in the order in which they are asked.
    pub fn as_slice(&self) -> &[Quirk] {
        &self.quirks
    }
}
