"""How the chapters show what they found: a module for each."""
