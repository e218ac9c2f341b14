//! Directories that people have: the whole boot flow, from the search for entries to the hand-off.
//! Kernels are headers, the machine is ordinary memory, so that a boot takes milliseconds.

mod machine;
mod requests;
