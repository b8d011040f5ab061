"""What is known about models, as tables. No I/O, and nothing of the engine: graph nodes are plain strings here."""
