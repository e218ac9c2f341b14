//! A test report for CI systems: JUnit's XML, with one test case.
//!
//! The format has no standard; this is the part that Jenkins, GitLab and GitHub's actions read
//! alike.

use std::fmt::Write;

use bootshare_host::command::Kept;

/// The beginning of the test suite, by which an earlier report is known.
pub(super) const SUITE: &str = "<testsuite name=\"bootshare-host run\"";

/// How a test case ended.
pub(super) enum Verdict {
    /// The command succeeded.
    Passed,
    /// The command ended with another status.
    Failed(String),
    /// The command was not started, or did not end by itself; with the console's last lines.
    Broken(String, Vec<String>),
    /// The run says nothing about the tested kernel or command.
    Skipped(String),
}

/// A test case: a command, under a kernel.
pub(super) struct Case<'a> {
    pub(super) command: String,
    pub(super) kernel: &'a str,
    pub(super) seconds: f64,
    pub(super) verdict: Verdict,
    /// Standard output and standard error.
    pub(super) output: &'a [Kept; 2],
}

impl Case<'_> {
    /// The document. It is valid XML 1.0 for any content.
    pub(super) fn document(&self) -> String {
        let (element, message, lines) = match &self.verdict {
            Verdict::Passed => (None, "", &[][..]),
            Verdict::Failed(message) => (Some("failure"), message.as_str(), &[][..]),
            Verdict::Broken(message, lines) => (Some("error"), message.as_str(), &lines[..]),
            Verdict::Skipped(message) => (Some("skipped"), message.as_str(), &[][..]),
        };
        let count = |name| u8::from(element == Some(name));
        let mut out = format!(
            "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<testsuites>\n\
             {SUITE} tests=\"1\" failures=\"{}\" errors=\"{}\" \
             skipped=\"{}\" time=\"{:.3}\">\n<testcase name=\"{}\" classname=\"{}\" time=\"{:.3}\">\n",
            count("failure"),
            count("error"),
            count("skipped"),
            self.seconds,
            attribute(&self.command),
            attribute(self.kernel),
            self.seconds
        );
        let mut add = |text: std::fmt::Arguments<'_>| {
            // Writing to a string does not fail.
            let _ = out.write_fmt(text);
        };
        if let Some(element) = element {
            let (message, text) = (attribute(message), escaped(&lines.join("\n")));
            add(format_args!(
                "<{element} message=\"{message}\">{text}</{element}>\n"
            ));
        }
        for (element, kept) in ["system-out", "system-err"].iter().zip(self.output) {
            let note = match kept.left_out() {
                0 => String::new(),
                count => format!("[{count} bytes before this are left out]\n"),
            };
            let text = escaped(&String::from_utf8_lossy(kept.bytes()));
            add(format_args!("<{element}>{note}{text}</{element}>\n"));
        }
        out.push_str("</testcase>\n</testsuite>\n</testsuites>\n");
        out
    }
}

/// Escapes text as the value of an attribute, in which a parser would turn line ends into spaces.
fn attribute(text: &str) -> String {
    escaped(text).replace('\n', "&#10;").replace('\t', "&#9;")
}

/// Escapes text as content. A character that XML 1.0 does not allow (section 2.2, `Char`) becomes
/// U+FFFD. A carriage return is written as a number, because a parser would turn it into a line
/// feed.
fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\r' => out.push_str("&#13;"),
            '\t' | '\n' => out.push(c),
            '\0'..='\u{1f}' | '\u{fffe}' | '\u{ffff}' => out.push('\u{fffd}'),
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_document_is_xml_and_holds_the_output_whatever_that_is() {
        let mut output = [Kept::default(), Kept::default()];
        output[0].add(&Vec::from_iter(0..=u8::MAX));
        output[0].add("\u{fffe}\u{ffff}\u{10ffff}]]>\u{1b}[31mred\r\n".as_bytes());
        output[1].add(b"</system-err><!-- &amp;");
        for (verdict, element) in [
            (Verdict::Passed, None),
            (Verdict::Failed("a\"<\n".into()), Some("failure")),
            (
                Verdict::Broken("it".into(), vec!["<\0".into()]),
                Some("error"),
            ),
            (Verdict::Skipped("it".into()), Some("skipped")),
        ] {
            let case = Case {
                command: "sh -c a\n\t\"b\" <>&'\0".into(),
                kernel: "6.1",
                seconds: 1.5,
                verdict,
                output: &output,
            };
            let text = case.document();
            let document = roxmltree::Document::parse(&text).unwrap();
            let one = |name: &str| document.descendants().find(|node| node.has_tag_name(name));
            let case = one("testcase").unwrap();
            assert_eq!(
                case.attribute("name"),
                Some("sh -c a\n\t\"b\" <>&'\u{fffd}")
            );
            assert_eq!(case.attribute("time"), Some("1.500"));
            for name in ["failure", "error", "skipped"] {
                assert_eq!(one(name).is_some(), element == Some(name), "{name}");
                let suite = one("testsuite").unwrap();
                let counted = match name {
                    "skipped" => suite.attribute(name),
                    name => suite.attribute(format!("{name}s").as_str()),
                };
                assert_eq!(counted, Some(if element == Some(name) { "1" } else { "0" }));
            }
            if let Some(failure) = one("failure") {
                assert_eq!(failure.attribute("message"), Some("a\"<\n"));
            }
            let said = one("system-out").unwrap().text().unwrap();
            let controls = "\u{fffd}".repeat(9) + "\t\n" + &"\u{fffd}".repeat(2) + "\r";
            assert!(said.starts_with(&controls), "{said:?}");
            assert!(
                said.ends_with("\u{fffd}\u{fffd}\u{10ffff}]]>\u{fffd}[31mred\r\n"),
                "{said:?}"
            );
            let said = one("system-err").unwrap().text();
            assert_eq!(said, Some("</system-err><!-- &amp;"));
        }
    }
}
