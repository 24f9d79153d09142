"""The steps of the method: a module each."""
