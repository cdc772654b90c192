"""Array API namespaces of libraries that have none of their own: a package each, named after the library."""
