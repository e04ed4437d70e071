//! Hands the linker esp-hal's memory map.

fn main() {
    println!("cargo::rustc-link-arg=-Tdefmt.x");
    println!("cargo::rustc-link-arg=-Tlinkall.x");
}
