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
mod fetch;
mod images;
mod keys;
mod line;
mod menu;
mod names;
mod output;
mod payload;
mod search;
mod shares;
mod shell;
mod thin;
mod time_line;
mod walk;

pub use crate::boot::image::Architecture;
pub use board::{Board, ExitStatus, HandOff, Move, Protocol};

use crate::boot::options::{OnError, Options};
use arena::{Arena, Memory};
use boot::Flow;
use core::ops::ControlFlow;
use shares::Shares;
use shell::State;
use time_line::{Stage, TimeLine};

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
    log::info!("version {}", env!("CARGO_PKG_VERSION"));
    // SAFETY: promised by the caller.
    let mut memory = unsafe { Memory::of(&board) };

    let mut arena = memory.arena();
    let kept = Shares::new(&mut arena)
        .and_then(|shares| State::new(&mut arena).map(|state| (shares, state)));
    let (shares, state) = match kept {
        Ok(kept) => kept,
        Err(error) => {
            log::error!("{error}");
            B::exit(ExitStatus::Failure)
        }
    };
    let time_line = TimeLine::of(&board);
    shares.mount(&mut board, &options, &time_line);
    let flow = Flow {
        board: &board,
        options: &options,
        shares,
        time_line: &time_line,
    };
    let end = work(&flow, state, &mut arena);
    let unmounted = shares.unmount();
    match end {
        End::Start(hand_off) => {
            time_line.reach(Stage::HandOff);
            log::debug!("{time_line}");
            // SAFETY: `Flow` put a checked payload of this architecture into memory that was free,
            // and every share was unmounted, its device reset.
            unsafe { board.start(&hand_off) }
        }
        End::PowerOff => B::power_off(),
        End::Reset => B::reset(),
        End::Exit(ExitStatus::Success) if unmounted.is_ok() => B::exit(ExitStatus::Success),
        End::Exit(_) => B::exit(ExitStatus::Failure),
        End::Halt => {
            log::info!("halted; end the machine from outside");
            loop {
                crate::hal::Clock::relax(&board.clock());
            }
        }
    }
}

/// What the machine goes on with.
#[expect(clippy::large_enum_variant, reason = "there is one at a time")]
enum End {
    /// The payload that was loaded.
    Start(HandOff),
    Exit(ExitStatus),
    Halt,
    PowerOff,
    Reset,
}

/// Does what the options say: commands, or else a boot; and what is to follow if that fails.
fn work<B: Board>(flow: &Flow<'_, B>, state: &mut State, arena: &mut Arena<'_>) -> End {
    let end = match flow.options.commands {
        None => flow.run(state, arena),
        Some(line) => match commands::run(flow, line, &mut state.typed, arena) {
            ControlFlow::Break(Some(end)) => Ok(end),
            ControlFlow::Break(None) | ControlFlow::Continue(true) => {
                Ok(End::Exit(ExitStatus::Success))
            }
            ControlFlow::Continue(false) => Err(Failed),
        },
    };
    let failure = End::Exit(ExitStatus::Failure);
    match (end, flow.options.on_error) {
        (Ok(end), _) => end,
        (Err(Failed), OnError::Exit) => failure,
        (Err(Failed), OnError::Shell) => shell::run(flow, state, arena).unwrap_or(failure),
        (Err(Failed), OnError::Halt) => End::Halt,
    }
}

/// Something failed, and an error line has said what.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Failed;
