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

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    /// An ELF file of type REL whose only content is the section `.modinfo`.
    fn module(modinfo: &[u8]) -> Vec<u8> {
        let names = b"\0.modinfo\0.shstrtab\0";
        let sections = 64 + modinfo.len() + names.len();
        let mut out = vec![0x7f, b'E', b'L', b'F', 2, 1, 1];
        out.resize(16, 0);
        out.extend(1_u16.to_le_bytes());
        out.extend(62_u16.to_le_bytes());
        out.extend(1_u32.to_le_bytes());
        out.resize(40, 0);
        out.extend((sections as u64).to_le_bytes());
        out.resize(52, 0);
        for half in [64_u16, 0, 0, 64, 3, 2] {
            out.extend(half.to_le_bytes());
        }
        out.extend(modinfo);
        out.extend(names);
        out.resize(sections + 64, 0);
        for (name, kind, start, size) in [
            (1_u32, 1_u32, 64, modinfo.len()),
            (10, 3, 64 + modinfo.len(), names.len()),
        ] {
            let begin = out.len();
            out.extend(name.to_le_bytes());
            out.extend(kind.to_le_bytes());
            out.resize(begin + 24, 0);
            out.extend((start as u64).to_le_bytes());
            out.extend((size as u64).to_le_bytes());
            out.resize(begin + 64, 0);
        }
        out
    }

    fn put(dir: &Path, name: &str, bytes: &[u8]) {
        let path = dir.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }

    #[test]
    fn modules_are_loaded_after_those_that_they_need() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path();
        let error = Modules::read(dir).err().unwrap().to_string();
        assert!(error.contains("modules.builtin"), "{error}");
        put(dir, "modules.builtin", b"kernel/fs/built-in.ko\n");
        assert!(
            Modules::read(dir)
                .unwrap()
                .load(&["built_in"])
                .unwrap()
                .is_empty()
        );

        let top = module(b"license=GPL\0depends=half-way,base,built-in\0");
        let half_way = module(b"depends=base\0");
        let base = module(b"depends=\0");
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gzip.write_all(&half_way).unwrap();
        put(dir, "kernel/drivers/top.ko", &top);
        put(dir, "updates/half-way.ko.gz", &gzip.finish().unwrap());
        put(dir, "extra/base.ko", &base);
        put(dir, "elsewhere/other.ko", &base);
        put(dir, "kernel/one.ko", &module(b"depends=two\0"));
        put(dir, "kernel/two.ko", &module(b"depends=one\0"));
        put(dir, "kernel/text.ko", b"text");
        put(dir, "kernel/broken.ko.xz", b"text");
        let modules = Modules::read(dir).unwrap();
        for (name, is_there) in [
            ("built_in", true),
            ("half_way", true),
            ("half-way", false),
            ("other", false),
        ] {
            assert_eq!(modules.has(name), is_there, "{name}");
        }
        let named = |name: &str, bytes: &[u8]| (name.to_owned(), bytes.to_vec());
        let all = [
            named("base", &base),
            named("half_way", &half_way),
            named("top", &top),
        ];
        assert_eq!(modules.load(&["top"]).unwrap(), all);
        assert_eq!(
            modules.load(&["base", "top", "built_in", "base"]).unwrap(),
            all
        );
        for (name, said) in [
            ("other", "neither built in nor as a module"),
            ("one", "depend on each other"),
            ("text", "is no kernel module"),
            ("broken", "cannot unpack"),
        ] {
            let error = modules.load(&[name]).unwrap_err().to_string();
            assert!(error.contains(said), "{error}");
        }
    }
}
