"""Texts and questions as vectors, nearest neighbours, and texts by id."""
