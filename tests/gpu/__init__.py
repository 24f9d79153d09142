"""What only a GPU can show: ``pytest tests/gpu`` in an environment with one. Each test skips where there is none; none needs an engine."""
