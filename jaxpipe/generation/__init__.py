"""Generation: settings, key-value cache, the compiled loop, choice of tokens, stopping and streaming."""
