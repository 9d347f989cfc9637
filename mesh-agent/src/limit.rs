//! A bound, as shown to operators. Every room lists its own; `/config_dump` shows them all.

use std::time::Duration;

/// A named constant that bounds something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limit {
    /// The constant's name.
    pub name: &'static str,
    /// Its value; times in milliseconds.
    pub value: u64,
    /// What it counts.
    pub unit: &'static str,
    /// Why it is what it is.
    pub reason: &'static str,
}

/// What a constant can be; times count in milliseconds.
pub trait Amount {
    /// The number to show.
    fn amount(self) -> u64;
}

impl Amount for Duration {
    fn amount(self) -> u64 {
        u64::try_from(self.as_millis()).unwrap_or(u64::MAX)
    }
}

impl Amount for usize {
    fn amount(self) -> u64 {
        self as u64
    }
}

impl Amount for u64 {
    fn amount(self) -> u64 {
        self
    }
}

impl Amount for u32 {
    fn amount(self) -> u64 {
        self.into()
    }
}

/// Lists constants: `limits![SPILL, "connections", "before a connection leaves its pod's home worker";]`
macro_rules! limits {
    ($($($path:ident)::+, $unit:literal, $reason:literal;)*) => {
        vec![$($crate::limit::Limit {
            name: $crate::limit::last(stringify!($($path)::+)),
            value: $crate::limit::Amount::amount($($path)::+),
            unit: $unit,
            reason: $reason,
        },)*]
    };
}
pub(crate) use limits;

/// The constant's own name in a path.
pub(crate) fn last(path: &'static str) -> &'static str {
    path.rsplit("::").next().unwrap_or(path).trim()
}
