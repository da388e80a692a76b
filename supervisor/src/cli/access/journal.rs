//! A machine's own journal: journalctl(1), run there.

use labyard_supervisor::home::Home;

use super::super::args::Exec;
use super::super::{Outcome, exec};
use super::args::Journal;

pub(crate) fn journal(home: &Home, wanted: Journal) -> Outcome {
    let mut argv = vec!["journalctl".to_owned(), "--no-pager".to_owned()];
    argv.extend(wanted.follow.then(|| "--follow".to_owned()));
    argv.extend(wanted.unit.map(|unit| format!("--unit={unit}")));
    argv.extend(wanted.lines.map(|lines| format!("--lines={lines}")));
    argv.extend(wanted.arguments);
    let program = Exec {
        machine: wanted.machine,
        interactive: false,
        tty: false,
        user: None,
        workdir: None,
        env: Vec::new(),
        argv,
    };
    exec::exec(home, program)
}
