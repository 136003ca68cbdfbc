//! Platform quirks: where the firmware needs more around a port access than the access itself.
//!
//! A quirk is data. *When*: its [`DmiMatch`] says on which machines it exists at all; there, its [`Trigger`] says which
//! accesses it takes. *What*: its [`Step`]s stand where the access would. One description is emitted as machine code,
//! walked on a software bus that runs without any, and [checked](Quirk::accesses) against permissions before its first
//! access is made.
//!
//! ```
//! use ioemul::{Quirk, Step, Trigger, Width};
//! // Firmware that wants port 0x84 written after each command that is a multiple of 16.
//! const STEPS: &[Step] = &[Step::Access, Step::OutAl { port: 0x84 }];
//! let quirk = Quirk::from_steps("ours", Trigger::out(Width::Byte, 0xb2).rax(0x0f, 0x00), STEPS);
//! assert!(quirk.applies("out 0xb2, al".parse()?, 0x40, 0));
//! assert!(!quirk.applies("out 0xb2, al".parse()?, 0x41, 0));
//! # Ok::<(), ioemul::ParseInsnError>(())
//! ```
#![allow(unsafe_code)] // `Quirk::new` takes machine code that nobody can check

use crate::helpers::{Depths, Landing};
use crate::stub::{Accesses, Body, Counter, Marks, StubShape, StubStyle, emit_stub};
use crate::{Direction, IoInsn, Payload, PortAccess, PortOperand, Ring, Width};

mod dmi_match;
mod steps;

pub use dmi_match::{DmiMatch, DmiStrings};
pub use steps::Step;

/// Which accesses a quirk takes: a direction, a width and a port, perhaps one form, perhaps some bits of RAX.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Trigger {
    /// IN or OUT.
    pub direction: Direction,
    /// The width.
    pub width: Width,
    /// Which form: the port in DX, in an immediate byte, or either.
    pub form: TriggerForm,
    /// The port.
    pub port: u16,
    /// The bits of EAX that count.
    pub mask: u32,
    /// What they have to be.
    pub value: u32,
}

/// Where the instructions that a [`Trigger`] takes have their port from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TriggerForm {
    /// DX.
    Dx,
    /// An immediate byte.
    Imm8,
    /// Either.
    Any,
}

impl Trigger {
    const fn new(direction: Direction, width: Width, form: TriggerForm, port: u16) -> Self {
        Self { direction, width, form, port, mask: 0, value: 0 }
    }

    /// OUT to `port`, in DX or in an immediate byte.
    pub const fn out(width: Width, port: u16) -> Self {
        Self::new(Direction::Out, width, TriggerForm::Any, port)
    }

    /// OUT to `port` in DX.
    pub const fn out_dx(width: Width, port: u16) -> Self {
        Self::new(Direction::Out, width, TriggerForm::Dx, port)
    }

    /// IN from `port`, in DX or in an immediate byte.
    #[doc(alias = "in")]
    pub const fn input(width: Width, port: u16) -> Self {
        Self::new(Direction::In, width, TriggerForm::Any, port)
    }

    /// IN from `port` in DX.
    pub const fn in_dx(width: Width, port: u16) -> Self {
        Self::new(Direction::In, width, TriggerForm::Dx, port)
    }

    /// Only if those bits of EAX that are set in `mask` are as in `value`.
    pub const fn rax(mut self, mask: u32, value: u32) -> Self {
        self.mask = mask;
        self.value = value & mask;
        self
    }

    /// Whether `insn` is one of its forms; for one with DX the port is not looked at.
    #[inline]
    pub fn has_form(&self, insn: IoInsn) -> bool {
        let operand = match (self.form, insn.operand) {
            (TriggerForm::Dx | TriggerForm::Any, PortOperand::Dx) => true,
            (TriggerForm::Imm8 | TriggerForm::Any, PortOperand::Imm8(port)) => u16::from(port) == self.port,
            _ => false,
        };
        operand && insn.direction == self.direction && insn.width == self.width
    }

    /// Whether it takes an access with these registers.
    #[inline]
    pub fn takes(&self, insn: IoInsn, rax: u64, rdx: u64) -> bool {
        let port = match insn.operand {
            PortOperand::Imm8(port) => port.into(),
            _ => rdx as u16,
        };
        port == self.port && rax as u32 & self.mask == self.value && self.has_form(insn)
    }

    /// Its forms: one or two.
    pub fn forms(&self) -> [Option<IoInsn>; 2] {
        let Self { direction, width, form, port, .. } = *self;
        let dx = (form != TriggerForm::Imm8).then_some(PortOperand::Dx);
        let imm8 = u8::try_from(port).ok().filter(|_| form != TriggerForm::Dx).map(PortOperand::Imm8);
        [dx, imm8].map(|operand| operand.map(|operand| IoInsn { direction, width, operand }))
    }
}

/// One platform quirk.
#[derive(Clone, Copy, Debug)]
pub struct Quirk {
    name: &'static str,
    platform: Option<&'static DmiMatch>,
    trigger: Trigger,
    work: Work,
    /// `pushf; cli; … popf` around it, in ring 0.
    interrupts_off: bool,
}

/// What a quirk does.
#[derive(Clone, Copy, Debug)]
enum Work {
    Steps(&'static [Step]),
    Code(fn(&mut Payload<'_>)),
}

impl Quirk {
    /// HP ProLiant's SMM port: a byte OUT to port 0xCD4 through DX, with bit 7 of AL set, starts an SMM service, and is
    /// followed by reading the port until bit 7 clears, in ring 0 with interrupts off. (Xen,
    /// arch/x86/ioport_emulate.c.)
    ///
    /// The poll is bounded: it ends after [`PROLIANT_POLL_LIMIT`] reads at the latest ([`Step::BUS_POLL_LIMIT`] on a
    /// bus), AL then showing bit 7 still set.
    pub const PROLIANT: Quirk = Quirk::from_steps(
        "HP ProLiant SMM port",
        Trigger::out_dx(Width::Byte, 0xcd4).rax(0x80, 0x80),
        &[Step::Access, Step::Poll { mask: 0x80, limit: PROLIANT_POLL_LIMIT }],
    )
    .interrupts_off()
    .on_platform(&PROLIANT_DMI);

    /// [`Self::PROLIANT`] as Xen has it, in ring 0 byte for byte (`pushf; cli; out %al,%dx; 1: in %dx,%al; test
    /// $0x80,%al; jnz 1b; popf`): the poll has no end but the firmware's. To be chosen by name, since a virtual machine
    /// that was given its host's SMBIOS strings would hang a CPU. In ring 0 the
    /// flags come back as they were before the access.
    pub const PROLIANT_UNBOUNDED: Quirk = Quirk::from_steps(
        "HP ProLiant SMM port, unbounded",
        Trigger::out_dx(Width::Byte, 0xcd4).rax(0x80, 0x80),
        &[Step::Access, Step::PollUnbounded { mask: 0x80 }],
    )
    .interrupts_off();

    /// Dell's SMM mailbox (fans, temperatures): OUT of 0xA3 in AL to port 0xB2 is followed by an OUT of AL to port
    /// 0x84. (Linux, drivers/hwmon/dell-smm-hwmon.c.)
    pub const DELL_SMM: Quirk = Quirk::from_steps(
        "Dell SMM",
        Trigger::out(Width::Byte, 0xb2).rax(0xff, 0xa3),
        &[Step::Access, Step::OutAl { port: 0x84 }],
    );

    /// ThinkPad SMAPI: OUT of 0x5380 in AX through DX is followed by an OUT of AL to port 0x4F. The port is in the
    /// machine's CMOS ([`Self::at_port`]); here it is 0xB2. (tp_smapi; Linux, drivers/char/mwave/smapi.c.)
    pub const THINKPAD_SMAPI: Quirk = Quirk::from_steps(
        "ThinkPad SMAPI",
        Trigger::out_dx(Width::Byte, 0xb2).rax(0xffff, 0x5380),
        &[Step::Access, Step::OutAl { port: 0x4f }],
    );

    /// A posted write is forced through by reading the port: OUT of AL through DX is followed by IN of AL from DX.
    /// Dell's calling interface wants it, at the port that SMBIOS structure 0xDA names ([`Self::at_port`]); here it is
    /// 0xB2. (Linux, drivers/platform/x86/dell/dcdbas.c.)
    pub const READ_BACK: Quirk =
        Quirk::from_steps("read-back", Trigger::out_dx(Width::Byte, 0xb2), &[Step::Access, Step::InAl]);

    /// Google's GSMI, first kind: the handler is called with CF set, by OUT of 0xEF in AL through DX, and the registers
    /// are left to it until it clears CF, or until [`CARRY_LIMIT`] looks at CF. The port is the FADT's SMI_CMD
    /// ([`Self::at_port`]); here it is 0xB2. (Linux, drivers/firmware/google/gsmi.c.)
    pub const GSMI_CARRY: Quirk = Quirk::from_steps(
        "GSMI carry handshake",
        Trigger::out_dx(Width::Byte, 0xb2).rax(0xff, 0xef),
        &[Step::Access, Step::WaitCarryClear { limit: CARRY_LIMIT }],
    );

    /// Google's GSMI, third kind: the registers are left to the handler for 65,536 turns of a loop. Otherwise as
    /// [`Self::GSMI_CARRY`].
    pub const GSMI_SPIN: Quirk = Quirk::from_steps(
        "GSMI spin",
        Trigger::out_dx(Width::Byte, 0xb2).rax(0xff, 0xef),
        &[Step::Access, Step::Spin { count: 0x1_0000 }],
    );

    /// The quirks that are applied by DMI.
    pub const BUILTIN: &[Quirk] = &[Self::PROLIANT];

    /// All quirks that this crate knows, [`Self::BUILTIN`] first: the others are there to be chosen.
    pub const ALL: &[Quirk] = &[
        Self::PROLIANT,
        Self::PROLIANT_UNBOUNDED,
        Self::DELL_SMM,
        Self::THINKPAD_SMAPI,
        Self::READ_BACK,
        Self::GSMI_CARRY,
        Self::GSMI_SPIN,
    ];

    /// The quirk of this [name](Self::name) in [`Self::ALL`].
    pub fn by_name(name: &str) -> Option<Quirk> {
        Self::ALL.iter().copied().find(|quirk| quirk.name == name)
    }

    /// A quirk of the caller's own, as steps.
    pub const fn from_steps(name: &'static str, trigger: Trigger, steps: &'static [Step]) -> Self {
        Self { name, platform: None, trigger, work: Work::Steps(steps), interrupts_off: false }
    }

    /// A quirk of the caller's own, as machine code: what `payload` emits runs in place of the access.
    ///
    /// ```
    /// use ioemul::{CodeSink, Quirk, Trigger, Width};
    /// // CPUID in place of OUT to port 0x80 (through DX): it changes four registers, and needs no privilege.
    /// // SAFETY: CPUID touches EAX, EBX, ECX and EDX alone.
    /// let cpuid = unsafe {
    ///     Quirk::new("CPUID", Trigger::out_dx(Width::Byte, 0x80), |payload| payload.extend(&[0x0f, 0xa2]))
    /// };
    /// assert_eq!(cpuid.name(), "CPUID");
    /// ```
    ///
    /// # Safety
    ///
    /// The emitted code runs with the guest's registers loaded, whatever they hold, in the process (or the ring) that
    /// runs the stub. It must come to its end, with RSP as it was, without writing below RSP; it must say what it
    /// pushes ([`Payload::pushed`]), write I/O instructions with [`Payload::io`] only, and touch no memory that is not
    /// its own. It must not change segment registers, MXCSR, the x87 control word or RFLAGS other than the status
    /// flags: no CLI of its own, but [`Self::interrupts_off`]. What it emits is the same each time.
    pub const unsafe fn new(name: &'static str, trigger: Trigger, payload: fn(&mut Payload<'_>)) -> Self {
        Self { name, platform: None, trigger, work: Work::Code(payload), interrupts_off: false }
    }

    /// Restricts the quirk to the machines that `platform` matches. Without it, a quirk is for every machine.
    pub const fn on_platform(mut self, platform: &'static DmiMatch) -> Self {
        self.platform = Some(platform);
        self
    }

    /// In ring 0, masks interrupts while the steps or the machine code run (`pushf; cli; … popf`): the flags come back as
    /// they were before, IF also if an access faults. Without effect in ring 3, where CLI faults.
    pub const fn interrupts_off(mut self) -> Self {
        self.interrupts_off = true;
        self
    }

    /// The same quirk at another port, for protocols whose port the machine names.
    ///
    /// ```
    /// use ioemul::{IoInsn, Quirk, Width};
    /// let quirk = Quirk::GSMI_CARRY.at_port(0x1b2);
    /// assert!(quirk.applies(IoInsn::out_dx(Width::Byte), 0x0aef, 0x1b2));
    /// ```
    pub const fn at_port(mut self, port: u16) -> Self {
        self.trigger.port = port;
        self
    }

    /// What the quirk is called, for messages.
    pub const fn name(&self) -> &'static str {
        self.name
    }

    /// Which accesses it takes.
    pub const fn trigger(&self) -> &Trigger {
        &self.trigger
    }

    /// Its steps; `None` for machine code.
    pub const fn steps(&self) -> Option<&'static [Step]> {
        match self.work {
            Work::Steps(steps) => Some(steps),
            Work::Code(_) => None,
        }
    }

    /// The machines that have it; `None` for every machine.
    pub const fn platform(&self) -> Option<&'static DmiMatch> {
        self.platform
    }

    /// Whether a machine with these strings has the quirk.
    pub fn is_on_platform(&self, dmi: &DmiStrings<'_>) -> bool {
        self.platform.is_none_or(|platform| platform.matches(dmi))
    }

    /// Whether the quirk takes this access; if not, the plain access stays in place.
    #[inline]
    pub fn applies(&self, insn: IoInsn, rax: u64, rdx: u64) -> bool {
        self.trigger.takes(insn, rax, rdx)
    }

    /// Every access that it makes in the place of `insn`, one of the trigger's forms: each once, however often a poll
    /// makes it. What has to be permitted before the first one is made.
    ///
    /// ```
    /// use ioemul::{IoInsn, Quirk, Width};
    /// let accesses = Quirk::DELL_SMM.accesses(IoInsn::out_imm8(Width::Byte, 0xb2));
    /// assert_eq!(accesses.map(|access| access.port).collect::<Vec<_>>(), [0xb2, 0x84]);
    /// ```
    ///
    /// Of a quirk that makes more accesses than can be checked, which is refused wherever it would be used, these are the
    /// first.
    pub fn accesses(&self, insn: IoInsn) -> impl Iterator<Item = PortAccess> + use<> {
        let mut accesses = Accesses::new();
        self.survey(&StubStyle::default(), insn, &mut Marks::default(), Some(&mut accesses));
        accesses.into_iter()
    }
}

#[cfg(feature = "std")]
impl Quirk {
    /// Whether it can be emitted for a bus, and all of its accesses be checked.
    pub(crate) fn check(&self) -> Result<(), crate::EmitError> {
        let style = StubStyle { backend: crate::stub::Backend::Bus, ring: crate::Ring::Three, ..StubStyle::default() };
        let problem = |insn| self.survey(&style, insn, &mut Marks::default(), None);
        match self.trigger.forms().into_iter().flatten().find_map(problem) {
            None => Ok(()),
            Some(problem) => Err(crate::EmitError::payload(self, problem)),
        }
    }
}

impl Body for Quirk {
    fn port(&self) -> u16 {
        self.trigger.port
    }

    fn forms(&self) -> [Option<IoInsn>; 2] {
        self.trigger.forms()
    }

    fn emit(&self, payload: &mut Payload<'_>, insn: IoInsn) {
        let interrupts_off = self.interrupts_off && payload.ring() == Ring::Zero;
        if interrupts_off {
            payload.mask_interrupts();
        }
        match self.work {
            Work::Steps(steps) => steps::emit(payload, steps, insn, self.trigger.port),
            Work::Code(code) => code(payload),
        }
        if interrupts_off {
            payload.unmask_interrupts();
        }
    }
}

/// The stub of a quirk in a table: for one of the trigger's forms.
#[derive(Clone, Copy, Debug)]
pub(crate) struct QuirkStub {
    /// Which quirk, of the list that the table was emitted with.
    pub index: u8,
    pub insn: IoInsn,
    /// First byte, as an offset from the table's.
    pub at: u32,
    pub len: u16,
}

impl QuirkStub {
    /// What an arena says of a stub that it has placed.
    pub fn new(index: usize, insn: IoInsn, at: usize, shape: &StubShape) -> Self {
        // A table is far shorter than 4 GiB, and a list of quirks than 256: `EmitError::TooManyQuirks`.
        Self { index: index as u8, insn, at: at as u32, len: shape.len }
    }

    /// Its quirk.
    pub fn quirk<'q>(&self, quirks: &'q [Quirk]) -> Option<&'q Quirk> {
        quirks.get(usize::from(self.index))
    }

    /// The first that takes the access, and its quirk.
    #[inline(always)]
    pub fn resolve<'q>(
        stubs: &'q [QuirkStub],
        quirks: &'q [Quirk],
        insn: IoInsn,
        rax: u64,
        rdx: u64,
    ) -> Option<(&'q QuirkStub, &'q Quirk)> {
        // A loop, and not an iterator's search: that would be a call of its own even where there is no quirk.
        for stub in stubs {
            match stub.quirk(quirks) {
                Some(quirk) if stub.insn == insn && quirk.applies(insn, rax, rdx) => return Some((stub, quirk)),
                _ => {}
            }
        }
        None
    }

    /// How it looks, emitted once more.
    pub fn shape(&self, quirks: &[Quirk], style: &StubStyle) -> Option<StubShape> {
        Some(emit_stub(&mut Counter::default(), style, self.insn, Some(self.quirk(quirks)?)))
    }

    /// If a fault `offset` bytes into the table is in the I/O of one of these: where it lands.
    pub fn landing(stubs: &[QuirkStub], quirks: &[Quirk], style: &StubStyle, offset: usize) -> Option<Landing> {
        stubs.iter().find_map(|stub| {
            let within = offset.checked_sub(stub.at as usize).filter(|at| *at < stub.len.into())?;
            stub.shape(quirks, style)?.landing(within)
        })
    }
}

/// How deep the quirks' accesses lie on the stack, and those of stubs without a quirk.
#[inline(never)]
pub(crate) fn depths(style: &StubStyle, quirks: &[Quirk]) -> Depths {
    let mut depths = Depths { plain: style.words_at_access(), masked: 0 };
    for quirk in quirks {
        for insn in quirk.trigger.forms().into_iter().flatten() {
            let mut marks = Marks::default();
            quirk.survey(style, insn, &mut marks, None);
            for landing in marks.landings() {
                match landing {
                    Landing::Plain(words) => depths.plain = depths.plain.max(words),
                    Landing::Masked(words) => depths.masked = depths.masked.max(words),
                    Landing::String => {}
                }
            }
        }
    }
    depths
}

/// The machines with [`Quirk::PROLIANT`].
static PROLIANT_DMI: DmiMatch = DmiMatch::new().bios_vendor(&["HP"]).product_name(&[
    "ProLiant DL3",
    "ProLiant DL5",
    "ProLiant DL7",
    "ProLiant ML3",
    "ProLiant ML5",
    "ProLiant BL2",
    "ProLiant BL4",
    "ProLiant BL6",
]);

/// How often the ProLiant port is read on the hardware before the wait is given up. A port read takes about a
/// microsecond: this is about a second. (On a bus, where no time passes: [`Step::BUS_POLL_LIMIT`].)
pub const PROLIANT_POLL_LIMIT: u32 = 1_000_000;

/// How often CF is looked at before the wait for GSMI's handler is given up: about a millisecond.
pub const CARRY_LIMIT: u32 = 1_000_000;

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

    /// Every quirk that is applied by DMI, whatever the machine.
    pub fn builtin() -> Self {
        Self { quirks: Quirk::BUILTIN.to_vec() }
    }

    /// Those of the [built-in](Self::builtin) quirks that the machine `id` has.
    pub fn for_platform(id: &crate::DmiIdentity) -> Self {
        let mut table = Self::builtin();
        table.quirks.retain(|quirk| quirk.is_on_platform(&id.strings()));
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

#[cfg(feature = "std")]
impl FromIterator<Quirk> for QuirkTable {
    fn from_iter<I: IntoIterator<Item = Quirk>>(quirks: I) -> Self {
        Self { quirks: quirks.into_iter().collect() }
    }
}
