//! Searches for an `extlinux.conf`.

use super::{DIRECT, Search};
#[cfg(not(feature = "extlinux"))]
use crate::loader::console::failure;
use crate::{
    Error,
    boot::extlinux::MAX_BYTES,
    loader::{Board, Failed, path::Path},
};

pub(super) const CONF: &str = "extlinux.conf";
/// The names that EXTLINUX and SYSLINUX read.
pub(super) const NAMES: [&str; 2] = [CONF, "syslinux.cfg"];
/// The same names in upper case, as FAT may show them.
pub(super) const UPPER_NAMES: [&str; 2] = ["EXTLINUX.CONF", "SYSLINUX.CFG"];

impl<'m, B: Board> Search<'_, 'm, B> {
    /// Adds the labels of the first of these files that exists, as U-Boot does it.
    pub(super) fn extlinux(
        &mut self,
        directory: &'static str,
        names: &[&str],
    ) -> Result<(), Failed> {
        // If `/boot` exists, the share's root is listed in any case.
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
            return self.labels(directory, &path, text);
        }
        Ok(())
    }

    /// Without the feature `extlinux`, the file is refused. Kernels with conventional names are not tried then: the
    /// file may ask for another kernel.
    #[cfg(not(feature = "extlinux"))]
    fn labels(&mut self, _: &'static str, path: &[u8], _: &'m [u8]) -> Result<(), Failed> {
        let error = "this firmware was built without support for it";
        failure(&self.mount.shown(path), &error);
        Ok(())
    }
}
