//! Places and loads kernels of each kind, with their parameters: a module for each architecture.

mod aarch64;
mod common;
#[cfg(feature = "elf")]
mod segments;
mod x86_64;

use super::{Board, Failed, HandOff, load::Loader, payload::Payload};
use crate::boot::{Architecture, image::Kind};

impl<'a: 'm, 'm, B: Board + 'm> Loader<'a, 'm, B> {
    /// Loads a kernel of this kind, with its initrds and parameters.
    pub fn load_kernel(
        &mut self,
        kind: Kind,
        payload: &mut Payload<'_, 'm, B>,
    ) -> Result<HandOff, Failed> {
        // This is constant: the firmware contains only the code for its own architecture.
        match B::ARCHITECTURE {
            Architecture::X86_64 => self.load_x86_64(kind, payload),
            Architecture::Aarch64 => self.load_aarch64(kind, payload),
        }
    }
}
