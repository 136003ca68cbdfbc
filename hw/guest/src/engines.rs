//! The library, from the outside in: every layout, and in each of them the emulator, the table, and tables for register files of
//! hosts.

use std::error::Error;
use std::io;

use hw_shared::stubs::{self, Slot, Style};
use hw_shared::{BROKEN_VARIANTS, Engine, Refused, Returned, by_hand};
use ioemul::{
    Direction, DmiIdentity, Gprs, IoEmulator, IoInsn, PortAccess, PortSet, Quirk, QuirkTable, RegisterFile, Ring,
    StubLayout, StubTable,
};

/// An engine and its place in the report.
pub struct Named {
    pub layout: StubLayout,
    pub variant: &'static str,
    pub engine: Box<dyn Native>,
}

/// An engine that says what a fault was.
pub trait Native: Engine {
    /// As [`Engine::execute`].
    fn attempt(&mut self, insn: IoInsn, gprs: &mut Gprs) -> Result<(), ioemul::Error>;
}

/// A fault is what the checks expect; anything else is trouble.
fn refused(insn: IoInsn) -> impl Fn(ioemul::Error) -> Refused {
    move |error| match error {
        ioemul::Error::Fault { .. } => Refused,
        error => panic!("{insn}: {error}"),
    }
}

/// All of them.
pub fn all() -> Result<Vec<Named>, Box<dyn Error>> {
    let mut quirks = QuirkTable::for_platform(&DmiIdentity::read()?);
    quirks.push(Quirk::GSMI_CARRY); // our SMM handler's
    let mut engines = Vec::new();
    for layout in StubLayout::ALL.iter().copied() {
        // SAFETY: the machine is ours alone and was made for this.
        let builder = unsafe { IoEmulator::builder().layout(layout).native(PortSet::all()) };
        engines.push(Named { layout, variant: "emulator", engine: Box::new(Emulator(builder.build()?)) });
        for (variant, registers) in
            [("table", RegisterFile::GPRS), ("pt_regs", RegisterFile::PT_REGS), ("kvm_regs", RegisterFile::KVM_REGS)]
        {
            let builder = StubTable::builder().layout(layout).registers(registers).quirks(quirks.clone());
            engines.push(Named { layout, variant, engine: Box::new(Table { table: builder.build()?, registers }) });
        }
    }
    Ok(engines)
}

/// The reference, in place of the library.
pub fn by_hand() -> io::Result<Vec<Named>> {
    let engine = Box::new(ByHand(executable_memory()?));
    Ok(vec![Named { layout: StubLayout::CallRet, variant: "by hand", engine }])
}

/// A slot, in one of the [`BROKEN_VARIANTS`], of which one byte may be wrong.
pub fn broken(layout: StubLayout, variant: &str, broken: bool) -> Result<Slot, Box<dyn Error>> {
    let quirks: &[Quirk] = match QuirkTable::for_platform(&DmiIdentity::read()?).as_slice() {
        [] => &[],
        _ => Quirk::BUILTIN,
    };
    let registers = if variant == BROKEN_VARIANTS[0] { RegisterFile::GPRS } else { RegisterFile::PT_REGS };
    let style = Style { broken, quirks, registers, ring: Ring::Three, ..Style::default() };
    // SAFETY: the memory is executable, and new for each slot.
    Ok(unsafe { Slot::new(executable_memory()?, layout, style) }?)
}

/// The safe front door.
struct Emulator(IoEmulator);

impl Native for Emulator {
    fn attempt(&mut self, insn: IoInsn, gprs: &mut Gprs) -> Result<(), ioemul::Error> {
        self.0.execute(insn, gprs)
    }
}

impl Engine for Emulator {
    fn execute(&mut self, insn: IoInsn, gprs: &mut Gprs) -> Result<(), Refused> {
        self.attempt(insn, gprs).map_err(refused(insn))
    }

    fn emulates_strings(&self) -> bool {
        true
    }

    fn execute_string(&mut self, insn: IoInsn, gprs: &mut Gprs, memory: &mut [u8]) -> Result<(), Refused> {
        let result = match insn.direction {
            Direction::In => self.0.read_string(insn, gprs, memory),
            _ => self.0.write_string(insn, gprs, memory),
        };
        result.map(drop).map_err(refused(insn))
    }
}

/// A table, asked for a stub and told to run it; one for another register file than [`Gprs`] has its stub called.
struct Table {
    table: StubTable,
    registers: RegisterFile,
}

impl Table {
    fn call(&self, insn: IoInsn, gprs: &mut Gprs, df: bool) -> Returned {
        let entry = self.table.resolve(insn, gprs).code().as_ptr().expose_provenance() as u64;
        // SAFETY: this is the stub's own address; and as below.
        unsafe { stubs::call(entry, &self.registers, gprs, df) }
    }
}

impl Native for Table {
    fn attempt(&mut self, insn: IoInsn, gprs: &mut Gprs) -> Result<(), ioemul::Error> {
        // SAFETY: as for the emulator: the machine is ours alone. For INS and OUTS the caller points to memory of ours, or
        // to where there is none.
        let result = unsafe { self.table.resolve(insn, gprs).run(gprs) };
        result.map_err(|fault| ioemul::Error::Fault { access: PortAccess::of(insn, gprs), fault })
    }
}

impl Engine for Table {
    fn execute(&mut self, insn: IoInsn, gprs: &mut Gprs) -> Result<(), Refused> {
        if self.registers == RegisterFile::GPRS {
            return self.attempt(insn, gprs).map_err(refused(insn));
        }
        match self.call(insn, gprs, false).result {
            0 => Ok(()),
            _ => Err(Refused),
        }
    }

    fn call_with_df(&mut self, insn: IoInsn, gprs: &mut Gprs) -> Option<Returned> {
        Some(self.call(insn, gprs, true))
    }
}

/// An instruction between registers loaded and stored by hand: under Xen it traps, and Xen's stub executes it.
struct ByHand(*mut [u8]);

impl Native for ByHand {
    fn attempt(&mut self, insn: IoInsn, gprs: &mut Gprs) -> Result<(), ioemul::Error> {
        self.execute(insn, gprs).expect("nothing here looks for faults");
        Ok(())
    }
}

impl Engine for ByHand {
    fn execute(&mut self, insn: IoInsn, gprs: &mut Gprs) -> Result<(), Refused> {
        // SAFETY: the memory is ours and executable, and so is the machine.
        unsafe {
            self.0.cast::<[u8; 4]>().write(by_hand::code(insn));
            by_hand::run(gprs, self.0.cast());
        }
        Ok(())
    }
}

/// A few pages that can be written and executed, for as long as the process lives: it patches its own code.
fn executable_memory() -> io::Result<*mut [u8]> {
    const LEN: usize = 1 << 16;
    let protection = libc::PROT_READ | libc::PROT_WRITE | libc::PROT_EXEC;
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
    // SAFETY: new memory, wherever the kernel likes.
    let memory = unsafe { libc::mmap(std::ptr::null_mut(), LEN, protection, flags, -1, 0) };
    if memory == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    Ok(std::ptr::slice_from_raw_parts_mut(memory.cast(), LEN))
}
