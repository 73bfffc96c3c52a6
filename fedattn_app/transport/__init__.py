"""How arrays travel: held in memory until they leave the machine, and encoded by a codec."""
