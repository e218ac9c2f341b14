//! Kernels for arm64: plain and compressed Images, and ELF programs.

use super::common::above_low_memory;
use crate::{
    Error,
    boot::{
        arm64_image::Arm64Image,
        cmdline::ARM64_LIMIT,
        image::{Compression, HEAD_BYTES, Kind},
        memory::{Range, Request, Side},
        packed::{self, Unpacker},
    },
    loader::{
        Board, Failed, HandOff, Protocol,
        fetch::{Unpacking, trace_digest},
        load::Loader,
        payload::{KERNEL, Payload},
    },
};
use core::fmt;

impl<'a: 'm, 'm, B: Board + 'm> Loader<'a, 'm, B> {
    /// Checks that the compressed kernel of an EFI zboot image is completely in the file.
    pub(super) fn zboot_payload(
        &self,
        payload: &Payload<'_, 'm, B>,
        inner: Range,
    ) -> Result<Range, Failed> {
        if payload.kernel.contains(&inner) && inner.size() > 0 {
            return Ok(inner);
        }
        let what = "it is cut off: the file ends before the kernel in it; copy it again";
        Err(self.failed(&payload.path, what))
    }

    #[inline(never)] // Keeps large stack frames from adding up; so do the others in this file.
    pub(super) fn arm64_image(
        &mut self,
        payload: &mut Payload<'_, 'm, B>,
    ) -> Result<HandOff, Failed> {
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

    /// Loads a compressed Image, which is decompressed while it is read. Its start is decompressed first: the
    /// header states how much memory the kernel needs.
    #[inline(never)]
    pub(super) fn arm64_packed(
        &mut self,
        payload: &mut Payload<'_, 'm, B>,
        compression: Compression,
    ) -> Result<HandOff, Failed> {
        let path = &payload.path;
        let (start, size) = (payload.kernel.start, payload.kernel.size());
        let unpacker = self.unpacker(path, compression)?;
        let request = Request {
            side: Side::High,
            ..Request::new("packed kernel", size)
        };
        let packed = self.place(path, &request)?.bytes;
        let mut head = [0; HEAD_BYTES];
        let head_size = self.unpack_head(payload, unpacker, packed, &mut head)?;
        let head = &head[..head_size];
        match Kind::of(head, head_size as u64) {
            Kind::Arm64Image => {}
            kind => {
                let what =
                    format_args!("the compressed file contains {kind}; put an arm64 Image there");
                return Err(self.failed(path, what));
            }
        }
        let image = Arm64Image::parse_packed(head).map_err(|e| self.failed(path, e))?;
        let (kernel, out) = self.place_image(path, &image)?;
        self.want_kernel(payload, start, packed, size)?;
        let argument = self.arm64_argument(payload, kernel, image.device_tree_window(&kernel))?;
        let mut unpacking = Unpacking::new(unpacker, out);
        self.fetch(payload, Some(&mut unpacking))?;
        let size = unpacking.unpacked();
        trace_digest(&payload.path, &out[..size as usize], 0);
        let checked = Arm64Image::check_size(head, size);
        checked.map_err(|e| self.failed(&payload.path, e))?;
        let entry = image.load_address(kernel.start);
        Ok(self.hand_off(entry, argument, Protocol::Linux))
    }

    /// The decompressor and its buffer, in memory of the arena.
    #[inline(never)]
    fn unpacker(
        &mut self,
        path: &[u8],
        compression: Compression,
    ) -> Result<&'m mut Unpacker<'m>, Failed> {
        const WHAT: &str = "memory to unpack in";
        let request = Request {
            side: Side::High,
            ..Request::new(WHAT, packed::SCRATCH_BYTES as u64)
        };
        let scratch = self.place(path, &request)?.bytes.first_chunk_mut();
        let unpacker = scratch.and_then(|scratch| Unpacker::new(compression, scratch));
        // Cannot fail: `Kind::check` has accepted the compression, and the buffer has this size.
        let unpacker = unpacker.ok_or_else(|| self.failed(path, Error::BufferTooSmall))?;
        let kept = self.arena.keep(WHAT, unpacker);
        kept.map_err(|e| self.failed(path, e))
    }

    /// Decompresses the first bytes of the kernel into `head`; returns their number. `packed` is as large as the
    /// compressed kernel.
    #[inline(never)]
    fn unpack_head(
        &self,
        payload: &Payload<'_, 'm, B>,
        unpacker: &mut Unpacker<'_>,
        packed: &mut [u8],
        head: &mut [u8],
    ) -> Result<usize, Failed> {
        let failed = |error: &dyn fmt::Display| self.failed(&payload.path, error);
        let size = payload.kernel.size();
        let some = size.min(unpacker.head_bytes() as u64);
        let packed = packed.get_mut(..some as usize).unwrap_or_default();
        let file = payload.files.get(KERNEL);
        let read = file.read_exact_at(payload.kernel.start, packed);
        read.map_err(|e| failed(&e))?;
        match unpacker.push(packed, head, some == size) {
            Err(error) if !error.is_too_large() => return Err(failed(&error)),
            // The kernel is larger than `head`, as expected.
            _ => {}
        }
        let unpacked = unpacker.unpacked();
        unpacker.restart();
        Ok(unpacked)
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

    /// Loads an ELF program, which is entered like Linux, with the device tree in x0.
    #[inline(never)]
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
