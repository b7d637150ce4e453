//! Scenario files: shape, checks and what they resolve to.
