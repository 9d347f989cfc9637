//! Lets user space treat the shared types as plain bytes.
#![allow(unsafe_code, reason = "the trait is unsafe by definition; the layout tests prove what it asks for")]

use crate::{addr, exclude, record, same_node};

macro_rules! plain {
    ($($type:ty),+ $(,)?) => {
        $(
            // SAFETY: repr(C), Copy, made of integers and byte arrays alone, without padding (the layout tests add the
            // sizes up), and every bit pattern is a valid value.
            unsafe impl aya::Pod for $type {}
        )+
    };
}

plain! {
    addr::Ip,
    addr::Endpoint,
    addr::FourTuple,
    record::PodConfig,
    record::PodAddresses,
    record::DialRecord,
    record::SourceKey,
    record::ClientRecord,
    record::ListenerKey,
    record::Filed,
    record::ProbeRecord,
    record::Event,
    exclude::PortKey,
    exclude::NetworkKey,
    same_node::PathKey,
    same_node::Path,
    same_node::StraightRecord,
    same_node::StraightEnd,
}
