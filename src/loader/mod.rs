//! The boot flow, over the small trait [`Board`]: discover, mount, choose, place, load, hand off.
//!
//! Floor 6. `unsafe` is used only in `arena`, where free memory becomes slices, and for the two calls that rely on
//! the board: taking over its memory, and the hand-off.

mod arena;
mod attended;
mod board;
mod builtins;
mod choices;
mod console;
mod digest;
mod editor;
mod fetch;
mod flow;
mod images;
mod kernels;
mod keys;
mod load;
mod menu;
mod names;
mod output;
mod path;
mod payload;
mod search;
mod sections;
mod shares;
mod shell;
mod thin;
mod time_line;
mod walk;

pub use crate::boot::Architecture;
pub use board::{Board, ExitStatus, HandOff, Move, Protocol};

use crate::boot::options::{OnError, Options};
use arena::{Arena, Memory};
use core::ops::ControlFlow;
use flow::Flow;
use shares::Shares;
use shell::State;
use time_line::{Stage, TimeLine};

/// Runs the boot flow on `board` with the options on its command line. This is what a board's firmware calls.
///
/// It ends by starting a payload or by [`Board::exit`].
///
/// # Safety
///
/// [`Board::memory_map`], [`Board::occupied`] and [`Board::mapped_end`] must be correct: usable memory below the
/// mapped end that is not occupied must be identity-mapped RAM that nothing else uses. This function must be
/// called only once.
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
    // SAFETY: guaranteed by the caller.
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
            // SAFETY: `Flow` has loaded a checked payload of this architecture into free memory, and all shares
            // were unmounted and their devices reset.
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

/// How the boot flow ends.
#[expect(
    clippy::large_enum_variant,
    reason = "there is only one value at a time"
)]
enum End {
    /// By starting the loaded payload.
    Start(HandOff),
    Exit(ExitStatus),
    Halt,
    PowerOff,
    Reset,
}

/// Runs the commands of the options, or boots; and does what the options require if that fails.
fn work<B: Board>(flow: &Flow<'_, B>, state: &mut State, arena: &mut Arena<'_>) -> End {
    let end = match flow.options.commands {
        None => attended::run(flow, state, arena),
        Some(line) => match builtins::run(flow, line, &mut state.typed, arena) {
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

/// Something failed, and the error was reported.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Failed;
