"""The rounds of a federation: select clients, check and combine their replies, record them."""
