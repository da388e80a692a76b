//! Lines for people and documents for programs. A reader that went away (`| head`) ends the command quietly.
//!
//! Images, manifests, guests and registries name things: whatever a line has is made printable here, so that no name is a word to
//! the terminal. Documents are for programs, and [`bytes`] are what the person asked for as it is.

use std::io::{self, Write};
use std::time::Duration;

use labyard_supervisor::words::printable;

/// Prints a line on standard output.
pub(crate) fn line(text: &str) {
    bytes(format!("{}\n", printable(text)).as_bytes());
}

/// Prints bytes on standard output.
pub(crate) fn bytes(bytes: &[u8]) {
    let mut stdout = io::stdout().lock();
    if let Err(error) = stdout.write_all(bytes).and_then(|()| stdout.flush()) {
        if error.kind() == io::ErrorKind::BrokenPipe {
            std::process::exit(0);
        }
        complain(&format!("error: standard output: {error}"));
        std::process::exit(1);
    }
}

/// Prints a line on standard error; where that is gone, nobody can be told.
pub(crate) fn complain(text: &str) {
    let _ = writeln!(io::stderr(), "{}", printable(text));
}

/// Prints a question on standard error, behind which the answer is typed.
pub(crate) fn ask(text: &str) {
    let _ = write!(io::stderr(), "{}", printable(text));
}

/// Prints one JSON document.
pub(crate) fn document(value: &impl serde::Serialize) -> anyhow::Result<()> {
    bytes(format!("{}\n", serde_json::to_string_pretty(value)?).as_bytes());
    Ok(())
}

/// Prints one JSON document of several, on a line.
pub(crate) fn document_line(value: &impl serde::Serialize) -> anyhow::Result<()> {
    bytes(format!("{}\n", serde_json::to_string(value)?).as_bytes());
    Ok(())
}

/// Rows below headings, each column as wide as it must be.
pub(crate) fn table(headings: &[&str], rows: &[Vec<String>]) {
    // A cell has one line: more would be rows that nobody has made.
    let one_line = |cell: &String| printable(cell).replace(['\n', '\t'], " ");
    let rows: Vec<Vec<String>> = rows.iter().map(|row| row.iter().map(one_line).collect()).collect();
    let mut widths: Vec<usize> = headings.iter().map(|heading| heading.chars().count()).collect();
    for row in &rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let print = |cells: &mut dyn Iterator<Item = &str>| {
        let mut text = String::new();
        for (cell, width) in cells.zip(&widths) {
            text.push_str(&format!("{cell:<width$}  "));
        }
        line(text.trim_end());
    };
    print(&mut headings.iter().copied());
    for row in &rows {
        print(&mut row.iter().map(String::as_str));
    }
}

/// A span of time in one unit.
pub(crate) fn span(time: Duration) -> String {
    match time.as_secs() {
        seconds @ 0..=119 => format!("{seconds}s"),
        seconds @ 120..=7199 => format!("{}m", seconds / 60),
        seconds @ 7200..=172_799 => format!("{}h", seconds / 3600),
        seconds => format!("{}d", seconds / 86_400),
    }
}

/// A moment in milliseconds since 1970 as UTC, as RFC 3339 writes it.
pub(crate) fn moment(at_ms: u64) -> String {
    let (days, rest) = (at_ms / 86_400_000, at_ms % 86_400_000);
    // Days to a date in the proleptic Gregorian calendar, counted in eras of 400 years that begin on a first of March.
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    let (hour, minute, second, milli) = (rest / 3_600_000, rest / 60_000 % 60, rest / 1000 % 60, rest % 1000);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{milli:03}Z")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_are_dates_also_in_leap_years() {
        for (at_ms, text) in [
            (0, "1970-01-01T00:00:00.000Z"),
            (951_782_400_000, "2000-02-29T00:00:00.000Z"),
            (1_709_251_199_999, "2024-02-29T23:59:59.999Z"),
            (1_735_689_600_000, "2025-01-01T00:00:00.000Z"),
        ] {
            assert_eq!(moment(at_ms), text);
        }
    }
}
