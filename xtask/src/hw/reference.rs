//! `cargo xtask hw --reference`: one script of accesses, run by the library wherever it runs and by Xen's own stub, and
//! every register compared.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result, bail, ensure};
use hw_shared::{Mode, Params, SMI_PORT, script};
use ioemul::{Gprs, IoInsn};

use super::guests::Image;
use super::qemu::{self, Guest, Output, Setup};
use super::{bus, soak};

/// Random accesses after those of the table.
const RANDOM: u64 = 250;
/// SMIs with random registers, on each machine and in each place.
const SMIS: u64 = 100_000;

const MACHINES: [(&str, Setup, &str); 3] = [
    ("pc", Setup::ProLiant, "pc, ProLiant"),
    ("q35", Setup::ProLiant, "q35, ProLiant"),
    ("pc", Setup::OtherMake, "pc, other make"),
];

/// Runs everything and prints the report; whether all is good.
pub fn run(linux: &Image, ring0: &Image, xen: &Image, seed: u64) -> Result<bool> {
    let mut guests = Vec::new();
    for (machine, setup, _) in MACHINES {
        for (image, mode) in [(xen, Mode::RecordByHand), (linux, Mode::Record), (ring0, Mode::Record)] {
            let proliant = setup == Setup::ProLiant;
            let params = Params { mode, seed, count: RANDOM, seconds: 0, control: false, proliant };
            guests.push(Guest { machine, setup, image, params });
        }
    }
    let outputs = qemu::run_all(&guests)?;
    let mut comparison = Comparison::default();
    for (index, (guests, outputs)) in guests.chunks(3).zip(outputs.chunks(3)).enumerate() {
        let params = &guests[1].params;
        comparison.machine(index, params, outputs).with_context(|| MACHINES[index].2)?;
    }
    let good = comparison.print(seed);
    for (guest, output) in guests.iter().zip(&outputs) {
        println!("{:4} {:?}, {:?}: {:.2} s", guest.machine, guest.setup, guest.image, output.wall.as_secs_f64());
    }
    Ok(smis(linux, ring0, seed)? && good)
}

/// The SMM mailbox at length.
fn smis(linux: &Image, ring0: &Image, seed: u64) -> Result<bool> {
    let params = Params { mode: Mode::SoakSmm, seed, count: SMIS, seconds: 0, control: false, proliant: true };
    let control = Params { count: soak::CONTROL, control: true, ..params };
    let mut guests = Vec::new();
    for params in [params, control] {
        for image in [linux, ring0] {
            guests.extend(["pc", "q35"].map(|machine| Guest { machine, setup: Setup::ProLiant, image, params }));
        }
    }
    println!(
        "\nSMM mailbox: {SMIS} SMIs with random registers and CF, all layouts in turn, next to the handler's model\n"
    );
    soak::report(&guests, &qemu::run_all(&guests)?)
}

/// What the engines agree on, and what not.
#[derive(Default)]
struct Comparison {
    accesses: usize,
    /// By source: for each machine, registers compared and registers that agree.
    sources: BTreeMap<String, [(usize, usize); MACHINES.len()]>,
    /// By reason.
    differences: BTreeMap<&'static str, Differences>,
    /// Broken sources that differ from no one.
    unnoticed: Vec<String>,
}

/// Differences with one reason.
struct Differences {
    count: usize,
    sources: BTreeSet<String>,
    example: String,
}

/// Those without.
const UNEXPLAINED: &str = "UNEXPLAINED";

/// One register after one access.
struct Difference {
    insn: IoInsn,
    port: u16,
    register: &'static str,
    is: u64,
    xen: u64,
}

/// Why a register may differ from Xen's.
struct Reason {
    why: &'static str,
    explains: fn(&Difference) -> bool,
}

const REASONS: &[Reason] = &[Reason {
    why: "Xen returns to the guest's own RFLAGS: CF as the SMM handler left it is lost there",
    explains: |d| d.register == "rflags" && d.port == SMI_PORT && d.is ^ d.xen == Gprs::CF && d.xen & Gprs::CF == 0,
}];

impl Comparison {
    /// Adds one machine: the outputs of Xen, Linux and ring 0.
    fn machine(&mut self, index: usize, params: &Params, outputs: &[Output]) -> Result<()> {
        let mut script = Vec::new();
        script::for_each_access(params, |_, insn, gprs| script.push((insn, gprs)));
        self.accesses = script.len();

        let bus = bus::record(params)?;
        let bus_lines: Vec<Vec<&str>> =
            bus.lines().filter_map(|line| Some(line.strip_prefix("ioemul|")?.split('|').collect())).collect();

        let mut xen = registers(&script, &outputs[0].good_lines()?)?;
        let (_, xen) = xen.pop_first().context("Xen reports nothing")?;
        let places = [("Linux, ring 3", outputs[1].good_lines()?), ("no OS, ring 0", outputs[2].good_lines()?)];
        for (place, lines) in places.into_iter().chain([("software bus", bus_lines)]) {
            let sources = registers(&script, &lines)?;
            ensure!(sources.len() >= 5, "{place}: only {} engines report", sources.len());
            for (source, registers) in sources {
                self.source(index, format!("{place}: {source}"), &script, &registers, &xen);
            }
        }
        Ok(())
    }

    /// Compares one engine with Xen.
    fn source(&mut self, machine: usize, source: String, script: &[(IoInsn, Gprs)], is: &[Gprs], xen: &[Gprs]) {
        let (mut compared, mut agree, mut unexplained) = (0, 0, 0);
        let broken = source.ends_with("broken");
        for (number, ((insn, before), (is, xen))) in script.iter().zip(is.iter().zip(xen)).enumerate() {
            for ((&register, is), xen) in Gprs::NAMES.iter().zip(is.to_words()).zip(xen.to_words()) {
                compared += 1;
                if is == xen {
                    agree += 1;
                    continue;
                }
                let difference = Difference { insn: *insn, port: insn.port(before), register, is, xen };
                let reason = REASONS.iter().find(|reason| (reason.explains)(&difference)).map(|reason| reason.why);
                unexplained += usize::from(reason.is_none());
                if broken {
                    continue;
                }
                let known = self.differences.entry(reason.unwrap_or(UNEXPLAINED)).or_insert_with(|| {
                    let Difference { insn, port, register, is, xen } = difference;
                    let machine = MACHINES[machine].2;
                    let what = format!("{register} is {is:#x}, with Xen {xen:#x}");
                    let example = format!("{machine}, {source}, access {number}, {insn} (port {port:#x}): {what}");
                    Differences { count: 0, sources: BTreeSet::new(), example }
                });
                known.count += 1;
                known.sources.insert(source.clone());
            }
        }
        if broken && unexplained == 0 {
            self.unnoticed.push(format!("{}: {source}", MACHINES[machine].2));
        }
        self.sources.entry(source).or_default()[machine] = (compared, agree);
    }

    /// Prints everything; whether all is good.
    fn print(&self, seed: u64) -> bool {
        let heads: String = MACHINES.iter().map(|(_, _, name)| format!(" | {name:14}")).collect();
        println!(
            "Reference: {} accesses (the table's and {RANDOM} random ones, seed {seed}), executed by Xen's own",
            self.accesses
        );
        println!("stub in a dom0 and by the library; 16 registers each, and how many of them are as with Xen\n");
        println!("{:24}{heads}", "");
        let mut total = 0;
        for (source, machines) in &self.sources {
            let mut row = format!("{source:24}");
            for (compared, agree) in machines {
                row.push_str(&format!(" | {:14}", format!("{agree} of {compared}")));
                total += compared;
            }
            println!("{row}");
        }
        println!("\n{total} registers compared. The broken ones have to differ; the differences of the others:\n");
        for (reason, Differences { count, sources, example }) in &self.differences {
            println!("{count:6} in {} of {} sources: {reason}\n       {example}", sources.len(), self.sources.len());
        }
        for unnoticed in &self.unnoticed {
            println!("FAILED: {unnoticed} differs in nothing");
        }
        let unexplained = self.differences.get(UNEXPLAINED).map_or(0, |differences| differences.count);
        println!("{unexplained:6} unexplained\n");
        unexplained == 0 && self.unnoticed.is_empty()
    }
}

/// The register files after each access, by engine.
fn registers(script: &[(IoInsn, Gprs)], lines: &[Vec<&str>]) -> Result<BTreeMap<String, Vec<Gprs>>> {
    let mut engines: BTreeMap<String, Vec<Gprs>> = BTreeMap::new();
    for line in lines {
        let ["access", number, engine, changes] = line[..] else { bail!("strange line: {}", line.join("|")) };
        let number: usize = number.parse()?;
        let registers = engines.entry(engine.to_owned()).or_default();
        ensure!(number == registers.len() && number < script.len(), "{engine}: access {number} out of order");
        let after = script::apply_changes(&script[number].1, changes);
        registers.push(after.with_context(|| format!("{engine}: access {number}: {changes}"))?);
    }
    for (engine, registers) in &engines {
        ensure!(registers.len() == script.len(), "{engine}: {} of {} accesses", registers.len(), script.len());
    }
    Ok(engines)
}
