//! The host tool's program: what it can do is in [`cli`] and in the library.

mod cli;

use std::process::ExitCode;

fn main() -> ExitCode {
    cli::main()
}
