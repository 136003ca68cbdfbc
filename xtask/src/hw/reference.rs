//! `cargo xtask hw --reference`: one script of accesses, run by the library wherever it runs and by Xen's own stub, and
//! every register compared, with each other's and with those of the model.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result, bail, ensure};
use hw_shared::model::Model;
use hw_shared::{Engine, Mode, Params, SMI_PORT, script};
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
    /// By source, for each machine.
    sources: BTreeMap<String, [Agreement; MACHINES.len()]>,
    /// Differences from Xen, by reason.
    differences: BTreeMap<&'static str, Differences>,
    /// Differences of Xen from the model, by reason; and those of the library, which have none.
    from_the_model: BTreeMap<&'static str, Differences>,
    /// Broken sources that differ from no one.
    unnoticed: Vec<String>,
}

/// Of how many registers compared.
#[derive(Clone, Copy, Default)]
struct Agreement {
    compared: usize,
    with_xen: usize,
    with_the_model: usize,
}

/// Differences with one reason.
#[derive(Default)]
struct Differences {
    count: usize,
    sources: BTreeSet<String>,
    example: String,
}

/// Those without.
const UNEXPLAINED: &str = "UNEXPLAINED";

/// One register after one access.
struct Register {
    insn: IoInsn,
    port: u16,
    name: &'static str,
    before: u64,
    /// What Xen's stub left.
    xen: u64,
    /// What the model says.
    model: u64,
}

/// Why Xen's register may be another than the model's.
struct Reason {
    why: &'static str,
    explains: fn(&Register) -> bool,
}

const REASONS: &[Reason] = &[Reason {
    why: "Xen returns to the guest's own RFLAGS: CF as the SMM handler set or cleared it is lost there",
    explains: |r| r.name == "rflags" && r.port == SMI_PORT && r.model ^ r.xen == Gprs::CF && r.xen == r.before,
}];

impl Register {
    fn reason(&self) -> &'static str {
        REASONS.iter().find(|reason| (reason.explains)(self)).map_or(UNEXPLAINED, |reason| reason.why)
    }
}

impl Differences {
    fn add(&mut self, source: &str, example: impl FnOnce() -> String) {
        self.count += 1;
        if self.sources.is_empty() {
            self.example = example();
        }
        self.sources.insert(source.to_owned());
    }
}

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
        let mut model = Model::new(params.proliant);
        let modelled: Vec<Gprs> = script
            .iter()
            .map(|(insn, before)| {
                let mut gprs = *before;
                model.execute(*insn, &mut gprs).expect("the model refuses nothing");
                gprs
            })
            .collect();
        self.source(index, "Xen".to_owned(), &script, &xen, &xen, &modelled);
        let places = [("Linux, ring 3", outputs[1].good_lines()?), ("no OS, ring 0", outputs[2].good_lines()?)];
        for (place, lines) in places.into_iter().chain([("software bus", bus_lines)]) {
            let sources = registers(&script, &lines)?;
            ensure!(sources.len() >= 5, "{place}: only {} engines report", sources.len());
            for (source, registers) in sources {
                self.source(index, format!("{place}: {source}"), &script, &registers, &xen, &modelled);
            }
        }
        Ok(())
    }

    /// Compares one engine with Xen and with the model.
    fn source(
        &mut self,
        machine: usize,
        source: String,
        script: &[(IoInsn, Gprs)],
        is: &[Gprs],
        xen: &[Gprs],
        model: &[Gprs],
    ) {
        let (mut agreement, mut unexplained) = (Agreement::default(), 0);
        let (broken, is_xen) = (source.ends_with("broken"), source == "Xen");
        let afterwards = is.iter().zip(xen).zip(model);
        for (number, ((insn, before), ((is, xen), model))) in script.iter().zip(afterwards).enumerate() {
            for (index, &name) in Gprs::NAMES.iter().enumerate() {
                let [before_access, is, xen, model] = [before, is, xen, model].map(|gprs| gprs.to_words()[index]);
                let (insn, port) = (*insn, insn.port(before));
                let register = Register { insn, port, name, before: before_access, xen, model };
                agreement.compared += 1;
                agreement.with_xen += usize::from(is == xen);
                agreement.with_the_model += usize::from(is == model);
                let what = |other: &str, value: u64| {
                    let Register { insn, port, name, .. } = register;
                    let where_ = format!("{}, {source}, access {number}, {insn} (port {port:#x})", MACHINES[machine].2);
                    format!("{where_}: {name} is {is:#x}, {other} {value:#x}")
                };
                // What is as modelled may differ from Xen's for Xen's reasons only.
                let reason = if is == model || is_xen { register.reason() } else { UNEXPLAINED };
                if is != xen && !broken {
                    self.differences.entry(reason).or_default().add(&source, || what("with Xen", xen));
                }
                if is != model && !broken {
                    self.from_the_model.entry(reason).or_default().add(&source, || what("as modelled", model));
                }
                unexplained += usize::from(is != model && reason == UNEXPLAINED);
            }
        }
        if broken && unexplained == 0 {
            self.unnoticed.push(format!("{}: {source}", MACHINES[machine].2));
        }
        self.sources.entry(source).or_default()[machine] = agreement;
    }

    /// Prints everything; whether all is good.
    fn print(&self, seed: u64) -> bool {
        let heads: String = MACHINES.iter().map(|(_, _, name)| format!(" | {name:21}")).collect();
        println!(
            "Reference: {} accesses (the table's and {RANDOM} random ones, seed {seed}), executed by Xen's own",
            self.accesses
        );
        println!(
            "stub in a dom0 and by the library; of 16 registers each, how many are as with Xen, and as modelled\n"
        );
        println!("{:24}{heads}", "");
        println!("{:24}{}", "", " |   Xen  model     of ".repeat(MACHINES.len()).trim_end());
        let mut total = 0;
        for (source, machines) in &self.sources {
            let mut row = format!("{source:24}");
            for Agreement { compared, with_xen, with_the_model } in machines {
                row.push_str(&format!(" | {with_xen:5}  {with_the_model:5}  {compared:5} "));
                total += compared;
            }
            println!("{}", row.trim_end());
        }
        println!("\n{total} registers compared. The broken ones have to differ; the differences of the others:\n");
        print_differences("from Xen", &self.differences);
        print_differences("from the model", &self.from_the_model);
        for unnoticed in &self.unnoticed {
            println!("FAILED: {unnoticed} differs in nothing");
        }
        let all = [&self.differences, &self.from_the_model];
        let unexplained: usize = all.iter().filter_map(|all| all.get(UNEXPLAINED)).map(|found| found.count).sum();
        println!("{unexplained:6} unexplained");
        let others = self.from_the_model.values().flat_map(|found| &found.sources).any(|source| source != "Xen");
        println!(
            "       {}\n",
            if others { "FAILED: the library differs from the model" } else { "only Xen differs from the model" }
        );
        unexplained == 0 && self.unnoticed.is_empty() && !others
    }
}

fn print_differences(from: &str, differences: &BTreeMap<&'static str, Differences>) {
    for (reason, Differences { count, sources, example }) in differences {
        println!("{count:6} {from}, in {} sources: {reason}\n       {example}", sources.len());
    }
}

/// The register files after each access, by engine.
pub fn registers(script: &[(IoInsn, Gprs)], lines: &[Vec<&str>]) -> Result<BTreeMap<String, Vec<Gprs>>> {
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
