//! Paths in a share.

use super::console::Text;
use crate::boot::entry::Place;
use core::{
    fmt::{self, Write as _},
    ops::Deref,
};
use heapless::{String, Vec};

/// An absolute path in a share. A path that is too long is truncated to 4096 bytes, which every share
/// refuses as too long.
#[derive(Clone)]
pub(super) struct Path(Vec<u8, 4096>);

impl Path {
    /// `name` in `directory`, or `name` itself if it is absolute.
    pub fn join(directory: &(impl AsRef<[u8]> + ?Sized), name: &[u8]) -> Self {
        Self::of_parts(directory.as_ref(), name)
    }

    /// The path of a place where a file may be.
    pub fn of(place: &Place<'_>) -> Self {
        Self::join(place.directory, place.name)
    }

    /// Appends `mark` and `number`.
    pub fn push_number(&mut self, mark: u8, number: u32) {
        let mut digits: String<11> = String::new();
        _ = write!(digits, "{}{number}", char::from(mark)); // It fits: a number has at most 10 digits.
        self.push_fitting(digits.as_bytes());
    }

    #[inline(never)] // The value is large and constructed in many places.
    fn of_parts(directory: &[u8], name: &[u8]) -> Self {
        let directory = directory.strip_suffix(b"/").unwrap_or(directory);
        let mut path = Self(Vec::new());
        if !name.starts_with(b"/") {
            path.push_fitting(directory);
            path.push_fitting(b"/");
        }
        path.push_fitting(name);
        path
    }

    /// Appends as much of `part` as fits.
    fn push_fitting(&mut self, part: &[u8]) {
        let room = self.0.capacity() - self.0.len();
        _ = self.0.extend_from_slice(&part[..part.len().min(room)]);
    }
}

impl Deref for Path {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.0
    }
}

impl AsRef<[u8]> for Path {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

/// Displays the path with unprintable bytes escaped.
impl fmt::Display for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        Text(&self.0).fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::Path;

    #[test]
    fn paths_start_at_their_directory_or_at_the_root() {
        let cases: [(&str, &[u8], &[u8]); 6] = [
            ("/", b"k", b"/k"),
            ("/", b"/k", b"/k"),
            ("/boot", b"k", b"/boot/k"),
            ("/boot", b"/k", b"/k"),
            ("/boot/extlinux", b"../k", b"/boot/extlinux/../k"),
            ("/boot", b"", b"/boot/"),
        ];
        for (directory, name, path) in cases {
            assert_eq!(*Path::join(directory, name), *path);
        }
        // No share accepts 4096 bytes.
        assert_eq!(Path::join("/boot", &[b'x'; 5000]).len(), 4096);
        assert_eq!(Path::join("/boot", &[b'/'; 5000]).len(), 4096);
    }
}
