//! The guards of I/O privilege: what each opens and for how long, and what a refusal says.

use std::error::Error;
use std::io;

use hw_shared::{Rng, compare};
use ioemul::{CpuAffinity, Gprs, IoInsn, IoPermission, IoPrivilegeLevel, PortAccess, PortSet, PrivilegeError, Width};

use crate::engines::Native;

type Outcome = Result<u64, Box<dyn Error>>;

/// What a fault at a port without privilege says.
const NO_PRIVILEGE: &str = "the CPU refused the port access with #GP (error code 0x0): this thread has no I/O privilege \
                            for the port (ioperm or iopl grant it), or the kernel cannot give any";

/// pc-testdev's latch.
const LATCH: u16 = 0xe0;
const LATCH8: u8 = LATCH as u8;

/// Accesses with random registers, counted.
struct Ports<'a> {
    engine: &'a mut dyn Native,
    rng: Rng,
    accesses: u64,
}

impl<'a> Ports<'a> {
    fn new(engine: &'a mut dyn Native) -> Self {
        Self { engine, rng: Rng::new(0), accesses: 0 }
    }

    fn before(&mut self, port: u16) -> Gprs {
        self.accesses += 1;
        let gprs = self.rng.gprs();
        Gprs { rdx: gprs.rdx & !0xffff | u64::from(port), ..gprs }
    }

    /// The access faults, says so, and leaves everything alone.
    fn refuses(&mut self, insn: IoInsn, port: u16) -> Result<(), Box<dyn Error>> {
        let before = self.before(port);
        let (mut gprs, port) = (before, insn.port(&before));
        match self.engine.attempt(insn, &mut gprs) {
            Err(ioemul::Error::Fault { access, fault })
                if access == PortAccess::of(insn, &before)
                    && (fault.vector, fault.error_code, fault.address) == (13, 0, 0)
                    && fault.to_string() == NO_PRIVILEGE => {}
            Err(error) => return Err(format!("{insn} (port {port:#x}): {error}").into()),
            Ok(()) => return Err(format!("{insn} (port {port:#x}): happened, should have been refused").into()),
        }
        compare(&gprs, &before).map_err(|first| format!("{insn} (port {port:#x}): {first}").into())
    }

    /// The latch is written and read back, as a whole and its last byte.
    fn reach_the_latch(&mut self) -> Result<(), Box<dyn Error>> {
        let out = IoInsn::out_dx(Width::Dword);
        let written = self.before(LATCH);
        self.engine.attempt(out, &mut { written }).map_err(|error| format!("{out} (port {LATCH:#x}): {error}"))?;
        for (insn, port, shift) in [
            (IoInsn::in_imm8(Width::Dword, LATCH8), LATCH, 0),
            (IoInsn::in_dx(Width::Word), LATCH + 2, 16),
            (IoInsn::in_imm8(Width::Byte, LATCH8 + 3), LATCH + 3, 24),
        ] {
            let before = self.before(port);
            let mut gprs = before;
            self.engine.attempt(insn, &mut gprs).map_err(|error| format!("{insn} (port {port:#x}): {error}"))?;
            let rax = insn.width.merge(before.rax, written.rax as u32 >> shift);
            compare(&gprs, &Gprs { rax, ..before }).map_err(|first| format!("{insn} (port {port:#x}): {first}"))?;
        }
        Ok(())
    }

    /// No string instruction reaches a port either.
    fn refuses_strings(&mut self, port: u16) -> Result<(), Box<dyn Error>> {
        for insn in [IoInsn::rep_outs(Width::Byte), IoInsn::ins(Width::Word)] {
            let before = Gprs { rcx: 3, ..self.before(port) };
            let (mut gprs, mut memory) = (before, [0xaa; 8]);
            if self.engine.execute_string(insn, &mut gprs, &mut memory).is_ok() || memory != [0xaa; 8] {
                return Err(format!("{insn} (port {port:#x}): happened, should have been refused").into());
            }
            compare(&gprs, &before).map_err(|first| format!("{insn} (port {port:#x}): {first}"))?;
        }
        Ok(())
    }
}

/// `IoPermission` opens its ports, for as long as it lives, and no others.
pub fn permission(engine: &mut dyn Native) -> Outcome {
    let mut ports = Ports::new(engine);
    let (read, write) = (IoInsn::in_dx, IoInsn::out_dx);
    ports.refuses(read(Width::Byte), LATCH)?;
    let all = IoPermission::acquire(LATCH..=LATCH + 3)?;
    ports.reach_the_latch()?;
    // Next to it, and across its ends.
    let outside = [
        (read(Width::Byte), LATCH + 4),
        (write(Width::Byte), LATCH + 4),
        (IoInsn::in_imm8(Width::Byte, LATCH8 - 1), LATCH - 1),
        (IoInsn::out_imm8(Width::Dword, LATCH8 + 4), LATCH + 4),
        (read(Width::Word), LATCH + 3),
        (write(Width::Word), LATCH - 1),
        (read(Width::Dword), LATCH + 1),
        (write(Width::Dword), LATCH - 3),
        (read(Width::Byte), 0),
        (read(Width::Byte), 0xffff),
    ];
    for (insn, port) in outside {
        ports.refuses(insn, port)?;
    }
    ports.refuses_strings(LATCH + 4)?;
    // A port stays open until the last guard that names it is dropped.
    let mut ends = PortSet::none();
    ends.allow(LATCH..=LATCH);
    ends.allow(LATCH + 3..=LATCH + 3);
    let ends = IoPermission::acquire(ends)?;
    drop(all);
    for port in [LATCH, LATCH + 3] {
        ports.engine.attempt(read(Width::Byte), &mut Gprs { rdx: port.into(), ..Gprs::default() })?;
    }
    ports.refuses(read(Width::Byte), LATCH + 1)?;
    ports.refuses(read(Width::Dword), LATCH)?;
    drop(ends);
    ports.refuses(read(Width::Byte), LATCH)?;
    ports.refuses(read(Width::Byte), LATCH + 3)?;
    ports.refuses_strings(LATCH)?;
    Ok(ports.accesses)
}

/// `IoPrivilegeLevel` opens all ports, until the last guard is dropped.
pub fn level(engine: &mut dyn Native) -> Outcome {
    let mut ports = Ports::new(engine);
    ports.refuses(IoInsn::in_dx(Width::Dword), LATCH)?;
    let outer = IoPrivilegeLevel::acquire()?;
    ports.reach_the_latch()?;
    let inner = IoPrivilegeLevel::acquire()?;
    drop(outer);
    ports.reach_the_latch()?;
    drop(inner);
    ports.refuses(IoInsn::in_dx(Width::Dword), LATCH)?;
    ports.refuses_strings(LATCH)?;
    Ok(ports.accesses)
}

/// `CpuAffinity` moves the thread, and lets it go where it was before.
pub fn affinity() -> Outcome {
    let cpu = || {
        // SAFETY: takes nothing and touches no memory.
        unsafe { libc::sched_getcpu() }
    };
    let expect = |what, is, should_be| match is == should_be {
        true => Ok(()),
        false => Err(format!("{what}: on CPU {is}, should be {should_be}")),
    };
    let other = CpuAffinity::pin(1)?;
    expect("pinned to 1", cpu(), 1)?;
    let first = CpuAffinity::pin(0)?;
    expect("pinned to 0", cpu(), 0)?;
    drop(first);
    expect("back", cpu(), 1)?;
    drop(other);
    match CpuAffinity::pin(2).map(drop) {
        Err(PrivilegeError::NoSuchCpu { cpu: 2 }) => Ok(0),
        result => Err(format!("pinned to a third of two CPUs: {result:?}").into()),
    }
}

/// The guards name what a user lacks. (In the control there is nothing to name: the user is root.)
pub fn nobody(control: bool) -> Outcome {
    let user = if control { 0 } else { NOBODY };
    refusals(user, "lacks CAP_SYS_RAWIO (run as root or grant it with setcap), and the kernel is not locked down")
}

/// They name the lockdown, to root and to others.
pub fn lockdown() -> Outcome {
    let lockdown = "the kernel is locked down (turn off Secure Boot or the lockdown= option)";
    refusals(0, &format!("has CAP_SYS_RAWIO, but {lockdown}"))?;
    refusals(NOBODY, &format!("lacks CAP_SYS_RAWIO (run as root or grant it with setcap), and {lockdown}"))
}

const NOBODY: libc::c_long = 65534;

/// What both guards say to a thread of this user.
fn refusals(user: libc::c_long, because: &str) -> Outcome {
    let messages = || -> Result<[String; 2], String> {
        // SAFETY: integers only. The system call, unlike the function of the C library, is for this thread alone.
        if unsafe { libc::syscall(libc::SYS_setresuid, user, user, user) } != 0 {
            return Err(io::Error::last_os_error().to_string());
        }
        let permission = IoPermission::acquire(LATCH..=LATCH).map(drop);
        let level = IoPrivilegeLevel::acquire().map(drop);
        let message = |result: Result<(), PrivilegeError>| match result {
            Err(error) => error.to_string(),
            Ok(()) => "granted".to_owned(),
        };
        Ok([message(permission), message(level)])
    };
    let messages = std::thread::scope(|scope| scope.spawn(messages).join()).map_err(|_| "the thread panicked")??;
    for (call, message) in ["ioperm", "iopl"].into_iter().zip(messages) {
        let expected = format!("{call} was refused (EPERM): this thread {because}");
        if message != expected {
            return Err(format!("{call}: {message:?}, should be {expected:?}").into());
        }
    }
    Ok(0)
}
