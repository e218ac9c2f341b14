//! The boot flow, once, over the small trait [`Board`]: discover, mount, choose, place, load, hand
//! off.
//!
//! Floor 6. `unsafe` lives in one room, `arena`, where free memory becomes slices, and at the two
//! calls that need a board's word: taking its memory over, and the hand-off.

mod arena;
mod board;
mod choose;
mod commands;
mod console;
mod entry;
mod names;
mod output;
mod payload;
mod shares;
mod walk;

pub use crate::boot::image::Architecture;
pub use board::{Board, ExitStatus, HandOff, Move, Protocol};

use crate::{
    Error,
    boot::options::{OnError, Options},
};
use arena::Memory;
use shares::Shares;

/// Runs the boot flow on `board`, as its command line says. The way in for a board's firmware.
///
/// It ends in a payload or in [`Board::exit`].
///
/// # Safety
///
/// What [`Board::memory_map`], [`Board::occupied`] and [`Board::mapped_end`] say must be true:
/// usable memory that is not occupied is identity-mapped RAM that nothing else uses. To be called
/// once.
pub unsafe fn run<B: Board + 'static>(mut board: B) -> ! {
    console::install::<B>();
    let options = match Options::parse(board.command_line()) {
        Ok(options) => options,
        Err(error) => {
            log::error!("{error}");
            B::exit(ExitStatus::Failure)
        }
    };
    log::set_max_level(options.log);
    // SAFETY: promised by the caller.
    let mut memory = unsafe { Memory::of(&board) };

    let mut shares = Shares::find(&mut board, &options);
    let outcome = match options.commands {
        Some(line) => commands::run::<B>(line, &options, &mut shares, &mut memory),
        None => boot(&mut board, &options, &mut shares, &mut memory),
    };
    match (outcome, options.on_error) {
        (Ok(()), _) => B::exit(ExitStatus::Success),
        (Err(Failed), OnError::Exit) => B::exit(ExitStatus::Failure),
        (Err(Failed), OnError::Shell) => {
            log::error!("bootshare.on-error=shell: there is no shell yet; use exit or halt");
            B::exit(ExitStatus::Failure)
        }
        (Err(Failed), OnError::Halt) => {
            log::info!("halted; end the machine from outside");
            loop {
                crate::hal::Clock::relax(&board.clock());
            }
        }
    }
}

/// Something failed, and an error line has said what.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Failed;

/// Mounts one share after the other until an entry of one starts. Comes back only if none did.
#[inline(never)] // So that the large frames of the boot flow do not add up.
fn boot<B: Board>(
    board: &mut B,
    options: &Options<'_>,
    shares: &mut Shares<B>,
    memory: &mut Memory,
) -> Result<(), Failed> {
    if options.timeout.is_some() {
        log::warn!("bootshare.timeout has no effect yet");
    }
    while let Some(mounted) = shares.mount_next() {
        let Ok(share) = mounted else { continue };
        let hand_off = entry::load(board, options, &share, memory);
        let tag = share.tag();
        match share.unmount() {
            // An error line has told of the share that was lost.
            Ok(()) | Err(Error::Disconnected) => {}
            Err(error) => log::warn!("share {tag}: {error}"),
        }
        if let Ok((hand_off, kernel)) = hand_off {
            log::info!("starting {kernel}");
            // SAFETY: `entry::load` put a checked payload of this architecture into memory that
            // was free, and every share was unmounted, its device reset.
            unsafe { board.start(&hand_off) }
        }
    }
    Err(Failed)
}
