"""What we say to the model and how we read its reply: a file for each conversation."""
