"""The networks: what computes."""
