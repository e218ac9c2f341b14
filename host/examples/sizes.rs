//! The size of firmware images by module, as a table in a document: `sizes DOCUMENT NAME=IMAGE...`. The table replaces
//! everything after the line [`MARK`], so that a review sees what has grown.

use std::path::PathBuf;
use std::{env, fs};

use anyhow::{Context, Result};
use bootshare_host::size;

/// The line before the table.
const MARK: &str = "<!-- The rest is written by `make size`. -->";

fn main() -> Result<()> {
    let usage = "usage: sizes DOCUMENT NAME=IMAGE...";
    let mut args = env::args().skip(1);
    let document = PathBuf::from(args.next().context(usage)?);
    let images: Vec<_> = args.collect();
    let images: Option<Vec<_>> = images.iter().map(|arg| arg.split_once('=')).collect();
    let images: Vec<_> = images.context(usage)?;
    let images: Vec<_> = images
        .iter()
        .map(|(name, path)| (*name, path.as_ref()))
        .collect();
    let table = size::table(&images)?;
    print!("{table}");
    let text = fs::read_to_string(&document)?;
    let (before, _) = text
        .split_once(MARK)
        .with_context(|| format!("{} has no line {MARK}", document.display()))?;
    fs::write(&document, format!("{before}{MARK}\n\n{table}"))?;
    Ok(())
}
