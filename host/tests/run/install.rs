//! How the tests copy programs.

use std::path::Path;
use std::process::Command;

/// Copies a program, in a child process. If this process opened the copy for writing, a child that another test
/// starts at the same time would inherit the descriptor, and a program that is open for writing cannot be executed.
pub(crate) fn install(from: &Path, to: &Path) {
    let mut command = Command::new("install");
    let status = command.args(["-m", "755"]).arg(from).arg(to).status();
    assert!(status.unwrap().success(), "cannot copy {}", from.display());
}
