//! The boot flow, once, over the small trait [`Board`]: discover, mount, choose, place, load, hand
//! off.
//!
//! Floor 6. `unsafe` lives in one room, `arena`, where free memory becomes slices, and at the two
//! calls that need a board's word: taking its memory over, and the hand-off.

mod arena;
mod board;
mod boot;
mod choose;
mod commands;
mod console;
mod entry;
mod names;
mod output;
mod shares;
mod walk;

pub use crate::boot::image::Architecture;
pub use board::{Board, ExitStatus, HandOff};

use crate::boot::options::{OnError, Options};
use arena::Memory;
use boot::Flow;
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

    let mut arena = memory.arena();
    let shares = match Shares::new(&mut arena) {
        Ok(shares) => shares,
        Err(error) => {
            log::error!("{error}");
            B::exit(ExitStatus::Failure)
        }
    };
    shares.mount(&mut board, &options);
    let flow = Flow {
        board: &board,
        options: &options,
        shares,
    };
    let outcome = match options.commands {
        Some(line) => commands::run(&flow, line, &mut arena).map(|()| None),
        None => flow.boot(&mut arena).map(Some),
    };
    let unmounted = shares.unmount();
    let outcome = match outcome {
        // SAFETY: `Flow::boot` put a checked payload of this architecture into memory that was
        // free, and every share was unmounted, its device reset.
        Ok(Some(hand_off)) => unsafe { board.start(&hand_off) },
        Ok(None) => unmounted,
        Err(Failed) => Err(Failed),
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
