//! Compressed arm64 kernels.

use crate::{
    Error,
    boot::{
        arm64_image::Arm64Image,
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
}
