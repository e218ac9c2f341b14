//! The size of a firmware image: its sections, the totals compared with the aims, and the largest
//! symbols.

use std::fmt::Write as _;
use std::path::Path;

use anyhow::Result;
use object::{Object, ObjectSection, ObjectSymbol, SectionFlags, SectionKind, SymbolKind};

use crate::elf::with_image;

/// The aim for code and data, in bytes.
const LOADED_AIM: u64 = 128 << 10;
/// The aim for static memory, in bytes.
const STATIC_AIM: u64 = 512 << 10;
/// How many symbols are listed.
const SYMBOLS: usize = 20;

/// Describes the image at `path`.
///
/// # Errors
/// It cannot be read, or is no ELF file.
pub fn describe(path: &Path) -> Result<String> {
    with_image(path, |image| {
        let mut text = format!("{}\n", path.display());
        sections(image, &mut text)?;
        symbols(image, &mut text)?;
        Ok(text)
    })
}

fn sections(image: &object::File<'_>, text: &mut String) -> Result<()> {
    let (mut loaded, mut reserved) = (0, 0);
    for section in image.sections() {
        let SectionFlags::Elf { sh_flags, .. } = section.flags() else {
            continue;
        };
        if !sh_flags.contains(object::elf::SHF_ALLOC) || section.size() == 0 {
            continue;
        }
        let zeroed = section.kind() == SectionKind::UninitializedData;
        *(if zeroed { &mut reserved } else { &mut loaded }) += section.size();
        let note = if zeroed { "  (static)" } else { "" };
        let name = section.name().unwrap_or("?");
        writeln!(text, "  {name:<24} {:>9} bytes{note}", section.size())?;
    }
    for (what, size, aim) in [
        ("code and data", loaded, LOADED_AIM),
        ("static memory", reserved, STATIC_AIM),
    ] {
        let verdict = if size <= aim { "within" } else { "OVER" };
        let (size, aim) = (kib(size), kib(aim));
        writeln!(
            text,
            "  {what:<24} {size:>9.1} KiB    {verdict} the aim of {aim} KiB"
        )?;
    }
    Ok(())
}

/// The largest symbols.
fn symbols(image: &object::File<'_>, text: &mut String) -> Result<()> {
    let mut symbols: Vec<_> = image
        .symbols()
        .filter(|symbol| symbol.size() > 0)
        .filter(|symbol| matches!(symbol.kind(), SymbolKind::Text | SymbolKind::Data))
        .filter_map(|symbol| Some((symbol.size(), symbol.kind(), symbol.name().ok()?)))
        .collect();
    symbols.sort_by(|a, b| b.0.cmp(&a.0).then(a.2.cmp(b.2)));
    writeln!(text, "  the largest of {} symbols:", symbols.len())?;
    for (size, kind, name) in symbols.into_iter().take(SYMBOLS) {
        let kind = if kind == SymbolKind::Text {
            "code"
        } else {
            "data"
        };
        writeln!(
            text,
            "  {size:>9} {kind} {:#}",
            rustc_demangle::demangle(name)
        )?;
    }
    Ok(())
}

#[allow(clippy::cast_precision_loss, reason = "image sizes are far below 2^52")]
fn kib(bytes: u64) -> f64 {
    bytes as f64 / 1024.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_own_program_has_sections_and_demangled_symbols() {
        let text = describe(&std::env::current_exe().unwrap()).unwrap();
        assert!(text.contains(".text"), "{text}");
        assert!(text.contains("OVER the aim of 128 KiB"), "{text}");
        assert!(text.contains("::"), "{text}");
    }
}
