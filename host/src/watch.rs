//! Searches the console for patterns: those that it must show, those that it must not show, and
//! those that a test's steps wait for.
//!
//! The console is searched byte by byte as a stream, so results do not depend on the sizes of
//! reads, and memory is bounded. The searched text is what a person sees: escape sequences are
//! removed, a byte that is not UTF-8 becomes U+FFFD, and a line ends with `\n`, whatever mixture of
//! `\r` and `\n` the guest uses. A silence of the guest also ends a line, as after a prompt, until
//! more output arrives.

use std::collections::VecDeque;
use std::fmt;
use std::str::FromStr;

use anyhow::{Context, Result, ensure};
use regex_automata::hybrid::LazyStateID;
use regex_automata::hybrid::dfa::{Cache, DFA};
use regex_automata::util::{look::Look, start, syntax};

use crate::screen::{LAST_BYTES, LastLines, START, Screen};

/// A regular expression for the console; `^` and `$` match at the begin and the end of each line.
#[derive(Clone, Debug)]
pub struct Pattern {
    text: String,
    dfa: DFA,
    /// Whether a match can depend on the next byte, as with `$` and `\b`.
    looks_ahead: bool,
}

impl FromStr for Pattern {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let syntax = syntax::Config::new().multi_line(true);
        // With a Unicode `\b` the DFA stops at bytes outside ASCII; `Search::step` restarts it.
        let config = DFA::config().unicode_word_boundary(true);
        let dfa = DFA::builder()
            .configure(config)
            .syntax(syntax)
            .build(text)
            .map_err(|error| {
                // A syntax error shows the place in several lines; the last line is the message.
                let error = anyhow::Error::from(error).root_cause().to_string();
                let last = error.lines().last().unwrap_or_default().to_owned();
                match last.contains("cache capacity") {
                    true => anyhow::anyhow!("it has too many states: write a shorter one"),
                    false => anyhow::anyhow!("{}", last.trim_start_matches("error: ")),
                }
            })?;
        let looks = dfa.get_nfa().look_set_any();
        let looks_ahead = looks
            .iter()
            .any(|look| !matches!(look, Look::Start | Look::StartLF | Look::StartCRLF));
        let text = text.to_owned();
        let pattern = Self {
            text,
            dfa,
            looks_ahead,
        };
        let mut nothing = Search::new(&pattern)?;
        ensure!(
            !nothing.ends_in_match()?,
            "it matches the empty text, so it would match at once: write a text that must appear"
        );
        Ok(pattern)
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// The patterns that the console is searched for.
#[derive(Clone, Debug, Default)]
pub struct Watch {
    /// The run has succeeded once the console has shown all of these, in this order.
    pub expect: Vec<Expect>,
    /// The run has failed once the console shows one of these.
    pub fail: Vec<Pattern>,
}

impl Watch {
    /// Whether there are any patterns.
    pub fn is_used(&self) -> bool {
        !self.expect.is_empty() || !self.fail.is_empty()
    }
}

/// A pattern that the console must show.
#[derive(Clone, Debug)]
pub struct Expect {
    /// The pattern.
    pub pattern: Pattern,
    /// The text to type after the match. If the last pattern has one, the run goes on, and the
    /// guest's end decides.
    pub answer: Option<Vec<u8>>,
}

impl FromStr for Expect {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        Ok(Self {
            pattern: text.parse()?,
            answer: None,
        })
    }
}

/// The first decisive match.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Found {
    /// All expected patterns.
    Expected,
    /// The pattern with this index in [`Watch::fail`].
    Failure(usize),
}

/// Matches of the patterns that are awaited in order.
#[derive(Debug, Default)]
pub(crate) struct Came {
    /// The texts to type now.
    pub(crate) answers: Vec<Vec<u8>>,
    /// How many of a test's steps are due.
    pub(crate) awaited: usize,
}

/// Searches the console of one run.
pub(crate) struct Watcher {
    screen: Screen,
    failures: Vec<Search>,
    expected: Sequence,
    /// The answer to each expected pattern.
    answers: Vec<Option<Vec<u8>>>,
    awaited: Sequence,
    found: Option<Found>,
    /// Whether there was output since the last silence.
    has_news: bool,
    last: LastLines,
    /// The current line or, once there is a match, the line of the match.
    line: Vec<u8>,
    is_line_complete: bool,
}

impl Watcher {
    pub(crate) fn new<'a>(watch: &Watch, awaited: impl Iterator<Item = &'a str>) -> Result<Self> {
        let awaited = awaited.map(|text| text.parse().with_context(|| format!("{text:?}")));
        let awaited = awaited.collect::<Result<Vec<Pattern>>>()?;
        Ok(Self {
            screen: Screen::default(),
            failures: watch.fail.iter().map(Search::new).collect::<Result<_>>()?,
            expected: Sequence::new(watch.expect.iter().map(|expect| &expect.pattern))?,
            answers: watch.expect.iter().map(|it| it.answer.clone()).collect(),
            awaited: Sequence::new(awaited.iter())?,
            found: None,
            has_news: false,
            last: LastLines::default(),
            line: Vec::new(),
            is_line_complete: false,
        })
    }

    /// Searches the guest's output; returns the new matches.
    pub(crate) fn feed(&mut self, bytes: &[u8]) -> Result<Came> {
        self.has_news = true;
        let mut came = Came::default();
        for byte in self.screen.text(bytes) {
            self.last.push(byte);
            for (index, search) in self.failures.iter_mut().enumerate() {
                if search.step(byte)? {
                    self.found.get_or_insert(Found::Failure(index));
                }
            }
            if self.expected.step(byte)? {
                self.note_expected(&mut came);
            }
            self.note(byte);
            if self.awaited.step(byte)? {
                came.awaited += self.awaited.take_news();
            }
        }
        self.look(false, &mut came)?;
        Ok(came)
    }

    /// Called when the guest is silent or has ended: its line ends here, until there is more
    /// output.
    pub(crate) fn pause(&mut self) -> Result<Came> {
        self.has_news = false;
        let mut came = Came::default();
        self.look(true, &mut came)?;
        Ok(came)
    }

    /// Whether a silence could complete a match.
    pub(crate) fn looks_ahead(&self) -> bool {
        let sequences = [&self.expected, &self.awaited];
        let next = sequences.into_iter().filter_map(|it| it.waiting.front());
        self.has_news
            && self
                .failures
                .iter()
                .chain(next)
                .any(|search| search.looks_ahead)
    }

    /// Looks for matches that end with the last byte; those that depend on the next byte only if
    /// the line `is_over`.
    fn look(&mut self, is_over: bool, came: &mut Came) -> Result<()> {
        for (index, search) in self.failures.iter_mut().enumerate() {
            if self.found.is_none() && search.matches_here(is_over)? {
                self.found = Some(Found::Failure(index));
            }
        }
        if self.expected.look(is_over)? {
            self.note_expected(came);
        }
        if self.awaited.look(is_over)? {
            came.awaited += self.awaited.take_news();
        }
        Ok(())
    }

    fn note_expected(&mut self, came: &mut Came) {
        let shown = self.shown();
        let new = self.answers[..shown]
            .iter()
            .rev()
            .take(self.expected.take_news());
        let new: Vec<_> = new.filter_map(Clone::clone).collect();
        came.answers.extend(new.into_iter().rev());
        let ends_run = matches!(self.answers.last(), Some(None));
        if ends_run && self.expected.waiting.is_empty() {
            self.found.get_or_insert(Found::Expected);
        }
    }

    /// How many of the expected patterns have matched.
    pub(crate) fn shown(&self) -> usize {
        self.answers.len() - self.expected.waiting.len()
    }

    /// Keeps the line of the match up to its end, which may be after the match.
    fn note(&mut self, byte: u8) {
        if byte == b'\n' {
            self.is_line_complete |= self.found.is_some();
            if !self.is_line_complete {
                self.line.clear();
            }
        } else if !self.is_line_complete && self.line.len() < LAST_BYTES {
            self.line.push(byte);
        }
    }

    /// The line of the match, or else the last line.
    pub(crate) fn line(&self) -> String {
        String::from_utf8_lossy(&self.line).into_owned()
    }

    pub(crate) fn found(&self) -> Option<Found> {
        self.found
    }

    /// Whether the last line is incomplete.
    pub(crate) fn is_cut(&self) -> bool {
        self.last.bytes.back().is_some_and(|&byte| byte != b'\n')
    }

    /// Whether the last line is the firmware's message that it starts a kernel.
    pub(crate) fn shows_start(&self) -> bool {
        let lines = self.last_lines();
        lines.last().is_some_and(|line| line.starts_with(START))
    }

    /// The last lines, without escape sequences.
    pub(crate) fn last_lines(&self) -> Vec<String> {
        self.last.lines()
    }
}

/// Searches for patterns in order, each after the match of the one before.
struct Sequence {
    waiting: VecDeque<Search>,
    /// The last byte.
    behind: Option<u8>,
    /// How many have matched and were not [taken](Self::take_news).
    news: usize,
}

impl Sequence {
    fn new<'a>(patterns: impl Iterator<Item = &'a Pattern>) -> Result<Self> {
        Ok(Self {
            waiting: patterns.map(Search::new).collect::<Result<_>>()?,
            behind: None,
            news: 0,
        })
    }

    fn step(&mut self, byte: u8) -> Result<bool> {
        while let Some(search) = self.waiting.front_mut()
            && search.step(byte)?
        {
            self.next()?;
        }
        self.behind = Some(byte);
        Ok(self.news > 0)
    }

    fn look(&mut self, is_over: bool) -> Result<bool> {
        while let Some(search) = self.waiting.front_mut()
            && search.matches_here(is_over)?
        {
            self.next()?;
        }
        Ok(self.news > 0)
    }

    fn next(&mut self) -> Result<()> {
        self.news += 1;
        self.waiting.pop_front();
        if let Some(search) = self.waiting.front_mut() {
            search.begin(self.behind)?;
        }
        Ok(())
    }

    fn take_news(&mut self) -> usize {
        std::mem::take(&mut self.news)
    }
}

/// A search for one pattern, and its state after the bytes so far.
struct Search {
    dfa: DFA,
    cache: Cache,
    state: LazyStateID,
    looks_ahead: bool,
}

impl Search {
    fn new(pattern: &Pattern) -> Result<Self> {
        let dfa = pattern.dfa.clone();
        let mut cache = dfa.create_cache();
        let state = dfa
            .start_state(&mut cache, &start::Config::new())
            .context("cannot search the console")?;
        Ok(Self {
            dfa,
            cache,
            state,
            looks_ahead: pattern.looks_ahead,
        })
    }

    /// Restarts the search after this byte.
    fn begin(&mut self, behind: Option<u8>) -> Result<()> {
        // For `\b`, characters outside ASCII do not count as parts of a word here.
        let behind = behind.map(|byte| if byte.is_ascii() { byte } else { b' ' });
        let config = start::Config::new().look_behind(behind);
        let state = self.dfa.start_state(&mut self.cache, &config);
        self.state = state.context("cannot search the console")?;
        Ok(())
    }

    /// Processes one byte; `true` if a match ends before it.
    fn step(&mut self, byte: u8) -> Result<bool> {
        let next = self.dfa.next_state(&mut self.cache, self.state, byte);
        self.state = next.context("cannot search the console")?;
        if self.state.is_quit() {
            // `\b` at a byte outside ASCII: see [`Pattern`].
            self.begin(Some(byte))?;
        }
        Ok(self.state.is_match())
    }

    /// Whether a match ends with the last byte, whatever the next byte is; or, if the line
    /// `is_over`, assuming that nothing follows.
    fn matches_here(&mut self, is_over: bool) -> Result<bool> {
        Ok((is_over || !self.looks_ahead) && self.ends_in_match()?)
    }

    /// Whether a match ends here if nothing follows.
    fn ends_in_match(&mut self) -> Result<bool> {
        // The query could evict the search's current state from the cache.
        let mut cache = self.cache.clone();
        let end = self.dfa.next_eoi_state(&mut cache, self.state);
        Ok(end.context("cannot search the console")?.is_match())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::screen::LAST_LINES;

    fn watch(expect: &str, fail: &str) -> Watcher {
        fn some(text: &str) -> Option<&str> {
            Some(text).filter(|text| !text.is_empty())
        }
        let watch = Watch {
            expect: some(expect)
                .iter()
                .map(|text| text.parse().unwrap())
                .collect(),
            fail: some(fail)
                .iter()
                .map(|text| text.parse().unwrap())
                .collect(),
        };
        Watcher::new(&watch, std::iter::empty()).unwrap()
    }

    /// The result for `text`. Asserts that it does not depend on how the text is divided into two reads.
    fn found(expect: &str, fail: &str, text: &[u8]) -> Option<Found> {
        let mut results = Vec::new();
        for cut in 0..=text.len() {
            let mut watcher = watch(expect, fail);
            watcher.feed(&text[..cut]).unwrap();
            watcher.feed(&text[cut..]).unwrap();
            watcher.pause().unwrap();
            results.push(watcher.found());
        }
        results.dedup();
        assert_eq!(
            results.len(),
            1,
            "the result depends on how the text is divided"
        );
        results[0]
    }

    #[test]
    fn a_match_is_found_wherever_the_stream_is_cut() {
        let text = b"boot\r\nWelcome to \x1b[1;32mDebian\x1b[0m!\r\nhost login: ";
        for pattern in [
            "host login: ",
            "^host",
            "Welcome to Debian!$",
            "^Welcome to Debian!$",
            r"\bDebian\b",
            "(?s)boot.*login",
            "boot\nWelcome",
            r"login:\s$",
        ] {
            assert_eq!(found(pattern, "", text), Some(Found::Expected), "{pattern}");
            assert_eq!(
                found("", pattern, text),
                Some(Found::Failure(0)),
                "{pattern}"
            );
        }
        for pattern in ["^login", "Debian$", r"\bDeb\b", "boot.*login", "debian"] {
            assert_eq!(found(pattern, "", text), None, "{pattern}");
        }
    }

    #[test]
    fn a_prompt_is_matched_without_further_output() {
        let mut watcher = watch("login: ", "");
        watcher.feed(b"host login: ").unwrap();
        assert_eq!(watcher.found(), Some(Found::Expected));
        // Only the next byte or a silence shows whether the line ends here.
        for pattern in ["login:$", r"login:\b", r"login:\s*$", r"host\b.*$"] {
            let mut watcher = watch(pattern, "");
            watcher.feed(b"host login:").unwrap();
            assert_eq!(watcher.found(), None);
            assert!(watcher.looks_ahead());
            watcher.feed(b"\r\n").unwrap();
            let at_end = watcher.found();
            let mut watcher = watch(pattern, "");
            watcher.feed(b"host login:").unwrap();
            watcher.pause().unwrap();
            assert_eq!(watcher.found(), at_end, "{pattern}");
            assert!(!watcher.looks_ahead());
        }
        // A silence ends the line only until there is more output.
        let mut watcher = watch("^two$", "onetwo");
        watcher.feed(b"one").unwrap();
        watcher.pause().unwrap();
        watcher.feed(b"two").unwrap();
        assert_eq!(watcher.found(), Some(Found::Failure(0)));
    }

    #[test]
    fn several_patterns_come_in_order_and_each_has_its_answer() {
        let expect = |text: &str, answer: Option<&str>| Expect {
            pattern: text.parse().unwrap(),
            answer: answer.map(|text| text.as_bytes().to_vec()),
        };
        for (last, found) in [(None, Some(Found::Expected)), (Some("exit\r"), None)] {
            let watch = Watch {
                expect: vec![
                    expect("login: $", Some("root\r")),
                    expect("one", None),
                    expect("^two", None),
                    expect("# $", last),
                ],
                fail: vec!["never".parse().unwrap()],
            };
            let mut watcher = Watcher::new(&watch, std::iter::empty()).unwrap();
            watcher.feed(b"one two\r\nhost login: ").unwrap();
            assert_eq!(watcher.shown(), 0);
            assert_eq!(watcher.pause().unwrap().answers, [b"root\r"]);
            assert_eq!(watcher.shown(), 1);
            // After the prompt: no line begins here.
            watcher.feed(b"two onetwo\r\n").unwrap();
            assert_eq!((watcher.shown(), watcher.found()), (2, None));
            watcher.feed(b"two # ").unwrap();
            assert_eq!((watcher.shown(), watcher.found()), (3, None));
            let answers = watcher.pause().unwrap().answers;
            let last: Vec<_> = last.iter().map(|text| text.as_bytes()).collect();
            assert_eq!(answers, last);
            assert_eq!((watcher.shown(), watcher.found()), (4, found));
        }
    }

    #[test]
    fn awaited_patterns_match_one_after_the_other() {
        let text = b"one\r\none two\r[##\r[###\r\x1b[Kthree";
        let awaited = ["one", "one t", "\n\\[", "\n\\[", "three", "three"];
        for cut in 0..text.len() {
            let mut watcher = Watcher::new(&Watch::default(), awaited.into_iter()).unwrap();
            let counts =
                [&text[..cut], &text[cut..]].map(|part| watcher.feed(part).unwrap().awaited);
            assert_eq!(counts.iter().sum::<usize>(), 5, "cut at {cut}");
        }
    }

    #[test]
    fn a_line_without_its_end_is_cut() {
        let mut watcher = watch("", "");
        for (text, is_cut) in [("", false), ("login: ", true), ("root\r\n", false)] {
            watcher.feed(text.as_bytes()).unwrap();
            assert_eq!(watcher.is_cut(), is_cut, "{text:?}");
        }
    }

    #[test]
    fn patterns_of_either_kind_are_used_and_keep_their_text() {
        let text = r"^a\b";
        let expect = || vec![text.parse().unwrap()];
        let fail: Vec<Pattern> = vec![text.parse().unwrap()];
        assert_eq!(fail[0].to_string(), text);
        for (expect, fail, is_used) in [
            (Vec::new(), Vec::new(), false),
            (expect(), Vec::new(), true),
            (Vec::new(), fail.clone(), true),
            (expect(), fail, true),
        ] {
            assert_eq!(Watch { expect, fail }.is_used(), is_used);
        }
    }

    #[test]
    fn the_first_match_counts() {
        let text = b"one\ntwo\n";
        assert_eq!(found("one", "two", text), Some(Found::Expected));
        assert_eq!(found("two", "one", text), Some(Found::Failure(0)));
        assert_eq!(found("two", "two", text), Some(Found::Failure(0)));
    }

    #[test]
    fn the_line_with_the_match_is_kept_to_its_end() {
        let text = b"one\r\n[1.0] Kernel panic - not syncing: VFS\r\ntrace\r\n";
        for pattern in ["panic", "VFS$", "syncing: VFS"] {
            for cut in 0..text.len() {
                let mut watcher = watch("", pattern);
                watcher.feed(&text[..cut]).unwrap();
                watcher.feed(&text[cut..]).unwrap();
                assert_eq!(watcher.line(), "[1.0] Kernel panic - not syncing: VFS");
            }
        }
    }

    #[test]
    fn every_kind_of_line_end_ends_a_line() {
        for end in ["\n", "\r\n", "\r\r\n", "\r", "\r\x1b[K"] {
            let text = format!("one{end}two");
            assert_eq!(
                found("^one$\n^two", "", text.as_bytes()),
                Some(Found::Expected),
                "{end:?}"
            );
        }
    }

    #[test]
    fn bytes_that_are_not_text_do_not_hide_later_output() {
        let mut text: Vec<u8> = (0..=255).collect();
        text.extend(b"\x1b]0;a title that never ends\nKernel panic \xc3");
        for pattern in ["Kernel panic", r"\bKernel\b", "^Kernel"] {
            assert_eq!(
                found("", pattern, &text),
                Some(Found::Failure(0)),
                "{pattern}"
            );
        }
        let text = "Gr\u{fc}\u{df}e".as_bytes();
        assert_eq!(found("Gr\u{fc}.e$", "", text), Some(Found::Expected));
        // Latin-1, and a character that is cut short: each is a character that cannot be shown.
        for pattern in ["^caf. [^ ] READY$", r"caf\x{fffd} \x{fffd} READY"] {
            let text = b"caf\xe9 \xe2\x82 READY\n";
            assert_eq!(found(pattern, "", text), Some(Found::Expected), "{pattern}");
        }
        assert_eq!(found("xREADY", "", b"x\xffREADY"), None);
    }

    #[test]
    fn a_pattern_that_matches_the_empty_text_is_refused() {
        for (text, said) in [
            ("", "matches the empty text"),
            (".*", "matches the empty text"),
            ("^", "matches the empty text"),
            ("(", "unclosed group"),
        ] {
            let error = text.parse::<Pattern>().unwrap_err().to_string();
            assert!(error.contains(said), "{error}");
        }
    }

    #[test]
    fn a_search_at_the_end_does_not_change_the_state() {
        // A pattern with more states than fit in its cache.
        let mut pattern: Pattern = "1[01]{16}$".parse().unwrap();
        let config = DFA::config()
            .cache_capacity(1)
            .skip_cache_capacity_check(true);
        let mut builder = DFA::builder();
        builder
            .configure(config)
            .syntax(syntax::Config::new().multi_line(true));
        pattern.dfa = builder.build(&pattern.text).unwrap();
        let mut search = Search::new(&pattern).unwrap();
        let mut number = 1_u32;
        let mut text = Vec::new();
        for count in 0..5_000 {
            number = number.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let digit = b'0' + u8::from(number >= 1 << 31);
            text.push(digit);
            search.step(digit).unwrap();
            if count > 16 {
                let is_there = text[text.len() - 17] == b'1';
                assert_eq!(search.ends_in_match().unwrap(), is_there, "{count}");
            }
        }
    }

    #[test]
    fn the_last_lines_are_bounded_and_clean() {
        let mut watcher = watch("never", "");
        for line in 0..1000 {
            let text = format!("\x1b[31mline {line}\r\n\r\n");
            watcher.feed(text.as_bytes()).unwrap();
        }
        let lines = watcher.last_lines();
        assert_eq!(lines.len(), LAST_LINES);
        assert_eq!(lines[LAST_LINES - 1], "line 999");
        watcher.feed(&[b'x'; 1 << 20]).unwrap();
        assert_eq!(watcher.last_lines(), ["x".repeat(LAST_BYTES)]);
        assert_eq!(watcher.line(), "x".repeat(LAST_BYTES));
    }

    #[test]
    fn the_firmwares_progress_is_shown_before_the_last_lines() {
        let mut watcher = watch("", "");
        let entry = "bootshare: entry a of /loader/entries/a.conf";
        let start = "bootshare: starting /a";
        watcher
            .feed(format!("first\r\n{entry}\r\n").as_bytes())
            .unwrap();
        assert_eq!(watcher.last_lines(), ["first", entry]);
        watcher.feed(format!("{start}\r\n").as_bytes()).unwrap();
        assert_eq!(watcher.last_lines(), ["first", entry, start]);
        assert!(watcher.shows_start());
        for number in 0..LAST_LINES {
            watcher.feed(format!("{number}\r\n").as_bytes()).unwrap();
        }
        let lines = watcher.last_lines();
        assert_eq!(lines.len(), 2 + LAST_LINES);
        assert_eq!(lines[..3], [entry, start, "0"]);
        assert!(!watcher.shows_start());
    }
}
