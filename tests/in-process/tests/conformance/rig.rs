//! A directory, its server, and the checks after each use of the share.

use bootshare::Options;
use bootshare_test_device::{
    Device, TestHal, TestShare,
    raw::{Backend, Balance},
};
use bootshare_tests::{AsNobody, Embedded, FuseBackend, Virtiofsd};
use fastrand::Rng;
use std::{
    fs, io,
    path::Path,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};
use tempfile::TempDir;

/// The server whose request handler answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Server {
    Virtiofsd,
    FuseBackend,
    Embedded,
}

impl Server {
    pub fn backend(self, root: &Path) -> Arc<dyn Backend> {
        match self {
            Self::Virtiofsd => Arc::new(Virtiofsd::new(root).unwrap()),
            Self::FuseBackend => Arc::new(FuseBackend::new(root).unwrap()),
            Self::Embedded => Arc::new(Embedded::of(vec![root.into()])),
        }
    }
}

/// A directory and the device that shares it.
pub struct Rig {
    pub dir: TempDir,
    pub device: Device,
}

impl Rig {
    pub fn new(server: Server) -> Self {
        Self::with(server, Device::with_backend)
    }

    /// The server has no rights to the files of other users.
    pub fn as_nobody(server: Server) -> Self {
        Self::with(server, |backend| Device::with_backend(AsNobody(backend)))
    }

    pub fn with(server: Server, device: impl FnOnce(Arc<dyn Backend>) -> Device) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let device = device(server.backend(dir.path()));
        Self { dir, device }
    }

    pub fn path(&self, name: impl AsRef<Path>) -> std::path::PathBuf {
        self.dir.path().join(name)
    }

    pub fn write(&self, name: impl AsRef<Path>, content: impl AsRef<[u8]>) {
        fs::write(self.path(name), content).unwrap();
    }

    pub fn mkdir(&self, name: impl AsRef<Path>) {
        fs::create_dir_all(self.path(name)).unwrap();
    }

    pub fn symlink(&self, target: impl AsRef<Path>, name: impl AsRef<Path>) {
        std::os::unix::fs::symlink(target, self.path(name)).unwrap();
    }

    pub fn mount(&self) -> TestShare {
        self.device.mount(Options::default()).unwrap()
    }

    /// Mounts, runs `body` and unmounts.
    pub fn run(&self, body: impl FnOnce(&TestShare)) {
        self.run_with(Options::default(), body);
    }

    pub fn run_with(&self, options: Options, body: impl FnOnce(&TestShare)) {
        let share = self.device.mount(options).unwrap();
        body(&share);
        self.unmount(share);
    }

    /// Unmounts and checks that nothing is left behind.
    pub fn unmount(&self, share: TestShare) {
        // A polling device must first see the last requests.
        self.device.tick();
        // DESTROY makes every server release everything, so this is checked before it: only the root is still open.
        // It may take a moment, because a server of another test in the same process may be using a descriptor.
        let deadline = Instant::now() + Duration::from_secs(10);
        let held = || open_files_below(self.dir.path()).unwrap();
        while held() != 1 {
            assert!(
                Instant::now() < deadline,
                "the server holds {} files, and not the root's alone",
                held()
            );
            thread::yield_now();
        }
        share.unmount().unwrap();
        assert!(!self.device.is_live(), "the device is reset");
        assert_eq!(TestHal::pages(), 0, "all DMA pages are free");
        self.device.log(|log| {
            assert_eq!(log.at_destroy.last(), Some(&Balance::default()));
            assert_eq!(log.problems(), Vec::<String>::new());
        });
    }
}

/// Pseudo-random bytes.
pub fn noise(size: usize) -> Vec<u8> {
    let mut random = Rng::with_seed(size as u64);
    (0..size).map(|_| random.u8(..)).collect()
}

/// The number of open files of this process at or below `path`. These are the descriptors, also those with
/// `O_PATH`, that the servers in this process hold for nodes and handles.
///
/// # Errors
///
/// If `/proc` can't be read.
pub fn open_files_below(path: &Path) -> io::Result<usize> {
    let path = path.canonicalize()?;
    let links = fs::read_dir("/proc/self/fd")?;
    let targets = links.filter_map(|link| fs::read_link(link.ok()?.path()).ok());
    Ok(targets.filter(|target| target.starts_with(&path)).count())
}
