"""From statistics to the experts that stay: methods as functions to keep-sets, judged on held-back chunks."""
