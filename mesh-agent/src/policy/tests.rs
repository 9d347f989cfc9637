//! Tables first, then the comparison with a reference that knows no compilation.
