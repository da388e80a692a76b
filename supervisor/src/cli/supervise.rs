//! The hidden verb: this process is a supervisor.

use std::io::Read;

use labyard_spec::manifest::check_name;
use labyard_supervisor::client::{GO, SERVING};
use labyard_supervisor::home::Home;
use labyard_supervisor::{run, scope, words};

use super::{Failure, Outcome, output};

pub(crate) fn supervise(home: &Home, name: &str) -> Outcome {
    check_name(name).map_err(Failure::input)?;
    // Who started us has written us down first, or has died before it could.
    let mut heard = vec![0; GO.len()];
    if std::io::stdin().lock().read_exact(&mut heard).is_err() || heard != GO {
        return Err(Failure::input("this is started by other commands: use `labyard up`"));
    }
    if let Err(error) = scope::settle() {
        words::log(&format!("making room in the scope of the user's systemd: {error}"));
    }
    run::run(&home.folder(name), || output::line(SERVING))?;
    Ok(0)
}
