"""Workers that may crash or hang, and what the programs know of the machine: under `bench`, `check` and `cli`."""
