//! A server without rights.

use bootshare_test_device::{
    Reply, Request,
    raw::{Backend, Chain},
};

/// Serves as a user without rights to anything of others'.
///
/// Tests run as root often enough, whom no permission stops. `setfsuid(2)` takes root's rights to
/// files away from one thread only, which is why it is done here around each request. For anybody
/// else it does nothing, and nothing is needed.
#[derive(Debug)]
pub struct AsNobody<B>(pub B);

const NOBODY: u32 = 65_534;

impl<B: Backend> Backend for AsNobody<B> {
    fn answer(&self, chain: &Chain, request: &Request) -> Reply {
        // SAFETY: it changes nothing but this thread's rights.
        let user = unsafe { libc::setfsuid(NOBODY) };
        let reply = self.0.answer(chain, request);
        // SAFETY: as above.
        unsafe { libc::setfsuid(user as u32) };
        reply
    }
}
