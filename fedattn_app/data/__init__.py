"""Examples: loaded from files, the hub or the built-in corpus, split over clients and tokenised."""
