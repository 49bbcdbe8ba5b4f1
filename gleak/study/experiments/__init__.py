"""What the chapters compute: a module for each."""
