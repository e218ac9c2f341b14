//! Reads a directory of this machine through the client, without a virtual machine: the device is
//! in this process's memory.
//!
//! ```sh
//! cargo run --example host_share -- docs dma.md
//! ```
//!
//! It lists the directory and prints the file. Firmware that uses the crate can be tested with the same
//! device: see `bootshare_test_device`.

use bootshare::Options;
use bootshare_test_device::{Device, Tree};
use std::{env, error::Error, io::Write, path::Path};

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = env::args_os().skip(1);
    let (Some(dir), Some(file)) = (arguments.next(), arguments.next()) else {
        return Err("usage: host_share DIR FILE".into());
    };
    let content = read(Path::new(&dir), file.as_encoded_bytes())?;
    std::io::stdout().write_all(&content)?;
    Ok(())
}

/// Lists `dir` and returns the content of its `file`.
fn read(dir: &Path, file: &[u8]) -> Result<Vec<u8>, Box<dyn Error>> {
    let device = Device::new(Tree::from_dir(dir)?);
    let share = device.mount(Options::default())?;
    for entry in share.read_dir("/")? {
        let entry = entry?;
        let metadata = share.symlink_metadata(entry.file_name())?;
        println!(
            "{:>12} {}",
            metadata.len(),
            entry.file_name().escape_ascii()
        );
    }
    let file = share.open(file)?;
    let mut content = vec![0; file.metadata().len().try_into()?];
    file.read_exact_at(0, &mut content)?;
    drop(file);
    share.unmount()?;
    Ok(content)
}

#[test]
fn a_file_comes_through() {
    let docs = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs");
    let content = read(&docs, b"/testing.md").unwrap();
    assert_eq!(content, std::fs::read(docs.join("testing.md")).unwrap());
}
