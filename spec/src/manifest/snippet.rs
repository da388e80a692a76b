//! What a person sees of a manifest's fault: the line, a mark below it, and what may have been meant.

use super::Place;

/// Characters of a line that are shown, the mark among them.
const SHOWN: usize = 110;
/// What was probably meant differs by so many changes at most.
const NEAR: usize = 2;

/// The line at `place`, numbered, with its word marked; nothing where the text has no such line.
pub fn snippet(text: &str, place: Place) -> Option<String> {
    let number = usize::try_from(place.line).ok()?.checked_sub(1)?;
    let line: Vec<char> = text.lines().nth(number)?.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    let at = usize::try_from(place.column).ok()?.checked_sub(1)?.min(line.len());
    // A long line is cut so that the mark stays in sight.
    let from = at.saturating_sub(SHOWN / 2);
    let shown: String = line.iter().skip(from).take(SHOWN).collect();
    let is_word = |c: &&char| c.is_alphanumeric() || "-_./".contains(**c);
    let quoted = line.get(at).is_some_and(|c| *c == '"' || *c == '\'');
    let len = match quoted {
        true => line.iter().skip(at + 1).position(|c| Some(c) == line.get(at)).map_or(1, |end| end + 2),
        false => line.iter().skip(at).take_while(is_word).count(),
    };
    let room = SHOWN.saturating_sub(at - from).max(1);
    let gutter = place.line.to_string();
    let blank = " ".repeat(gutter.len());
    let mark = "^".repeat(len.clamp(1, room));
    Some(format!("{blank} |\n{gutter} | {}\n{blank} | {}{mark}", shown.trim_end(), " ".repeat(at - from)))
}

/// The word that was probably meant.
pub fn closest<'a>(word: &str, words: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let most = NEAR.min(word.chars().count() / 2);
    let near = words.into_iter().map(|known| (distance(word, known), known)).filter(|(far, _)| *far <= most);
    near.min_by_key(|(far, _)| *far).map(|(_, known)| known)
}

/// `; did you mean X?`, or nothing.
pub fn meant<'a>(word: &str, words: impl IntoIterator<Item = &'a str>) -> String {
    closest(word, words).map(|known| format!("; did you mean `{known}`?")).unwrap_or_default()
}

/// Letters to change, add, leave out or swap with their neighbour until one is the other; case and hyphens do not count.
fn distance(one: &str, other: &str) -> usize {
    let letters = |text: &str| -> Vec<char> { text.to_lowercase().chars().filter(|c| !"-_".contains(*c)).collect() };
    let (one, other) = (letters(one), letters(other));
    let mut before: Vec<usize> = Vec::new();
    let mut row: Vec<usize> = (0..=other.len()).collect();
    for (i, a) in one.iter().enumerate() {
        let mut next = vec![i + 1];
        for (j, b) in other.iter().enumerate() {
            let at = |row: &[usize], j: usize| row.get(j).copied().unwrap_or(usize::MAX - 1);
            let mut least = (at(&row, j) + usize::from(a != b)).min(at(&row, j + 1) + 1).min(at(&next, j) + 1);
            let swapped = i > 0 && j > 0 && one.get(i - 1) == Some(b) && other.get(j - 1) == Some(a);
            if swapped {
                least = least.min(at(&before, j - 1) + 1);
            }
            next.push(least);
        }
        before = std::mem::replace(&mut row, next);
    }
    row.last().copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_word_is_marked_also_in_a_line_that_is_cut() {
        let text = "kind: playground\n  kernal: \"6.12\"\n";
        let shown = snippet(text, Place { line: 2, column: 3 }).expect("a snippet");
        assert_eq!(shown, "  |\n2 |   kernal: \"6.12\"\n  |   ^^^^^^");
        let shown = snippet(text, Place { line: 2, column: 11 }).expect("a snippet");
        assert!(shown.ends_with("  |           ^^^^^^"), "{shown}");
        let long = format!("a: {}x: y", "z".repeat(500));
        let shown = snippet(&long, Place { line: 1, column: 504 }).expect("a snippet");
        let lines: Vec<_> = shown.lines().collect();
        let mark = lines[2].find('^').expect("a mark");
        assert_eq!(lines[1].as_bytes()[mark], b'x', "{shown}");
        assert!(snippet(text, Place { line: 9, column: 1 }).is_none());
        assert!(snippet(text, Place { line: 2, column: 900 }).is_some(), "behind the end");
        assert!(!snippet("a: \u{1b}[2J", Place { line: 1, column: 1 }).expect("a snippet").contains('\u{1b}'));
    }

    #[test]
    fn what_is_near_is_meant_and_what_is_far_is_not() {
        let words = ["kernel", "drives", "network", "noSSH", "cpuCount"];
        for (word, known) in [
            ("kernal", "kernel"),
            ("kenrel", "kernel"),
            ("drive", "drives"),
            ("nossh", "noSSH"),
            ("cpu_count", "cpuCount"),
        ] {
            assert_eq!(closest(word, words), Some(known), "{word}");
        }
        assert_eq!(closest("colour", words), None);
        assert_eq!(closest("", words), None);
    }
}
