"""What several parts share: whole files, processes that fail together, text of others, pictures of results."""
