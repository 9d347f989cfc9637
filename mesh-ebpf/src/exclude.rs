//! The maps of what pods keep out of the mesh, for the rule in `mesh_common::exclude`.

use mesh_common::exclude::{Exclusions, Place, PortKey};

use crate::ctx;
use crate::maps::{EXCLUDED_NETS, EXCLUDED_PORTS};

/// The maps in the kernel.
pub struct Published;

impl Exclusions for Published {
    #[inline(always)]
    fn has_port(&self, key: &PortKey) -> bool {
        ctx::get(&EXCLUDED_PORTS, key).is_some()
    }

    #[inline(always)]
    fn has_network(&self, place: &Place) -> bool {
        ctx::covers(&EXCLUDED_NETS, place, Place::BITS)
    }
}
