"""Training data: videos and captions in, records out and in again."""
