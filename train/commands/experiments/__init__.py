"""The commands of experiments, which ``motion`` and ``rewards`` register."""
