"""One adapter a library. A module has `backend(name)`; importing it imports the library, as only the registry does."""
