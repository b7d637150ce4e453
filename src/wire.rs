//! The only file that names both wire types and core types.
