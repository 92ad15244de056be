"""The motion of clips: priors of references, and scores for training."""
