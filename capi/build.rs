//! The shared library says what it is called, so that programs ask for the interface and not for the file that they were
//! linked with.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    if std::env::var("CARGO_CFG_TARGET_OS").is_ok_and(|system| system == "linux") {
        // The upper half of the interface's version.
        println!("cargo::rustc-cdylib-link-arg=-Wl,-soname,libioemul.so.1");
    }
}
