"""Scores of finished clips by reward models: which ones, with which rewards, tables; the best of several."""
