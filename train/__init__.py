"""The headless trainer: preprocess, records, distill, evaluate."""
