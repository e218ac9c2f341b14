//! Images of lanzaboote: unified kernel images that name the files of kernel and initrd, with their SHA-256,
//! in place of having them (<https://github.com/nix-community/lanzaboote>, "stub").

use super::{
    Board, Failed,
    console::Text,
    entry::{KERNEL, Loader, Path, Payload},
    output::{DigestText, Output},
    shares::BoardFile,
};
use crate::boot::{
    entry::{Base, Place},
    memory::{Range, Request, Side},
    uki::Uki,
};

/// Longest path in an image, in bytes.
const MAX_PATH: u64 = 1024;
/// How much of a file is read at a time for its digest, in bytes.
const PIECE: u64 = 1 << 20;

impl<'a: 'm, 'm, B: Board + 'm> Loader<'a, 'm, B> {
    /// Puts the kernel and the initrd that `uki` names, if it does, in place of what is in the image.
    #[inline(never)] // So that the large frames of the boot flow do not add up.
    pub fn with_named_files(
        &mut self,
        uki: Uki,
        payload: &mut Payload<'a, 'm, B>,
    ) -> Result<Uki, Failed> {
        let Some(linux_digest) = uki.linux_digest else {
            return Ok(uki);
        };
        let path = payload.files.path(KERNEL);
        let image = payload.files.get(KERNEL);
        if let Some(part) = uki.cmdline {
            payload.inner = self.inner_command_line(&path, image, part)?;
        }
        let buffer = self.place(
            &path,
            &Request {
                side: Side::High, // Out of the kernel's way.
                ..Request::new("buffer", PIECE)
            },
        )?;
        let buffer = buffer.bytes;
        let kernel = self.named_file(&path, image, (uki.linux, linux_digest), buffer)?;
        let initrd = match uki.initrd.zip(uki.initrd_digest) {
            Some(named) => Some(self.named_file(&path, image, named, buffer)?),
            None => None,
        };
        let files = &mut payload.files.list;
        files.clear();
        let sizes = [Some(&kernel), initrd.as_ref()].map(|file| {
            let file = file.map(|(_, file)| file.metadata().len());
            Range::with_size(0, file.unwrap_or(0))
        });
        payload.kernel = sizes[0];
        payload.path = Path::of(&kernel.0);
        // There is room for both, and those of an entry.
        _ = files.push(kernel);
        if let Some(initrd) = initrd {
            _ = payload.initrds.push((files.len(), sizes[1]));
            _ = files.push(initrd);
        }
        Ok(Uki {
            initrd: None,
            ucode: None,
            cmdline: None,
            device_tree: None,
            ..uki
        })
    }

    /// The file whose path, from the root of the image's file system, is in the first part of it, if it
    /// has the digest that is in the second one.
    fn named_file(
        &mut self,
        image_path: &Path,
        image: &BoardFile<'_, B>,
        (name, digest): (Range, Range),
        buffer: &mut [u8],
    ) -> Result<(Place<'m>, BoardFile<'a, B>), Failed> {
        let name: &[u8] = self.small_part(image_path, image, name, "path", MAX_PATH)?;
        let name = name.split(|&byte| byte == 0).next().unwrap_or_default();
        let is_slash = |byte: &u8| matches!(byte, b'/' | b'\\');
        let name = &name[name.iter().take_while(|byte| is_slash(byte)).count()..];
        let root = root_of(image_path);
        let request = Request {
            side: Side::High,
            ..Request::new("path", (root.len() + 1 + name.len()) as u64)
        };
        let path = self.place(image_path, &request)?.bytes;
        path.fill(b'/');
        let path = &mut path[..root.len() + 1 + name.len()];
        let (start, end) = path.split_at_mut(root.len());
        start.copy_from_slice(root);
        for (place, &byte) in end[1..].iter_mut().zip(name) {
            *place = if is_slash(&byte) { b'/' } else { byte };
        }
        let (place, file) = self.open(&Base::Exact("/"), path)?;
        let path = Path::of(&place);

        let mut wanted = [0; 32];
        let known = image.read_exact_at(digest.start, &mut wanted);
        known.map_err(|e| self.failed(image_path, e))?;
        let found = Output::<B>::new(buffer).digest(&file);
        let (_, found) = found.map_err(|e| self.failed(&path, e))?;
        if digest.size() != wanted.len() as u64 || !found.is(&wanted) {
            let what = format_args!(
                "its SHA-256 is {found}, not the one that {} has: {}; install both again",
                Text(image_path),
                DigestText::from(wanted)
            );
            return Err(self.failed(&path, what));
        }
        Ok((place, file))
    }
}

/// The root of an image's file system, whose `/EFI/Linux` it is in: nothing for `/`.
pub fn root_of(image: &[u8]) -> &[u8] {
    let efi = |part: &[u8]| part.eq_ignore_ascii_case(b"/EFI/");
    let at = image.windows(5).rposition(efi);
    image.get(..at.unwrap_or(0)).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::root_of;

    #[test]
    fn paths_start_at_the_root_of_the_image_s_file_system() {
        assert_eq!(root_of(b"/EFI/Linux/a.efi"), b"");
        assert_eq!(root_of(b"/boot/efi/EFI/Linux/a.efi"), b"/boot/efi");
        assert_eq!(root_of(b"/a.efi"), b"");
    }
}
