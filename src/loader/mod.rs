//! The boot flow, once, over the small trait [`Board`].

mod board;

pub use board::{Architecture, Board, ExitStatus, HandOff};
