"""Money, ids, canonical bytes, instants, limits and errors: pure, and known to every other layer."""
