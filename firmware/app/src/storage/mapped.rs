//! A model in memory that the processor reads like any other: flash, or RAM that something else has filled.

#![allow(unsafe_code)]

use core::slice;

use super::{Error, Storage};

/// Memory that may hold a model.
#[derive(Debug)]
pub struct Mapped {
    model: Result<&'static [u8], Error>,
}

impl Mapped {
    /// The `len` bytes from `start` on are a model, if `len` is neither 0 nor over `have`; nor all ones, as in a flash that
    /// nobody has written.
    ///
    /// # Safety
    /// `have` bytes from `start` on can be read, and the first `len` of them are never written again.
    pub unsafe fn at(start: *const u8, have: usize, len: u64) -> Self {
        let model = match usize::try_from(len) {
            _ if len == u64::MAX => Err(Error::NotLoaded),
            Ok(0) => Err(Error::NotLoaded),
            // SAFETY: the caller says that these bytes can be read and stay as they are.
            Ok(len) if len <= have => Ok(unsafe { slice::from_raw_parts(start, len) }),
            _ => Err(Error::BeyondMemory { len, have }),
        };
        Mapped { model }
    }

    /// Bytes that the model takes; 0 if there is none.
    pub fn bytes(&self) -> usize {
        self.model.map_or(0, <[u8]>::len)
    }
}

impl Storage for Mapped {
    type Source<'a> = &'static [u8];

    fn open(&mut self) -> Result<&'static [u8], Error> {
        self.model
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lends_the_model_and_not_the_rest() {
        static REGION: [u8; 4] = [1, 2, 3, 4];
        // SAFETY: an immutable static of 4 bytes.
        let open = |len| unsafe { Mapped::at(REGION.as_ptr(), REGION.len(), len) }.open();
        assert_eq!(open(3), Ok(&REGION[..3]));
        assert_eq!(open(0), Err(Error::NotLoaded));
        assert_eq!(open(5), Err(Error::BeyondMemory { len: 5, have: 4 }));
        assert_eq!(open(u64::MAX), Err(Error::NotLoaded));
        assert_eq!(open(1 << 40), Err(Error::BeyondMemory { len: 1 << 40, have: 4 }));
    }
}
