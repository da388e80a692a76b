//! The one thread of a supervisor that starts programs: the jail with the vmm in it, and the uplink. All others have given up what that
//! takes ([`crate::confine`]); this one hears nobody but them.

use std::sync::mpsc;

use labyard_sys::confine;

type Work = Box<dyn FnOnce() + Send>;

/// Has work done on that thread.
#[derive(Debug, Clone)]
pub struct Starter {
    work: mpsc::Sender<Work>,
}

impl Starter {
    /// Starts it. It has what the calling thread has, without what only changes the host itself, and lives as long as the process: who
    /// dies with the thread that started it (PR_SET_PDEATHSIG) dies with this one.
    ///
    /// # Errors
    /// That there is no thread to be had, or that it could not give up what it should.
    pub fn new() -> std::io::Result<Self> {
        let (work, waiting) = mpsc::channel::<Work>();
        let (tell, told) = mpsc::sync_channel(1);
        let run = move || {
            let lessened = confine::drop_capabilities_of_the_host();
            let begins = lessened.is_ok();
            let _ = tell.send(lessened); // who starts it waits
            if begins {
                waiting.iter().for_each(|work| work());
            }
        };
        std::thread::Builder::new().name("starter".to_owned()).spawn(run)?;
        told.recv().map_err(std::io::Error::other)??;
        Ok(Self { work })
    }

    /// Does something there, and waits for it.
    ///
    /// # Errors
    /// That it panicked, now or before.
    pub fn run<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> std::io::Result<T> {
        let (done, outcome) = mpsc::sync_channel(1);
        let work = move || {
            // Who asked waits for it.
            let _ = done.send(work());
        };
        let gone = || std::io::Error::other("the thread that starts programs has ended");
        self.work.send(Box::new(work)).map_err(|_| gone())?;
        outcome.recv().map_err(|_| gone())
    }
}
