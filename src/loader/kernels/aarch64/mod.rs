//! Kernels for arm64: Images, plain and compressed, and ELF programs, which are entered in the same way.

#[cfg(feature = "elf")]
mod elf;
#[cfg(feature = "packed")]
mod packed;

use super::common::above_low_memory;
use crate::{
    boot::{arm64_image::Arm64Image, cmdline::ARM64_LIMIT, image::Kind, memory::Range},
    loader::{Board, Failed, HandOff, Protocol, load::Loader, payload::Payload},
};

impl<'a: 'm, 'm, B: Board + 'm> Loader<'a, 'm, B> {
    /// Loads a kernel of this kind for arm64.
    pub(super) fn load_aarch64(
        &mut self,
        kind: Kind,
        payload: &mut Payload<'_, 'm, B>,
    ) -> Result<HandOff, Failed> {
        self.check(kind, payload)?; // The host may not have decompressed it.
        match kind {
            Kind::Arm64Image => self.arm64_image(payload),
            #[cfg(feature = "elf")]
            Kind::Elf { .. } => self.arm64_elf(payload),
            #[cfg(feature = "packed")]
            Kind::Compressed(compression) => self.arm64_packed(payload, compression),
            #[cfg(feature = "packed")]
            Kind::EfiZboot {
                compression,
                payload: inner,
                ..
            } => {
                payload.kernel = self.zboot_payload(payload, inner)?;
                self.arm64_packed(payload, compression)
            }
            kind => Err(self.unsupported(kind, &payload.path)),
        }
    }

    #[inline(never)] // Keeps large stack frames from adding up.
    fn arm64_image(&mut self, payload: &mut Payload<'_, 'm, B>) -> Result<HandOff, Failed> {
        let Range { start, .. } = payload.kernel;
        let size = payload.kernel.size();
        let image = Arm64Image::parse(&payload.head, size);
        let image = image.map_err(|e| self.failed(&payload.path, e))?;
        let (kernel, bytes) = self.place_image(&payload.path, &image)?;
        self.want_kernel(payload, start, bytes, size)?;
        let argument = self.arm64_argument(payload, kernel, image.device_tree_window(&kernel))?;
        self.fetch(payload, None)?;
        let entry = image.load_address(kernel.start);
        Ok(self.hand_off(entry, argument, Protocol::Linux))
    }

    /// Allocates memory for a kernel; returns its range, and the bytes from the start of the image on.
    fn place_image(
        &mut self,
        path: &[u8],
        image: &Arm64Image,
    ) -> Result<(Range, &'m mut [u8]), Failed> {
        let checked = image.check_page_size(|bytes| self.board.has_pages(bytes));
        checked.map_err(|e| self.failed(path, e))?;
        let kernel = self.place(path, &image.memory_request())?;
        let start = image.load_address(kernel.range.start);
        // With the caches off, the kernel also uses the memory after the end of its file, as a stack.
        self.add_loaded(start, kernel.range.end - start);
        let before = (start - kernel.range.start) as usize;
        Ok((kernel.range, &mut kernel.bytes[before..]))
    }

    /// Places initrds, command line and device tree of a kernel, the device tree within the range `device_tree` if
    /// given. Returns the kernel's argument: the address of the device tree.
    fn arm64_argument(
        &mut self,
        payload: &mut Payload<'_, 'm, B>,
        kernel: Range,
        device_tree: Option<Range>,
    ) -> Result<u64, Failed> {
        let window = Arm64Image::initrd_window(&kernel);
        let initrd = self.place_initrds(payload, window.start, window.end)?;
        let within = above_low_memory(u64::MAX);
        let (line, _) = self.command_line(payload, ARM64_LIMIT, within)?;
        self.device_tree(payload, line, initrd, device_tree)
    }
}
