//! Tries to get out of the jail: run in place of the monitor, it tries every way of `labyard_sys::attempts` and prints what the kernel
//! said, one way a line.

use labyard_sys::attempts::{self, ATTEMPTS};

fn main() {
    for attempt in ATTEMPTS {
        let result = match (attempt.run)() {
            Ok(_) => "let through".to_owned(),
            Err(error) => attempts::name(&error),
        };
        println!("{}={}={result}", attempt.group, attempt.what);
    }
    // The last, for nothing works after it.
    let (made, said) = attempts::fork_without_end(1000);
    let said = said.map_or_else(|error| attempts::name(&error), |()| "let through".to_owned());
    println!("processes=fork without end={said}");
    println!("forked={made}");
}
