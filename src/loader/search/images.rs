//! Reads the boot entries in unified kernel images.

use super::Search;
use crate::{
    boot::{
        image,
        memory::Range,
        uki::{OsRelease, Profile, Scan},
    },
    loader::{Board, Failed, console::failure, sections::image_sections, shares::BoardFile},
};

impl<'m, B: Board> Search<'_, 'm, B> {
    /// Writes an entry for a profile of a unified kernel image to `text`. Returns its size, `None` if that failed,
    /// and the number of profiles.
    #[inline(never)] // Keeps large stack frames from adding up.
    pub(super) fn image(
        &self,
        path: &[u8],
        file: &BoardFile<'m, B>,
        profile: u32,
        text: &mut [u8],
    ) -> Result<(Option<usize>, u32), Failed> {
        let mut buffer = [0; image::HEAD_BYTES];
        let all = Range::with_size(0, file.metadata().len());
        let parts = file
            .read_at(0, &mut buffer)
            .and_then(|size| image_sections::<B>(file, all, profile, None, &mut buffer, size));
        let uki = match parts.map(|parts| parts.and_then(Scan::finish)) {
            Ok(Ok(uki)) => uki,
            Ok(Err(error)) => {
                failure(&self.mount.shown(path), &error);
                return Ok((None, 0));
            }
            Err(error) => return self.report(path, error).map(|()| (None, 0)),
        };
        // Read the section `.profile`, then `.osrel`.
        let mut end = 0;
        let mut section = |part: Option<Range>, limit: usize| {
            let start = end;
            let Some(part) = part else {
                return Ok(start..start);
            };
            let room = (start + limit).min(buffer.len());
            let size = part.size().min((room - start) as u64) as usize;
            end += file.read_at(part.start, &mut buffer[start..start + size])?;
            Ok(start..end)
        };
        let read = section(uki.profile, image::HEAD_BYTES / 4)
            .and_then(|profile| Ok((profile, section(uki.os_release, image::HEAD_BYTES)?)));
        match read {
            Ok((section, release)) => {
                let profile = Profile::parse(profile, &buffer[section]);
                let release = OsRelease::parse(&buffer[release]);
                let size = release.write_entry(uki.architecture, profile, &[path], text);
                Ok((size, uki.profiles))
            }
            Err(error) => self.report(path, error).map(|()| (None, 0)),
        }
    }
}
