//! Runs one target over many inputs.
//!
//! A panic counts even where somebody catches it, as the host of a device's worker does: the panic hook sees them all. An
//! input that runs for longer than [`HANG`] is a hang; nothing can end it, so the process does.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use std::{fs, io};

use crate::mutate::{self, Random};
use crate::targets::Target;

/// An input may run as long as this.
pub const HANG: Duration = Duration::from_secs(20);
/// Inputs that are kept to be changed further.
const POOL: usize = 64;
/// Times that a failing input is made shorter.
const SHORTENINGS: usize = 2000;

/// What was found.
#[derive(Debug)]
pub struct Crash {
    /// The shortest input that was found to fail.
    pub input: Vec<u8>,
    /// What the panic said, and where.
    pub said: String,
}

/// When a run ends.
#[derive(Debug, Clone, Copy)]
pub enum Until {
    /// So much time has passed.
    Seconds(f64),
    /// So many inputs were tried: the same ones in every run.
    Inputs(u64),
}

/// What one run did.
#[derive(Debug)]
pub struct Outcome {
    /// Inputs that were tried.
    pub inputs: u64,
    /// What ended it before its time.
    pub crash: Option<Crash>,
}

/// What the hook has seen since the last look.
static SAID: Mutex<Option<String>> = Mutex::new(None);

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Puts every message together that would be logged, and drops it: a message may panic, too.
struct Reader;

impl log::Log for Reader {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &log::Record<'_>) {
        drop(record.args().to_string());
    }

    fn flush(&self) {}
}

/// Makes panics known to [`fails`] and silent, and has messages put together. For the whole process.
pub fn watch_panics() {
    if log::set_logger(&Reader).is_ok() {
        log::set_max_level(log::LevelFilter::Trace);
    }
    std::panic::set_hook(Box::new(|panic| {
        lock(&SAID).get_or_insert_with(|| panic.to_string());
    }));
}

/// Runs one input; what its first panic said. [`watch_panics`] comes first.
pub fn fails(target: &Target, input: &[u8]) -> Option<String> {
    lock(&SAID).take();
    let caught = catch_unwind(AssertUnwindSafe(|| (target.run)(input)));
    let said = lock(&SAID).take();
    said.or_else(|| caught.is_err().then(|| "a panic without a word".to_owned()))
}

/// Tries the seeds of the target, then `corpus`, then changes of both, until the end or until one fails.
pub fn run(
    target: &Target,
    corpus: &[Vec<u8>],
    seed: u64,
    until: Until,
    hung: impl Fn(&[u8]) + Send + 'static,
) -> Outcome {
    watch_panics();
    let watch = Watch::start(hung);
    let since = Instant::now();
    let is_over = |inputs| match until {
        Until::Seconds(seconds) => since.elapsed().as_secs_f64() >= seconds,
        Until::Inputs(most) => inputs >= most,
    };
    let mut random = Random::new(seed);
    let seeds: Vec<Vec<u8>> = (target.seeds)().into_iter().chain(corpus.iter().cloned()).collect();
    let mut pool = seeds.clone();
    let mut waiting = seeds.into_iter();
    let mut inputs = 0;
    loop {
        let input = match waiting.next() {
            Some(input) => input,
            None if is_over(inputs) => return Outcome { inputs, crash: None },
            None if pool.is_empty() || random.below(4) == 0 && (target.seeds)().is_empty() => {
                mutate::fresh(&mut random)
            }
            None => mutate::mutate(&mut random, &pool),
        };
        inputs += 1;
        watch.begin(&input);
        if let Some(said) = fails(target, &input) {
            let (input, said) = shorten(target, &watch, input, said);
            return Outcome { inputs, crash: Some(Crash { input, said }) };
        }
        // Without coverage nothing tells a good input from a bad one: some stay, by chance.
        if pool.len() < POOL {
            pool.push(input);
        } else if random.below(16) == 0 {
            let kept = (target.seeds)().len() + corpus.len();
            let place = random.below(POOL.max(kept + 1) - kept) + kept;
            if let Some(old) = pool.get_mut(place) {
                *old = input;
            }
        }
    }
}

/// Leaves pieces out for as long as it still fails.
fn shorten(target: &Target, watch: &Watch, mut input: Vec<u8>, mut said: String) -> (Vec<u8>, String) {
    let mut piece = input.len().div_ceil(2);
    let mut tries = 0;
    while piece > 0 && tries < SHORTENINGS {
        let mut at = 0;
        while at < input.len() && tries < SHORTENINGS {
            tries += 1;
            let mut shorter = input.clone();
            shorter.drain(at..(at + piece).min(input.len()));
            watch.begin(&shorter);
            match fails(target, &shorter) {
                Some(words) => (input, said) = (shorter, words),
                None => at += piece,
            }
        }
        piece /= 2;
    }
    (input, said)
}

/// Writes a failing input where a person finds it; its path.
pub fn save(folder: &Path, target: &str, input: &[u8]) -> io::Result<PathBuf> {
    fs::create_dir_all(folder)?;
    // FNV-1a: one input, one name.
    let hash = input
        .iter()
        .fold(0xcbf2_9ce4_8422_2325u64, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3));
    let path = folder.join(format!("{target}-{hash:016x}"));
    fs::write(&path, input)?;
    Ok(path)
}

/// A thread that looks at the clock.
struct Watch {
    current: Arc<Mutex<(Instant, Vec<u8>)>>,
}

impl Watch {
    fn start(hung: impl Fn(&[u8]) + Send + 'static) -> Self {
        let current = Arc::new(Mutex::new((Instant::now(), Vec::new())));
        let seen = Arc::downgrade(&current);
        std::thread::spawn(move || {
            while let Some(current) = seen.upgrade() {
                let (since, input) = lock(&current).clone();
                drop(current);
                match HANG.checked_sub(since.elapsed()) {
                    Some(left) => std::thread::sleep(left.min(Duration::from_secs(1))),
                    None => return hung(&input),
                }
            }
        });
        Self { current }
    }

    fn begin(&self, input: &[u8]) {
        let mut current = lock(&self.current);
        current.0 = Instant::now();
        current.1.clear();
        current.1.extend_from_slice(input);
    }
}
