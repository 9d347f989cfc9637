//! Tables of precedence and of refusals.
