//! Kernels for x86-64: bzImages, started by the 64-bit boot protocol, and ELF programs, started by PVH.

#[cfg(feature = "elf")]
mod pvh;

use super::common::{PAGE, above_low_memory};
use crate::{
    Error,
    boot::{
        bzimage::BzImage,
        image::Kind,
        memory::Request,
        zero_page::{self, Parameters, ZERO_PAGE_BYTES},
    },
    loader::{Board, Failed, HandOff, Protocol, load::Loader, payload::Payload},
};

impl<'a: 'm, 'm, B: Board + 'm> Loader<'a, 'm, B> {
    /// Loads a kernel of this kind for x86-64.
    pub(super) fn load_x86_64(
        &mut self,
        kind: Kind,
        payload: &mut Payload<'_, 'm, B>,
    ) -> Result<HandOff, Failed> {
        match kind {
            Kind::BzImage => self.bzimage(payload),
            #[cfg(feature = "elf")]
            Kind::Elf { .. } => self.pvh(payload),
            kind => Err(self.unsupported(kind, &payload.path)),
        }
    }

    #[inline(never)] // Keeps large stack frames from adding up.
    fn bzimage(&mut self, payload: &mut Payload<'_, 'm, B>) -> Result<HandOff, Failed> {
        let image = BzImage::parse(&payload.head, payload.kernel.size());
        let image = image.map_err(|e| self.failed(&payload.path, e))?;
        let kernel = self.place(&payload.path, &image.memory_request())?;
        let load_address = kernel.range.start;
        let offset = payload.kernel.start + image.setup_bytes;
        self.want_kernel(payload, offset, kernel.bytes, image.payload_bytes)?;
        self.add_loaded(load_address, image.payload_bytes);
        let initrd = self.place_initrds(payload, 0, image.initrd_limit())?;
        let limit = image.cmdline_size as usize;
        let within = above_low_memory(image.limit());
        let (_, line) = self.command_line(payload, limit, within)?;
        let argument = self.zero_page(
            payload,
            &image,
            &Parameters {
                load_address,
                command_line: line.start,
                initrd,
                memory_map: self.board.memory_map(),
                acpi_rsdp: self.board.acpi_rsdp(),
            },
        )?;
        self.fetch(payload, None)?;
        Ok(self.hand_off(image.entry(load_address), argument, Protocol::Linux))
    }

    fn zero_page(
        &mut self,
        payload: &Payload<'_, 'm, B>,
        image: &BzImage,
        parameters: &Parameters<'_>,
    ) -> Result<u64, Failed> {
        let path = &payload.path;
        let request = Request {
            align: PAGE,
            max: image.limit(),
            ..Request::new("zero page", ZERO_PAGE_BYTES as u64)
        };
        let block = self.place(path, &request)?;
        let page = block
            .bytes
            .first_chunk_mut()
            .ok_or_else(|| self.failed(path, Error::BufferTooSmall))?;
        let filled = zero_page::fill(page, &payload.head, image, parameters);
        filled.map_err(|e| self.failed(path, e))?;
        Ok(block.range.start)
    }
}
