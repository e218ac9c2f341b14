//! Helpers that the tests of runs share.

use std::path::PathBuf;
use std::sync::OnceLock;

use bootshare_host::Arch;

pub(crate) use crate::install::install;
use crate::shared;
pub(crate) use crate::shared::{LIMIT, rust_server, target};

pub(crate) fn c_server() -> &'static str {
    static PATH: OnceLock<String> = OnceLock::new();
    PATH.get_or_init(|| {
        let path = shared::c_server().into_os_string();
        path.into_string().unwrap()
    })
}

/// The demo share, made once in each process.
pub(crate) fn demo_share(arch: Arch) -> PathBuf {
    static MADE: [OnceLock<PathBuf>; 2] = [OnceLock::new(), OnceLock::new()];
    MADE[usize::from(arch == Arch::Aarch64)]
        .get_or_init(|| {
            let dir = target().join("host-tests").join(arch.name());
            shared::make_demo(&shared::parts(arch, None), &dir);
            dir
        })
        .clone()
}
