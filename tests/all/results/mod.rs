//! Run directories: what is written can be read back, and nothing is lost or overwritten.

mod directory;
mod histograms;
mod report;
mod summary;
mod tables;
mod written;
