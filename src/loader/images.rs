//! Unified kernel images: what is in them becomes the parts of a payload, as systemd-stub has it
//! (systemd-stub(7)).

use super::{
    Board, Failed,
    arena::is_x86,
    entry::{DEVICE_TREE, KERNEL, Loader, MAX_DEVICE_TREE, Payload},
    shares::image_parts,
};
use crate::boot::{
    device_tree,
    entry::Entry,
    image::{self, Kind},
    uki::Uki,
};

/// How many images may be in one another: one in another, as Ubuntu signs them.
const MAX_LEVELS: u32 = 2;

impl<'a: 'm, 'm, B: Board + 'm> Loader<'a, 'm, B> {
    /// While what was found is an EFI program, it is an image, and what is in it is found. The kind
    /// of what is in the innermost one.
    pub fn open_images(
        &mut self,
        entry: &Entry<'m>,
        mut kind: Kind,
        payload: &mut Payload<'a, 'm, B>,
    ) -> Result<Kind, Failed> {
        let mut profile = entry.profile;
        for level in 0.. {
            let Kind::Efi { .. } = kind else {
                break;
            };
            if level == MAX_LEVELS {
                let what = format_args!(
                    "more than {MAX_LEVELS} EFI programs are in one another; take the inner one out \
                     with objcopy -O binary -j .linux FILE INNER"
                );
                return Err(self.failed(&payload.path, what));
            }
            let uki = self.image(profile, level, payload)?;
            let uki = self.with_named_files(uki, payload)?;
            self.take_parts(&uki, payload)?;
            profile = 0;
            kind = self.kind(payload)?;
        }
        Ok(kind)
    }

    /// The parts of the image that the kernel is to be in. What the kernel is then is not known yet.
    #[inline(never)] // So that the large frames of the boot flow do not add up.
    fn image(
        &self,
        profile: u32,
        level: u32,
        payload: &mut Payload<'a, 'm, B>,
    ) -> Result<Uki, Failed> {
        let machine = match is_x86::<B>() {
            true => None,
            false => self.board.device_tree().and_then(device_tree::machine),
        };
        let (name, path) = (self.name, &payload.path);
        let (file, head) = (payload.files.get(KERNEL), &mut payload.head);
        let size = head.len();
        _ = head.resize_default(image::HEAD_BYTES); // It has room.
        let parsed = image_parts::<B>(file, payload.kernel, profile, machine, head, size);
        let parsed = parsed.map_err(|e| self.failed(path, e))?;
        let uki = parsed.map_err(|e| match level {
            0 => self.failed(path, e),
            _ => self.failed(path, format_args!("what its section .linux holds: {e}")),
        })?;
        let others = uki.other_trees;
        if others > 0 {
            log::info!(
                "{name}{path}: its {others} device trees for other machines (.dtbauto) are not used"
            );
        }
        payload.kernel = uki.linux;
        Ok(uki)
    }

    /// Notes the parts of an image but for the kernel. What an outer one has it hands to the inner one:
    /// a command line in place of that one's own, and initrds before its own, but for microcode.
    fn take_parts(&mut self, uki: &Uki, payload: &mut Payload<'a, 'm, B>) -> Result<(), Failed> {
        let (path, (place, file)) = (&payload.path, &payload.files.list[KERNEL]);
        if payload.inner.is_empty()
            && let Some(part) = uki.cmdline
        {
            payload.inner = self.inner_command_line(path, file, part)?;
        }
        if let Some(part) = uki.device_tree
            && !is_x86::<B>()
        {
            let blob = self.small_part(path, file, part, DEVICE_TREE, MAX_DEVICE_TREE)?;
            payload.tree = Some((*place, blob));
        }
        if let Some(part) = uki.ucode {
            self.add_initrd(payload, 0, (KERNEL, part), false)?;
            payload.before += 1;
        }
        if let Some(part) = uki.initrd {
            self.add_initrd(payload, payload.initrds.len(), (KERNEL, part), false)?;
        }
        Ok(())
    }
}
