"""Questions, metrics, statistics and the verdict."""
