//! Thin images of lanzaboote: unified kernel images that do not contain kernel and initrd, but the paths and
//! SHA-256 of their files (<https://github.com/nix-community/lanzaboote>, "stub").

use super::{
    Board, Failed,
    console::Text,
    digest::DigestText,
    load::Loader,
    path::Path,
    payload::{KERNEL, Payload},
    shares::BoardFile,
};
use crate::boot::{
    entry::{Base, Place},
    memory::{Range, Request, Side},
    uki::Uki,
};

/// Longest path in an image, in bytes.
const MAX_PATH: u64 = 1024;
/// Size in bytes of the buffer through which a file is read for its digest.
const PIECE: u64 = 1 << 20;

impl<'a: 'm, 'm, B: Board + 'm> Loader<'a, 'm, B> {
    /// If `uki` is a thin image, makes the files that it names the payload's kernel and initrd.
    #[inline(never)] // Keeps large stack frames from adding up.
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
                side: Side::High, // Away from the kernel.
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
        // They fit: the list was cleared.
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

    /// Opens the file whose path is in the section `name` of the image, relative to the root of the image's file
    /// system, and checks that it has the digest in the section `digest`.
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
        let found = DigestText::of_file::<B>(&file, buffer);
        let (_, found) = found.map_err(|e| self.failed(&path, e))?;
        let wanted = DigestText(wanted);
        if digest.size() != wanted.0.len() as u64 || found != wanted {
            let what = format_args!(
                "its SHA-256 is {found}, but {} has {wanted}; install both again",
                Text(image_path)
            );
            return Err(self.failed(&path, what));
        }
        Ok((place, file))
    }
}

/// The path of the root of an image's file system, which is the parent of `EFI/Linux`; empty for `/`.
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
