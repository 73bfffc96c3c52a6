"""Examples: read from files, hubs or the built-in corpus, split over clients and tokenised."""
