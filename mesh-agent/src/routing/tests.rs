//! Tables, then properties.
