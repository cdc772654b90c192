"""One adapter a library. A module has `backend(name)`, and importing it imports the library; nobody but the registry does that."""
