//! Lets log lines of every level but the lowest two into the firmware, where nobody asked for others.

use std::env;

fn main() {
    // Without it `defmt` keeps errors alone.
    if env::var_os("DEFMT_LOG").is_none() {
        println!("cargo::rustc-env=DEFMT_LOG=info");
    }
    println!("cargo::rerun-if-env-changed=DEFMT_LOG");
    println!("cargo::rerun-if-changed=build.rs");
}
