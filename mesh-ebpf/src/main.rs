//! The Nodemesh kernel programs.
#[cfg(not(target_arch = "bpf"))]
fn main() {}
