"""Checkpoints on disk and on the Hub: where they are, what their files hold, how weights are read and written."""
