//! Reads the labels of an `extlinux.conf` and of the files that it includes.

use super::{Search, warn_left_out};
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
        choices::Content,
        console::{Text, failure},
        path::Path,
        shares::BoardFile,
    },
};
use heapless::Vec;

impl<'m, B: Board> Search<'_, 'm, B> {
    /// Adds the labels to the list, starting with the default one.
    pub(super) fn labels(
        &mut self,
        directory: &'static str,
        path: &[u8],
        text: &'m [u8],
    ) -> Result<(), Failed> {
        let text = self.with_included(directory, path, text)?;
        let config = Config::parse(text);
        self.choices.timeout = self.choices.timeout.or(config.timeout());
        let default = config.default_label();
        let file = self.keep(path)?;
        let room = self.room();
        let count = config.labels().count();
        let first = default.map_or(0, |(index, _)| index);
        let mut listed = 0;
        // Wanted labels come before all others, so that they are in the list even if it gets full, and the
        // default label comes first among each.
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
                let content = Content::Label {
                    directory,
                    text: label.text,
                    append: config.append,
                    more,
                };
                self.push(label.name, file, content);
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

    /// Replaces lines that include files by the content of these files.
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
        // For each open level of included files, the number of bytes after the included text.
        let mut levels: Vec<usize, MAX_LEVELS> = Vec::new();
        let (mut from, mut count, mut is_reported) = (0, 0, false);
        while let Some(Include { line, path }) = Include::find(&memory[..size], from) {
            while levels.last().is_some_and(|&rest| line.start >= size - rest) {
                levels.pop();
            }
            count += 1;
            // Like SYSLINUX, count the main file as a level.
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
            // Move the rest to the end of the memory, and read the file into the space before it.
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
                // It fits: `read` accepts only files shorter than the space.
                end += read + 1;
                memory[end - 1] = b'\n';
            }
            memory.copy_within(MAX_BYTES - rest.., end);
            size = end + rest;
            from = line.start;
            _ = levels.push(rest); // Not full: see `is_deep`.
        }
        Ok(&memory[..size])
    }

    /// Opens an included file, whose path is resolved like those of labels.
    #[inline(never)] // Keeps large stack frames from adding up.
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
