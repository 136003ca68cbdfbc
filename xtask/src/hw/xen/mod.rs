//! `cargo xtask hw --xen-host`: Xen with the library's table in the place of its own stub, next to Xen as it is.
//!
//! The same dom0 makes the same accesses on both. Every register is compared with the model's; the exception is CF after an
//! SMI, where the same Linux without any Xen, so the CPU itself, is the judge.

mod build;
mod patch;
mod table;

use std::path::Path;

use anyhow::{Context, Result, ensure};
use hw_shared::model::{Model, PROLIANT_PORT};
use hw_shared::{Engine, Mode, Params, SMI_PORT, carries, script};
use ioemul::{Gprs, IoInsn, Width};

use super::guests::Image;
use super::qemu::{self, Guest, Setup};
use super::reference;

/// Random accesses after those of the table of checks.
const RANDOM: u64 = 250;
/// Instructions of a whole access with our table, at most. Xen's own takes 1,531, as it is built here.
const INSTRUCTIONS: u64 = 1_600;
/// And so many fewer than Xen's own, whatever the compiler makes of the rest.
const SAVED: u64 = 100;
/// Of as many samples the commonest has to be so many: the others are those that an interrupt fell into.
const SAMPLES: u64 = 1_500;

/// Who makes the accesses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Who {
    Untouched,
    Ours,
    Broken,
    Unknown,
    Cpu,
}

/// One boot.
struct Boot {
    who: Who,
    setup: Setup,
    mode: Mode,
    title: &'static str,
}

const fn boot(who: Who, setup: Setup, mode: Mode, title: &'static str) -> Boot {
    Boot { who, setup, mode, title }
}

/// The longest first.
const BOOTS: [Boot; 10] = [
    boot(Who::Untouched, Setup::Counted, Mode::XenCount, "Xen as it is, counted"),
    boot(Who::Ours, Setup::Counted, Mode::XenCount, "Xen with our table, counted"),
    boot(Who::Ours, Setup::TwoProcessors, Mode::XenHammer, "Xen with our table, two vCPUs"),
    boot(Who::Unknown, Setup::ProLiant, Mode::XenHost, "control: no exception table"),
    boot(Who::Cpu, Setup::OtherMake, Mode::XenHost, "the CPU itself, other make"),
    boot(Who::Untouched, Setup::ProLiant, Mode::XenHost, "Xen as it is, ProLiant"),
    boot(Who::Untouched, Setup::OtherMake, Mode::XenHost, "Xen as it is, other make"),
    boot(Who::Ours, Setup::ProLiant, Mode::XenHost, "Xen with our table, ProLiant"),
    boot(Who::Ours, Setup::OtherMake, Mode::XenHost, "Xen with our table, other make"),
    boot(Who::Broken, Setup::ProLiant, Mode::XenHost, "control: two registers exchanged"),
];

/// Builds, boots and compares; whether all is good.
pub fn run(linux: &Image, seed: u64) -> Result<bool> {
    let hypervisors = build::hypervisors()?;
    let xen = |name, hypervisor: &Path| linux.under(name, hypervisor);
    let images = [
        (Who::Untouched, xen("xen-untouched", &hypervisors.untouched)),
        (Who::Ours, xen("xen-ours", &hypervisors.ours)),
        (Who::Broken, xen("xen-broken", &hypervisors.broken)),
        (Who::Unknown, xen("xen-unknown", &hypervisors.unknown)),
    ];
    let image = |who| images.iter().find(|(known, _)| *known == who).map_or(linux, |(_, image)| image);
    let guests = BOOTS.map(|Boot { who, setup, mode, .. }| Guest {
        machine: "pc",
        setup,
        image: image(who),
        params: Params {
            mode,
            seed,
            count: RANDOM,
            seconds: 0,
            control: matches!(who, Who::Broken | Who::Unknown),
            proliant: setup != Setup::OtherMake,
        },
    });
    let outputs = qemu::run_all(&guests)?;
    let (out, inn) = hypervisors.lines;
    println!("Xen {}: {out} lines out, {inn} in, and the table's two files\n", hypervisors.version);
    let mut good = true;
    let mut say = |title: &str, is_good: bool, what: String| {
        good &= is_good;
        println!("{title:33} {}{what}", if is_good { "" } else { "FAILED: " });
    };
    let (mut carry, mut own) = (Vec::new(), [0, 0]);
    for ((boot, guest), output) in BOOTS.iter().zip(&guests).zip(&outputs) {
        if boot.who == Who::Unknown {
            let dies = output.trouble().is_some() && output.says("GENERAL PROTECTION FAULT");
            let what = if dies { "the same fault is Xen's end" } else { "Xen lives" };
            say(boot.title, dies, what.to_owned());
            continue;
        }
        let lines = output.good_lines().with_context(|| boot.title)?;
        match boot.mode {
            Mode::XenHost => {
                let (is_good, what) = registers(boot.who, &guest.params, &lines)?;
                say(boot.title, is_good, what);
                if boot.who == Who::Broken {
                    let fault = field(&lines, "fault", 0)?;
                    say(
                        "control: a fault in the stub",
                        fault == "ok",
                        format!("{fault}: #GP for dom0, registers as they were"),
                    );
                } else {
                    carry.push((boot, cases(&lines)?));
                }
            }
            Mode::XenHammer => {
                let outcome = field(&lines, "hammer", 1)?;
                say(boot.title, outcome == "ok", format!("{} accesses: {outcome}", field(&lines, "hammer", 0)?));
            }
            _ => {
                for (access, own) in ["in al, dx", "out dx, al"].into_iter().zip(&mut own) {
                    let (instructions, samples) = counted(&lines, access)?;
                    let few = match boot.who {
                        Who::Ours => instructions <= INSTRUCTIONS && instructions + SAVED <= *own,
                        _ => {
                            *own = instructions;
                            true
                        }
                    };
                    let what = format!("`{access}`: {instructions} instructions, in {samples} of 2,000 samples");
                    say(boot.title, samples >= SAMPLES && few, what);
                }
            }
        }
    }
    let carry_good = carries(&carry, seed);
    for (boot, output) in BOOTS.iter().zip(&outputs) {
        println!("{:33} {:.2} s", boot.title, output.wall.as_secs_f64());
    }
    Ok(good && carry_good)
}

/// How many registers are as modelled; whether that is as it should be.
fn registers(who: Who, params: &Params, lines: &[Vec<&str>]) -> Result<(bool, String)> {
    let mut script = Vec::new();
    script::for_each_access(params, |_, insn, gprs| script.push((insn, gprs)));
    let accesses: Vec<_> = lines.iter().filter(|line| line[0] == "access").cloned().collect();
    let (_, after) = reference::registers(&script, &accesses)?.pop_first().context("nothing is reported")?;
    // The CPU itself applies no quirk, whatever the machine is.
    let mut model = Model::new(params.proliant && who != Who::Cpu);
    let (mut quirks, mut mailbox) = (0, 0);
    let (mut all, mut lost, mut unexplained, mut example) = (0, 0, 0, String::new());
    for (number, ((insn, before), is)) in script.iter().zip(&after).enumerate() {
        let mut should_be = *before;
        model.execute(*insn, &mut should_be).expect("the model refuses nothing");
        all += Gprs::NAMES.len();
        // The quirk polls the port that it has written, and leaves the answer in AL.
        if *insn == IoInsn::out_dx(Width::Byte) && insn.port(before) == PROLIANT_PORT && before.rax & 0x80 != 0 {
            mailbox += 1;
            quirks += usize::from(is.rax & 0x80 == 0);
        }
        for (name, is, should_be) in is.differences(&should_be) {
            if who == Who::Untouched && loses_carry(*insn, before, name, is, should_be) {
                lost += 1;
                continue;
            }
            unexplained += 1;
            if example.is_empty() {
                example = format!("; access {number}, {insn}: {name} is {is:#x}, should be {should_be:#x}");
            }
        }
    }
    let quirks_good = quirks == if params.proliant && who != Who::Cpu { mailbox } else { 0 };
    let agree = all - lost - unexplained;
    let (is_good, why) = match who {
        Who::Untouched => (unexplained == 0 && lost > 0, format!(", {lost} times an SMI's CF is lost")),
        Who::Broken => (unexplained > 0, format!(", {unexplained} not")),
        _ => (unexplained == 0, String::new()),
    };
    let example = if is_good { "" } else { &example };
    let what = format!(
        "{} accesses: {agree} of {all} registers as modelled{why}; the quirk took {quirks} of {mailbox}{example}",
        script.len()
    );
    Ok((is_good && quirks_good && mailbox > 0, what))
}

/// Xen returns to the guest's own RFLAGS: CF as the SMM handler set or cleared it is lost there.
fn loses_carry(insn: IoInsn, before: &Gprs, name: &str, is: u64, should_be: u64) -> bool {
    name == "rflags" && insn.port(before) == SMI_PORT && is ^ should_be == Gprs::CF && is == before.rflags
}

/// CF after each of the eight cases.
fn cases(lines: &[Vec<&str>]) -> Result<Vec<u64>> {
    let carries = lines.iter().filter(|line| line[0] == "carry").map(|line| Ok(line[2].parse()?));
    let carries: Vec<u64> = carries.collect::<Result<_>>()?;
    ensure!(carries.len() == 2 * carries::HANDLERS.len(), "{} cases of CF", carries.len());
    Ok(carries)
}

/// Prints CF after an SMI, the CPU's first; whether ours is right in all cases, and Xen's own wrong in the two known ones.
fn carries(found: &[(&Boot, Vec<u64>)], seed: u64) -> bool {
    let (_, cpu) = found.iter().find(|(boot, _)| boot.who == Who::Cpu).expect("it is among the boots");
    println!("\nCF after an SMI, by what the handler does with it; the CPU itself is the judge\n");
    let cases: Vec<_> = carries::cases(seed).collect();
    let before: String = cases.iter().map(|(_, gprs)| format!(" {}", gprs.rflags & Gprs::CF)).collect();
    for (number, (name, _, _)) in carries::HANDLERS.iter().enumerate() {
        println!("{:33}{} v the handler {name}", "", " |  ".repeat(number));
    }
    println!("{:33}{before}", "CF before");
    let mut good = true;
    for (boot, carries) in found {
        let wrong = carries.iter().zip(cpu).filter(|(is, should_be)| is != should_be).count();
        let expected = if boot.who == Who::Untouched { 2 } else { 0 };
        good &= wrong == expected;
        let carries: String = carries.iter().map(|carry| format!(" {carry}")).collect();
        println!("{:33}{carries}   {wrong} wrong{}", boot.title, if wrong == expected { "" } else { ": FAILED" });
    }
    println!();
    good
}

/// A field of the one line of its kind.
fn field<'l>(lines: &[Vec<&'l str>], kind: &str, number: usize) -> Result<&'l str> {
    let line = lines.iter().find(|line| line[0] == kind).with_context(|| format!("no line says {kind}"))?;
    line.get(number + 1).copied().with_context(|| format!("a line that says {kind} is too short"))
}

/// The instructions of an access, and in how many samples.
fn counted(lines: &[Vec<&str>], access: &str) -> Result<(u64, u64)> {
    let line = lines.iter().find(|line| line[..2] == ["count", access]).context("a count is missing")?;
    Ok((line[2].parse()?, line[3].parse()?))
}
