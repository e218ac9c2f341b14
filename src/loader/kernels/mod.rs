//! Places and loads kernels of each kind, with their parameters.

mod arm64;
mod common;
#[cfg(feature = "elf")]
mod elf;
#[cfg(feature = "packed")]
mod packed;
#[cfg(feature = "elf")]
mod pvh;
mod x86;

use super::{Board, Failed, HandOff, board::is_x86, load::Loader, payload::Payload};
use crate::boot::image::Kind;

impl<'a: 'm, 'm, B: Board + 'm> Loader<'a, 'm, B> {
    /// Loads a kernel of this kind, with its initrds and parameters.
    pub fn load_kernel(
        &mut self,
        kind: Kind,
        payload: &mut Payload<'_, 'm, B>,
    ) -> Result<HandOff, Failed> {
        // `is_x86` is constant: the firmware contains only the code for its own architecture.
        match (is_x86::<B>(), kind) {
            (true, Kind::BzImage) => self.bzimage(payload),
            #[cfg(feature = "elf")]
            (true, Kind::Elf { .. }) => self.pvh(payload),
            #[cfg(feature = "elf")]
            (false, Kind::Elf { .. }) => self.arm64_elf(payload),
            (false, Kind::Arm64Image) => self.arm64_image(payload),
            #[cfg(feature = "packed")]
            (false, Kind::Compressed(compression)) => self.arm64_packed(payload, compression),
            #[cfg(feature = "packed")]
            (
                false,
                Kind::EfiZboot {
                    compression,
                    payload: inner,
                    ..
                },
            ) => {
                payload.kernel = self.zboot_payload(payload, inner)?;
                self.arm64_packed(payload, compression)
            }
            (_, kind) => Err(self.unsupported(kind, &payload.path)),
        }
    }
}
