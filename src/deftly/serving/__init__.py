"""The policy server, its clients, and the wire between them."""
