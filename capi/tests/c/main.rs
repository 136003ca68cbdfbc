//! The library as a C program sees it: installed, found by pkg-config, linked, run; and its header, in three languages.
#![cfg(all(target_os = "linux", target_env = "gnu"))]

mod reach;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

const PACKAGE: &str = env!("CARGO_MANIFEST_DIR");

/// Runs a command to its end; what it printed.
fn run(command: &mut Command) -> String {
    let done = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let (out, errors) = (String::from_utf8_lossy(&done.stdout), String::from_utf8_lossy(&done.stderr));
    assert!(done.status.success(), "{command:?}: {}\n{out}{errors}", done.status);
    out.into_owned()
}

/// Where `make install` has put everything, as the README says.
fn prefix() -> &'static Path {
    static PREFIX: OnceLock<PathBuf> = OnceLock::new();
    PREFIX.get_or_init(|| {
        let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).join("capi");
        let prefix = directory.join("prefix");
        let _ = std::fs::remove_dir_all(&prefix); // of an earlier run
        let mut make = Command::new("make");
        // What this test was built with is not what the library is to be built with.
        for variable in ["RUSTFLAGS", "CARGO_ENCODED_RUSTFLAGS", "CARGO_BUILD_TARGET", "MAKEFLAGS"] {
            make.env_remove(variable);
        }
        make.arg("-C").arg(PACKAGE).arg("install").arg(format!("CARGO={}", env!("CARGO")));
        make.arg(format!("PREFIX={}", prefix.display())).arg(format!("TARGET_DIR={}", directory.display()));
        run(&mut make);
        prefix
    })
}

fn pkg_config(arguments: &[&str]) -> Vec<String> {
    let mut command = Command::new("pkg-config");
    command.env("PKG_CONFIG_PATH", prefix().join("lib/pkgconfig")).args(arguments).arg("ioemul");
    run(&mut command).split_whitespace().map(str::to_owned).collect()
}

/// Builds the example with these flags behind its source, and runs it.
fn all_forms(name: &str, flags: &[String]) {
    let program = prefix().join(name);
    let mut cc = Command::new("cc");
    cc.args(["-std=c99", "-Wall", "-Wextra", "-Werror", "-pedantic", "-pthread", "-O2", "-o"]).arg(&program);
    cc.arg(Path::new(PACKAGE).join("examples/all_forms.c"));
    run(cc.args(pkg_config(&["--cflags"])).args(flags));
    let out = run(Command::new(program).env("LD_LIBRARY_PATH", prefix().join("lib")));
    let faults = 3 * 2 * 2 * 1542; // layouts, CPUs, table and slot, forms
    assert!(out.ends_with(&format!("\n{faults} faults, each resumed by RIP alone\n")), "{out}");
}

#[test]
fn pkg_config_has_one_version_and_the_place() {
    assert_eq!(pkg_config(&["--modversion"]), [env!("CARGO_PKG_VERSION")]);
    assert_eq!(pkg_config(&["--variable=prefix"]), [prefix().display().to_string()]);
    // What cannot be a prefix is refused before anything is installed.
    for prefix in ["relative", "/a b"] {
        let make =
            Command::new("make").args(["-n", "-C", PACKAGE, "install", &format!("PREFIX={prefix}")]).output().unwrap();
        assert!(!make.status.success() && String::from_utf8_lossy(&make.stderr).contains("PREFIX is"), "{prefix}");
    }
}

#[test]
fn all_forms_run_and_fault_with_the_shared_library() {
    all_forms("all_forms_shared", &pkg_config(&["--libs"]));
    let needed = run(Command::new("readelf").arg("-d").arg(prefix().join("all_forms_shared")));
    assert!(needed.contains("[libioemul.so.1]"), "{needed}");
}

#[test]
fn all_forms_run_and_fault_with_the_static_library() {
    let mut flags = pkg_config(&["--libs", "--static"]);
    for flag in &mut flags {
        if flag == "-lioemul" {
            *flag = "-l:libioemul.a".into(); // the shared one lies beside it
        }
    }
    all_forms("all_forms_static", &flags);
    let needed = run(Command::new("readelf").arg("-d").arg(prefix().join("all_forms_static")));
    assert!(!needed.contains("libioemul"), "{needed}");
}

/// `--static` names everything that rustc says the static library needs.
#[test]
fn pkg_config_knows_the_libraries_below() {
    let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).join("capi-libs");
    std::fs::create_dir_all(&directory).unwrap();
    let source = directory.join("empty.rs");
    std::fs::write(&source, "").unwrap();
    let mut rustc = Command::new("rustc");
    rustc.args(["--crate-type=staticlib", "--print=native-static-libs", "--out-dir"]).arg(&directory).arg(source);
    let printed = rustc.output().expect("rustc runs");
    let printed = String::from_utf8_lossy(&printed.stderr).into_owned();
    let (_, below) = printed.split_once("native-static-libs: ").unwrap_or_else(|| panic!("{printed}"));
    let named = pkg_config(&["--libs", "--static"]);
    for library in below.lines().next().unwrap_or_default().split_whitespace() {
        assert!(named.iter().any(|name| name == library), "{library} is not among {named:?}");
    }
}

#[test]
fn the_header_is_c_and_cxx() {
    let header = Path::new(PACKAGE).join("include/ioemul.h");
    let source = "#include <ioemul.h>\n\
        static struct ioemul_insn insn = IOEMUL_INSN_INIT;\n\
        static struct ioemul_register_file file = IOEMUL_REGISTER_FILE_INIT;\n\
        static struct ioemul_dmi dmi = IOEMUL_DMI_INIT;\n\
        static struct ioemul_options options = IOEMUL_OPTIONS_INIT;\n\
        int main(void) { ioemul_stub stub = 0; return stub || insn.port || file.rflags || dmi.bios_vendor.len || options.flags; }\n";
    let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).join("capi-header");
    std::fs::create_dir_all(&directory).unwrap();
    for (compiler, language, name) in [
        ("cc", &["-std=c90", "-Wno-long-long"][..], "header.c"),
        ("cc", &["-std=c99"], "header.c"),
        ("cc", &["-std=c17", "-Wstrict-prototypes", "-Wconversion"], "header.c"),
        ("c++", &["-std=c++98", "-Wno-long-long"], "header.cc"),
        ("c++", &["-std=c++17"], "header.cc"),
    ] {
        let file = directory.join(name);
        std::fs::write(&file, source).unwrap();
        let mut compile = Command::new(compiler);
        compile.args(language).args(["-Wall", "-Wextra", "-Werror", "-pedantic", "-fsyntax-only", "-I"]);
        run(compile.arg(header.parent().unwrap()).arg(file));
    }
}

/// The program in the README, with what it takes for granted around it.
#[test]
fn the_readmes_program_is_c() {
    let readme = std::fs::read_to_string(Path::new(PACKAGE).join("README.md")).unwrap();
    let (_, program) = readme.split_once("```c\n").expect("there is a program");
    let (program, handler) = program.split_once("```").unwrap().0.split_once("/* In the handler").unwrap();
    let source = format!(
        "#define _GNU_SOURCE\n#include <ioemul.h>\n#include <signal.h>\n#include <sys/mman.h>\n#include <ucontext.h>\n\
         void check(int error); int deny(void); int fault(void); int permitted(const struct ioemul_access *access);\n\
         int access_for(const void *guest_code, size_t fetched, struct ioemul_gprs gprs, uint64_t rip);\n\
         int access_for(const void *guest_code, size_t fetched, struct ioemul_gprs gprs, uint64_t rip) {{\n\
         {program}\nreturn (int)rip;\n}}\n\
         void handle(struct ioemul_table table, uint64_t rip, ucontext_t *context);\n\
         void handle(struct ioemul_table table, uint64_t rip, ucontext_t *context) {{\n\
         uint64_t resume;\n/* {handler}\n}}\n"
    );
    let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).join("capi-readme");
    std::fs::create_dir_all(&directory).unwrap();
    let file = directory.join("readme.c");
    std::fs::write(&file, source).unwrap();
    let mut compile = Command::new("cc");
    compile.args(["-std=c99", "-Wall", "-Wextra", "-Werror", "-pedantic", "-fsyntax-only", "-I"]);
    run(compile.arg(Path::new(PACKAGE).join("include")).arg(file));
}

#[test]
fn the_shared_library_exports_what_the_header_declares() {
    let text = std::fs::read_to_string(prefix().join("include/ioemul.h")).unwrap();
    let mut declared = BTreeSet::new();
    for line in
        text.lines().filter(|line| ["int ", "uint32_t ", "const char *"].iter().any(|kind| line.starts_with(kind)))
    {
        let (before, _) = line.split_once('(').unwrap_or_else(|| panic!("{line}"));
        declared.insert(before.rsplit([' ', '*']).next().unwrap_or_default().to_owned());
    }
    let listed = run(Command::new("nm").args(["-D", "--defined-only"]).arg(prefix().join("lib/libioemul.so")));
    let exported = listed.lines().filter_map(|line| line.rsplit(' ').next()).map(str::to_owned).collect();
    assert_eq!(declared, exported);
    assert!(declared.len() > 20);
}

#[test]
fn no_panic_and_no_allocation_can_be_reached() {
    let graph = reach::Graph::of(&prefix().join("lib/libioemul.so"));
    let is_unwanted = |name: &&str| ["panic", "alloc", "unwrap_failed", "_fail"].iter().any(|part| name.contains(part));
    let ways = graph.ways(|name| name.starts_with("ioemul_"));
    let unwanted: Vec<&String> = ways.iter().filter(|(name, _)| is_unwanted(name)).map(|(_, way)| way).collect();
    assert!(unwanted.is_empty(), "{unwanted:#?}");
    // They would be found: there is code of the core's among what is reached, and what a panic gets to has both.
    assert!(ways.keys().any(|name| name.contains("CodeTable")) && ways.len() > 60, "{:?}", ways.keys());
    let border = graph.ways(|name| name.contains("panic_cannot_unwind"));
    assert!(border.keys().any(|name| name.contains("panic")) && border.keys().any(|name| name.contains("alloc")));
}
