//! Tells the linker where the program starts.

fn main() {
    println!("cargo::rustc-link-arg=--entry=probe");
    println!("cargo::rerun-if-changed=build.rs");
}
