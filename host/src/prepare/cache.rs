//! Prepared kernels of earlier runs, in the user's cache directory.
//!
//! A file's name is the digest of the kernel that it was made from. For each kernel file there is also
//! a file with that name, whose own name is the kernel file's state: an unchanged kernel need not be
//! read and hashed again at each boot. Each is written under a
//! temporary name and renamed, so that concurrent runs see either all of it or nothing.

use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use anyhow::Result;

use crate::output;

/// The largest total size in bytes: about ten kernels.
const MOST: u64 = 512 << 20;

/// More bytes than a name of a prepared kernel has.
const LONGEST_NAME: u64 = 100;

/// What a file takes at least, so that their number is bounded, too.
const LEAST: u64 = 4096;

/// A directory of prepared kernels.
#[derive(Clone, Debug)]
pub struct Cache {
    dir: PathBuf,
    most: u64,
}

impl Cache {
    /// The user's cache (XDG Base Directory Specification); `None` if neither XDG_CACHE_HOME nor
    /// HOME is set.
    pub fn of_user() -> Option<Self> {
        let absolute = |name| {
            let path = PathBuf::from(std::env::var_os(name)?);
            path.is_absolute().then_some(path)
        };
        let cache =
            absolute("XDG_CACHE_HOME").or_else(|| Some(absolute("HOME")?.join(".cache")))?;
        Some(Self::at(cache.join("bootshare/kernels")))
    }

    /// The cache in `dir`, which need not exist yet.
    pub fn at(dir: impl Into<PathBuf>) -> Self {
        Self {
            dir: dir.into(),
            most: MOST,
        }
    }

    /// Whether it is, or will be, below one of `dirs`: a shared directory is never written to.
    pub(crate) fn is_below(&self, dirs: &[PathBuf]) -> bool {
        let real = |path: &Path| {
            let there = path.ancestors().find_map(|path| path.canonicalize().ok());
            there.unwrap_or_else(|| path.to_owned())
        };
        let dir = real(&self.dir);
        dirs.iter().any(|share| dir.starts_with(real(share)))
    }

    /// Opens the file of this name, and marks it as used now.
    pub(super) fn get(&self, name: &str) -> Option<File> {
        let file = File::open(self.dir.join(name)).ok()?;
        // Without a new time it is only removed sooner.
        let _ = file.set_modified(SystemTime::now());
        Some(file)
    }

    /// The name in the file of this name, if that is one.
    pub(super) fn recorded(&self, name: &str) -> Option<String> {
        let mut recorded = String::new();
        let file = self.get(name)?;
        file.take(LONGEST_NAME).read_to_string(&mut recorded).ok()?;
        let is_name = recorded
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
        is_name.then_some(recorded)
    }

    /// Stores a file, then removes the least recently used files until the total size is within the
    /// limit.
    ///
    /// # Errors
    /// It cannot be written.
    pub(super) fn put(&self, name: &str, bytes: &[u8]) -> Result<()> {
        output::directory(&self.dir)?;
        output::replace(&self.dir.join(name), bytes)?;
        self.shrink(name)
    }

    fn shrink(&self, newest: &str) -> Result<()> {
        let mut files = Vec::new();
        for entry in fs::read_dir(&self.dir)? {
            let entry = entry?;
            // Another run may have removed the file.
            let Ok(metadata) = entry.metadata() else {
                continue;
            };
            let is_newest = entry.file_name() == newest;
            files.push((
                is_newest,
                metadata.modified()?,
                metadata.len().max(LEAST),
                entry.path(),
            ));
        }
        files.sort();
        let mut size: u64 = files.iter().map(|(_, _, size, _)| size).sum();
        for (_, _, bytes, path) in files {
            if size <= self.most {
                break;
            }
            size -= bytes;
            // Another run may have removed the file.
            let _ = fs::remove_file(path);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::thread;

    fn get(cache: &Cache, name: &str) -> Option<Vec<u8>> {
        let mut bytes = Vec::new();
        cache.get(name)?.read_to_end(&mut bytes).unwrap();
        Some(bytes)
    }

    fn names(dir: &Path) -> Vec<String> {
        let entries = fs::read_dir(dir).unwrap();
        let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let mut names: Vec<_> = names.collect();
        names.sort();
        names
    }

    #[test]
    fn the_least_recently_used_file_is_removed_first() {
        let dir = tempfile::tempdir().unwrap();
        let mut cache = Cache::at(dir.path().join("a/b"));
        cache.most = 10_000;
        assert_eq!(get(&cache, "one"), None);
        for (name, age) in [("one", 30), ("two", 20)] {
            cache.put(name, &[1; 4096]).unwrap();
            let file = File::open(cache.dir.join(name)).unwrap();
            let then = SystemTime::now() - std::time::Duration::from_secs(age);
            file.set_modified(then).unwrap();
        }
        assert_eq!(get(&cache, "one"), Some(vec![1; 4096]));
        cache.put("three", &[3; 100]).unwrap();
        assert_eq!(names(&cache.dir), ["one", "three"]);
        // One that is larger than all of them may be is not kept either.
        cache.put("four", &[4; 12_000]).unwrap();
        assert_eq!(names(&cache.dir), [""; 0]);
    }

    #[test]
    fn runs_at_the_same_time_see_all_of_a_file_or_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::at(dir.path());
        thread::scope(|scope| {
            for byte in 0..8_u8 {
                let cache = &cache;
                scope.spawn(move || {
                    for _ in 0..20 {
                        cache.put("name", &vec![byte; 1 << 16]).unwrap();
                        let got = get(cache, "name").unwrap();
                        assert_eq!(got.len(), 1 << 16);
                        assert!(got.iter().all(|byte| *byte == got[0]));
                    }
                });
            }
        });
        assert_eq!(names(dir.path()), ["name"]);
    }

    #[test]
    fn a_share_that_contains_the_cache_is_detected() {
        let dir = tempfile::tempdir().unwrap();
        let [share, other] = ["share", "other"].map(|name| dir.path().join(name));
        let cache = Cache::at(share.join("not/yet"));
        fs::create_dir_all(&other).unwrap();
        fs::create_dir_all(&share).unwrap();
        assert!(cache.is_below(&[other.clone(), share]));
        assert!(!cache.is_below(&[other]));
    }
}
