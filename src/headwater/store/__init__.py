"""What is kept on disk: one SQLite file for registry, ledger, calls, keys and epochs, and one file for the receipt log.

Does not know what a share is worth or how an answer is measured; effects live here so that the stages stay pure.
"""
