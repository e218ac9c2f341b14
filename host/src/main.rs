//! Command line of the host tool.

fn main() {}
