//! Progress on standard error: a line that changes on a terminal, elsewhere one line for each step.

use std::cell::RefCell;
use std::io::IsTerminal;
use std::rc::Rc;
use std::time::Duration;

use indicatif::{HumanBytes, ProgressBar};
use labyard_rootfs_builder::watch::Report;

/// Between two movements of the line.
const TICK: Duration = Duration::from_millis(100);

/// Where progress goes.
pub(crate) struct Progress {
    bar: Option<ProgressBar>,
}

impl Progress {
    pub(crate) fn new() -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::new_spinner();
            bar.enable_steady_tick(TICK);
            bar
        });
        Self { bar }
    }

    pub(crate) fn report(&self) -> Report {
        match self.bar.clone() {
            Some(bar) => Box::new(move |step, done, _of| {
                bar.set_message(if done == 0 { step.to_owned() } else { format!("{step}: {}", HumanBytes(done)) });
            }),
            None => {
                let last = Rc::new(RefCell::new(String::new()));
                Box::new(move |step, _done, _of| {
                    if *last.borrow() != step {
                        eprintln!("{step}");
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
