//! From a path to a node, one component at a time (path_resolution(7), inside the share).

use super::{Node, Share};
use crate::{
    error::Error,
    fuse::{Attr, FileType, NodeId},
    hal::{Clock, Hal, PAGE_SIZE},
    session::Epoch,
};
use heapless::Vec;
use virtio_drivers::transport::Transport;

/// Longest path in bytes, with its symbolic links expanded (`PATH_MAX` less the NUL).
const PATH_MAX: usize = 4095;
/// How many symbolic links are followed in one path, as on Linux (`MAXSYMLINKS`).
const MAX_LINKS: u32 = 40;
/// How many directories deep a path may be.
const MAX_DEPTH: usize = 256;

impl<T: Transport, C: Clock, H: Hal> Share<T, C, H> {
    /// Finds the node of `path`. A symbolic link at its end is followed if `follow` is set or a `/`
    /// comes after it.
    pub(super) fn resolve(&self, path: &[u8], follow: bool) -> Result<Node<'_, T, C, H>, Error> {
        if path.is_empty() {
            return Err(Error::NotFound);
        }
        let mut pending = Pending::new(path)?;
        if !self.is_connected() {
            return Err(Error::Disconnected);
        }
        let mut place = Place {
            share: self,
            epoch: self.client.epoch(),
            below_root: Vec::new(),
            attr: None,
        };
        let mut links = 0u32;
        while let Some(component) = pending.next() {
            if !place.is_directory() {
                return Err(Error::NotADirectory);
            }
            match component.name(&pending) {
                b"." => continue,
                b".." => {
                    place.leave();
                    continue;
                }
                name => place.enter(name)?,
            }
            // Only the last component has no `/` after it.
            if place.is_symlink() && (follow || component.needs_directory) {
                links = links.saturating_add(1);
                if links > MAX_LINKS {
                    return Err(Error::TooManyLinks);
                }
                let mut target = [0; PAGE_SIZE];
                let target = self.target(place.epoch, place.id(), &mut target)?;
                if target.first() == Some(&b'/') {
                    place.leave_all();
                } else {
                    place.leave();
                }
                pending.prepend(target)?;
            } else if component.needs_directory && !place.is_directory() {
                return Err(Error::NotADirectory);
            }
        }
        Ok(place.into_node())
    }
}

/// The rest of a path that is not resolved yet. It is at the end of the buffer, so that the target
/// of a symbolic link can be put before it.
struct Pending {
    buffer: [u8; PATH_MAX],
    start: usize,
}

/// The position of a component in the buffer.
struct Component {
    start: usize,
    end: usize,
    /// Whether a `/` follows it.
    needs_directory: bool,
}

impl Component {
    fn name<'a>(&self, pending: &'a Pending) -> &'a [u8] {
        pending.buffer.get(self.start..self.end).unwrap_or_default()
    }
}

impl Pending {
    fn new(path: &[u8]) -> Result<Self, Error> {
        if path.contains(&0) {
            return Err(Error::InvalidName);
        }
        let mut pending = Self {
            buffer: [0; PATH_MAX],
            start: PATH_MAX,
        };
        pending.prepend(path)?;
        Ok(pending)
    }

    /// Puts `path` before the rest, which starts with a `/` unless it is empty.
    fn prepend(&mut self, path: &[u8]) -> Result<(), Error> {
        let start = self.start.checked_sub(path.len());
        let start = start.ok_or(Error::PathTooLong)?;
        let room = self.buffer.get_mut(start..self.start);
        room.ok_or(Error::PathTooLong)?.copy_from_slice(path);
        self.start = start;
        Ok(())
    }

    fn rest(&self) -> &[u8] {
        self.buffer.get(self.start..).unwrap_or_default()
    }

    /// Takes the next component.
    fn next(&mut self) -> Option<Component> {
        let skipped = self.rest().iter().take_while(|&&byte| byte == b'/').count();
        let start = self.start.saturating_add(skipped);
        self.start = start;
        let length = self.rest().iter().take_while(|&&byte| byte != b'/').count();
        let end = start.saturating_add(length);
        self.start = end;
        (length > 0).then_some(Component {
            start,
            end,
            needs_directory: end < PATH_MAX,
        })
    }
}

/// The nodes from the root to the current position of the resolution. All but the last are
/// directories. A FORGET is sent for each node that is left.
struct Place<'s, T: Transport, C: Clock, H: Hal> {
    share: &'s Share<T, C, H>,
    epoch: Epoch,
    below_root: Vec<NodeId, MAX_DEPTH>,
    /// Attributes of the last node; `None` for the root and a directory that `..` returned to.
    attr: Option<Attr>,
}

impl<'s, T: Transport, C: Clock, H: Hal> Place<'s, T, C, H> {
    fn id(&self) -> NodeId {
        self.below_root.last().copied().unwrap_or(NodeId::ROOT)
    }

    fn is(&self, file_type: FileType) -> bool {
        self.attr.is_some_and(|attr| attr.file_type == file_type)
    }

    fn is_symlink(&self) -> bool {
        self.is(FileType::Symlink)
    }

    fn is_directory(&self) -> bool {
        self.attr.is_none() || self.is(FileType::Directory)
    }

    fn enter(&mut self, name: &[u8]) -> Result<(), Error> {
        if self.below_root.is_full() {
            return Err(Error::PathTooLong);
        }
        let (node, attr) = self.share.lookup(self.epoch, self.id(), name)?;
        // This cannot fail: `is_full` was checked above.
        _ = self.below_root.push(node);
        self.attr = Some(attr);
        Ok(())
    }

    /// Moves to the parent directory; the root is its own parent.
    fn leave(&mut self) {
        if let Some(node) = self.below_root.pop() {
            self.share.forget(self.epoch, node);
        }
        self.attr = None;
    }

    fn leave_all(&mut self) {
        while !self.below_root.is_empty() {
            self.leave();
        }
    }

    fn into_node(mut self) -> Node<'s, T, C, H> {
        let id = self.id();
        _ = self.below_root.pop();
        Node {
            share: self.share,
            epoch: self.epoch,
            id,
            attr: self.attr,
        }
    }
}

impl<T: Transport, C: Clock, H: Hal> Drop for Place<'_, T, C, H> {
    fn drop(&mut self) {
        self.leave_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::vec::Vec;

    fn components(path: &[u8]) -> Vec<(Vec<u8>, bool)> {
        let mut pending = Pending::new(path).unwrap();
        let mut out = Vec::new();
        while let Some(component) = pending.next() {
            out.push((component.name(&pending).to_vec(), component.needs_directory));
        }
        out
    }

    fn names(list: &[(&str, bool)]) -> Vec<(Vec<u8>, bool)> {
        let owned = |&(name, slash): &(&str, bool)| (name.as_bytes().to_vec(), slash);
        list.iter().map(owned).collect()
    }

    #[test]
    fn a_path_is_split_into_names_with_trailing_slashes() {
        assert_eq!(components(b""), []);
        assert_eq!(components(b"///"), []);
        assert_eq!(components(b"a"), names(&[("a", false)]));
        assert_eq!(
            components(b"//a//../b/"),
            names(&[("a", true), ("..", true), ("b", true)])
        );
    }

    #[test]
    fn a_link_in_the_middle_keeps_the_rest_of_the_path() {
        let mut pending = Pending::new(b"link/rest").unwrap();
        pending.next().unwrap();
        pending.prepend(b"../x").unwrap();
        assert_eq!(pending.rest(), b"../x/rest");
    }

    #[test]
    fn paths_that_are_too_long_or_have_a_nul_are_refused() {
        assert!(Pending::new(&[b'a'; PATH_MAX]).is_ok());
        let error = |path: &[u8]| Pending::new(path).err();
        assert_eq!(error(&[b'a'; PATH_MAX + 1]), Some(Error::PathTooLong));
        assert_eq!(error(b"a\0b"), Some(Error::InvalidName));
        let mut pending = Pending::new(&[b'a'; PATH_MAX - 3]).unwrap();
        assert_eq!(pending.prepend(b"abcd"), Err(Error::PathTooLong));
        assert_eq!(pending.prepend(b"abc"), Ok(()));
    }
}
