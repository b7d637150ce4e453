//! Precision: which expert gets how many bits under a byte budget.
