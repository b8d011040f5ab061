"""From statistics to the experts that stay: methods as functions to keep-sets, and their judging on held-out chunks."""
