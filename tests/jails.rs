//! Tables and emulators in jails: without /proc, without files, without executable memory, without system calls. Each
//! jail holds a process of its own.
#![cfg(all(feature = "std", target_os = "linux"))]

mod common;

use std::collections::BTreeMap;
use std::ffi::{CString, OsStr, c_int};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::ExitStatusExt;
use std::{env, fs, process, ptr};

use common::{Rng, child, forms};
use ioemul::{
    BuildError, Direction, Error, Gprs, IoEmulator, IoInsn, PortAccess, PortDevice, PortSet, Quirk, QuirkTable,
    SoftwareBus, StubLayout, StubTable, Width,
};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule, TargetArch,
};

/// From here on, these system calls fail with this error; those with a mask only where the third argument has it.
fn deny(calls: &[(i64, Option<u64>)], errno: c_int) {
    let rule = |mask| {
        let condition = SeccompCondition::new(2, SeccompCmpArgLen::Qword, SeccompCmpOp::MaskedEq(mask), mask).unwrap();
        SeccompRule::new(vec![condition]).unwrap()
    };
    let rules: BTreeMap<_, _> =
        calls.iter().map(|(call, mask)| (*call, mask.map(rule).into_iter().collect())).collect();
    let (allow, deny) = (SeccompAction::Allow, SeccompAction::Errno(errno as u32));
    let filter: BpfProgram = SeccompFilter::new(rules, allow, deny, TargetArch::x86_64).unwrap().try_into().unwrap();
    seccompiler::apply_filter(&filter).unwrap();
}

fn deny_files(errno: c_int) {
    deny(&[(libc::SYS_open, None), (libc::SYS_openat, None), (libc::SYS_openat2, None)], errno);
    assert_eq!(fs::File::open("/proc/self/maps").unwrap_err().raw_os_error(), Some(errno));
}

fn works(table: &StubTable) -> bool {
    let given = Gprs { rdx: 0x80, r15: 15, ..Gprs::default() };
    let mut gprs = given;
    // SAFETY: the process has no privilege for any port.
    unsafe { table.stub(IoInsn::out_dx(Width::Byte)).run(&mut gprs) }.is_err_and(|fault| fault.vector == 13)
        && gprs == given
}

/// Every table that a process may build, and the quirks of the machine (or none, where nobody can tell).
fn every_table() -> impl Iterator<Item = StubTable> {
    StubLayout::ALL.iter().map(|&layout| StubTable::builder().layout(layout).build().unwrap())
}

/// A mount of one's own over `target`.
fn mount_over(source: Option<&str>, target: &str) {
    let text = |text: &str| CString::new(text).unwrap();
    let (source, kind) = (source.map(text), text("tmpfs"));
    // SAFETY: strings, or null; the namespace is this process's own.
    unsafe {
        assert_eq!(libc::unshare(libc::CLONE_NEWNS), 0, "{}", io::Error::last_os_error());
        let private = libc::MS_REC | libc::MS_PRIVATE;
        assert_eq!(libc::mount(ptr::null(), text("/").as_ptr(), ptr::null(), private, ptr::null()), 0);
        let result = match source {
            Some(source) => {
                libc::mount(source.as_ptr(), text(target).as_ptr(), ptr::null(), libc::MS_BIND, ptr::null())
            }
            None => libc::mount(kind.as_ptr(), text(target).as_ptr(), kind.as_ptr(), 0, ptr::null()),
        };
        assert_eq!(result, 0, "{target}: {}", io::Error::last_os_error());
    }
}

/// Changes every register, for its own arithmetic.
struct Device(Rng);

impl PortDevice for Device {
    fn port_in(&mut self, access: PortAccess, gprs: &mut Gprs) -> u32 {
        let dx = gprs.rdx;
        *gprs = Gprs { rdx: dx, ..self.0.gprs() };
        access.port.into()
    }

    fn port_out(&mut self, _: PortAccess, value: u32, gprs: &mut Gprs) {
        gprs.rbx = !u64::from(value);
    }
}

fn bus() -> SoftwareBus {
    let mut bus = SoftwareBus::new();
    bus.attach(0x40..=0x9f, Device(Rng(1))).unwrap();
    bus.attach(0xb2..=0xb3, Device(Rng(2))).unwrap();
    bus.attach(0xcd4..=0xcd4, Device(Rng(3))).unwrap();
    bus
}

fn direct(quirks: QuirkTable) -> IoEmulator {
    IoEmulator::builder().ports(PortSet::all()).quirks(quirks).bus(bus()).direct().build().unwrap()
}

/// Every form, with and without each quirk, strings, denied accesses, and the bus alone, with nothing but read, write,
/// exit and sigreturn to call. Ends the process.
fn without_system_calls() -> ! {
    let forms: Vec<IoInsn> = forms().map(|form| form.insn).collect();
    let mut emulators: Vec<IoEmulator> = vec![direct(QuirkTable::none())];
    emulators.extend(Quirk::ALL.iter().map(|quirk| direct(QuirkTable::from_iter([*quirk]))));
    let triggers: Vec<_> = Quirk::ALL.iter().map(|quirk| *quirk.trigger()).collect();
    let mut narrow = IoEmulator::builder().ports(PortSet::none()).bus(bus()).direct().build().unwrap();
    let (mut bus, mut memory) = (bus(), [0; 64]);
    // SAFETY: the process is a child of `fork` and this its only thread. From here on the kernel kills it at any other
    // system call.
    unsafe { assert_eq!(libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_STRICT), 0) };
    let mut good = true;
    for emulator in &mut emulators {
        for insn in &forms {
            let mut gprs = Gprs { rdx: 0x40, ..Gprs::default() };
            good &= emulator.execute(*insn, &mut gprs).is_ok();
            good &= bus.access(*insn, &mut gprs).is_ok();
            good &= matches!(narrow.execute(*insn, &mut gprs), Err(Error::PortDenied { .. }));
        }
        for trigger in &triggers {
            let mut gprs = Gprs { rax: 0x80ef, rdx: trigger.port.into(), ..Gprs::default() };
            good &= emulator.execute(IoInsn::out_dx(Width::Byte), &mut gprs).is_ok();
        }
        for insn in IoInsn::strings().filter(|insn| !insn.to_string().contains("16")) {
            let mut gprs = Gprs { rcx: 8, rdx: 0x9c, ..Gprs::default() };
            let moved = match insn.direction {
                Direction::In => emulator.read_string(insn, &mut gprs, &mut memory),
                _ => emulator.write_string(insn, &mut gprs, &memory),
            };
            good &= moved.is_ok();
        }
    }
    // SAFETY: exit of the only thread.
    unsafe { libc::syscall(libc::SYS_exit, if good { 17 } else { 18 }) };
    unreachable!()
}

#[test]
#[ignore = "a process of its own, started by the other tests"]
fn scenario() {
    let Some(scenario) = child::requested() else { return };
    match scenario.as_str() {
        "free" => {
            assert!(every_table().all(|table| table.protection_is_verified() && works(&table)));
        }
        "no files" | "files denied" => {
            deny_files(if scenario == "no files" { libc::ENOENT } else { libc::EACCES });
            assert!(every_table().all(|table| !table.protection_is_verified() && works(&table)));
            // Which quirks the machine has cannot be told where its identity may not be read.
            // SAFETY: the process has no privilege for any port.
            let native = || unsafe { IoEmulator::builder().native(PortSet::all()) };
            match native().build() {
                Ok(_) => assert_eq!(scenario, "no files"),
                Err(error) => assert!(scenario == "files denied" && error.to_string().contains(".quirks("), "{error}"),
            }
            native().quirks(QuirkTable::none()).build().unwrap();
        }
        "no /proc" => {
            mount_over(None, "/proc");
            assert!(fs::read_dir("/proc").unwrap().next().is_none());
            assert!(every_table().all(|table| !table.protection_is_verified() && works(&table)));
        }
        "a map that covers nothing" => {
            let empty = env::temp_dir().join(format!("ioemul-empty-{}", process::id()));
            fs::write(&empty, "").unwrap();
            mount_over(Some(empty.to_str().unwrap()), &format!("/proc/{}/maps", process::id()));
            fs::remove_file(&empty).unwrap();
            let error = StubTable::new(StubLayout::CallRet).unwrap_err();
            assert!(matches!(error, BuildError::Protection { .. }), "{error}");
            assert!(error.to_string().contains("not in the process's memory map"), "{error}");
        }
        "a name that is not UTF-8" => {
            let path = env::temp_dir().join(OsStr::from_bytes(format!("ioemul-\u{1}{}", process::id()).as_bytes()));
            let path = [path.as_os_str().as_bytes(), b"\xff\xfe"].concat();
            let file = fs::File::create_new(OsStr::from_bytes(&path)).unwrap();
            file.set_len(4096).unwrap();
            // SAFETY: asks for new memory.
            let memory =
                unsafe { libc::mmap(ptr::null_mut(), 4096, libc::PROT_READ, libc::MAP_PRIVATE, file.as_raw_fd(), 0) };
            fs::remove_file(OsStr::from_bytes(&path)).unwrap();
            assert_ne!(memory, libc::MAP_FAILED);
            assert!(fs::read_to_string("/proc/self/maps").is_err(), "the name is in the map");
            assert!(every_table().all(|table| table.protection_is_verified() && works(&table)));
        }
        "no executable memory" | "no executable memory, by MDWE" => {
            if scenario.ends_with("MDWE") {
                const PR_SET_MDWE: c_int = 65;
                const PR_MDWE_REFUSE_EXEC_GAIN: u64 = 1;
                // SAFETY: forbids this process something.
                if unsafe { libc::prctl(PR_SET_MDWE, PR_MDWE_REFUSE_EXEC_GAIN, 0, 0, 0) } != 0 {
                    eprintln!("NOT RUN: this kernel has no PR_SET_MDWE (Linux 6.3)");
                    process::exit(0);
                }
            } else {
                deny(&[(libc::SYS_mprotect, Some(libc::PROT_EXEC as u64))], libc::EPERM);
            }
            let error = StubTable::new(StubLayout::CallRet).unwrap_err();
            assert!(matches!(error, BuildError::Executable(_)), "{error}");
            for name in ["PR_SET_MDWE", "MemoryDenyWriteExecute", "SELinux", "seccomp", ".direct()"] {
                assert!(error.to_string().contains(name), "{error}");
            }
            let error = IoEmulator::builder().ports(PortSet::all()).bus(bus()).build().unwrap_err();
            assert!(matches!(error, BuildError::Executable(_)), "{error}");
            let mut gprs = Gprs::default();
            direct(QuirkTable::none()).execute(IoInsn::in_imm8(Width::Byte, 0x71), &mut gprs).unwrap();
            assert_eq!(gprs.rax as u8, 0x71);
        }
        "no system calls" => {
            // SAFETY: the child calls nothing that another thread could hold a lock of, but the allocator, which sees to
            // that itself.
            let child = unsafe { libc::fork() };
            if child == 0 {
                without_system_calls();
            }
            let mut status = 0;
            // SAFETY: waits for a child of this process.
            assert_eq!(unsafe { libc::waitpid(child, &mut status, 0) }, child);
            let status = process::ExitStatus::from_raw(status);
            assert_eq!((status.code(), status.signal()), (Some(17), None));
        }
        other => panic!("no such scenario: {other}"),
    }
    // SAFETY: ends the process at once: a leak checker, for one, would want /proc first.
    unsafe { libc::_exit(0) };
}

/// A scenario that mounts something over /proc or a part of it.
fn as_root(scenario: &str) {
    // SAFETY: asks who this is.
    match unsafe { libc::geteuid() } {
        0 => child::exits_with(0, scenario),
        _ => eprintln!("NOT RUN: {scenario}: mounting over /proc takes root"),
    }
}

#[test]
fn the_protection_is_verified_where_it_can_be() {
    child::exits_with(0, "free");
    child::exits_with(0, "a name that is not UTF-8");
}

#[test]
fn without_files_a_table_builds() {
    child::exits_with(0, "no files");
    child::exits_with(0, "files denied");
}

#[test]
fn without_proc_a_table_builds() {
    as_root("no /proc");
}

#[test]
fn a_map_that_covers_nothing_is_no_pass() {
    as_root("a map that covers nothing");
}

#[test]
fn an_error_names_what_forbids_executable_memory() {
    child::exits_with(0, "no executable memory");
    child::exits_with(0, "no executable memory, by MDWE");
}

#[test]
fn without_machine_code_no_system_call_is_made() {
    child::exits_with(0, "no system calls");
}
