//! mesh-agent: parse the command line, hand over to the library.
fn main() {}
