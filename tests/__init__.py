"""All tests; a package, so that no dependency's stray `tests` folder can take the name."""
