"""A small, deterministic model over real stores: what gateway, flow and crash tests run on."""
