//! Helpers for all kinds of kernels.

use crate::{
    Error,
    boot::memory::{MIB, Range},
    loader::{
        Board, Failed, HandOff, Protocol,
        load::Loader,
        payload::{KERNEL, Payload, want},
    },
};

pub(super) const PAGE: u64 = 4096;

impl<'a: 'm, 'm, B: Board + 'm> Loader<'a, 'm, B> {
    pub(super) fn hand_off(&self, entry: u64, argument: u64, protocol: Protocol) -> HandOff {
        HandOff {
            entry,
            argument,
            protocol,
            loaded: self.loaded.clone(),
        }
    }

    /// Registers the first `size` of `bytes` to be filled from `offset` of the kernel's file on.
    pub(super) fn want_kernel(
        &self,
        payload: &mut Payload<'_, 'm, B>,
        offset: u64,
        bytes: &'m mut [u8],
        size: u64,
    ) -> Result<(), Failed> {
        match bytes.get_mut(..size as usize) {
            Some(bytes) => {
                want(&mut payload.wanted, KERNEL, offset, bytes);
                Ok(())
            }
            None => Err(self.failed(&payload.path, Error::BufferTooSmall)),
        }
    }
}

/// The addresses from the first MiB to `end`.
pub(super) fn above_low_memory(end: u64) -> Range {
    Range { start: MIB, end }
}
