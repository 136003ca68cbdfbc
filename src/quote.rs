//! Text from outside, quoted in a message: short enough to be read, and nothing that a terminal would obey.

use alloc::borrow::ToOwned;
#[cfg(feature = "trace")]
use alloc::format;
use alloc::string::{String, ToString};

/// Characters of a text that a message quotes.
const SHOWN: usize = 64;

/// A text as messages quote it: at most 64 characters, the last of them an ellipsis where there were more, control
/// characters escaped.
pub(crate) fn quoted(text: &str) -> String {
    let rest = text.char_indices().nth(SHOWN).map(|_| "…");
    let shown = SHOWN - usize::from(rest.is_some());
    text.chars().take(shown).map(escaped).chain(rest.map(str::to_owned)).collect()
}

/// A whole message that may quote such a text somewhere within: what is too long is left out of its middle.
#[cfg(feature = "trace")]
pub(crate) fn shortened(message: &str) -> String {
    const END: usize = 2 * SHOWN;
    let count = message.chars().count();
    if count <= SHOWN + END {
        return message.chars().map(escaped).collect();
    }
    let end: String = message.chars().skip(count - END).map(escaped).collect();
    format!("{}{end}", quoted(message))
}

fn escaped(letter: char) -> String {
    if letter.is_control() { letter.escape_default().to_string() } else { letter.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_short_is_quoted_as_it_is() {
        for text in ["", "in al, dx", "é", &"é".repeat(64)] {
            assert_eq!(quoted(text), text);
        }
    }

    #[test]
    fn what_is_long_or_no_text_is_not() {
        assert_eq!(quoted(&"é".repeat(65)), format!("{}…", "é".repeat(63)));
        assert_eq!(quoted("\u{1b}[2J\n"), "\\u{1b}[2J\\n");
    }

    #[cfg(feature = "trace")]
    #[test]
    fn a_message_keeps_both_its_ends() {
        let message = |name: &str| format!("unknown field `{name}`, expected one of `insn`, `before`");
        assert_eq!(shortened(&message("x")), message("x"));
        let long = shortened(&message(&"x".repeat(1_000_000)));
        assert!(long.starts_with("unknown field `xxx") && long.ends_with("xxx`, expected one of `insn`, `before`"));
        assert_eq!(long.chars().count(), 192);
    }
}
