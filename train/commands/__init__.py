"""The commands: options in, one call, answer out. Nothing else sees ``argparse``."""
