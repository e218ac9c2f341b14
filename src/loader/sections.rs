//! Reads the section table of a unified kernel image.

use super::{Board, shares::BoardFile};
use crate::{
    Error,
    boot::{
        device_tree::Matching,
        memory::Range,
        uki::{Scan, UkiError},
    },
};

/// Reads all sections of the unified kernel image in the range `image` of `file`, for `profile`. The first
/// `size` bytes of `memory` hold the start of the image; the rest of the section table is read into it.
/// `machine` is the name of the machine, if a `.dtbauto` may be chosen by it.
#[inline(never)] // Keeps large stack frames from adding up.
pub(super) fn image_sections<B: Board>(
    file: &BoardFile<'_, B>,
    image: Range,
    profile: u32,
    machine: Option<&[u8]>,
    memory: &mut [u8],
    size: usize,
) -> Result<Result<Scan, UkiError>, Error> {
    let mut failed = None;
    let is_ours = &mut |tree| {
        let (Some(machine), None) = (machine, failed) else {
            return false;
        };
        let is_ours = is_tree_for::<B>(file, tree, machine);
        is_ours.unwrap_or_else(|error| {
            failed = Some(error);
            false
        })
    };
    let mut scan = match Scan::new(&memory[..size], image, profile, is_ours) {
        Ok(scan) => scan,
        Err(error) => return Ok(Err(error)),
    };
    while let Some(offset) = scan.next_offset() {
        let size = file.read_at(offset, memory)?;
        if let Err(error) = scan.take(&memory[..size], is_ours) {
            return Ok(Err(error));
        }
    }
    match failed {
        Some(error) => Err(error),
        None => Ok(Ok(scan)),
    }
}

/// Whether the device tree in this range of a file describes `machine`.
fn is_tree_for<B: Board>(
    file: &BoardFile<'_, B>,
    tree: Range,
    machine: &[u8],
) -> Result<bool, Error> {
    let mut matching = Matching::new(machine, tree.size());
    let mut piece = [0; Matching::PIECE_BYTES];
    loop {
        let offset = matching.next_offset();
        let size = tree.size().saturating_sub(offset).min(piece.len() as u64);
        let piece = &mut piece[..size as usize];
        let size = file.read_at(tree.start.saturating_add(offset), piece)?;
        if let Some(answer) = matching.take(&piece[..size]) {
            return Ok(answer);
        }
    }
}
