//! The numbers of requests of a boot and of listings, by operation, from the embedded server's trace.

use crate::{
    machines,
    results::{Case, Layout, Results},
    share::Shares,
    trace,
};
use anyhow::{Context, Result};
use bootshare_host::{Arch, Board, Machine, Share};
use std::collections::BTreeMap;

/// Counts the requests. The numbers are exact, so one round is enough.
pub fn run(shares: &Shares) -> Result<Results> {
    eprintln!("trips");
    let mut results = Results::new("trips", "Requests to the host", Layout::Counts);
    let ours = |options: &str| machines::ours(shares, Board::X86_64Microvm, options);
    let mut boot = ours("bootshare.entry=small");
    boot.watch.expect = vec![machines::FIRST_LINE.parse().context("a pattern")?];
    count(
        shares,
        "a boot of an entry, kernel and initrd",
        &mut boot,
        &mut results,
    )?;
    for entries in [1, 100, 10_000] {
        let mut list = ours("bootshare.cmd=\"ls -l /\"");
        list.shares = vec![Share::new("list", shares.many(entries)?)];
        let what = format!("ls -l of {entries}");
        count(shares, &what, &mut list, &mut results)?;
    }
    Ok(results)
}

fn count(shares: &Shares, what: &str, machine: &mut Machine, results: &mut Results) -> Result<()> {
    let path = shares.dir(Arch::X86_64).with_file_name("trace");
    let mut kinds = BTreeMap::<String, u32>::new();
    let requests = trace::run(machine, &path)?;
    for request in &requests {
        *kinds.entry(request.op.clone()).or_default() += 1;
    }
    results.add(&Case::new(what, "all"), None, requests.len() as f64);
    for (kind, count) in kinds {
        results.add(&Case::new(what, kind), None, count.into());
    }
    Ok(())
}
