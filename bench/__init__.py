"""Speed and memory, measured beside a peer in the same run; see docs/benchmarks.md."""
