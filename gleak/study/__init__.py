"""What makes the book: command, chapters, sweeps, verdicts, and the experiments of the chapters."""
