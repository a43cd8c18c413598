"""The gateway beside other gateways: one mock upstream, one load, interleaved runs on loopback."""
