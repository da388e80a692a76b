//! Progress on standard error: a line that changes on a terminal, elsewhere one line for each step.

use std::cell::{Cell, RefCell};
use std::io::IsTerminal;
use std::rc::Rc;

use indicatif::{ProgressBar, ProgressStyle};
use labyard_rootfs_builder::watch::Report;
use labyard_spec::text::printable;

/// A step of which nobody knows how long it is, one with bytes that are counted, and one with an end.
const STYLES: [&str; 3] =
    ["{spinner} {msg}", "{spinner} {msg}: {bytes}", "{msg} [{wide_bar}] {bytes}/{total_bytes} {bytes_per_sec}"];
/// Where progress goes.
pub(crate) struct Progress {
    bar: Option<ProgressBar>,
}

impl Progress {
    pub(crate) fn new() -> Self {
        // It moves when it is told to: a thread that moves it could not be confined.
        let bar = std::io::stderr().is_terminal().then(ProgressBar::new_spinner);
        Self { bar }
    }

    pub(crate) fn report(&self) -> Report {
        match self.bar.clone() {
            Some(bar) => {
                let last = Cell::new(usize::MAX);
                let steps = RefCell::new(String::new());
                Box::new(move |step, done, of| {
                    let style = if of > 0 { 2 } else { usize::from(done > 0) };
                    if last.replace(style) != style
                        && let Ok(style) = ProgressStyle::with_template(STYLES[style])
                    {
                        bar.set_style(style);
                    }
                    if *steps.borrow() != step {
                        bar.set_message(printable(step));
                        *steps.borrow_mut() = step.to_owned();
                        bar.reset();
                    }
                    bar.set_length(of);
                    bar.set_position(done);
                    bar.tick();
                })
            }
            None => {
                let last = Rc::new(RefCell::new(String::new()));
                Box::new(move |step, _done, _of| {
                    if *last.borrow() != step {
                        eprintln!("{}", printable(step));
                        *last.borrow_mut() = step.to_owned();
                    }
                })
            }
        }
    }

    pub(crate) fn finish(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
