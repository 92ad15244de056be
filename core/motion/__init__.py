"""Motion of a reference clip (Sec. 3.3): attention, energies, their gradient, priors, guided sampling."""
