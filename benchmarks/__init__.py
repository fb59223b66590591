"""What is measured: each benchmark prints a table and returns what goes into results.json. Ratios within one run."""
