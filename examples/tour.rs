//! What ioemul does, in a screenful: `cargo run --release --example tour`. It needs no privilege.

mod common;

use std::time::Instant;

use ioemul::devices::{ProLiantPort, SmmMailbox, VmwareBackdoor};
use ioemul::trace::Trace;
use ioemul::{
    AttachError, CodeTable, EmitOptions, Gprs, Hazard, IoEmulator, IoInsn, PortPermissions, PortSet, Quirk, QuirkTable,
    RegisterFile, SoftwareBus, StubLayout, StubTable, Width,
};

/// Columns of the terminal.
const COLUMNS: usize = 100;

fn main() -> common::Result {
    let started = Instant::now();
    println!("ioemul: an x86 port access with somebody else's registers in view\n");
    let ports: PortSet = "0x70-0x71,0xb2,0xcd4,0x5658-0x565b".parse()?;
    decode();
    println!();
    permission(&ports)?;
    println!();
    let trace = registers(&ports)?;
    flags(&ports)?;
    println!();
    layouts()?;
    println!();
    quirk(&ports)?;
    println!();
    fault()?;
    println!();
    replay(&ports, trace)?;
    println!(
        "\nIn all {:.1} ms. The other examples show each of these at length.",
        started.elapsed().as_secs_f64() * 1e3
    );
    Ok(())
}

/// Devices that are really called, by stubs that really run; only the I/O instruction itself is replaced.
fn devices() -> Result<SoftwareBus, AttachError> {
    let mut bus = SoftwareBus::new();
    bus.attach(0x5658..=0x565b, VmwareBackdoor::new().uuid(*b"ioemul has a bus"))?;
    bus.attach(0xcd4..=0xcd4, ProLiantPort::new(1000))?;
    // Firmware that tells in RBX whether it was called with CF set, and clears it.
    let firmware = |_, _, gprs: &mut Gprs| {
        gprs.rbx = gprs.rflags & Gprs::CF;
        gprs.rflags &= !Gprs::CF;
    };
    bus.attach(0xb2..=0xb3, SmmMailbox::new(firmware))?;
    Ok(bus)
}

fn decode() {
    for (i, code) in [&[0x66, 0xe5, 0x70][..], &[0xf3, 0x6e], &[0xf0, 0xee]].into_iter().enumerate() {
        let text = match IoInsn::decode(code) {
            Ok((insn, len)) => format!("{insn}, {len} bytes"),
            Err(error) => error.to_string(),
        };
        row(if i == 0 { "decode" } else { "" }, &format!("{:<10}{text}", hex(code)));
    }
}

fn permission(ports: &PortSet) -> common::Result {
    row("permit", &format!("{ports}, and nothing else"));
    let mut emulator = IoEmulator::builder().ports(ports.clone()).bus(devices()?).build()?;
    let mut gprs = Gprs { rax: 0x06, rdx: 0xcf9, ..Gprs::default() };
    let denied = emulator.emulate(&[0xee], &mut gprs).unwrap_err(); // out dx, al
    row("", &denied.to_string());
    row("", &format!("  ({})", Hazard::at(0xcf9, Width::Byte).expect("a well-known port")));
    Ok(())
}

/// A call that answers in four registers, with all of them in view. Recorded, for the end of the tour.
fn registers(ports: &PortSet) -> common::Result<Trace> {
    let insn = IoInsn::in_dx(Width::Dword);
    row("execute", &format!("{insn} at port 0x5658, the VMware backdoor's command \"UUID\""));
    let builder = IoEmulator::builder().ports(ports.clone()).bus(devices()?);
    let mut emulator = builder.events(Trace::new()).build()?;
    let before = Gprs { rax: VmwareBackdoor::MAGIC.into(), rcx: 19, rdx: 0x5658, ..common::recognizable() };
    let mut after = before;
    emulator.execute(insn, &mut after)?;
    common::print_registers("before", &before, &before)?;
    common::print_registers("after", &after, &before)?;
    let answer = [after.rax, after.rbx, after.rcx, after.rdx].map(|word| (word as u32).to_le_bytes()).concat();
    row("", &format!("EAX, EBX, ECX and EDX spell {:?}", String::from_utf8_lossy(&answer)));
    Ok(emulator.into_events())
}

/// The status flags are in view like every register: firmware is called with a flag, and answers with one.
fn flags(ports: &PortSet) -> common::Result {
    let mut emulator = IoEmulator::builder().ports(ports.clone()).bus(devices()?).build()?;
    let mut gprs = Gprs { rax: 0xef, rflags: 0x202 | Gprs::CF, ..Gprs::default() };
    let given = gprs.rflags;
    emulator.execute(IoInsn::out_imm8(Width::Byte, 0xb2), &mut gprs)?;
    let text = format!("given {given:#x}, the firmware saw CF = {} and cleared it: {:#x}", gprs.rbx, gprs.rflags);
    row("flags", &text);
    Ok(())
}

fn layouts() -> common::Result {
    for (i, layout) in StubLayout::ALL.iter().copied().enumerate() {
        let started = Instant::now();
        let table = StubTable::new(layout)?;
        let built = started.elapsed().as_micros();
        let stub = table.stub(IoInsn::in_dx(Width::Dword));
        let stub = stub.code();
        let size = format!("all forms {:>3} KiB, {built} µs", table.code().len() / 1024);
        let shown = if stub.len() > 20 { format!("{} …", hex(&stub[..9])) } else { hex(stub) };
        let text = format!("{:<8}{:>4} bytes  {shown:<40}{size}", format!("{layout:?}"), stub.len());
        row(if i == 0 { "layouts" } else { "" }, &text);
    }
    let options = EmitOptions::new().layout(StubLayout::Compact).registers(RegisterFile::PT_REGS);
    let size = CodeTable::size(&options) as f64 / 1024.0;
    row("", &format!("A kernel's table, Compact, on its own `struct pt_regs`: {size:.1} KiB of its memory."));
    Ok(())
}

fn quirk(ports: &PortSet) -> common::Result {
    let insn = IoInsn::out_dx(Width::Byte);
    for (i, (title, quirks)) in
        [("plain", QuirkTable::none()), (Quirk::PROLIANT.name(), QuirkTable::builtin())].into_iter().enumerate()
    {
        let mut emulator = IoEmulator::builder().quirks(quirks).ports(ports.clone()).bus(devices()?).build()?;
        let mut gprs = Gprs { rax: 0x85, rdx: 0xcd4, ..Gprs::default() };
        emulator.execute(insn, &mut gprs)?;
        let verdict = if gprs.rax & 0x80 == 0 { "the firmware is done" } else { "the firmware is still busy" };
        row(
            if i == 0 { "quirk" } else { "" },
            &format!("{insn} at port 0xcd4, {title}: AL = {:#04x}, {verdict}", gprs.rax),
        );
    }
    // The quirk polls: it has to be permitted to read the port, too.
    let write_only = PortPermissions { read: PortSet::none(), write: ports.clone() };
    let builder = IoEmulator::builder().quirks(QuirkTable::builtin()).ports(write_only);
    let mut emulator = builder.bus(devices()?).build()?;
    let refused = emulator.execute(insn, &mut Gprs { rax: 0x85, rdx: 0xcd4, ..Gprs::default() }).unwrap_err();
    row("", &refused.to_string());
    Ok(())
}

/// The real instruction on the real port: without privilege the CPU refuses it, and that is an error like any other.
fn fault() -> common::Result {
    // SAFETY: port 0x80 takes POST codes; nothing happens when it is written, if it can be written at all.
    let mut emulator = unsafe { IoEmulator::builder().native(PortSet::from(0x80..=0x80)) }.build()?;
    let given = common::recognizable();
    let mut gprs = given;
    match emulator.execute(IoInsn::out_imm8(Width::Byte, 0x80), &mut gprs) {
        Ok(()) => row("fault", "none: this process may write to port 0x80, and has done so"),
        Err(error) => {
            row("fault", &error.to_string());
            row("", if gprs == given { "(all registers as they were given)" } else { "(registers lost!)" });
        }
    }
    Ok(())
}

/// The call recorded above, without its device: once as it was, and once with another register.
fn replay(ports: &PortSet, trace: Trace) -> common::Result {
    let recorded = trace.records()[0].clone();
    for same in [true, false] {
        let (bus, _) = trace.clone().replay().strict();
        let mut emulator = IoEmulator::builder().ports(ports.clone()).bus(bus).build()?;
        let mut gprs = Gprs { rcx: if same { recorded.before.rcx } else { 10 }, ..recorded.before };
        match emulator.execute(recorded.insn, &mut gprs) {
            Ok(()) if gprs == recorded.after => row("replay", "without the device, every register as recorded"),
            Ok(()) => row("replay", "the registers differ from those recorded"),
            Err(error) => row("", &error.to_string()),
        }
    }
    Ok(())
}

/// A title and a text beside it. Lines that are too long are broken at spaces.
fn row(title: &str, text: &str) {
    const MARGIN: usize = 8;
    let mut title = title;
    for mut line in text.lines() {
        let indent = MARGIN + line.chars().take_while(|c| *c == ' ').count();
        line = line.trim_start();
        while !line.is_empty() {
            let fits = line
                .char_indices()
                .nth(COLUMNS - indent)
                .map_or(line.len(), |(at, _)| line[..at].rfind(' ').unwrap_or(at));
            println!("{title:<indent$}{}", &line[..fits]);
            line = line[fits..].trim_start();
            title = "";
        }
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().join(" ")
}
