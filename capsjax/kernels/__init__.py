"""The same numbers, sooner: all that knows the habits of XLA."""
