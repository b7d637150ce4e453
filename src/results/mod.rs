//! Run directories: manifest, summary, Parquet, histograms and the report.
