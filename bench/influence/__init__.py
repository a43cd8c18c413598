"""Influence beside Kronfluence in one run, held against retraining; ``python -m bench.influence``, see __main__.py."""
