"""The commands: each a few lines over the modules that do the work. What is heavy is imported where it is used."""
