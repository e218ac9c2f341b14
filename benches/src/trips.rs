//! Requests of one boot and of listings, by kind, as the embedded server records them.

use crate::{machines, results::Results, share::Shares};
use anyhow::{Context, Result};
use bootshare_host::{Board, Share};
use serde_json::Value;
use std::{collections::BTreeMap, fs, path::Path};

/// Counts them; every number is exact, so that one round is enough.
pub fn run(shares: &Shares) -> Result<Results> {
    let mut results = Results::new("trips", "Requests to the host");
    let boot = "bootshare.entry=small";
    count(
        shares,
        "boot of an entry, kernel and initrd",
        boot,
        None,
        &mut results,
    )?;
    for entries in [1, 100, 10_000] {
        let dir = shares
            .dir(bootshare_host::Arch::X86_64)
            .with_file_name(format!("dir-{entries}"));
        if !dir.exists() {
            fs::create_dir_all(&dir)?;
            for n in 0..entries {
                fs::write(dir.join(format!("file-{n:05}")), "")?;
            }
        }
        let case = format!("ls -l of {entries} entries");
        count(
            shares,
            &case,
            "bootshare.cmd=\"ls -l /\"",
            Some(&dir),
            &mut results,
        )?;
    }
    Ok(results)
}

fn count(
    shares: &Shares,
    case: &str,
    options: &str,
    dir: Option<&Path>,
    results: &mut Results,
) -> Result<()> {
    let path = shares
        .dir(bootshare_host::Arch::X86_64)
        .with_file_name("trace");
    let mut machine = machines::ours(shares, Board::X86_64Microvm, options);
    if let Some(dir) = dir {
        machine.shares = vec![Share::new("list", dir)];
    } else {
        machine.watch.expect = Some("Linux version".parse().context("a pattern")?);
    }
    machine.trace = Some(path.clone());
    machines::run(&machine)?;
    let mut kinds = BTreeMap::<String, u32>::new();
    for line in fs::read_to_string(&path)?.lines() {
        let value: Value = serde_json::from_str(line)?;
        let Some(kind) = value.get("op").and_then(Value::as_str) else {
            continue;
        };
        *kinds.entry(kind.into()).or_default() += 1;
        // The kernel's own driver starts another session behind this.
        if kind == "DESTROY" {
            break;
        }
    }
    let total: u32 = kinds.values().sum();
    results.add(&format!("{case}: all"), None, total.into());
    for (kind, count) in kinds {
        results.add(&format!("{case}: {kind}"), None, count.into());
    }
    Ok(())
}
