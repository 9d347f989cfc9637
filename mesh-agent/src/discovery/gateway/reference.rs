//! What routes refer to: parents and backends.

use serde::Deserialize;

/// What a route is attached to. Only Services (group empty, kind Service) are a mesh's.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ParentReference {
    /// Absent: the Gateway API's own.
    pub group: Option<String>,
    /// Absent: Gateway.
    pub kind: Option<String>,
    /// Absent: the route's.
    pub namespace: Option<String>,
    /// Its name.
    pub name: String,
    /// Of a Service, the name of a port.
    pub section_name: Option<String>,
    /// Of a Service, a port.
    pub port: Option<i64>,
}

/// Where something is sent.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct BackendObjectReference {
    /// Absent: the core group.
    pub group: Option<String>,
    /// Absent: Service.
    pub kind: Option<String>,
    /// Absent: the route's.
    pub namespace: Option<String>,
    /// Its name.
    pub name: String,
    /// Required for a Service.
    pub port: Option<i64>,
}

/// The same with a share: what `backendRefs` lists. `F` is what each may have of filters.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct BackendRef<F> {
    /// Absent: the core group.
    pub group: Option<String>,
    /// Absent: Service.
    pub kind: Option<String>,
    /// Absent: the route's.
    pub namespace: Option<String>,
    /// Its name.
    pub name: String,
    /// Required for a Service.
    pub port: Option<i64>,
    /// Absent: 1.
    pub weight: Option<i64>,
    /// Of what goes there.
    #[serde(default = "none")]
    pub filters: Option<F>,
}

fn none<F>() -> Option<F> {
    None
}

impl<F> BackendRef<F> {
    /// Without share and filters.
    pub fn object(&self) -> BackendObjectReference {
        BackendObjectReference {
            group: self.group.clone(),
            kind: self.kind.clone(),
            namespace: self.namespace.clone(),
            name: self.name.clone(),
            port: self.port,
        }
    }
}
