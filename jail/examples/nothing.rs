//! A program that ends when its standard input does: for what a jail costs.

fn main() {
    let _ = std::io::stdin().read_line(&mut String::new());
}
