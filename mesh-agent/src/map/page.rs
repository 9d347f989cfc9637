//! The page and what it is made of, embedded. Built of mesh-agent/ui by `cargo xtask ui`; what is built is committed, so that
//! whoever has no Node.js has the map.

/// A file of the page.
pub struct Asset {
    /// Where it is asked for.
    pub path: &'static str,
    /// Content-Type.
    pub kind: &'static str,
    /// Its bytes.
    pub text: &'static str,
}

const HTML: &str = "text/html; charset=utf-8";

/// What is served to who may look.
pub const ASSETS: &[Asset] = &[
    Asset { path: "/", kind: HTML, text: include_str!("../../ui/dist/index.html") },
    Asset { path: "/map.js", kind: "text/javascript; charset=utf-8", text: include_str!("../../ui/dist/map.js") },
    STYLE,
    ICON,
];

/// What is served to everybody: the login's looks.
pub const STYLE: Asset =
    Asset { path: "/map.css", kind: "text/css; charset=utf-8", text: include_str!("../../ui/dist/map.css") };
/// The same.
pub const ICON: Asset =
    Asset { path: "/icon.svg", kind: "image/svg+xml", text: include_str!("../../ui/dist/icon.svg") };
/// Where a token is asked for.
pub const LOGIN: Asset = Asset { path: "/login", kind: HTML, text: include_str!("../../ui/dist/login.html") };
