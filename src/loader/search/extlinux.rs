//! Labels of an `extlinux.conf`, and of the files that it includes.

use super::{DIRECT, Search, warn_left_out};
use crate::{
    Error,
    boot::{
        bls::Fit,
        entry::Base,
        extlinux::{Config, Include, MAX_BYTES, MAX_INCLUDES, MAX_LEVELS},
    },
    fuse::NAME_MAX,
    loader::{
        Board, Failed,
        choose::Says,
        console::{Text, failure},
        entry::Path,
        shares::BoardFile,
    },
};
use heapless::Vec;

pub(super) const CONF: &str = "extlinux.conf";
/// What SYSLINUX and EXTLINUX read.
pub(super) const NAMES: [&str; 2] = [CONF, "syslinux.cfg"];
/// The same, as FAT may show them.
pub(super) const UPPER_NAMES: [&str; 2] = ["EXTLINUX.CONF", "SYSLINUX.CFG"];

impl<'m, B: Board> Search<'_, 'm, B> {
    /// The first of these files counts, as on a disk that U-Boot looks at.
    pub(super) fn extlinux(
        &mut self,
        directory: &'static str,
        names: &[&str],
    ) -> Result<(), Failed> {
        // The share's root is listed for what is in `/boot` anyway.
        let has_boot = self.boot.as_ref().is_some_and(Option::is_some);
        let is_listed = self.choices.source >= DIRECT || (directory == "/" && has_boot);
        if is_listed && !self.may_be_at(directory.as_bytes())? {
            return Ok(());
        }
        let dir = match directory {
            "/" => None,
            "/boot" => match self.boot()? {
                Some(_) => None,
                None => return Ok(()),
            },
            _ => match self.open_dir(directory.as_bytes())? {
                Some(dir) => Some(dir),
                None => return Ok(()),
            },
        };
        for name in names {
            let path = Path::join(directory, name.as_bytes());
            if is_listed && !self.may_be_at(&path)? {
                continue;
            }
            let opened = match (&dir, directory) {
                (Some(dir), _) => dir.open_file(name),
                (None, "/boot") => match self.boot()? {
                    Some(boot) => boot.open_file(name),
                    None => Err(Error::NotFound),
                },
                (None, _) => self.mount.open(&*path),
            };
            self.found |= !matches!(opened, Err(Error::NotFound | Error::NotADirectory));
            let Some(text) = self.text(&path, opened, MAX_BYTES)? else {
                continue;
            };
            let text = self.with_included(directory, &path, text)?;
            return self.labels(directory, &path, text);
        }
        Ok(())
    }

    /// Lists the labels, the default one first.
    fn labels(
        &mut self,
        directory: &'static str,
        path: &[u8],
        text: &'m [u8],
    ) -> Result<(), Failed> {
        let config = Config::parse(text);
        self.choices.timeout = self.choices.timeout.or(config.timeout());
        let default = config.default_label();
        let file = self.keep(path)?;
        let room = self.room();
        let count = config.labels().count();
        let first = default.map_or(0, |(index, _)| index);
        let mut listed = 0;
        // Those that are asked for, whichever of many they are, and the default before the others.
        for (asked, is_first) in [(true, true), (true, false), (false, true), (false, false)] {
            for (index, label) in config.labels().enumerate() {
                let fits = |name| Fit::of(name, label.name, label.name) != Fit::None;
                let is_asked = self.look.wanted.is_some_and(fits);
                if (is_asked, index == first) != (asked, is_first) || listed == room {
                    continue;
                }
                listed += 1;
                let more = default
                    .filter(|_| is_first)
                    .map_or(&b""[..], |(_, more)| more);
                let says = Says::Label {
                    directory,
                    text: label.text,
                    append: config.append,
                    more,
                };
                self.push(label.name, file, says);
            }
        }
        if count == 0 {
            let error = "it has no label; add lines `LABEL NAME` and `LINUX PATH`";
            failure(&self.mount.shown(path), &error);
        }
        if count > listed {
            warn_left_out(&self.mount.prefix(), path, count - listed);
        }
        Ok(())
    }

    /// The text with the files that it includes in it.
    fn with_included(
        &mut self,
        directory: &'static str,
        file: &[u8],
        text: &'m [u8],
    ) -> Result<&'m [u8], Failed> {
        if Include::find(text, 0).is_none() {
            return Ok(text);
        }
        let memory = self.take(MAX_BYTES)?;
        let mut size = text.len().min(MAX_BYTES);
        memory[..size].copy_from_slice(&text[..size]);
        // How much of the text is behind each of the files that it is in.
        let mut levels: Vec<usize, MAX_LEVELS> = Vec::new();
        let (mut from, mut count, mut is_reported) = (0, 0, false);
        while let Some(Include { line, path }) = Include::find(&memory[..size], from) {
            while levels.last().is_some_and(|&rest| line.start >= size - rest) {
                levels.pop();
            }
            count += 1;
            // SYSLINUX counts the main file, too.
            let is_deep = levels.len() + 2 > MAX_LEVELS;
            if is_deep || count > MAX_INCLUDES {
                if !is_reported {
                    let error = "it includes too many files, more than 256 or more than 16 levels \
                                 deep; put some of them into one";
                    failure(&self.mount.shown(file), &error);
                }
                is_reported = true;
                from = line.end;
                if count > MAX_INCLUDES {
                    break;
                }
                continue;
            }
            let path = Vec::<u8, { 2 * NAME_MAX }>::from_slice(path);
            let path = path.unwrap_or_default();
            let opened = self.open_included(directory, &path);
            let rest = size - line.end;
            // The rest waits at the end of the memory; the file goes before it.
            memory.copy_within(line.end..size, MAX_BYTES - rest);
            let room = &mut memory[line.start..MAX_BYTES - rest];
            let read = match opened {
                Ok(included) => self.read(&path, Ok(included), room)?,
                Err(error) => {
                    let shown = self.mount.shown(file);
                    failure(&shown, &format_args!("INCLUDE {}: {error}", Text(&path)));
                    None
                }
            };
            let mut end = line.start;
            if let Some(read) = read {
                // There is room: it was read with one byte more.
                end += read + 1;
                memory[end - 1] = b'\n';
            }
            memory.copy_within(MAX_BYTES - rest.., end);
            size = end + rest;
            from = line.start;
            _ = levels.push(rest); // There is room, as was checked.
        }
        Ok(&memory[..size])
    }

    /// Opens a file that is included, by a path as labels have them.
    #[inline(never)] // So that the large frames of the boot flow do not add up.
    fn open_included(
        &self,
        directory: &'static str,
        path: &[u8],
    ) -> Result<BoardFile<'m, B>, Error> {
        let mut opened = Err(Error::NotFound);
        for place in Base::extlinux(directory).places(path) {
            opened = self.mount.open(Path::of(&place));
            if !matches!(opened, Err(Error::NotFound | Error::NotADirectory)) {
                break;
            }
        }
        opened
    }
}
