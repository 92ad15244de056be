"""The paper's tables and our measurements; their commands are in ``commands``."""
