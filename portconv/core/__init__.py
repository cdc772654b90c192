"""The model: sizes, dtypes, layouts, and what passes between the rooms. No array and no library is known here."""
