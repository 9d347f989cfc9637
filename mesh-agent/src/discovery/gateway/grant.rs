//! ReferenceGrant.

use serde::Deserialize;

use super::Object;

/// gateway.networking.k8s.io/v1 ReferenceGrant
pub type ReferenceGrant = Object<ReferenceGrantSpec>;

/// Its spec: any of `from` may refer to any of `to`.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ReferenceGrantSpec {
    /// Who refers.
    pub from: Vec<ReferenceGrantFrom>,
    /// To what, in the grant's namespace.
    pub to: Vec<ReferenceGrantTo>,
}

/// Who refers.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ReferenceGrantFrom {
    /// Empty: the core group.
    pub group: String,
    /// The kind.
    pub kind: String,
    /// Its namespace.
    pub namespace: String,
}

/// To what.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ReferenceGrantTo {
    /// Empty: the core group.
    pub group: String,
    /// The kind.
    pub kind: String,
    /// Absent: all.
    pub name: Option<String>,
}
