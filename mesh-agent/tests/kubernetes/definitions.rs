//! Our CustomResourceDefinitions, as an API server takes them.
