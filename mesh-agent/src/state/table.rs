//! Stands for the table of `routes` until that is there: keeps what it is compiled from, and answers nothing.

use std::sync::Arc;

use crate::routes::Route;

/// See the module.
#[derive(Clone, Debug)]
pub struct Table {
    /// What it is made of.
    pub routes: Vec<Arc<Route>>,
}

impl Table {
    /// From routes of one kind that hold at a port.
    pub fn compile<'a>(routes: impl IntoIterator<Item = &'a Arc<Route>>) -> Self {
        Self { routes: routes.into_iter().cloned().collect() }
    }
}
