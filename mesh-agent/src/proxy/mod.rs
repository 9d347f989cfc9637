//! proxy

pub mod copy;
