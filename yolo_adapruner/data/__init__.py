"""Sets in, sets out: the embedded example set, and what a run leaves behind."""
