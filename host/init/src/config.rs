//! The host's configuration in `/config`: fields of the form `KEY=VALUE`, each followed by a NUL.

use std::ffi::OsString;
use std::fs;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

use anyhow::{Context, Result, bail};

/// The configuration. Values of a repeatable field keep their order.
#[derive(Default)]
pub struct Config {
    /// Modules to load.
    pub modules: Vec<String>,
    /// The tag of the share that becomes the root file system.
    pub tag: String,
    /// Whether it is mounted read-only, without an overlay for what is written.
    pub read_only: bool,
    /// Tags and mount points of more shares.
    pub shares: Vec<(String, PathBuf)>,
    /// The tree's own init, which is started instead of a command.
    pub init: Option<PathBuf>,
    /// The command and its arguments; a shell if it is empty.
    pub command: Vec<OsString>,
    /// Names and values to add to the environment.
    pub environment: Vec<(OsString, OsString)>,
    /// The user that runs the command: a name or a number.
    pub user: Option<String>,
    /// The command's working directory.
    pub directory: Option<PathBuf>,
    /// Whether the command gets a terminal.
    pub terminal: bool,
}

impl Config {
    pub fn read() -> Result<Self> {
        let bytes = fs::read("/config").context("cannot read /config")?;
        let mut config = Self::default();
        for field in bytes
            .split(|&byte| byte == 0)
            .filter(|field| !field.is_empty())
        {
            let (key, value) = cut(field, b'=').context("/config has a field without a value")?;
            let value = OsString::from_vec(value.to_vec());
            let text = value.to_string_lossy().into_owned();
            match key {
                b"module" => config.modules.push(text),
                b"tag" => config.tag = text,
                b"read-only" => config.read_only = true,
                b"share" => {
                    let (tag, path) = text.split_once(':').context("a share has no mount point")?;
                    config.shares.push((tag.to_owned(), path.into()));
                }
                b"init" => config.init = Some(value.into()),
                b"argument" => config.command.push(value),
                b"variable" => {
                    let bytes = value.into_vec();
                    let (name, value) = cut(&bytes, b'=').context("a variable has no value")?;
                    let [name, value] = [name, value].map(|part| OsString::from_vec(part.to_vec()));
                    config.environment.push((name, value));
                }
                b"user" => config.user = Some(text),
                b"directory" => config.directory = Some(value.into()),
                b"terminal" => config.terminal = true,
                key => bail!(
                    "/config has an unknown key {:?}",
                    String::from_utf8_lossy(key)
                ),
            }
        }
        Ok(config)
    }
}

/// The parts before and after the first `separator`.
fn cut(bytes: &[u8], separator: u8) -> Option<(&[u8], &[u8])> {
    let at = bytes.iter().position(|&byte| byte == separator)?;
    Some((bytes.get(..at)?, bytes.get(at + 1..)?))
}
