//! Searches for kernels with conventional names.

use super::{BOOT, ROOT, Search};
use crate::{
    Error, FileType,
    boot::{
        conventional::{MODULES_KERNEL, Name, module_initrds},
        version,
    },
    loader::{
        Board, Failed,
        choices::{Content, Listed},
        path::Path,
        shares::BoardDir,
    },
};
use core::cmp::Ordering;

/// How many versions are tried in a directory of modules.
const MAX_VERSIONS: usize = 16;

impl<'m, B: Board> Search<'_, 'm, B> {
    /// Adds the kernel in the share's root or in `/boot` to the list.
    #[inline(never)] // Keeps large stack frames from adding up; so does the other one in this file.
    pub(super) fn conventional(&mut self, directory: &'static str) -> Result<(), Failed> {
        let which = if directory == "/" { ROOT } else { BOOT };
        if which == BOOT && self.boot()?.is_none() {
            return Ok(());
        }
        let Some(names) = self.names(which)? else {
            return Ok(());
        };
        let names = names.conventional.clone();
        let Some(kernel) = names.kernel() else {
            return Ok(());
        };
        let kernel = self.keep(kernel)?;
        let initrd = names.initrd();
        let initrd = initrd.map(|name| self.keep(&name)).transpose()?;
        let content = Content::Conventional {
            directory,
            kernel,
            initrd,
            cmdline: names.cmdline(),
        };
        self.push(kernel, kernel, content);
        Ok(())
    }

    /// Adds the newest kernel in a directory of modules, with a subdirectory for each version, to the list.
    #[inline(never)]
    pub(super) fn modules(&mut self, directory: &'static str) -> Result<(), Failed> {
        if !self.may_be_at(directory.as_bytes())? {
            return Ok(());
        }
        let Some(modules) = self.open_dir(directory.as_bytes())? else {
            return Ok(());
        };
        let mut version = None;
        for _attempt in 0..MAX_VERSIONS {
            let older = newest::<B>(&modules, version.as_ref());
            let Some(older) = self.there(directory.as_bytes(), older)?.flatten() else {
                return Ok(());
            };
            let own = Path::join(directory, &older);
            let kernel = Path::join(&own, MODULES_KERNEL.as_bytes());
            // It may be in the list already: `/lib` may be a link to `/usr/lib`.
            let is_listed = |listed: &Listed<'m, B>| {
                core::ptr::eq(listed.mount, self.mount) && *listed.choice.id == *older
            };
            if self.choices.list.iter().any(is_listed) {
                return Ok(());
            }
            if self.exists(&kernel)? {
                return self.module(&older, &own, &kernel);
            }
            version = Some(older);
        }
        Ok(())
    }

    /// Adds the kernel of a version to the list, with its initrd.
    fn module(&mut self, version: &[u8], own: &Path, kernel: &Path) -> Result<(), Failed> {
        let mut initrd = None;
        for (place, name) in module_initrds(version) {
            if place.is_some() && self.boot()?.is_none() {
                continue;
            }
            let path = match place {
                Some(directory) => Path::join(directory, &name),
                None => Path::join(own, &name),
            };
            if self.exists(&path)? {
                initrd = Some(self.keep(&path)?);
                break;
            }
        }
        let id = self.keep(version)?;
        let kernel = self.keep(kernel)?;
        let content = Content::Conventional {
            directory: "/",
            kernel,
            initrd,
            cmdline: None,
        };
        self.push(id, kernel, content);
        Ok(())
    }

    fn exists(&self, path: &[u8]) -> Result<bool, Failed> {
        let there = self.there(path, self.mount.metadata(path))?;
        Ok(there.is_some_and(|metadata| metadata.is_file()))
    }
}

/// The newest version in a directory; if `than` is given, the newest one older than that.
fn newest<B: Board>(modules: &BoardDir<'_, B>, than: Option<&Name>) -> Result<Option<Name>, Error> {
    let order = |a: &[u8], b: &[u8]| version::compare(a, b).then_with(|| a.cmp(b));
    let mut best: Option<Name> = None;
    super::list::<B>(modules, &mut |name, file_type| {
        let is_dir = matches!(
            file_type,
            None | Some(FileType::Directory | FileType::Symlink)
        );
        let is_older = than.is_none_or(|than| order(name, than) == Ordering::Less);
        let is_newer = best
            .as_ref()
            .is_none_or(|best| order(name, best) == Ordering::Greater);
        if is_dir
            && is_older
            && is_newer
            && let Ok(name) = Name::from_slice(name)
        {
            best = Some(name);
        }
    })?;
    Ok(best)
}
