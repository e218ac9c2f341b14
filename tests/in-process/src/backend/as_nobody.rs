//! A server without the rights of root.

use bootshare_test_device::{
    Reply, Request,
    raw::{Backend, Chain},
};

/// Serves as a user who has no rights to the files of other users.
///
/// Tests often run as root, for whom permissions do not count. `setfsuid(2)` removes root's rights to
/// files from the calling thread only, so it is called here around each request. It has no effect for
/// other users, who need none.
#[derive(Debug)]
pub struct AsNobody<B>(pub B);

const NOBODY: u32 = 65_534;

impl<B: Backend> Backend for AsNobody<B> {
    fn answer(&self, chain: &Chain, request: &Request) -> Reply {
        // SAFETY: the call only changes this thread's rights to files.
        let user = unsafe { libc::setfsuid(NOBODY) };
        let reply = self.0.answer(chain, request);
        // SAFETY: as above.
        unsafe { libc::setfsuid(user as u32) };
        reply
    }
}
