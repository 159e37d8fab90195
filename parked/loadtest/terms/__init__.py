"""Words that several of the folders beside it use."""
