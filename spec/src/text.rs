//! Foreign text as people read it.

/// Text that somebody else wrote, safe to print: what a terminal would obey is shown, not sent. That is all control characters but
/// the line's end and tabs, and the characters of format that turn text around or hide it.
pub fn printable(text: &str) -> String {
    // Terminals are sent both at a line's end.
    text.replace("\r\n", "\n").chars().map(|c| if is_shown(c) { c } else { char::REPLACEMENT_CHARACTER }).collect()
}

fn is_shown(c: char) -> bool {
    match c {
        '\n' | '\t' => true,
        // Unicode, chapter 23: marks of direction, embeddings and isolates, joiners and spaces without width, separators, tags.
        '\u{61c}' | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' => false,
        '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}' => false,
        // C0, DEL and C1.
        c => !c.is_control(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_else_moves_the_cursor_of_who_reads() {
        assert_eq!(printable("a\x1b[2Jb\rc\r\n\td"), "a\u{fffd}[2Jb\u{fffd}c\n\td");
        assert_eq!(printable("\x7f\u{9b}31m\u{9d}0;x\u{7}"), "\u{fffd}\u{fffd}31m\u{fffd}0;x\u{fffd}");
    }

    #[test]
    fn nobody_else_turns_text_around_or_hides_some() {
        for hostile in ['\u{200b}', '\u{200e}', '\u{200f}', '\u{202a}', '\u{202e}', '\u{2066}', '\u{2069}', '\u{feff}']
        {
            assert_eq!(printable(&format!("a{hostile}b")), "a\u{fffd}b", "{hostile:?}");
        }
        assert_eq!(printable("größer – ελ 日本 🦀"), "größer – ελ 日本 🦀");
    }
}
