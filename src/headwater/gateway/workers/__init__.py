"""Several processes behind one address: workers that answer relayed calls, over the books of one head.

Knows nothing of how a home is opened: whoever starts a worker gives it its parts.
"""
