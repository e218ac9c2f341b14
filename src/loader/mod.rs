//! The boot flow, over the small trait [`Board`]: discover, mount, choose, place, load, hand off.
//!
//! Floor 6. `unsafe` is used only in `arena`, where free memory becomes slices, and for the two calls that rely on
//! the board: taking over its memory, and the hand-off.
// The crate denies these for the code below, which handles what the host sends; here, they are allowed.
#![allow(
    clippy::arithmetic_side_effects,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic
)]
// Some functions of the common modules are used by optional ones only.
#![cfg_attr(not(feature = "loader"), allow(dead_code))]

mod arena;
#[cfg_attr(not(feature = "shell"), path = "unattended.rs")]
mod attended;
mod board;
#[cfg(feature = "shell")]
mod builtins;
mod choices;
mod console;
#[cfg(feature = "digest")]
mod digest;
#[cfg(feature = "shell")]
mod editor;
mod fetch;
mod flow;
#[cfg(feature = "uki")]
mod images;
mod kernels;
#[cfg(feature = "shell")]
mod keys;
mod load;
#[cfg(feature = "shell")]
mod menu;
#[cfg(any(feature = "shell", feature = "uki"))]
mod names;
#[cfg(feature = "shell")]
mod output;
mod path;
mod payload;
mod search;
#[cfg(feature = "uki")]
mod sections;
mod shares;
#[cfg(feature = "shell")]
mod shell;
#[cfg(feature = "uki")]
mod thin;
mod time_line;
#[cfg(feature = "shell")]
mod walk;

pub use crate::boot::Architecture;
pub use board::{Board, ExitStatus, HandOff, Move, Protocol};

use crate::boot::options::Options;
use arena::Memory;
use attended::State;
use flow::Flow;
use shares::Shares;
use time_line::{Stage, TimeLine};

/// Runs the boot flow on `board` with the options on its command line. This is what a board's firmware calls.
///
/// It ends by starting a payload, or by [`Board::exit`], [`Board::power_off`], [`Board::reset`] or a halt.
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
    let end = attended::work(&flow, state, &mut arena);
    let unmounted = shares.unmount();
    match end {
        End::Start(_) if !shares.are_reset() => {
            log::error!("nothing is started, because a device may still write to memory");
            B::exit(ExitStatus::Failure)
        }
        End::Start(hand_off) => {
            time_line.reach(Stage::HandOff);
            log::debug!("{time_line}");
            // SAFETY: `Flow` has loaded a checked payload of this architecture into free memory, all shares were
            // unmounted, and their devices have confirmed the reset.
            unsafe { board.start(&hand_off) }
        }
        #[cfg(feature = "shell")]
        End::PowerOff => B::power_off(),
        #[cfg(feature = "shell")]
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
    #[cfg(feature = "shell")]
    PowerOff,
    #[cfg(feature = "shell")]
    Reset,
}

/// Something failed, and the error was reported.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Failed;
