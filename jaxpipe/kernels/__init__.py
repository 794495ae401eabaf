"""Dispatch of attention and matmul: every fast path stands beside its plain XLA twin."""
