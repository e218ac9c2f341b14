//! Fault injection, for tests and for authors of firmware.
//!
#![doc = concat!("```text\n", include_str!("fault.txt"), "```")]
//!
//! Each rule counts its requests in the guest's order from the server's start, so the same requests
//! with the same seed get the same faults. With several request queues, the order between queues is
//! not determined.

use std::fmt;
use std::str::FromStr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, Error, Result, bail, ensure};

use super::opcode;

/// The syntax of faults, for the help text.
pub const RULES: &str = include_str!("fault.txt");

/// The errors that have a name; others are written as numbers.
const ERRNOS: [(&str, i32); 21] = [
    ("EPERM", libc::EPERM),
    ("ENOENT", libc::ENOENT),
    ("EINTR", libc::EINTR),
    ("EIO", libc::EIO),
    ("EBADF", libc::EBADF),
    ("EAGAIN", libc::EAGAIN),
    ("ENOMEM", libc::ENOMEM),
    ("EACCES", libc::EACCES),
    ("EBUSY", libc::EBUSY),
    ("ENOTDIR", libc::ENOTDIR),
    ("EISDIR", libc::EISDIR),
    ("EINVAL", libc::EINVAL),
    ("ENFILE", libc::ENFILE),
    ("EMFILE", libc::EMFILE),
    ("ENOSPC", libc::ENOSPC),
    ("EROFS", libc::EROFS),
    ("ENOTTY", libc::ENOTTY),
    ("ENAMETOOLONG", libc::ENAMETOOLONG),
    ("ENOSYS", libc::ENOSYS),
    ("ELOOP", libc::ELOOP),
    ("ESTALE", libc::ESTALE),
];

/// The faults to inject, parsed from rules like `delay=20ms@READ:5,drop=LOOKUP:3`; `bootshare-host
/// serve --help` lists them.
#[derive(Clone, Debug, PartialEq)]
pub struct Fault {
    rules: Vec<Rule>,
    seed: u64,
    text: String,
}

#[derive(Clone, Debug, PartialEq)]
struct Rule {
    effect: Effect,
    which: Which,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Effect {
    Delay(Duration),
    Drop,
    Error(i32),
    Truncate(u32),
    Corrupt(u64),
    Panic,
    Disconnect,
}

#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Which {
    opcode: Option<u32>,
    when: When,
}

#[derive(Clone, Copy, Debug, Default, PartialEq)]
enum When {
    #[default]
    Always,
    Nth(u64),
    From(u64),
    Percent(f64),
}

impl FromStr for Fault {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let mut fault = Self {
            rules: Vec::new(),
            seed: 0,
            text: text.to_owned(),
        };
        for rule in text.split(',') {
            fault
                .add(rule.trim())
                .with_context(|| format!("the fault {rule:?}"))?;
        }
        Ok(fault)
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl Fault {
    fn add(&mut self, rule: &str) -> Result<()> {
        let (kind, value) = rule.split_once('=').context(
            "is not KIND=VALUE with delay, drop, error, truncate, corrupt, panic, disconnect-after \
             or seed",
        )?;
        let (value, which) = match value.split_once('@') {
            Some((value, which)) => (value, Some(which)),
            None => (value, None),
        };
        let (effect, default) = match kind {
            "delay" => (Effect::Delay(time(value)?), Which::default()),
            "drop" | "panic" => {
                ensure!(which.is_none(), "takes no @: {kind}=WHICH");
                let effect = if kind == "drop" {
                    Effect::Drop
                } else {
                    Effect::Panic
                };
                return self.push(effect, parse_which(value)?);
            }
            "error" => (Effect::Error(errno(value)?), Which::default()),
            "truncate" => (Effect::Truncate(number(value)?), Which::default()),
            "corrupt" => {
                let tenth = Which {
                    opcode: None,
                    when: When::Percent(10.0),
                };
                (Effect::Corrupt(number(value)?), tenth)
            }
            "disconnect-after" => {
                ensure!(which.is_none(), "takes no @: disconnect-after=N");
                let answered: u64 = number(value)?;
                let which = Which {
                    opcode: None,
                    when: When::From(answered.saturating_add(1)),
                };
                return self.push(Effect::Disconnect, which);
            }
            "seed" => {
                ensure!(which.is_none(), "takes no @: seed=N");
                self.seed = number(value)?;
                return Ok(());
            }
            _ => bail!(
                "has an unknown kind: use delay, drop, error, truncate, corrupt, panic, \
                 disconnect-after or seed"
            ),
        };
        self.push(effect, which.map_or(Ok(default), parse_which)?)
    }

    fn push(&mut self, effect: Effect, which: Which) -> Result<()> {
        self.rules.push(Rule { effect, which });
        Ok(())
    }
}

fn number<N: FromStr>(text: &str) -> Result<N> {
    text.parse()
        .ok()
        .with_context(|| format!("{text:?} is not a number, or too large"))
}

/// The longest delay.
const MOST: Duration = Duration::from_secs(1_000_000);

fn time(text: &str) -> Result<Duration> {
    let units = [("us", 1e-6), ("ms", 1e-3), ("s", 1.0)];
    units
        .iter()
        .find_map(|(unit, factor)| {
            let number: f64 = text.strip_suffix(unit)?.parse().ok()?;
            let time = Duration::try_from_secs_f64(number * factor).ok();
            time.filter(|time| *time <= MOST)
        })
        .with_context(|| {
            format!("{text:?} is not a time up to 1000000s: write 250us, 20ms or 1.5s")
        })
}

fn errno(text: &str) -> Result<i32> {
    let named = ERRNOS.iter().find(|(name, _)| *name == text);
    let value = named.map(|(_, value)| *value).or_else(|| {
        // fuse.h: a reply's error is between -4095 and 0.
        text.parse().ok().filter(|value| (1..4096).contains(value))
    });
    value.with_context(|| {
        format!("{text:?} is neither a number from 1 to 4095 nor one of EIO, ENOENT, EACCES, ...")
    })
}

fn parse_which(text: &str) -> Result<Which> {
    let (opcode, when) = match text.split_once(':') {
        Some((opcode, when)) => (Some(opcode), Some(when)),
        None if text.starts_with(|c: char| c.is_ascii_digit()) => (None, Some(text)),
        None => (Some(text), None),
    };
    let opcode = match opcode {
        Some(name) => Some(opcode::by_name(name).with_context(|| {
            format!("{name:?} is no operation: use READ, LOOKUP, ... or a number of requests")
        })?),
        None => None,
    };
    let when = match when {
        None => When::Always,
        Some(text) => parse_when(text)
            .with_context(|| format!("{text:?} is not 3, 3+ or 5%, counted from 1"))?,
    };
    Ok(Which { opcode, when })
}

fn parse_when(text: &str) -> Option<When> {
    if let Some(share) = text.strip_suffix('%') {
        let share: f64 = share.parse().ok()?;
        return (0.0..=100.0)
            .contains(&share)
            .then_some(When::Percent(share));
    }
    let (number, later) = match text.strip_suffix('+') {
        Some(number) => (number, true),
        None => (text, false),
    };
    let number = number.parse().ok().filter(|&number| number > 0)?;
    Some(if later {
        When::From(number)
    } else {
        When::Nth(number)
    })
}

/// The faults for one request.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Verdict {
    pub(super) delay: Option<Duration>,
    pub(super) drop: bool,
    pub(super) panic: bool,
    pub(super) disconnect: bool,
    pub(super) error: Option<i32>,
    pub(super) truncate: Option<u32>,
    /// The seed that selects the bit to flip.
    pub(super) corrupt: Option<u64>,
}

/// A [`Fault`] that counts requests.
pub(super) struct Injector {
    fault: Fault,
    counts: Vec<AtomicU64>,
}

impl Injector {
    pub(super) fn new(fault: Fault) -> Self {
        let counts = fault.rules.iter().map(|_| AtomicU64::new(0)).collect();
        Self { fault, counts }
    }

    /// Judges the next request.
    pub(super) fn judge(&self, opcode: u32) -> Verdict {
        let mut verdict = Verdict::default();
        for (index, (rule, count)) in self.fault.rules.iter().zip(&self.counts).enumerate() {
            if rule.which.opcode.is_some_and(|only| only != opcode) {
                continue;
            }
            let ordinal = count.fetch_add(1, Ordering::Relaxed) + 1;
            let chance = mix(self.fault.seed ^ mix((index as u64) << 48 ^ ordinal));
            let applies = match rule.which.when {
                When::Always => true,
                When::Nth(number) => ordinal == number,
                When::From(number) => ordinal >= number,
                // 53 bits are what a float holds.
                When::Percent(share) => {
                    ((chance >> 11) as f64) < share / 100.0 * (1_u64 << 53) as f64
                }
            };
            if applies {
                verdict.add(rule.effect, ordinal);
            }
        }
        verdict
    }
}

impl Verdict {
    /// The faults in words, for a trace; `None` if there is none.
    pub(super) fn describe(&self) -> Option<String> {
        let mut words = Vec::new();
        if let Some(time) = self.delay {
            words.push(format!("delay {time:?}"));
        }
        for (word, applies) in [
            ("drop", self.drop),
            ("panic", self.panic),
            ("disconnect", self.disconnect),
            ("error", self.error.is_some()),
            ("corrupt", self.corrupt.is_some()),
        ] {
            if applies {
                words.push(word.to_owned());
            }
        }
        if let Some(bytes) = self.truncate {
            words.push(format!("truncate {bytes}"));
        }
        (!words.is_empty()).then(|| words.join(", "))
    }

    fn add(&mut self, effect: Effect, ordinal: u64) {
        match effect {
            Effect::Delay(time) => {
                self.delay = Some(self.delay.unwrap_or_default().saturating_add(time));
            }
            Effect::Drop => self.drop = true,
            Effect::Panic => self.panic = true,
            Effect::Disconnect => self.disconnect = true,
            Effect::Error(errno) => self.error = Some(errno),
            Effect::Truncate(bytes) => {
                self.truncate = Some(self.truncate.map_or(bytes, |other| other.min(bytes)));
            }
            Effect::Corrupt(seed) => self.corrupt = Some(mix(seed ^ mix(ordinal))),
        }
    }
}

/// The finaliser of SplitMix64: a deterministic hash of a number.
pub(super) fn mix(number: u64) -> u64 {
    let number = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let number = (number ^ number >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let number = (number ^ number >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    number ^ number >> 31
}

#[cfg(test)]
mod tests {
    use super::*;

    const READ: u32 = 15;
    const LOOKUP: u32 = 1;

    fn verdicts(fault: &str, opcodes: &[u32]) -> Vec<Verdict> {
        let injector = Injector::new(fault.parse().unwrap());
        opcodes.iter().map(|&op| injector.judge(op)).collect()
    }

    #[test]
    fn each_rule_counts_its_own_requests() {
        let all = verdicts(
            "drop=READ:2,error=ESTALE@LOOKUP:1+,delay=20ms@3",
            &[LOOKUP, READ, LOOKUP, READ, READ],
        );
        let stale = Some(libc::ESTALE);
        let dropped: Vec<_> = all.iter().map(|verdict| verdict.drop).collect();
        assert_eq!(dropped, [false, false, false, true, false]);
        let errors: Vec<_> = all.iter().map(|verdict| verdict.error).collect();
        assert_eq!(errors, [stale, None, stale, None, None]);
        let delays: Vec<_> = all.iter().map(|verdict| verdict.delay).collect();
        let third = Some(Duration::from_millis(20));
        assert_eq!(delays, [None, None, third, None, None]);
    }

    #[test]
    fn disconnect_after_counts_requests() {
        let all = verdicts("disconnect-after=2", &[READ; 4]);
        let ends: Vec<_> = all.iter().map(|verdict| verdict.disconnect).collect();
        assert_eq!(ends, [false, false, true, true]);
    }

    #[test]
    fn a_percentage_selects_about_that_many_requests_reproducibly() {
        let fault = "truncate=0@READ:25%,seed=7";
        let first = verdicts(fault, &[READ; 4000]);
        let hit = first.iter().filter(|verdict| verdict.truncate.is_some());
        assert!((800..1200).contains(&hit.count()));
        assert_eq!(first, verdicts(fault, &[READ; 4000]));
        assert_ne!(first, verdicts("truncate=0@READ:25%,seed=8", &[READ; 4000]));
    }

    #[test]
    fn a_seed_decides_what_is_corrupted() {
        let first = verdicts("corrupt=1", &[READ; 1000]);
        let hit = first.iter().filter(|verdict| verdict.corrupt.is_some());
        assert!((50..200).contains(&hit.count()));
        assert_eq!(first, verdicts("corrupt=1", &[READ; 1000]));
        assert_ne!(first, verdicts("corrupt=2", &[READ; 1000]));
    }

    #[test]
    fn faults_of_one_request_add_up_and_are_described() {
        let rules = "delay=1s@READ,delay=20ms,drop=READ:2,panic=READ:2,error=EIO@READ,truncate=9@READ,\
                     truncate=7@READ,truncate=8@READ,corrupt=5@READ:2,disconnect-after=1";
        let [first, second] = verdicts(rules, &[READ, READ])[..] else {
            panic!("two requests");
        };
        assert_eq!(first.delay, Some(Duration::from_millis(1020)));
        assert_eq!((first.error, first.truncate), (Some(libc::EIO), Some(7)));
        assert!(!first.drop && !first.panic && !first.disconnect && first.corrupt.is_none());
        assert_eq!(first.describe().unwrap(), "delay 1.02s, error, truncate 7");
        assert!(second.drop && second.panic && second.disconnect);
        let all = "delay 1.02s, drop, panic, disconnect, error, corrupt, truncate 7";
        assert_eq!(second.describe().unwrap(), all);
        assert_eq!(Verdict::default().describe(), None);
    }

    #[test]
    fn corruption_differs_between_requests_and_seeds() {
        let seeds = |rules: &str| -> Vec<_> {
            let all = verdicts(rules, &[READ; 4]);
            all.iter().filter_map(|verdict| verdict.corrupt).collect()
        };
        let first = seeds("corrupt=1@READ");
        assert_eq!(first.len(), 4);
        assert!(
            first
                .iter()
                .all(|seed| first.iter().filter(|it| *it == seed).count() == 1)
        );
        assert_ne!(first, seeds("corrupt=2@READ"));
        // The published sequence of SplitMix64 that begins with the state 0.
        assert_eq!(mix(0), 0xe220_a839_7b1d_cdaf);
        assert_eq!(mix(0x9e37_79b9_7f4a_7c15), 0x6e78_9e6a_a1b9_65f4);
    }

    #[test]
    fn numbers_times_and_shares_have_their_ranges() {
        let rule = |text: &str| text.parse::<Fault>().map(|fault| fault.rules[0].clone());
        let effect = |text: &str| rule(text).unwrap().effect;
        assert_eq!(
            effect("delay=250us"),
            Effect::Delay(Duration::from_micros(250))
        );
        assert_eq!(
            effect("delay=20ms"),
            Effect::Delay(Duration::from_millis(20))
        );
        assert_eq!(
            effect("delay=1.5s"),
            Effect::Delay(Duration::from_millis(1500))
        );
        assert_eq!(effect("error=1"), Effect::Error(1));
        assert_eq!(effect("error=4095"), Effect::Error(4095));
        assert_eq!(effect("error=ELOOP"), Effect::Error(libc::ELOOP));
        assert!(rule("error=0").is_err());
        let when = |text: &str| rule(text).unwrap().which.when;
        assert_eq!(when("drop=3"), When::Nth(3));
        assert_eq!(when("drop=READ:3+"), When::From(3));
        assert_eq!(when("drop=100%"), When::Percent(100.0));
        assert_eq!(when("drop=READ"), When::Always);
        assert_eq!(rule("drop=read:1").unwrap().which.opcode, Some(READ));
        assert_eq!(rule("drop=1").unwrap().which.opcode, None);
        let all = verdicts("drop=READ:100%,panic=READ:0%", &[READ; 100]);
        assert!(all.iter().all(|verdict| verdict.drop && !verdict.panic));
        assert_eq!(
            "drop=1, seed=3".parse::<Fault>().unwrap().to_string(),
            "drop=1, seed=3"
        );
    }

    #[test]
    fn rules_of_one_share_hit_different_requests() {
        let all = verdicts("drop=READ:50%,panic=READ:50%", &[READ; 1000]);
        let both = all
            .iter()
            .filter(|verdict| verdict.drop && verdict.panic)
            .count();
        assert!((150..350).contains(&both), "{both}");
    }

    #[test]
    fn the_same_seed_gives_the_same_faults_in_each_version() {
        let rules = "drop=READ:30%,panic=READ:30%,corrupt=5@READ,seed=7";
        let all = verdicts(rules, &[READ; 40]);
        let hit = |is: fn(&Verdict) -> bool| -> Vec<_> {
            let all = (1..).zip(&all).filter(|(_, it)| is(it));
            all.map(|(ordinal, _)| ordinal).collect()
        };
        assert_eq!(
            hit(|it| it.panic),
            [1, 2, 5, 7, 8, 9, 11, 12, 15, 23, 30, 33, 35]
        );
        assert_eq!(hit(|it| it.drop), [2, 4, 6, 7, 11, 19, 29, 30, 33, 35, 38]);
        let seeds = [all[0].corrupt, all[1].corrupt].map(Option::unwrap);
        assert_eq!(seeds, [0xb144_1d25_4bd8_6cd7, 0x953d_eb0d_47b9_380a]);
    }

    #[test]
    fn invalid_rules_are_refused_by_name() {
        for (text, part) in [
            ("", "KIND=VALUE"),
            ("slow=1", "unknown kind"),
            ("delay=20", "20ms"),
            ("delay=-1s", "not a time"),
            ("delay=1e30s", "not a time"),
            ("drop=RAED", "RAED"),
            ("drop=READ:0", "counted from 1"),
            ("drop=READ:101%", "5%"),
            ("error=EWHAT", "EIO"),
            ("error=4096", "4095"),
            ("truncate=x", "not a number"),
            ("drop=READ,,", "KIND=VALUE"),
            ("disconnect-after=3@READ", "disconnect-after=N"),
            ("drop=READ@3", "drop=WHICH"),
            ("panic=READ@3", "panic=WHICH"),
            ("seed=1@READ", "seed=N"),
        ] {
            let error = format!("{:#}", text.parse::<Fault>().unwrap_err());
            assert!(error.contains(part), "{text}: {error}");
        }
    }
}
