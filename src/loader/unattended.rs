//! A boot without menu and shell, for firmware without the feature `shell`: starts the first entry that can be
//! loaded.

use super::{Board, End, ExitStatus, Failed, arena::Arena, flow::Flow};
use crate::boot::{memory::PlacementError, options::OnError};

/// The state of menu and shell, which do not exist here.
pub(super) struct State;

impl State {
    pub fn new<'m>(arena: &mut Arena<'m>) -> Result<&'m mut Self, PlacementError> {
        arena.keep("state", Self)
    }
}

/// Boots, and does what the options require if that fails.
pub(super) fn work<B: Board>(flow: &Flow<'_, B>, _: &mut State, arena: &mut Arena<'_>) -> End {
    let options = flow.options;
    if options.commands.is_some() || options.on_error == OnError::Shell {
        log::error!(
            "this firmware has no shell; remove bootshare.cmd and bootshare.on-error=shell"
        );
        return End::Exit(ExitStatus::Failure);
    }
    match (flow.chosen(None, arena), options.on_error) {
        (Ok(hand_off), _) => End::Start(hand_off),
        (Err(Failed), OnError::Halt) => End::Halt,
        (Err(Failed), _) => End::Exit(ExitStatus::Failure),
    }
}
