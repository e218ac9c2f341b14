//! Directories that people have: the whole boot flow, from the search for entries to the hand-off.
//!
//! A kernel is a header, and the machine ordinary memory, so that a boot takes milliseconds; the tests in
//! `tests/boot` do the same with the real things.

mod machine;
mod requests;
mod trees;
