"""What is particular to a published model: its files, its labels, its padding, its tokenizer."""
