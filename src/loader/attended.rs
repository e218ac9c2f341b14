//! A boot that a user may attend: the menu, the shell, and the first entry if nobody interferes.

pub(super) use super::shell::State;

use super::{
    Board, End, ExitStatus, Failed,
    arena::Arena,
    builtins,
    flow::{Flow, Stop},
    keys,
    menu::{self, Pick},
    shell,
};
use crate::boot::{bls::Timeout, options::OnError};
use core::ops::ControlFlow;

/// The next step after the entries were searched.
#[expect(
    clippy::large_enum_variant,
    reason = "there is only one value at a time"
)]
enum Next {
    End(End),
    Menu,
    Shell,
}

/// Runs the commands of the options, or boots; and does what the options require if that fails.
pub(super) fn work<B: Board>(flow: &Flow<'_, B>, state: &mut State, arena: &mut Arena<'_>) -> End {
    let end = match flow.options.commands {
        None => run(flow, state, arena),
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

/// Starts the entry that the user chooses in the menu, or the first one that can be loaded.
fn run<B: Board>(
    flow: &Flow<'_, B>,
    state: &mut State,
    arena: &mut Arena<'_>,
) -> Result<End, Failed> {
    let mut asked = false;
    loop {
        match look(flow, asked, state, &mut arena.rest())? {
            Next::End(end) => return Ok(end),
            Next::Menu => {}
            Next::Shell => {
                if let Some(end) = shell::run(flow, state, arena) {
                    return Ok(end);
                }
            }
        }
        asked = true;
    }
}

/// Searches for entries, shows the menu if there is one, and loads an entry. With `asked`, the menu is shown in
/// any case.
#[inline(never)] // Keeps large stack frames from adding up.
fn look<'m, B: Board>(
    flow: &'m Flow<'_, B>,
    asked: bool,
    state: &mut State,
    arena: &mut Arena<'m>,
) -> Result<Next, Failed> {
    // Most boots need only the first entry.
    let choices = flow.choices(arena)?;
    let wanted = flow.options.entry;
    flow.more(choices, wanted, false, arena)?;
    let timeout = flow.options.timeout.or(choices.timeout);
    let (seconds, is_hidden) = match timeout.unwrap_or(Timeout::Hidden) {
        _ if asked => (menu::IDLE, false),
        Timeout::Disabled => (0, false),
        Timeout::Hidden | Timeout::Seconds(0) if keys::is_menu_key_held::<B>() => {
            (menu::IDLE, false)
        }
        Timeout::Hidden | Timeout::Seconds(0) => (0, true),
        Timeout::Force => (menu::IDLE, false),
        Timeout::Seconds(seconds) => (seconds, false),
    };
    if seconds > 0 {
        flow.more(choices, wanted, true, arena)?;
    }
    let pick = match (seconds, choices.list.is_empty()) {
        (0, _) => Pick::First,
        (_, false) => menu::show(flow, choices, seconds, &mut state.editor, arena),
        (_, true) if asked => Pick::Shell,
        (_, true) => Pick::First,
    };
    let (index, edited) = match pick {
        Pick::Shell => return Ok(Next::Shell),
        Pick::First => {
            let is_asked = is_hidden.then_some(keys::is_menu_key_held::<B> as fn() -> bool);
            return match flow.first(choices, wanted, is_asked, arena) {
                Ok(hand_off) => Ok(Next::End(End::Start(hand_off))),
                Err(Stop::Asked) => Ok(Next::Menu),
                Err(Stop::Failed) => Err(Failed),
            };
        }
        Pick::Entry(index) => (index, None),
        Pick::Edited(index) => (index, Some(state.editor.text())),
    };
    match flow.load(&choices.list[index], edited, wanted.is_some(), arena) {
        Ok(hand_off) => Ok(Next::End(End::Start(hand_off))),
        // The error was reported; the user may choose another entry.
        Err(Failed) => Ok(Next::Menu),
    }
}
