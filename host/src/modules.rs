//! A kernel's modules: which ones it has, and which ones must be loaded, in which order.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use object::{Object, ObjectSection};

/// The modules of one kernel: a directory `lib/modules/VERSION`, installed or from an unpacked
/// package.
pub struct Modules {
    dir: PathBuf,
    builtin: BTreeSet<String>,
    found: BTreeMap<String, PathBuf>,
}

impl Modules {
    /// Finds the modules in `dir`, and the built-in ones in its `modules.builtin`.
    ///
    /// # Errors
    /// The directory or its `modules.builtin` cannot be read.
    pub fn read(dir: &Path) -> Result<Self> {
        let path = dir.join("modules.builtin");
        let builtin =
            fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let builtin = builtin.lines().map(|line| name(Path::new(line))).collect();
        let mut found = BTreeMap::new();
        // A kernel without any module has no directory for them.
        for part in ["kernel", "updates", "extra"] {
            let part = dir.join(part);
            if part.is_dir() {
                find(&part, &mut found)?;
            }
        }
        Ok(Self {
            dir: dir.to_owned(),
            builtin,
            found,
        })
    }

    /// Whether the kernel has this module, built in or to be loaded.
    pub fn has(&self, name: &str) -> bool {
        self.builtin.contains(name) || self.found.contains_key(name)
    }

    /// These modules and their dependencies, unpacked, in the order in which they can be loaded;
    /// without built-in ones.
    ///
    /// Debian's packages carry no modules.dep (depmod makes it at installation), so the dependencies
    /// are read from the modules themselves.
    ///
    /// # Errors
    /// The kernel has no such module, or a module cannot be read.
    pub fn load(&self, names: &[&str]) -> Result<Vec<(String, Vec<u8>)>> {
        let mut order = Vec::new();
        for name in names {
            self.add(name, &mut Vec::new(), &mut order)?;
        }
        Ok(order)
    }

    /// Adds a module after its dependencies; `above` holds the modules that depend on it.
    fn add<'a>(
        &'a self,
        name: &str,
        above: &mut Vec<&'a str>,
        order: &mut Vec<(String, Vec<u8>)>,
    ) -> Result<()> {
        if self.builtin.contains(name) || order.iter().any(|(done, _)| done == name) {
            return Ok(());
        }
        let dir = self.dir.display();
        let (name, path) = self.found.get_key_value(name).with_context(|| {
            format!("the kernel has {name} neither built in nor as a module in {dir}")
        })?;
        ensure!(
            !above.contains(&name.as_str()),
            "the modules {above:?} in {dir} depend on each other"
        );
        let bytes = unpack(path)?;
        above.push(name);
        for need in dependencies(path, &bytes)? {
            self.add(&need, above, order)?;
        }
        above.pop();
        order.push((name.clone(), bytes));
        Ok(())
    }
}

fn find(dir: &Path, found: &mut BTreeMap<String, PathBuf>) -> Result<()> {
    for entry in fs::read_dir(dir).with_context(|| format!("cannot read {}", dir.display()))? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            find(&entry.path(), found)?;
        } else {
            found.insert(name(&entry.path()), entry.path());
        }
    }
    Ok(())
}

/// A module's name in the kernel's form: without directory and suffix, with `_` for `-`.
fn name(path: &Path) -> String {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    name.split('.').next().unwrap_or_default().replace('-', "_")
}

/// A module's ELF file, decompressed: the kernel's build supports each of these formats.
fn unpack(path: &Path) -> Result<Vec<u8>> {
    let packed = fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    let mut bytes = Vec::new();
    let unpacked = match path.extension().and_then(OsStr::to_str) {
        Some("xz") => lzma_rust2::XzReader::new(&*packed, true).read_to_end(&mut bytes),
        Some("gz") => flate2::read::MultiGzDecoder::new(&*packed).read_to_end(&mut bytes),
        Some("zst") => {
            let decoder = ruzstd::decoding::StreamingDecoder::new(&*packed);
            decoder
                .map_err(std::io::Error::other)
                .and_then(|mut decoder| decoder.read_to_end(&mut bytes))
        }
        _ => return Ok(packed),
    };
    unpacked.with_context(|| format!("cannot unpack {}", path.display()))?;
    Ok(bytes)
}

fn dependencies(path: &Path, bytes: &[u8]) -> Result<Vec<String>> {
    let module = object::File::parse(bytes)
        .with_context(|| format!("{} is no kernel module", path.display()))?;
    let section = module
        .section_by_name(".modinfo")
        .with_context(|| format!("{} has no .modinfo", path.display()))?;
    let depends = section
        .data()?
        .split(|&byte| byte == 0)
        .find_map(|field| field.strip_prefix(b"depends="))
        .unwrap_or_default();
    let depends = String::from_utf8_lossy(depends);
    let names = depends.split(',').filter(|name| !name.is_empty());
    Ok(names.map(|name| name.replace('-', "_")).collect())
}
