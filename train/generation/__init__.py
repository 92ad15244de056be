"""Prompts to files of clips: what is asked for, motion guidance, sampling, the names of the files."""
