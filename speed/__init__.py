"""The network made fast: which tokens are computed, and hand-written kernels beside their plain definitions."""
