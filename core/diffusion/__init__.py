"""The paper's Sec. 3, equation by equation: schedule, DDIM, guidance, consistency, distillation."""
