"""Scores of finished clips by reward models, and the best of several."""
