//! The nodes of a world, indexed while a snapshot is built.

use std::collections::HashMap;
use std::sync::Arc;

use super::topology::Here;
use super::{Node, World};

/// What is known of nodes.
pub(super) struct Nodes<'a> {
    by_name: HashMap<&'a str, &'a Node>,
}

impl<'a> Nodes<'a> {
    pub(super) fn index(world: &'a World) -> Self {
        Self { by_name: world.nodes.iter().map(|node| (&*node.name, node)).collect() }
    }

    /// The zone of a node; empty when not known.
    pub(super) fn zone(&self, node: &str) -> Arc<str> {
        self.by_name.get(node).map(|node| node.zone.clone()).unwrap_or_default()
    }

    pub(super) fn here(&self, node: &Arc<str>) -> Here {
        Here { node: node.clone(), zone: self.zone(node) }
    }
}
