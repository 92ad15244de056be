"""Files of weights: reading, naming, merging and writing them."""
