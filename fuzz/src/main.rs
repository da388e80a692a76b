//! `fuzz`: runs fuzz targets for a while, or one input again.

#![forbid(unsafe_code)]

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use labyard_fuzz::campaign::{self, Until};
use labyard_fuzz::targets::{Target, all};

const USAGE: &str = "usage: fuzz TARGET|all [--seconds N | --inputs N] [--seed S] [--corpus DIR] [--artifacts DIR]
       fuzz TARGET --input FILE
       fuzz --list | --files
TARGET runs on its seeds, on the files of DIR and on changes of both, for N seconds (30) or inputs; `all` runs each target so
long. --files says which source files each target answers for: docs/fuzzing.md. The same seed (1) gives the same inputs. An input that fails is written to the artifacts folder (fuzz/artifacts), and the exit code is 1.";

struct Options {
    target: String,
    until: Until,
    seed: u64,
    corpus: Option<PathBuf>,
    artifacts: PathBuf,
    input: Option<PathBuf>,
}

fn main() -> ExitCode {
    match start() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::from(2)
        }
    }
}

fn start() -> Result<bool> {
    let mut arguments = std::env::args().skip(1);
    let target = match arguments.next() {
        Some(word) if word == "--list" => {
            all().iter().for_each(|target| println!("{}", target.name));
            return Ok(true);
        }
        Some(word) if word == "--files" => {
            for target in all() {
                target.files.iter().for_each(|file| println!("{}\t{file}", target.name));
            }
            return Ok(true);
        }
        Some(word) if !word.starts_with('-') => word,
        _ => bail!("no target named\n{USAGE}"),
    };
    let artifacts = "fuzz/artifacts".into();
    let mut options = Options { target, until: Until::Seconds(30.0), seed: 1, corpus: None, artifacts, input: None };
    while let Some(option) = arguments.next() {
        let value = arguments.next().with_context(|| format!("{option}: a value is missing\n{USAGE}"))?;
        match option.as_str() {
            "--seconds" => options.until = Until::Seconds(value.parse().with_context(|| format!("--seconds {value}"))?),
            "--inputs" => options.until = Until::Inputs(value.parse().with_context(|| format!("--inputs {value}"))?),
            "--seed" => options.seed = value.parse().with_context(|| format!("--seed {value}"))?,
            "--corpus" => options.corpus = Some(value.into()),
            "--artifacts" => options.artifacts = value.into(),
            "--input" => options.input = Some(value.into()),
            _ => bail!("{option}: not an option\n{USAGE}"),
        }
    }
    let targets: Vec<Target> =
        all().into_iter().filter(|target| options.target == "all" || options.target == target.name).collect();
    if targets.is_empty() {
        bail!("{}: no such target; `fuzz --list` names them", options.target);
    }
    for target in &targets {
        if !run(target, &options)? {
            return Ok(false);
        }
    }
    Ok(true)
}

fn run(target: &Target, options: &Options) -> Result<bool> {
    if let Some(path) = &options.input {
        let input = std::fs::read(path).with_context(|| path.display().to_string())?;
        campaign::watch_panics();
        let said = campaign::fails(target, &input);
        println!("{}: {}", target.name, said.as_deref().unwrap_or("ok"));
        return Ok(said.is_none());
    }
    let (name, artifacts) = (target.name.clone(), options.artifacts.clone());
    let hung = move |input: &[u8]| {
        let saved = campaign::save(&artifacts, &name, input).map(|path| path.display().to_string());
        println!("{name}: an input ran for more than {} s: {saved:?}", campaign::HANG.as_secs());
        std::process::exit(1);
    };
    let since = Instant::now();
    let outcome = campaign::run(target, &corpus(options)?, options.seed, options.until, hung);
    let Some(crash) = outcome.crash else {
        let seconds = since.elapsed().as_secs_f32();
        println!("{}: {} inputs in {seconds:.1} s, seed {}", target.name, outcome.inputs, options.seed);
        return Ok(true);
    };
    let path = campaign::save(&options.artifacts, &target.name, &crash.input)?;
    println!("{}: input {} fails: {}", target.name, outcome.inputs, crash.said);
    println!("{} bytes are in {}; again with: fuzz {} --input FILE", crash.input.len(), path.display(), target.name);
    Ok(false)
}

fn corpus(options: &Options) -> Result<Vec<Vec<u8>>> {
    let Some(folder) = &options.corpus else { return Ok(Vec::new()) };
    let named = || folder.display().to_string();
    let mut paths = Vec::new();
    for entry in std::fs::read_dir(folder).with_context(named)? {
        paths.push(entry.with_context(named)?.path());
    }
    paths.sort();
    let files = paths.iter().filter(|path| path.is_file());
    files.map(|path| std::fs::read(path).with_context(|| path.display().to_string())).collect()
}
