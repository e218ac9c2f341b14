//! The size of a firmware image: sections, totals against the aims, the largest symbols, and a table by module.

use std::collections::{BTreeMap, BTreeSet};
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

/// A table of the size of several images, named by their columns: one row for each part, the largest in the first
/// image first.
///
/// # Errors
/// An image cannot be read, or is no ELF file.
pub fn table(images: &[(&str, &Path)]) -> Result<String> {
    let mut columns = Vec::new();
    for (_, path) in images {
        columns.push(with_image(path, |image| Ok(parts(image)))?);
    }
    let mut names: BTreeSet<&str> = BTreeSet::new();
    for column in &columns {
        let large = column.iter().filter(|(_, size)| **size >= SMALL);
        names.extend(large.map(|(name, _)| name.as_str()));
    }
    let cell = |column: &Parts, name| column.get(name).copied().unwrap_or(0);
    let mut rows: Vec<_> = names
        .iter()
        .map(|name| (*name, columns.iter().map(|c| cell(c, *name)).collect()))
        .collect();
    rows.sort_by(|a: &(_, Vec<_>), b| b.1.cmp(&a.1).then(a.0.cmp(b.0)));
    let total: Vec<u64> = columns.iter().map(|column| column.values().sum()).collect();
    let listed = |index: usize| rows.iter().map(|(_, cells)| cells[index]).sum::<u64>();
    let rest = (0..total.len()).map(|index| total[index] - listed(index));
    rows.push(("smaller parts", rest.collect()));
    rows.insert(0, ("code and data", total));
    let mut text = String::from("| part, KiB |");
    for (name, _) in images {
        write!(text, " {name} |")?;
    }
    write!(text, "\n|---|{}\n", "---:|".repeat(images.len()))?;
    for (name, cells) in rows {
        write!(text, "| {name} |")?;
        for size in cells {
            write!(text, " {:.1} |", kib(size))?;
        }
        text.push('\n');
    }
    Ok(text)
}

/// Bytes of code and data by part: a module of the library, another crate, or code without a symbol.
type Parts = BTreeMap<String, u64>;

/// A part smaller than this in each image is not listed.
const SMALL: u64 = 512;

/// The size of each part. A section's bytes without a symbol are a part of their own.
fn parts(image: &object::File<'_>) -> Parts {
    let mut parts = Parts::new();
    let mut in_section: BTreeMap<usize, u64> = BTreeMap::new();
    for symbol in image.symbols() {
        let (Some(section), Ok(name)) = (symbol.section_index(), symbol.name()) else {
            continue;
        };
        let is_reserved = image
            .section_by_index(section)
            .is_ok_and(|section| section.kind() == SectionKind::UninitializedData);
        if is_reserved || symbol.size() == 0 {
            continue;
        }
        *in_section.entry(section.0).or_default() += symbol.size();
        let name = format!("{:#}", rustc_demangle::demangle(name));
        *parts.entry(part_of(&name)).or_default() += symbol.size();
    }
    for section in image.sections() {
        let SectionFlags::Elf { sh_flags, .. } = section.flags() else {
            continue;
        };
        let is_loaded = sh_flags.contains(object::elf::SHF_ALLOC)
            && section.kind() != SectionKind::UninitializedData;
        if is_loaded {
            let known = in_section.get(&section.index().0).copied().unwrap_or(0);
            let rest = section.size().saturating_sub(known);
            let name = section.name().unwrap_or("?");
            let what = match section.kind() {
                SectionKind::Text => format!("assembly and padding in {name}"),
                _ => format!("texts and tables in {name}"),
            };
            *parts.entry(what).or_default() += rest;
        }
    }
    parts
}

/// The part that a symbol belongs to: its crate; in the library, the module; in `boot` and `loader`, the module in it.
fn part_of(name: &str) -> String {
    let is_path = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | ':');
    let path = name
        .split(|c| !is_path(c))
        .find(|part| part.contains("::") && part.starts_with(|c: char| c.is_ascii_lowercase()));
    let parts: Vec<_> = path
        .unwrap_or("assembly and outlined code")
        .split("::")
        .collect();
    let is_module = |part: &&&str| part.starts_with(|c: char| c.is_ascii_lowercase());
    let levels = match parts[..] {
        ["bootshare", "boot" | "loader", ..] => 3,
        ["bootshare", ..] => 2,
        _ => 1,
    };
    let parts: Vec<_> = parts
        .iter()
        .take(levels)
        .take_while(is_module)
        .copied()
        .collect();
    parts.join("::")
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
    fn symbols_belong_to_modules_or_crates() {
        for (symbol, expected) in [
            ("bootshare::loader::run", "bootshare::loader::run"),
            (
                "<bootshare::loader::load::Loader<B>>::open",
                "bootshare::loader::load",
            ),
            (
                "<bootshare::session::Session<T,H>>::poll",
                "bootshare::session",
            ),
            ("<u128 as core::fmt::Display>::fmt", "core"),
            (
                "<bootshare::error::Error as core::fmt::Display>::fmt",
                "bootshare::error",
            ),
            ("memcpy", "assembly and outlined code"),
        ] {
            assert_eq!(part_of(symbol), expected, "{symbol}");
        }
        let own = std::env::current_exe().unwrap();
        let text = table(&[("a", &own), ("b", &own)]).unwrap();
        assert!(text.starts_with("| part, KiB | a | b |\n|---|---:|---:|\n| code and data |"));
        assert!(text.contains("\n| bootshare_host |"), "{text}");
    }

    #[test]
    fn our_own_program_has_sections_and_demangled_symbols() {
        let text = describe(&std::env::current_exe().unwrap()).unwrap();
        assert!(text.contains(".text"), "{text}");
        assert!(text.contains("OVER the aim of 128 KiB"), "{text}");
        assert!(text.contains("::"), "{text}");
    }
}
