"""Figures of adapters: `python -m bench.adapters.training` and `python -m bench.adapters.serving`."""
