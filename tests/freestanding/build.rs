fn main() {
    for argument in ["-nostartfiles", "-nostdlib", "-static", "-no-pie", "-Wl,--gc-sections", "-Wl,--entry=roots"] {
        println!("cargo::rustc-link-arg-bins={argument}");
    }
}
