"""From the call of a user to a plan: which library, which engine, and the packed weights that are kept."""
