"""Arrays between server and clients: their form in messages and their size on the network."""
