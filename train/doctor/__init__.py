"""``t2v-turbo doctor``: whether this machine can do it, and what to mend. One check a module, each with ``examine``."""
