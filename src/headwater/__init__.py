"""headwater: who supplied each answer, in bits, and what they are paid for it, to the last unit."""

__version__ = "0.1.0"
