//! Which entry is started: the first that can be loaded.

use super::{
    Board, Failed, HandOff,
    arena::{Arena, is_x86},
    choose::{self, Choices, Listed},
    entry::{Loader, Path},
    shares::Shares,
};
use crate::boot::options::Options;

/// What the boot flow works with.
pub(super) struct Flow<'a, B: Board> {
    pub board: &'a B,
    pub options: &'a Options<'a>,
    pub shares: &'a Shares<B>,
}

impl<B: Board> Flow<'_, B> {
    /// The entries, or those that `bootshare.entry` names.
    pub fn entries<'m>(&'m self, arena: &mut Arena<'m>) -> Result<Choices<'m, B>, Failed> {
        let mut choices = choose::gather(self.shares, arena)?;
        if let Some(wanted) = self.options.entry
            && !choices.list.is_empty()
        {
            choices.keep(wanted)?;
        }
        Ok(choices)
    }

    /// Loads the first entry that can be loaded; says why others can't.
    #[inline(never)] // So that the large frames of the boot flow do not add up.
    pub fn boot(&self, arena: &mut Arena<'_>) -> Result<HandOff, Failed> {
        let mut arena = arena.rest();
        let choices = self.entries(&mut arena)?;
        for listed in &choices.list {
            // Of a share that was given up nothing more is tried.
            if listed.mount.is_connected()
                && let Ok(hand_off) = self.load(listed, &mut arena)
            {
                return Ok(hand_off);
            }
        }
        self.report_none(&choices.list);
        Err(Failed)
    }

    /// Loads an entry, and says why if it can't.
    #[inline(never)] // As above.
    fn load(&self, listed: &Listed<'_, B>, arena: &mut Arena<'_>) -> Result<HandOff, Failed> {
        let entry = match listed.choice.entry(B::ARCHITECTURE) {
            Ok(entry) => entry,
            Err(error) => {
                if error.is_hidden() {
                    log::info!("{listed}passed over: {error}");
                } else {
                    log::error!("{listed}{error}");
                }
                return Err(Failed);
            }
        };
        let fdtdir = listed.choice.fdtdir();
        if !fdtdir.is_empty() && entry.device_tree.is_none() && !is_x86::<B>() {
            log::warn!(
                "{listed}fdtdir has no effect, the machine's own device tree is used; \
                 name another one with fdt"
            );
        }
        let mount = listed.mount;
        loop {
            let loader = Loader::new(self.board, mount, listed, arena.rest());
            match loader.load(&entry, self.options.payload) {
                Ok(hand_off) => {
                    let kernel = Path::join(entry.directory, entry.kernel);
                    log::info!("starting {}", mount.shown(&kernel));
                    return Ok(hand_off);
                }
                Err(failed) => mount.again(failed)?,
            }
        }
    }

    /// Says what to put into shares that have nothing to boot.
    fn report_none(&self, list: &[Listed<'_, B>]) {
        let is_hidden = |listed: &Listed<'_, B>| {
            let entry = listed.choice.entry(B::ARCHITECTURE);
            entry.is_err_and(|error| error.is_hidden())
        };
        // Otherwise an error line has told of the last one.
        if list.iter().all(is_hidden)
            && let Some(first) = self.shares.mounted.first()
        {
            log::error!(
                "share {}: there is no kernel; put one at /vmlinuz, /Image or \
                 /boot/vmlinuz-VERSION, or an entry at /loader/entries/NAME.conf",
                first.tag()
            );
        }
    }
}
