//! Prints docs/seccomp.json: which role may make which system call. With files of `strace -f -Y -n -e raw=all` it prints instead which of
//! them were not seen, and fails where no reason is written down (`tools/trace-calls`).

use std::collections::BTreeSet;
use std::process::ExitCode;

use labyard_vmm::seccomp::{CALLS, Role, list};

fn main() -> ExitCode {
    let traces: Vec<String> = std::env::args().skip(1).collect();
    if traces.is_empty() {
        print!("{}", list::text());
        return ExitCode::SUCCESS;
    }
    let mut seen = BTreeSet::new();
    for trace in traces {
        let text = std::fs::read(&trace).unwrap_or_else(|error| panic!("{trace}: {error}"));
        for line in String::from_utf8_lossy(&text).lines() {
            seen.extend(made(line).into_iter().flatten());
        }
    }
    let mut missing = 0;
    for call in CALLS {
        for role in Role::ALL.into_iter().filter(|role| call.is_made_by(*role)) {
            match (seen.contains(&(role, call.name)), list::why_unseen(call, role)) {
                (true, Some(_)) => println!("{} {}: seen, and a reason says that it is not", role.name(), call.name),
                (false, None) => {
                    println!("{} {}: NOT SEEN", role.name(), call.name);
                    missing += 1;
                }
                _ => {}
            }
        }
    }
    println!("{} of a role and a call seen, {missing} not seen and without a reason", seen.len());
    if missing == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// What a line of strace says was called, by whom: `PID<NAME> [NUMBER] CALL(0xARGUMENT, ...`. Calls of other programs, such as the jail's, are
/// of no thread that has a role.
fn made(line: &str) -> Option<Vec<(Role, &'static str)>> {
    let (_, rest) = line.split_once('<')?;
    let (thread, rest) = rest.split_once("> [")?;
    let (number, rest) = rest.split_once(']')?;
    let number: i64 = number.trim().parse().ok()?;
    let (_, arguments) = rest.split_once('(')?;
    let arguments: Vec<u64> = arguments
        .split([',', ')', ' '])
        .filter(|word| !word.is_empty())
        .map_while(|word| match word.strip_prefix("0x") {
            Some(digits) => u64::from_str_radix(digits, 16).ok(),
            None => word.parse().ok(),
        })
        .collect();
    let role = role(thread)?;
    let same = CALLS.iter().filter(|call| call.number == number && call.only.iter().all(|only| only.holds(&arguments)));
    Some(same.map(|call| (role, call.name)).collect())
}

/// By the name of a thread. A new one has its maker's name until it has its own.
fn role(thread: &str) -> Option<Role> {
    let is_vcpu = |name: &str| name.rsplit_once(" cpu").is_some_and(|(_, number)| number.parse::<u32>().is_ok());
    match thread {
        "labyard-vmm" => Some(Role::Main),
        // Before Linux 6.14 a program that was executed by its descriptor is called by that.
        name if name.bytes().all(|byte| byte.is_ascii_digit()) => Some(Role::Main),
        "spawner" => Some(Role::Spawner),
        "control" | "capture" => Some(Role::Control),
        name if name.ends_with(" keys") => Some(Role::Control),
        name if name.ends_with(" io") || name.ends_with(" way out") || name.contains(" way") => Some(Role::Io),
        name if is_vcpu(name) => Some(Role::Vcpu),
        "labyard-jail" | "labyard" | "strace" | "sh" => None,
        _ => Some(Role::Machine),
    }
}
