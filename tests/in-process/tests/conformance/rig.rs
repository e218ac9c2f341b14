//! A share of a directory, and what must hold whenever it was used.

use bootshare::Options;
use bootshare_tests::{
    AsNobody, Backend, Balance, Device, Embedded, FuseBackend, Quirks, TempDir, TestHal, TestShare,
    Virtiofsd, mount, open_files_below,
};
use std::{fs, path::Path, sync::Arc};

/// Whose request handler answers.
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
        Self::with(server, Device::new)
    }

    pub fn with_quirks(server: Server, quirks: Quirks) -> Self {
        Self::with(server, |backend| Device::with_quirks(backend, quirks))
    }

    /// The server has the rights of nobody in particular.
    pub fn as_nobody(server: Server) -> Self {
        Self::with(server, |backend| Device::new(AsNobody(backend)))
    }

    pub fn with(server: Server, device: impl FnOnce(Arc<dyn Backend>) -> Device) -> Self {
        let dir = TempDir::new();
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
        mount(&self.device, Options::default()).unwrap()
    }

    /// Mounts, does something, unmounts.
    pub fn run(&self, body: impl FnOnce(&TestShare)) {
        self.run_with(Options::default(), body);
    }

    pub fn run_with(&self, options: Options, body: impl FnOnce(&TestShare)) {
        let share = mount(&self.device, options).unwrap();
        body(&share);
        self.unmount(share);
    }

    /// Unmounts and checks that nothing is left behind.
    pub fn unmount(&self, share: TestShare) {
        // A device that polls has to see what was sent last.
        self.device.tick();
        // Before DESTROY, which makes every server let go: all but the root was given back.
        assert_eq!(
            open_files_below(self.dir.path()).unwrap(),
            1,
            "files that the server holds: the root's alone"
        );
        share.unmount().unwrap();
        assert!(!self.device.is_live(), "the device is reset");
        assert_eq!(TestHal::pages(), 0, "all DMA pages are free");
        self.device.log(|log| {
            assert_eq!(log.at_destroy.last(), Some(&Balance::default()));
            assert_eq!(log.problems(), Vec::<String>::new());
        });
    }
}

/// Bytes that do not repeat soon.
pub fn noise(size: usize) -> Vec<u8> {
    let mut random = Random(size as u64);
    (0..size).map(|_| random.next() as u8).collect()
}

/// A linear congruential generator.
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        self.0 >> 33
    }

    pub fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }
}
