//! Which tests each tool runs, and why not the others.

use std::fs;

use anyhow::{Context, Result, ensure};

use super::tools::Tool;
use crate::hw::host;

/// What of a test binary is run.
#[derive(Clone, Copy, Debug)]
pub enum Scope {
    /// All of it, but for these tests, each with the reason.
    AllBut(&'static [(&'static str, &'static str)]),
    /// These tests, and the reason why not the others.
    Only(&'static [&'static str], &'static str),
    /// Nothing, and the reason.
    Nothing(&'static str),
}

impl Scope {
    /// For the test harness.
    pub fn arguments(&self) -> Vec<&'static str> {
        match self {
            Scope::AllBut(tests) => {
                let skips = tests.iter().flat_map(|(test, _)| ["--skip", test]);
                ["--exact"].into_iter().filter(|_| !tests.is_empty()).chain(skips).collect()
            }
            Scope::Only(tests, _) => ["--exact"].into_iter().chain(tests.iter().copied()).collect(),
            Scope::Nothing(_) => Vec::new(),
        }
    }

    /// What it leaves out of the binary, with the reasons.
    pub fn left_out(&self) -> impl Iterator<Item = (&'static str, &'static str)> + use<> {
        let (tests, others) = match *self {
            Scope::AllBut(tests) => (tests, None),
            Scope::Only(_, why) => (&[][..], Some(("the other tests", why))),
            Scope::Nothing(_) => (&[][..], None),
        };
        tests.iter().copied().chain(others)
    }

    /// Whether a run did what this says: a test that has another name now would be left out, or run, without a word.
    pub fn check(&self, passed: usize, filtered_out: usize) -> Result<()> {
        match self {
            Scope::AllBut(tests) => ensure!(filtered_out == tests.len(), "{}", stale(filtered_out, tests.len())),
            Scope::Only(tests, _) => ensure!(passed == tests.len(), "{}", stale(passed, tests.len())),
            Scope::Nothing(_) => {}
        }
        Ok(())
    }
}

fn stale(found: usize, named: usize) -> String {
    format!("xtask/src/sanitize/plan.rs names {named} of its tests, and {found} are there")
}

/// The test binaries of the library: `lib`, and every file of tests/.
pub fn binaries() -> Result<Vec<String>> {
    let tests = host::workspace()?.join("tests");
    let mut names = vec!["lib".to_owned()];
    for entry in fs::read_dir(&tests).with_context(|| format!("reading {}", tests.display()))? {
        let path = entry?.path();
        let name = path.file_stem().and_then(|name| name.to_str());
        names.extend(name.filter(|_| path.extension().is_some_and(|ending| ending == "rs")).map(str::to_owned));
    }
    names[1..].sort();
    Ok(names)
}

/// No entry of the plan is of a binary that is no more.
pub fn check(binaries: &[String]) -> Result<()> {
    let named = ASAN.iter().chain(VALGRIND).chain(MIRI).map(|(name, _)| *name).chain(SLOW.iter().copied());
    for name in named {
        ensure!(binaries.iter().any(|binary| binary == name), "xtask/src/sanitize/plan.rs: there is no test {name:?}");
    }
    Ok(())
}

/// What a tool runs of a binary.
pub fn scope(tool: Tool, name: &str, quick: bool) -> Scope {
    let (plan, others) = match tool {
        Tool::Asan => (ASAN, Scope::AllBut(&[])),
        Tool::Valgrind => (VALGRIND, Scope::Nothing(NOT_IN_VALGRIND)),
        Tool::Miri => (MIRI, Scope::Nothing(NOT_IN_MIRI)),
    };
    let planned = plan.iter().find(|(planned, _)| *planned == name).map_or(others, |(_, scope)| *scope);
    match planned {
        Scope::Nothing(_) => planned,
        _ if quick && tool == Tool::Valgrind && !QUICK_IN_VALGRIND.contains(&name) => Scope::Nothing(TOO_LONG),
        _ if quick && tool == Tool::Asan && SLOW.contains(&name) => Scope::Nothing(TOO_LONG),
        _ => planned,
    }
}

type Plan = &'static [(&'static str, Scope)];

const TOO_LONG: &str = "takes too long for --quick";

/// What takes more than a few seconds under AddressSanitizer, on an idle machine.
const SLOW: &[&str] = &["aliases", "slots"];

/// Everything runs under AddressSanitizer, signals, forks and all, but this.
const ASAN: Plan = &[
    ("disassembly", Scope::Nothing("takes minutes, in iced-x86 alone")),
    ("examples", Scope::Nothing("builds and runs programs, without the sanitizer")),
    ("gas", Scope::Nothing("builds and runs programs in C, without the sanitizer")),
    ("kernel_manners", Scope::Nothing("builds and inspects a program of its own, without the sanitizer")),
    (
        "signals",
        Scope::AllBut(&[(
            "a_plugin_that_is_closed_leaves_no_handler_in_unmapped_memory",
            "builds and loads a shared object of its own, without the sanitizer",
        )]),
    ),
];

const NOT_IN_VALGRIND: &str =
    "takes minutes there, or is about the CPU, the kernel's signals or time, which valgrind emulates";
const INS_OUTS: &str = "executes INS or OUTS, which valgrind does not know";

/// A memory error shows where a bus is: slices, frames, what a device leaves.
const VALGRIND: Plan = &[
    ("bus", Scope::AllBut(&[("beside_the_hardware::each_access_goes_to_the_side_that_has_all_its_ports", INS_OUTS)])),
    ("events", Scope::AllBut(&[])),
    ("guest_rpc", Scope::AllBut(&[])),
    ("replay", Scope::AllBut(&[])),
    (
        "string_io",
        Scope::AllBut(&[
            ("the_direction_flag_is_the_callers_after_a_fault", INS_OUTS),
            ("without_privilege_nothing_moves", INS_OUTS),
        ]),
    ),
];

const QUICK_IN_VALGRIND: &[&str] = &["bus", "events", "guest_rpc", "string_io"];

const NOT_IN_MIRI: &str = "runs machine code, or takes hours";
const ALSO_IN_MIRI: &str = "runs machine code, makes system calls that Miri does not know, or takes hours";

/// What runs no machine code: decoding, ports, registers, quirks, traces, and code that is emitted but not run.
const MIRI: Plan = &[
    (
        "lib",
        Scope::Only(
            &[
                "devices::cmos::tests::index_then_data",
                "devices::proliant::tests::busy_for_as_many_polls_as_it_was_told",
                "devices::smm::tests::every_register_can_be_exchanged",
                "devices::vmware::message::tests::a_request_and_its_reply",
                "devices::vmware::message::tests::what_a_guest_may_not_do",
                "emission::tests::the_holes",
                "emulator::string_io::tests::an_address_register_is_not_believed",
                "gprs::file::tests::words_that_overlap_are_noticed",
                "gprs::names::tests::every_part_of_every_register",
                "insn::text::tests::forms_of_other_modes_and_segments",
                "ports::hazard::tests::ascending_and_disjoint",
                "ports::tests::a_short_tss_bitmap_denies_what_it_does_not_map",
                "ports::tests::canonical_form",
                "ports::tests::parse_errors_name_the_item_the_column_and_the_reason",
                "ports::tests::permits_checks_every_port_of_the_access",
                "ports::tests::ranges_are_ascending_and_joined",
            ],
            ALSO_IN_MIRI,
        ),
    ),
    (
        "decode",
        Scope::Only(
            &[
                "encode_and_decode_are_inverse",
                "fifteen_bytes_and_no_more",
                "rex_counts_directly_before_the_opcode_only",
                "what_is_cut_off_says_so",
            ],
            ALSO_IN_MIRI,
        ),
    ),
    (
        "slots",
        Scope::Only(
            &[
                "accesses_of_a_payload",
                "around_the_end_of_the_address_space",
                "labels_of_a_payload",
                "more_quirks_than_are_kept",
                "payloads_that_do_not_add_up",
            ],
            ALSO_IN_MIRI,
        ),
    ),
    ("trace", Scope::Only(&["messages_name_the_line_and_what_is_wrong", "the_documented_file"], ALSO_IN_MIRI)),
];
