"""The reward models, each with its sizes and the preprocessing of its frames."""
