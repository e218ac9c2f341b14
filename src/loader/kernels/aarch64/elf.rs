//! ELF programs for arm64.

use crate::{
    boot::memory::Range,
    loader::{Board, Failed, HandOff, Protocol, load::Loader, payload::Payload},
};

impl<'a: 'm, 'm, B: Board + 'm> Loader<'a, 'm, B> {
    /// Loads an ELF program, which is entered like Linux, with the device tree in x0.
    #[inline(never)] // Keeps large stack frames from adding up.
    pub(super) fn arm64_elf(
        &mut self,
        payload: &mut Payload<'_, 'm, B>,
    ) -> Result<HandOff, Failed> {
        let (elf, segments) = self.segments(payload)?;
        let address = elf.physical_entry(&segments);
        let address = address.map_err(|e| self.failed(&payload.path, e))?;
        self.place_segments(payload, &segments, None)?;
        let argument = self.arm64_argument(payload, Range::with_size(address, 1), None)?;
        self.fetch(payload, None)?;
        Ok(self.hand_off(address, argument, Protocol::Linux))
    }
}
