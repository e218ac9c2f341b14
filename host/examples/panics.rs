//! Lists where a firmware image could panic: the functions of this project from which its calls of `core`'s panic
//! functions were compiled.
//!
//! The image must have relocations and debug information (`make panics` links it so). A relocation has a call's
//! place and target; the debug information has the lines that were inlined there. If a function of `core` or of
//! another crate can panic, our call of it counts.
//!
//! `panics LIST IMAGE...`

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::{env, fs};

use addr2line::Loader;
use anyhow::{Context, Result, anyhow, ensure};
use object::{Object, ObjectSection, ObjectSymbol, RelocationTarget, SymbolKind};

/// Parts of the names of functions that panic.
const PANICS: [&str; 7] = [
    "core::panicking::",
    "unwrap_failed",
    "expect_failed",
    "slice_index_fail",
    "len_mismatch_fail",
    "panic_already_",
    "panic_on_ord_violation",
];

/// The boot flow and the boards are not listed. The modules below them read the data of the host and the share, and
/// are listed.
const NOT_LISTED: [&str; 2] = ["src/loader/", "boards/"];

fn main() -> ExitCode {
    match run() {
        Ok(text) => {
            println!("{text}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("panics: error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<String> {
    let mut args = env::args_os().skip(1).map(PathBuf::from);
    let known = args.next().context("usage: panics LIST IMAGE...")?;
    let mut found = Places::new();
    for image in args {
        found.extend(places(&image, Path::new("."))?);
    }
    compare(&found, &known)
}

/// Functions of this project from which an image can panic, with their files.
type Places = BTreeSet<(String, String)>;

/// The places in the image at `path`. Files below `root` belong to this project.
fn places(path: &Path, root: &Path) -> Result<Places> {
    let name = path.display();
    let bytes = fs::read(path)
        .with_context(|| format!("cannot read {name}: build it with `make panics`"))?;
    let image = object::File::parse(&*bytes).with_context(|| format!("{name} is no ELF file"))?;
    let root = fs::canonicalize(root)?;
    let loader = Loader::new(path).map_err(|error| anyhow!("{name}: {error}"))?;
    let calls = Calls::of(&image);
    ensure!(
        !calls.by_target.is_empty(),
        "{name} has no relocations: build it with `make panics`"
    );
    calls.ours(&loader, &root)
}

/// Compares `places` with the list in the file `known`. Returns a line with the counts.
fn compare(places: &Places, known: &Path) -> Result<String> {
    let name = known.display();
    let list = fs::read_to_string(known).with_context(|| format!("cannot read {name}"))?;
    let rows = list.lines().filter_map(|line| line.strip_prefix("| `"));
    let cells = rows.filter_map(|row| row.split(" | ").next());
    let listed: BTreeSet<_> = cells
        .flat_map(|cell| cell.split('`').step_by(2))
        .filter(|name| !name.is_empty())
        .collect();
    let is_listed = |file: &str| NOT_LISTED.iter().all(|part| !file.starts_with(part));
    let below = places.iter().filter(|(file, _)| is_listed(file));
    let below: BTreeSet<_> = below.map(|(_, function)| function.as_str()).collect();
    let mut trouble = String::new();
    for function in below.difference(&listed) {
        write!(trouble, "\n  {function} can panic and is not in {name}")?;
    }
    for function in listed.difference(&below) {
        write!(trouble, "\n  {function} is in {name} and can't panic")?;
    }
    ensure!(
        trouble.is_empty(),
        "{name} is not what the images have:{trouble}"
    );
    Ok(format!(
        "{} functions below the boot flow, all of them in {name}; {} in the boot flow and the \
         boards",
        below.len(),
        places.len() - below.len()
    ))
}

/// The calls in an image.
struct Calls {
    /// The name of each function, by its start.
    functions: BTreeMap<u64, String>,
    /// The places of the calls, by the start of the called function.
    by_target: BTreeMap<u64, Vec<u64>>,
}

impl Calls {
    fn of(image: &object::File<'_>) -> Self {
        let functions: BTreeMap<_, _> = image
            .symbols()
            .filter(|symbol| symbol.kind() == SymbolKind::Text)
            .filter_map(|symbol| {
                let name = rustc_demangle::demangle(symbol.name().ok()?);
                Some((symbol.address(), format!("{name:#}")))
            })
            .collect();
        // On x86 the value is relative to the end of the instruction's four bytes.
        let end = match image.architecture() {
            object::Architecture::X86_64 => 4,
            _ => 0,
        };
        let mut by_target: BTreeMap<u64, Vec<u64>> = BTreeMap::new();
        let code = image
            .sections()
            .filter(|section| section.name() == Ok(".text"));
        for (place, relocation) in code.flat_map(|section| section.relocations()) {
            let RelocationTarget::Symbol(index) = relocation.target() else {
                continue;
            };
            let Ok(symbol) = image.symbol_by_index(index) else {
                continue;
            };
            let target = symbol
                .address()
                .wrapping_add_signed(relocation.addend() + end);
            if functions.contains_key(&target) {
                by_target.entry(target).or_default().push(place);
            }
        }
        Self {
            functions,
            by_target,
        }
    }

    /// The start of the function that contains `place`.
    fn caller(&self, place: u64) -> Option<u64> {
        let mut before = self.functions.range(..=place);
        before.next_back().map(|(&start, _)| start)
    }

    /// The places of this project, by file and function, that call a panic function directly or through functions
    /// of other crates.
    fn ours(&self, loader: &Loader, root: &Path) -> Result<Places> {
        let is_panic = |name: &str| PANICS.iter().any(|part| name.contains(part));
        let panics = self.functions.iter().filter(|(_, name)| is_panic(name));
        let mut waiting: Vec<u64> = panics.map(|(&start, _)| start).collect();
        let mut seen: BTreeSet<u64> = waiting.iter().copied().collect();
        let mut found = Places::new();
        while let Some(target) = waiting.pop() {
            for &place in self.by_target.get(&target).into_iter().flatten() {
                if let Some(ours) = innermost(loader, place, root)? {
                    found.insert(ours);
                } else if let Some(caller) = self.caller(place)
                    && seen.insert(caller)
                {
                    waiting.push(caller);
                }
            }
        }
        Ok(found)
    }
}

/// File and function of the innermost inlined line below `root` at `place`.
fn innermost(loader: &Loader, place: u64, root: &Path) -> Result<Option<(String, String)>> {
    let broken = |error: &dyn std::fmt::Display| anyhow!("debug information: {error}");
    let mut frames = loader.find_frames(place).map_err(|error| broken(&error))?;
    while let Some(frame) = frames.next().map_err(|error| broken(&error))? {
        let file = frame.location.and_then(|location| location.file);
        let below = file.and_then(|file| Path::new(file).strip_prefix(root).ok());
        let (Some(file), Some(function)) = (below, frame.function) else {
            continue;
        };
        let function = function.demangle()?.replace("::{{closure}}", "");
        let function = function.trim_start_matches("bootshare::");
        return Ok(Some((file.display().to_string(), function.to_owned())));
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_must_contain_exactly_the_functions_that_can_panic() {
        let dir = tempfile::tempdir().unwrap();
        let known = dir.path().join("list.md");
        fs::write(
            &known,
            "| functions | why |\n|---|---|\n| `a::f`, `a::g` | `x` is not |\n",
        )
        .unwrap();
        let places = |functions: &[(&str, &str)]| -> Places {
            let pairs = functions.iter();
            pairs
                .map(|(file, function)| ((*file).to_owned(), (*function).to_owned()))
                .collect()
        };
        let good = [
            ("src/a.rs", "a::f"),
            ("src/a.rs", "a::g"),
            ("src/loader/x.rs", "b"),
        ];
        let text = compare(&places(&good), &known).unwrap();
        assert!(
            text.contains("2 functions") && text.contains("; 1 in"),
            "{text}"
        );
        let error = compare(&places(&good[1..]), &known)
            .unwrap_err()
            .to_string();
        assert!(error.contains("a::f is in"), "{error}");
        let error = compare(&places(&[good[0], good[1], ("src/a.rs", "a::h")]), &known);
        let error = error.unwrap_err().to_string();
        assert!(error.contains("a::h can panic"), "{error}");
    }

    #[test]
    fn an_image_without_relocations_is_refused_with_the_remedy() {
        let image = env::current_exe().unwrap();
        let error = places(&image, Path::new(".")).unwrap_err().to_string();
        assert!(error.contains("make panics"), "{error}");
    }
}
