//! Log lines: `defmt` frames with the feature of that name, else nothing at all.

#[cfg(all(feature = "semihosted-log", target_os = "none"))]
mod semihosted;

#[cfg(feature = "defmt")]
macro_rules! info {
    ($($arg:tt)*) => { defmt::info!($($arg)*) };
}

#[cfg(not(feature = "defmt"))]
macro_rules! info {
    ($text:literal $(, $arg:expr)*) => {{ $(let _ = &$arg;)* }};
}

pub(crate) use info;
