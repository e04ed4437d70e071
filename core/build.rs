//! Says which of Arm's extensions a build is for, where rustc does not: `cfg(arm_dsp)` and `cfg(arm_mve)`.
//!
//! rustc 1.95 shows neither extension to `cfg(target_feature)`, so this reads what cargo was asked for: the target,
//! and the flags for it, wherever they stand (RUSTFLAGS, a config file). No flag, no extension: what is not known to be
//! there is not used.

use std::env;

/// Processors of `thumbv8m.main` that LLVM gives the DSP extension by default.
const WITH_DSP: [&str; 6] = ["cortex-m33", "cortex-m35p", "cortex-m52", "cortex-m55", "cortex-m85", "star-mc1"];

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rustc-check-cfg=cfg(arm_dsp, arm_mve)");
    let target = env::var("TARGET").unwrap_or_default();
    let flags = env::var("CARGO_ENCODED_RUSTFLAGS").unwrap_or_default();
    let features: Vec<_> = values(&flags, "target-feature").iter().flat_map(|value| value.split(',')).collect();
    let has = |feature: &str, default: bool| {
        // As in rustc, the last word counts.
        let last = features.iter().rfind(|word| word.get(1..) == Some(feature));
        last.map_or(default, |word| word.starts_with('+'))
    };
    let dsp = match target.split('-').next() {
        // Armv7E-M is Armv7-M with DSP.
        Some("thumbv7em") => true,
        Some("thumbv8m.main") => {
            has("dsp", values(&flags, "target-cpu").last().is_some_and(|cpu| WITH_DSP.contains(cpu)))
        }
        _ => return,
    };
    if dsp {
        println!("cargo::rustc-cfg=arm_dsp");
    }
    // With `mve.fp`, floats would go through Helium, too, which flushes subnormals: other bits than elsewhere.
    if dsp && has("mve", false) {
        println!("cargo::rustc-cfg=arm_mve");
    }
}

/// What codegen option `name` is set to: `-Cname=value` and `-C name=value`, in their order.
fn values<'f>(flags: &'f str, name: &str) -> Vec<&'f str> {
    let options = flags.split('\x1f').map(|flag| flag.strip_prefix("-C").unwrap_or(flag).trim_start());
    options.filter_map(|option| option.strip_prefix(name)?.strip_prefix('=')).collect()
}
